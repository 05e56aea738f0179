"""Throttles background work: while mounts ask much of the manager, agents get no new tasks, for a few seconds at most.

A copy that is made a moment later is as good, and one that was not begun costs nothing if its file is written again or removed
meanwhile. Nobody gives way for longer than `most_s`, while somebody waits for copies, or while a migration is carried out.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from cluster.clock import file_time_ns

RUSH_REQUESTS = 20  # of mounts; one with several operations counts as so many
RUSH_S = 0.2  # so many requests of mounts in so short a time are a rush
RECHECK_S = 0.1  # after so long it is looked again whether the rush is over


class Throttle:
    """Whether tasks are handed out at the moment. `migrating`: a migration is being carried out."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s  # for how long a task is held back, at most
        self._asked: deque[float] = deque(maxlen=RUSH_REQUESTS)  # when mounts last asked
        self._hurried = 0  # how many wait for copies
        self._hurry = trio.Event()  # set while anybody waits for copies
        self.migrating = False

    def asked(self, now: float, things: int = 1) -> None:
        """A mount has asked for so many things."""
        self._asked.extend([now] * min(things, RUSH_REQUESTS))

    def is_due(self, queued_ns: int, now: float) -> bool:
        """Whether a task that has been in its queue since then is handed out now."""
        if self._hurried or self.migrating or not self._is_rush(now):
            return True
        # By the clock of whoever was the manager then: a task from the future does not wait for it.
        return not 0 <= file_time_ns() - queued_ns < self._most_s * 1e9

    def _is_rush(self, now: float) -> bool:
        return len(self._asked) == RUSH_REQUESTS and now - self._asked[0] < RUSH_S

    async def give_way(self) -> None:
        """Waits for a moment, less if somebody comes to wait for copies."""
        with trio.move_on_after(RECHECK_S):
            await self._hurry.wait()

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """While inside, somebody waits for copies."""
        self._hurried += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._hurried -= 1
            if not self._hurried:
                self._hurry = trio.Event()
