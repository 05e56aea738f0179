"""The trash of a volume: what was deleted stays for a while, unless space is short.

A file in the trash is called `<ino>.<when it was deleted, in wall-clock nanoseconds>`.
"""

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from agent.loop import Outcome
from agent.volumes import LocalVolume, VolumeTable
from cluster.clock import file_time_ns
from cluster.volume.fence import despite_fence
from cluster.volume.layout import sync_directory

log = logging.getLogger(__name__)

SHORT_FRACTION = 0.05
SHORT_BYTES = 1024**3


def space_is_short(total_bytes: int, free_bytes: int) -> bool:
    """Whether so little is left that deleted objects must make room."""
    return free_bytes < min(total_bytes * SHORT_FRACTION, SHORT_BYTES)


def deleted_ns(name: str) -> int | None:
    """When the file of this name came into the trash; None for what Godwit did not put there."""
    ino, dot, when = name.partition(".")
    if dot and all(part.isascii() and part.isdigit() for part in (ino, when)):
        return int(when)
    return None


def to_purge(names: Iterable[str], now_ns: int, keep_s: float, *, short: bool) -> list[str]:
    """Which of the files in the trash must go now."""
    expired_before = now_ns - int(keep_s * 1e9)
    return [name for name in names if (when := deleted_ns(name)) is not None and (short or when <= expired_before)]


def discard_objects(volume: LocalVolume, inodes: Sequence[int]) -> list[bool | Exception]:
    """Moves objects to the trash, durably; False for those that were not there. Blocks."""
    results: list[bool | Exception] = []
    directories = set()
    for ino in inodes:
        source = volume.layout.object_path(ino)
        try:
            despite_fence(source, partial(os.rename, source, _free_name(volume, ino)))
        except FileNotFoundError:
            results.append(False)
        except OSError as error:
            results.append(error)
        else:
            results.append(True)
            directories.add(os.path.dirname(source))
    if directories:
        sync_directory(volume.layout.trash)
    for directory in directories:
        sync_directory(directory)
    return results


def _free_name(volume: LocalVolume, ino: int) -> str:
    when = file_time_ns()
    while os.path.lexists(name := f"{volume.layout.trash}/{ino}.{when}"):
        when += 1
    return name


def purge(volume: LocalVolume, keep_s: float, *, everything: bool = False) -> int:
    """Removes what is due and returns how many files went. Blocks; may run beside itself."""
    short = everything or space_is_short(*volume.space())
    gone = 0
    for name in to_purge(os.listdir(volume.layout.trash), file_time_ns(), keep_s, short=short):
        try:
            path = f"{volume.layout.trash}/{name}"
            despite_fence(path, partial(os.unlink, path))
            gone += 1
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    if gone:
        log.info("purged %d deleted objects from %s%s", gone, volume.layout.root, ", because space is short" if short else "")
    return gone


class TrashPurger:
    """Worker that purges all volumes, and the one who is asked when a volume is full."""

    name = "trash"

    def __init__(self, volumes: VolumeTable, keep_s: float) -> None:
        self._volumes = volumes
        self._keep_s = keep_s
        self._limiter = trio.CapacityLimiter(2)

    async def run_once(self) -> Outcome:
        for volume in self._volumes.volumes:
            await trio.to_thread.run_sync(purge, volume, self._keep_s, limiter=self._limiter)
        return Outcome.IDLE

    async def make_room(self, volume: LocalVolume) -> bool:
        """Purges all of a full volume's trash; whether there was any, so that trying again may help."""

        def purge_all() -> int:
            return purge(volume, self._keep_s, everything=True)

        return await trio.to_thread.run_sync(purge_all, limiter=self._limiter) > 0
