"""Files that were read and closed stay registered at the manager for a while, so that nobody is asked when one is opened again.

The manager hears of the close when the file was not opened again in time, when it may not be cached here any more, or before a
recall of it is answered, so that a change of the file finds it closed.
"""

import stat
from collections import OrderedDict
from collections.abc import Callable

import trio

from fusefs.caching.cache import Caching
from fusefs.content.open_inode import OpenInode

LINGER_S = 5.0  # after the last close
LINGER_MAX = 256  # each may have an object open
LOOK_S = 0.25  # how late at most one ends


class Lingering:
    """Which registrations linger. *end* has one of them ended, which asks `keeps` once more."""

    def __init__(self, caching: Caching, end: Callable[[int], None]) -> None:
        self._caching = caching
        self._end = end
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
        if len(self._until_s) > LINGER_MAX:
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
            for ino, until_s in list(self._until_s.items()):
                if until_s <= now or self._caching.node(ino) is None:
                    self._is_over(ino)

    def stop(self) -> None:
        """From now on nothing lingers."""
        self._stopped = True
        for ino in list(self._until_s):
            self._is_over(ino)
