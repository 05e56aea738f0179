"""How a volume is: what the manager is told of it in each report, and what people are told is wrong with it.

A disk that does not answer is a problem of its volume only: each volume is asked in a thread of its own, for a bounded time. A
volume that cannot take content says that it has no free space, so that nothing new is placed there.
"""

import os
from typing import NamedTuple

import msgspec
import trio

from agent.volumes import LocalVolume
from cluster.errors import GodwitError
from cluster.messages import VolumeState

PATIENCE_S = 3.0
NEARLY_FULL_PART = 50  # less than a fiftieth left
NEARLY_FULL_BYTES = 64 * 1024 * 1024
SMALL_PART = 20  # of a small volume, 64 MiB may be most: then a twentieth counts


class Report(NamedTuple):
    """What is said of one volume; `problem` is empty if nothing is wrong."""

    state: VolumeState
    problem: str


class Examiner:
    """Asks one volume how it is. `run` is called by one task at a time."""

    def __init__(self, volume: LocalVolume, patience_s: float = PATIENCE_S) -> None:
        self._volume = volume
        self._patience_s = patience_s
        self._last = volume.opened_as
        # One thread, however often it is asked while the disk hangs.
        self._thread = trio.CapacityLimiter(1)

    async def run(self) -> Report:
        """What the volume says, or within the patience that it does not answer."""
        with trio.move_on_after(self._patience_s):
            report = await trio.to_thread.run_sync(
                examine, self._volume, self._last, limiter=self._thread, abandon_on_cancel=True
            )
            self._last = report.state
            return report
        return Report(unusable(self._last), f"{self._last.path}: no answer within {self._patience_s:g} s")


def examine(volume: LocalVolume, last: VolumeState) -> Report:
    """Looks at a volume; what it cannot say is as it was *last*. Blocks."""
    try:
        if volume.layout.identity().uuid != volume.uuid:
            return Report(unusable(last), f"{last.path}: another volume is there now")
        status = os.statvfs(volume.layout.root)
    except GodwitError as error:
        return Report(unusable(last), f"{error} (is its disk mounted?)")
    except OSError as error:
        return Report(unusable(last), f"{last.path}: {error.strerror}")
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    state = msgspec.structs.replace(last, total_bytes=total, free_bytes=free)
    if status.f_flag & os.ST_RDONLY:
        return Report(unusable(state), f"{last.path}: read-only")
    return Report(state, shortage(last.path, status))


def unusable(state: VolumeState) -> VolumeState:
    return msgspec.structs.replace(state, free_bytes=0)


def shortage(path: str, status: os.statvfs_result) -> str:
    """What a file system is running out of, or an empty string."""
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    if free < max(total // NEARLY_FULL_PART, min(NEARLY_FULL_BYTES, total // SMALL_PART)):
        return f"{path}: nearly full"
    if status.f_files and status.f_favail < status.f_files // NEARLY_FULL_PART:
        return f"{path}: nearly out of inodes"
    return ""
