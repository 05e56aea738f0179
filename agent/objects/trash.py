"""The trash of a volume: what was deleted stays for a while, unless space is short.

A file in the trash is called `<ino>.<when it was deleted, in wall-clock nanoseconds>`.
`agent/objects/quarantine.py` uses the same names.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from agent.loop import Outcome
from agent.objects.quarantine import Generation, purge_unknown
from agent.objects.set_aside import parts_of, set_aside
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, monotonic_s, thread_s
from cluster.errors import error_text
from cluster.volume.fence import despite_fence

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0  # whether anything is old enough
COUNT_EVERY_S = 600.0  # how much it is
ROOM_PART = 0.75  # of a small volume: so much is kept free as long as there is trash
ROOM_BYTES = 4 * 1024**3  # of a large one


def room_wanted(total_bytes: int) -> int:
    """How much is to be free on the disk itself before deleted objects are kept: programs on the mount write past every
    process of Godwit, so that nobody could make room for them when they need it."""
    return min(int(total_bytes * ROOM_PART), ROOM_BYTES)


def to_purge(names: Iterable[str], now_ns: int, keep_s: float) -> list[str]:
    """Which of the files in the trash must go now, oldest first, whether or not there is room."""
    expired_before = now_ns - int(keep_s * 1e9)
    return [name for when_ns, name in _oldest_first(names) if when_ns <= expired_before]


def _oldest_first(names: Iterable[str]) -> list[tuple[int, str]]:
    return sorted((known.when_ns, name) for name in names if (known := parts_of(name)) is not None)


def discard_objects(volume: LocalVolume, inodes: Sequence[int]) -> list[bool | Exception]:
    """Moves objects to the trash, durably; False for those that were not there. Blocks."""
    # Before the move: afterwards the name in the trash is not known here.
    sizes = [_allocated(volume.layout.object_path(ino)) for ino in inodes]
    results = set_aside(volume, inodes, volume.layout.trash)
    volume.trash.add(sum(size for size, moved in zip(sizes, results, strict=True) if moved is True))
    return results


def _allocated(path: str) -> int:
    """Bytes on the disk; 0 if it is not there."""
    try:
        # st_blocks counts units of 512 bytes whatever the file system's block is; holes take none.
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def purge_expired(volume: LocalVolume, keep_s: float, now_ns: int) -> int:
    """Removes what is old enough and returns how many files went. Blocks; may run beside itself."""
    return _remove(volume, to_purge(os.listdir(volume.layout.trash), now_ns, keep_s), "since they are old")


def purge_for_room(volume: LocalVolume, wanted_bytes: int | None = None) -> int:
    """Removes the oldest files until so much is free on the disk (None: all of them); returns how many went. Blocks."""
    names = [name for _when_ns, name in _oldest_first(os.listdir(volume.layout.trash))]
    if wanted_bytes is None:
        # None means that a write has met ENOSPC: what is free does not matter, it was too little.
        return _remove(volume, names, "since space is short")
    # Read once and counted on: btrfs gives freed blocks back only when its transaction is committed.
    _total, free = volume.space()
    chosen = []
    for name in names:
        if free >= wanted_bytes:
            break
        free += _allocated(f"{volume.layout.trash}/{name}")
        chosen.append(name)
    return _remove(volume, chosen, "since space is short")


def _remove(volume: LocalVolume, names: Iterable[str], why: str) -> int:
    gone = 0
    for name in names:
        path = f"{volume.layout.trash}/{name}"
        size = _allocated(path)
        try:
            despite_fence(path, partial(os.unlink, path))
        except FileNotFoundError:
            # Another thread purges the same trash: whoever unlinked it has counted it.
            continue
        gone += 1
        volume.trash.add(-size)
        volume.trash.purged_s = thread_s()
    if gone:
        log.info("purged %d deleted objects from %s, %s", gone, volume.layout.root, why)
    return gone


class TrashPurger:
    """Worker that purges all volumes, and the one who is asked when a volume is full. What is unknown makes no room.

    Whether there is room is looked at in each step, whether anything is old enough now and then.
    """

    name = "trash"

    def __init__(self, volumes: VolumeTable, keep_s: float, generation: Generation, look_every_s: float = LOOK_EVERY_S) -> None:
        self._volumes = volumes
        self._keep_s = keep_s  # from the configuration; for trash and `unknown/` alike
        self._generation = generation  # set by the registration: which objects in `unknown/` may be older than the catalog
        self._look_every_s = look_every_s  # whether anything is old enough
        self._limiter = trio.CapacityLimiter(2)  # a disk that hangs takes one; `make_room` for another still has one
        self._problems: dict[LocalVolume, str] = {}  # the last error of each volume, so that each is logged once

    async def run_once(self) -> Outcome:
        for volume in self._volumes.volumes:
            step = partial(self._step, volume, self._generation.first_ino, monotonic_s())
            try:
                await trio.to_thread.run_sync(step, limiter=self._limiter)
                self._problems.pop(volume, None)
            except OSError as error:  # of one disk: the others are not to wait for it
                self._volumes.met(volume.number, error)
                text = error_text(error)
                if self._problems.get(volume) != text:
                    log.warning("the trash of %s is not purged: %s", volume.layout.root, text)
                self._problems[volume] = text
        self._problems = {volume: text for volume, text in self._problems.items() if volume in self._volumes.volumes}
        return Outcome.IDLE

    def _step(self, volume: LocalVolume, first_ino: int, passed_s: float) -> None:
        trash = volume.trash
        # On a read-only disk each unlink would be EROFS, an error a step.
        if os.statvfs(volume.layout.root).f_flag & os.ST_RDONLY:
            return
        # Counted again now and then: crashes and people's hands change the trash without our counter.
        if passed_s >= trash.counted_s + COUNT_EVERY_S:
            trash.counted(_sum(volume), passed_s)
        total, free = volume.space()
        if free < room_wanted(total):
            purge_for_room(volume, room_wanted(total))
        if passed_s >= trash.looked_s + self._look_every_s:
            trash.looked_s = passed_s
            now_ns = trash.clock.now_ns(file_time_ns(), passed_s)
            purge_expired(volume, self._keep_s, now_ns)
            # After the trash and never for room: what the catalog does not know may be the only copy.
            purge_unknown(volume, self._keep_s, first_ino, now_ns)

    async def make_room(self, volume: LocalVolume, since_s: float) -> bool:
        """Purges all of a full volume's trash; whether anybody has since then (by `thread_s`), so that trying again may help."""
        await trio.to_thread.run_sync(purge_for_room, volume, limiter=self._limiter)
        # Not what went just now: another attempt, or `run_once`, may have emptied it after the caller's had failed.
        return volume.trash.purged_s >= since_s


def _sum(volume: LocalVolume) -> int:
    names = os.listdir(volume.layout.trash)
    return sum(_allocated(f"{volume.layout.trash}/{name}") for name in names if parts_of(name) is not None)
