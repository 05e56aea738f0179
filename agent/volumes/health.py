"""The health of a volume: what each report tells the manager, and what operators read about it.

A disk that does not answer is a problem of its volume only: each volume is asked in a thread of its own, for a bounded time. A
volume that cannot take content says that it has no free space, so that nothing new is placed there. Now and then a few bytes are
written to the disk and read back from it: what only the page cache answers says nothing of a disk.
"""

import errno
import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from agent.volumes.volume import LocalVolume
from cluster.clock import monotonic_s
from cluster.errors import GodwitError
from cluster.membership import VolumeCondition
from cluster.messages import VolumeState
from cluster.volume.probe import probe
from cluster.volume.room import is_nearly_full

log = logging.getLogger(__name__)

PATIENCE_S = 3.0  # well below `suspect_s`: a disk that hangs must not make its server look silent
PROBE_S = 10.0  # at the latest; at once after an error
FEW_INODES_PART = 50  # less than a fiftieth left


class Report(NamedTuple):
    """What is said of one volume; `problem` is empty if nothing is wrong. `is_gone`: it has to be opened anew."""

    state: VolumeState
    problem: str
    is_gone: bool = False


class Examiner:
    """Asks one volume how it is. `run` is called by one task at a time."""

    def __init__(self, volume: LocalVolume, patience_s: float = PATIENCE_S) -> None:
        self._volume = volume  # what is asked
        self._patience_s = patience_s  # then it is SILENT
        self._last = volume.opened_as  # what is reported of a volume that says nothing
        self._probe = _Probe(volume)  # tries the disk itself
        # One thread, however often it is asked while the disk hangs.
        self._thread = trio.CapacityLimiter(1)

    async def run(self) -> Report:
        """What the volume says, or within the patience that it does not answer."""
        with trio.move_on_after(self._patience_s):
            # Abandoned, not waited for: a thread in a hung system call cannot be ended. It keeps the only slot, so there is one
            # at most.
            report = await trio.to_thread.run_sync(self._look, monotonic_s(), limiter=self._thread, abandon_on_cancel=True)
            self._last = report.state
            return report
        silent = unusable(self._last, VolumeCondition.SILENT)
        return Report(silent, f"{self._last.path}: no answer within {self._patience_s:g} s")

    def _look(self, now: float) -> Report:
        report = examine(self._volume, self._last)
        if report.state.condition != VolumeCondition.GOOD:
            return report
        trouble = self._probe.run(now)
        if not trouble:
            return report
        return Report(unusable(report.state, VolumeCondition.FAILING), f"{self._last.path}: its disk is failing: {trouble}")


class _Probe:
    """Whether a volume's disk takes bytes and gives them back; asked by one thread at a time."""

    def __init__(self, volume: LocalVolume) -> None:
        self._volume = volume
        self._next_s = 0.0  # monotonic; tried at once at first
        self._counted = 0  # errors that were known at the last trial
        self._trouble = ""  # what the disk is taken for; empty if it is good

    def run(self, now: float) -> str:
        """What is wrong with the disk, or an empty string. Blocks."""
        troubles = self._volume.troubles
        if now >= self._next_s or troubles.count != self._counted:
            self._next_s, self._counted = now + PROBE_S, troubles.count
            error = probe(f"{self._volume.layout.root}/probe")
            if error is not None:
                self._trouble = f"{error.strerror} when it was tried"
            elif self._trouble and troubles.are_over(now):
                # One good trial is not enough after real errors: for a while there must be none.
                self._trouble = ""
        if not self._trouble and troubles.are_many(now):
            self._trouble = troubles.text
        return self._trouble


def examine(volume: LocalVolume, last: VolumeState) -> Report:
    """Looks at a volume; what it cannot say is as it was *last*. Blocks."""
    away, failing = unusable(last, VolumeCondition.AWAY), unusable(last, VolumeCondition.FAILING)
    try:
        # Three looks, since a disk can go in three ways: replaced, mounted anew, unmounted (`identity` raises).
        if volume.layout.identity().uuid != volume.uuid:
            return Report(away, f"{last.path}: another volume is there now", is_gone=True)
        if not volume.is_what_was_opened():
            return Report(away, f"{last.path}: was mounted anew, and is opened again", is_gone=True)
        status = os.statvfs(volume.layout.root)
        if not status.f_flag & os.ST_RDONLY:
            # Objects come and go through these. `objects` itself is not made anew: whoever has moved it away can bring it back.
            for folder in (volume.layout.staging, volume.layout.trash):
                _make_folder(folder)
    except GodwitError as error:
        return Report(away, f"{error} (is its disk mounted?)", is_gone=True)
    except OSError as error:
        return Report(failing, f"{error.filename or last.path}: {error.strerror}")
    # What is in the trash goes when room is needed.
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize + volume.trash.bytes
    state = msgspec.structs.replace(last, total_bytes=total, free_bytes=free, condition=str(VolumeCondition.GOOD))
    if status.f_flag & os.ST_RDONLY:
        return Report(unusable(state, VolumeCondition.READ_ONLY), f"{last.path}: read-only")
    return Report(state, shortage(last.path, status, volume.trash.bytes))


def _make_folder(path: Path) -> None:
    """Makes a directory that somebody has removed. Raises `OSError` if something else is in its place."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        log.warning("%s was missing: made anew", path)
        path.mkdir(mode=0o700)
        return
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))


def unusable(state: VolumeState, condition: VolumeCondition) -> VolumeState:
    return msgspec.structs.replace(state, free_bytes=0, condition=str(condition))


def shortage(path: str, status: os.statvfs_result, trash_bytes: int = 0) -> str:
    """What a file system is running out of, or an empty string."""
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize + trash_bytes
    if is_nearly_full(total, free):
        return f"{path}: nearly full"
    if status.f_files and status.f_favail < status.f_files // FEW_INODES_PART:
        return f"{path}: nearly out of inodes"
    return ""
