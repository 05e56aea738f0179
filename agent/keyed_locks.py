"""Locks by key: at most one holder per inode, and no trace of a key that nobody wants."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)


class KeyedLocks(Generic[K]):
    """`async with locks.hold(key)`: holders of one key follow one another in the order in which they came."""

    def __init__(self) -> None:
        self._locks: dict[K, trio.Lock] = {}

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            statistics = lock.statistics()
            if not statistics.locked and not statistics.tasks_waiting and self._locks.get(key) is lock:
                del self._locks[key]

    def __len__(self) -> int:
        return len(self._locks)
