"""How often directories are held and called back: whoever is called back again and again waits before it holds anew.

A directory that had to be called back is not held again for `FIRST_WAIT_S`, and for twice as long each time, until it has been
held for `CALM_S` without a recall. One at which others have looked is not held for `SHARED_S`. In memory only, of the newest
`WAITS_MAX` directories; changed in the event loop only.
"""

from collections import OrderedDict
from typing import NamedTuple

from cluster.counters import Counters, counter, gauge
from cluster.messages import HoldCounts
from manager.memory.leases import HELD_S, Leases

FIRST_WAIT_S = 1.0
WAIT_MAX_S = 30.0
CALM_S = 60.0
SHARED_S = 3.0  # after somebody else had to give up what it cached of a directory
WAITS_MAX = 10_000

GRANTED = counter("godwit_holds_granted_total", "Directories that mounts were let hold on their request.")
REFUSED = counter("godwit_holds_refused_total", "Directories that mounts asked to hold and were not let.")
RECALLED = counter("godwit_holds_recalled_total", "Held directories that were called back.")
APPLIED = counter("godwit_records_applied_total", "Records of mounts that were applied.")
LOST = counter("godwit_records_lost_total", "Records of mounts that could not be applied as they were made.")
HELD = gauge("godwit_held_directories", "Directories with which a mount is alone.")


class _Wait(NamedTuple):
    until_s: float  # before that nobody holds it
    lasts_s: float  # how long that was


class Holds:
    """What one term knows of held directories beside their leases."""

    def __init__(self, leases: Leases, counters: Counters) -> None:
        self.granted = counters.cell(GRANTED)
        self.refused = counters.cell(REFUSED)
        self.recalled = counters.cell(RECALLED)
        self.applied = counters.cell(APPLIED)
        self.lost = counters.cell(LOST)
        self._held_s = counters.cell(HELD_S)  # in which the leases count
        self._count_held = leases.count_held_directories
        counters.follow(HELD, leases.count_held_directories)
        self._waits: OrderedDict[int, _Wait] = OrderedDict()  # by directory, in the order of the recalls

    def message(self) -> HoldCounts:
        """What has happened in this term."""
        return HoldCounts(
            held=self._count_held(),
            granted=int(self.granted.value),
            refused=int(self.refused.value),
            recalled=int(self.recalled.value),
            held_s=self._held_s.value,
            applied=int(self.applied.value),
            lost=int(self.lost.value),
        )

    def called_back(self, directory: int, since_s: float, now: float) -> None:
        """A directory is called back that has been held since *since_s*."""
        self.recalled.value += 1
        known = self._waits.pop(directory, None)
        again = known is not None and now - since_s < CALM_S
        lasts_s = min(known.lasts_s * 2, WAIT_MAX_S) if again and known is not None else FIRST_WAIT_S
        self._wait(directory, now + lasts_s, lasts_s)

    def looked_at(self, directory: int, now: float) -> None:
        """Somebody who only looked at a directory has to give up what it cached of it."""
        # It looks again: if the directory was held by then, and its holder died, it would have to wait.
        until_s, lasts_s = self._waits.pop(directory, _Wait(0.0, FIRST_WAIT_S))
        self._wait(directory, max(until_s, now + SHARED_S), lasts_s)

    def _wait(self, directory: int, until_s: float, lasts_s: float) -> None:
        self._waits[directory] = _Wait(until_s, lasts_s)
        if len(self._waits) > WAITS_MAX:
            self._waits.popitem(last=False)

    def wait_s(self, directory: int, now: float) -> float:
        """For how long the directory is not to be held; 0 if it may be."""
        known = self._waits.get(directory)
        return 0.0 if known is None else max(0.0, known.until_s - now)
