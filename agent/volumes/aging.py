"""The age of deleted objects, counted in time that has passed, whatever is done to the wall clock.

Files in the trash bear the wall-clock time of their deletion. They age with the time that has passed while an agent was at
work: `now_ns` goes forward with the monotonic clock, never beyond the wall clock. It is kept in the volume, so that a clock
that is wrong when the machine starts makes nothing older. What passes while no agent is at work is not counted: that keeps
longer.
"""

import logging
import os
from pathlib import Path

from cluster.durable import replace_file
from cluster.errors import error_text
from cluster.volume.regular import open_regular

log = logging.getLogger(__name__)

KEPT_EVERY_S = 60.0  # a crash makes the trash at most a minute younger


class TrashClock:
    """The time by which one volume's trash ages."""

    def __init__(self, path: Path) -> None:
        self._path = path  # `trash.clock` of the volume
        self._now_ns: int | None = None  # None until the first look of this process
        self._looked_s = 0.0  # of the monotonic clock, at the last look
        self._kept_s = 0.0  # when it was written last

    def now_ns(self, wall_ns: int, passed_s: float) -> int:
        """The trash's time; *passed_s*: seconds of a clock that nobody sets. Blocks; what cannot be kept is begun anew."""
        if self._now_ns is None:
            # From where the last agent stopped, never ahead of the wall clock, by which files bear their time.
            self._now_ns = min(wall_ns, _read(self._path, wall_ns))
            self._kept_s = passed_s - KEPT_EVERY_S
        else:
            self._now_ns = min(wall_ns, self._now_ns + int((passed_s - self._looked_s) * 1e9))
        self._looked_s = passed_s
        if passed_s - self._kept_s >= KEPT_EVERY_S:
            self._kept_s = passed_s
            _write(self._path, self._now_ns)
        return self._now_ns


def _read(path: Path, otherwise_ns: int) -> int:
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return otherwise_ns


def _write(path: Path, now_ns: int) -> None:
    """As a whole; what a crash takes back makes nothing older."""
    try:
        replace_file(path, b"%d" % now_ns, synced=False)
    except OSError as error:
        log.info("%s is not kept: %s", path, error_text(error, with_file=False))
