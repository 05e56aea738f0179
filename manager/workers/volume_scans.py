"""Looks at every file of a volume again, since the volume has stopped or begun to count.

`queue_volume_scan` is for whoever finds that out. The files are found by index and aligned a few at a time. A home on a volume
that does not count is moved if nobody can be writing the file; those of which that cannot be said yet are remembered, and the
scan ends only when they are done. A new manager, which does not remember them, begins all scans anew.
"""

from collections.abc import Iterable
from enum import Enum, auto
from functools import partial

import trio
from sqlalchemy import delete, insert, select, update

from cluster.clock import monotonic_s
from manager.catalog.schema import volume_scans
from manager.catalog.store import Transaction
from manager.memory.state import VOLUME_SCAN, State
from manager.tasks import align_inode, inodes_on
from manager.term import Term

BATCH = 64
PAUSE_S = 0.005  # between batches, so that requests go first
AGAIN_S = 2.0  # until homes that could not be moved are looked at again

_SCANS = select(volume_scans.c.volume, volume_scans.c.after).order_by(volume_scans.c.volume)


class Outcome(Enum):
    """What a round found: files to look at, homes that are held up, or nothing."""

    PROGRESS = auto()
    HELD_UP = auto()
    IDLE = auto()


def queue_volume_scan(tx: Transaction, state: State, volume: int) -> None:
    """Has every file with a replica on the volume looked at in the background (again from its beginning)."""
    known = tx.execute(select(volume_scans.c.volume).where(volume_scans.c.volume == volume)).first()
    if known is None:
        tx.execute(insert(volume_scans), {"volume": volume, "after": 0})
    else:
        tx.execute(update(volume_scans).where(volume_scans.c.volume == volume).values(after=0))
    tx.after(lambda: state.bells.ring(VOLUME_SCAN))


def align_some(tx: Transaction, state: State, volume: int, after: int) -> tuple[int, set[int]]:
    """Aligns the next files of a volume: the last of them (0: there is none) and those whose homes are held up."""
    found = inodes_on(tx.connection, volume, after, BATCH)
    last = found[-1] if found else 0
    if last:
        # Not if the scan was begun anew meanwhile.
        mine = (volume_scans.c.volume == volume) & (volume_scans.c.after == after)
        tx.execute(update(volume_scans).where(mine).values(after=last))
    return last, align_all(tx, state, found)


def align_all(tx: Transaction, state: State, numbers: Iterable[int]) -> set[int]:
    """Aligns these files; those whose homes are still held up."""
    return {ino for ino in numbers if not align_inode(tx, state, ino)}


def end_scan(tx: Transaction, volume: int, after: int) -> None:
    """The volume's files have all been looked at, unless the scan was begun anew meanwhile."""
    tx.execute(delete(volume_scans).where(volume_scans.c.volume == volume, volume_scans.c.after == after))


class VolumeScanner:
    """Works on all volumes that are to be scanned, and remembers which homes are held up."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._held_up: dict[int, set[int]] = {}
        self._again_at = 0.0

    async def begin(self) -> None:
        """Begins all scans anew."""
        await self._term.store.write(lambda tx: tx.execute(update(volume_scans).values(after=0)))

    async def run_once(self) -> Outcome:
        """One round over the volumes."""
        if self._term.state.in_grace:
            return Outcome.HELD_UP  # no home can be moved before its end
        scans = await self._term.store.read(lambda connection: connection.execute(_SCANS).all())
        worked = [await self._work_on(scan.volume, scan.after) for scan in scans]
        if any(worked):
            return Outcome.PROGRESS
        return Outcome.HELD_UP if scans else Outcome.IDLE

    async def _work_on(self, volume: int, after: int) -> bool:
        """Whether anything was found that had not been looked at."""
        state = self._term.state
        last, held_up = await self._term.store.write(lambda tx: align_some(tx, state, volume, after))
        waiting = self._held_up.setdefault(volume, set())
        waiting |= held_up
        if last:
            return True
        if waiting and monotonic_s() >= self._again_at:
            await self._look_again(waiting)
        if not waiting:
            await self._term.store.write(lambda tx: end_scan(tx, volume, after))
            del self._held_up[volume]
        return False

    async def _look_again(self, waiting: set[int]) -> None:
        state = self._term.state
        numbers = sorted(waiting)
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            still = await self._term.store.write(partial(align_all, state=state, numbers=batch))
            waiting.difference_update(set(batch) - still)
            await trio.sleep(PAUSE_S)
        self._again_at = monotonic_s() + AGAIN_S


async def volume_scan_loop(term: Term) -> None:
    """Scans volumes as they are queued."""
    scanner = VolumeScanner(term)
    await scanner.begin()
    while True:
        with term.state.bells.listening(VOLUME_SCAN) as bell:
            outcome = await scanner.run_once()
            if outcome is Outcome.IDLE:
                await bell.wait()
            elif outcome is Outcome.HELD_UP:
                with trio.move_on_after(AGAIN_S):
                    await bell.wait()
        await trio.sleep(PAUSE_S)
