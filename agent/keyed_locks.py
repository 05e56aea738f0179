"""Locks by key: at most one holder per inode, and no trace of a key that nobody wants."""

from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)


class KeyedLocks(Generic[K]):
    """`async with locks.hold(key)`: holders of one key follow one another in the order in which they came."""

    def __init__(self) -> None:
        self._locks: dict[K, trio.Lock] = {}  # only of keys that somebody holds or waits for

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        # No await between this and the wait for the lock: a lock found here is not deleted before we are counted as waiting.
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            statistics = lock.statistics()
            # trio hands a lock to the first who waits as it is released, so it is locked here if anybody is left who wants it.
            if not statistics.locked and not statistics.tasks_waiting and self._locks.get(key) is lock:
                del self._locks[key]

    @contextmanager
    def hold_free(self, keys: Iterable[K]) -> Iterator[list[K]]:
        """Holds those of the keys, all different, that nobody holds now, without waiting for the others; gives them."""
        held: list[K] = []
        try:
            for key in keys:
                if key not in self._locks:
                    self._locks[key] = trio.Lock()
                    self._locks[key].acquire_nowait()
                    held.append(key)
            yield held
        finally:
            for key in held:
                lock = self._locks[key]
                lock.release()
                # As in `hold`: it is locked now if somebody has waited for it.
                if not lock.locked():
                    del self._locks[key]

    def __len__(self) -> int:
        return len(self._locks)
