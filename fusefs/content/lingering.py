"""Files that were read and closed stay registered at the manager for a while, so that nobody is asked when one is opened again.

Meanwhile the extension may open them by itself (`fusefs.content.delegations`).

The manager hears of the close when the file was not opened again in time, when it may not be cached here any more, or before a
recall of it is answered, so that a change of the file finds it closed.
"""

import stat
from collections import OrderedDict
from collections.abc import Callable

import trio

from fusefs.caching.cache import Caching
from fusefs.content.delegations import Delegations
from fusefs.content.open_inode import OpenInode

LINGER_S = 5.0  # after the last close
LINGER_MAX = 4096  # at a time, if the process may have so many files open
DESCRIPTORS_EACH = 8  # for one that lingers there must be room for so many: it has two, and others need theirs
LOOK_S = 0.25  # how late at most one ends


class Lingering:
    """Which registrations linger. *end* has one of them ended, which asks `keeps` once more."""

    def __init__(
        self, caching: Caching, delegations: Delegations, end: Callable[[int], None], lingering_max: int = LINGER_MAX
    ) -> None:
        self._caching = caching
        self._delegations = delegations
        self._end = end
        self.lingering_max = lingering_max  # at a time
        self._until_s: OrderedDict[int, float] = OrderedDict()  # those that linger, the oldest first
        self._over: set[int] = set()  # those that are not kept when they are asked for next
        self._stopped = False

    def keeps(self, state: OpenInode) -> bool:
        """Whether the registration of an inode that nobody has open here stays for now."""
        ino = state.ino
        self._until_s.pop(ino, None)
        if ino in self._over or self._stopped or state.is_lost or not stat.S_ISREG(state.node.mode):
            self._over.discard(ino)
            return False
        # Without a lease to cache it, nobody would have it recalled before changing the file: the close must be heard of at once.
        if self._caching.node(ino) is None:
            return False
        self._until_s[ino] = trio.current_time() + LINGER_S
        self._delegations.begin(state)
        if len(self._until_s) > self.lingering_max:
            self._is_over(next(iter(self._until_s)))
        return True

    def __contains__(self, ino: int) -> bool:
        """Whether its registration lingers."""
        return ino in self._until_s

    def give_up(self, ino: int) -> bool:
        """Whether it lingered; it does not any more, and `keeps` says so once."""
        if self._until_s.pop(ino, None) is None:
            return False
        self._over.add(ino)
        return True

    def _is_over(self, ino: int) -> None:
        self.give_up(ino)
        self._end(ino)

    async def run(self) -> None:
        """Ends what has lingered for long enough, or may not be cached here any more, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for ino in self._delegations.used():
                # To the end: of too many, those that were used longest ago go first.
                if self._until_s.pop(ino, None) is not None:
                    self._until_s[ino] = now + LINGER_S
            for ino, until_s in list(self._until_s.items()):
                if until_s <= now or self._caching.node(ino) is None:
                    self._is_over(ino)

    def stop(self) -> None:
        """From now on nothing lingers."""
        self._stopped = True
        for ino in list(self._until_s):
            self._is_over(ino)


def lingering_max(descriptors: int) -> int:
    """How many may linger in a process that may have so many files open."""
    return min(LINGER_MAX, descriptors // DESCRIPTORS_EACH)
