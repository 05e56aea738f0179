"""Looks at every file of a volume again, a few at a time, since the volume has stopped or begun to count.

A home on a volume that does not count is moved if nobody can be writing the file; those of which that cannot be said yet are
remembered, and the scan ends only when they are done. A new manager, which does not remember them, begins all scans anew.
"""

from enum import Enum, auto
from functools import partial

import trio
from sqlalchemy import select, update

from cluster.clock import monotonic_s
from manager.catalog.schema import volume_scans
from manager.changes.volume_scans import BATCH, align_all, align_some, end_scan
from manager.memory.state import VOLUME_SCAN
from manager.term import Term

PAUSE_S = 0.005  # between batches, so that requests go first
AGAIN_S = 2.0  # until homes that could not be moved are looked at again

_SCANS = select(volume_scans.c.volume, volume_scans.c.after).order_by(volume_scans.c.volume)


class Outcome(Enum):
    """What a round found: files to look at, homes that are held up, or nothing."""

    PROGRESS = auto()
    HELD_UP = auto()
    IDLE = auto()


class VolumeScanner:
    """Works on all volumes that are to be scanned, and remembers which homes are held up."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._held_up: dict[int, set[int]] = {}  # by volume: inodes whose homes could not be moved yet
        self._again_at = 0.0  # when they are looked at again

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
        # The files and how far the scan has come are in one transaction: if it fails, the page is looked at again.
        last, held_up = await self._term.store.write(lambda tx: align_some(tx, state, volume, after), grows=True)
        waiting = self._held_up.setdefault(volume, set())
        waiting |= held_up
        if last:
            return True
        if waiting and monotonic_s() >= self._again_at:
            await self._reexamine(waiting)
        if not waiting:
            await self._term.store.write(lambda tx: end_scan(tx, volume, after))
            del self._held_up[volume]
        return False

    async def _reexamine(self, waiting: set[int]) -> None:
        state = self._term.state
        numbers = sorted(waiting)
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            still = await self._term.store.write(partial(align_all, state=state, numbers=batch), grows=True)
            # What was added while this waited is in no batch, and stays.
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
