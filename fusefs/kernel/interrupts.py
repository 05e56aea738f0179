"""FUSE_INTERRUPT: ends the wait of a program that a signal interrupts.

The kernel sends it once, for whatever signal comes first. From then on the mount looks whether the program is to end
(`fusefs.kernel.signals`). If so, what has not begun for it yet ends with EINTR (`cluster.rpc.waiters`); if that brings no answer
at once, the kernel is answered EINTR. The request goes on, with nobody waiting for it: what was sent to the manager is applied
once, as always; what the request opens is closed again; and the kernel is made to forget what the answer would have told it.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from cluster.rpc.waiters import Waiter, current_waiter, work_for
from cluster.tending import Tasks
from fusefs.caching.changes import Change
from fusefs.kernel.signals import ends_waiting, signals_of
from fusefs.kernel.stream import Whose

LOOK_S = 0.1  # soon enough for somebody at a terminal, seldom enough for a thousand who wait


class Stream(Protocol):
    """What `fusefs.kernel.stream.Channel` knows of requests."""

    def whose(self, unique: int) -> Whose | None: ...

    def abandon(self, unique: int) -> bool: ...


def is_unanswered() -> bool:
    """Whether the program of this task's request was answered EINTR: what the task opens for it has to be closed."""
    waiter = current_waiter()
    return waiter is not None and waiter.answered


class Interrupts:
    """The requests that are being handled, and the watches over those that were interrupted, in *tasks*.

    *forget* has the kernel forget inodes and names, when that can be without anybody waiting.
    """

    def __init__(
        self, stream: Stream, tasks: Tasks, forget: Callable[[set[int], set[tuple[int, bytes]]], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._tasks = tasks
        self._forget = forget
        self._waiters: dict[int, Waiter] = {}  # requests that are being handled, by the kernel's number
        self._unanswered: dict[int, int] = {}  # the inodes that the requests named

    def begin(self, unique: int) -> Waiter:
        """From now on this task works for this request, until `end`."""
        waiter = self._waiters[unique] = Waiter()
        work_for(waiter)
        return waiter

    def end(self, unique: int) -> None:
        """It is done, and answered at once."""
        waiter = self._waiters.pop(unique, None)
        work_for(None)  # pyfuse3 uses the task for other requests
        # The answer was dropped: the kernel is to forget what it does not know to have changed.
        if waiter is not None and waiter.answered:
            self._tasks.start_soon(self._forget, *self._uncertain(unique, waiter))

    def _uncertain(self, unique: int, waiter: Waiter) -> tuple[set[int], set[tuple[int, bytes]]]:
        inodes, names = {self._unanswered.pop(unique)}, set[tuple[int, bytes]]()
        for change in waiter.changes:
            assert isinstance(change, Change)
            inodes |= set(change.inodes)
            names |= set(change.names)
        return inodes, names

    def came(self, unique: int) -> None:
        """The kernel reports a signal for the program that waits for this request."""
        self._tasks.start_soon(self._watch, unique)

    async def _watch(self, unique: int) -> None:
        begun_s = trio.current_time()
        while (whose := self._stream.whose(unique)) is not None:
            signals = signals_of(whose.pid) if whose.pid else None
            if ends_waiting(signals, trio.current_time() - begun_s):
                await self._end(unique, whose)
                return
            await trio.sleep(LOOK_S)

    async def _end(self, unique: int, whose: Whose) -> None:
        waiter = self._waiters.get(unique)
        if waiter is None:
            return
        waiter.end()
        await trio.sleep(LOOK_S)  # what can end by itself has its own answer
        if self._waiters.get(unique) is waiter and self._stream.abandon(unique):
            waiter.was_interrupted()
            self._unanswered[unique] = whose.ino
