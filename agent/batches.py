"""Batches: items that wait at the same moment are acted on together, since disks and connections prefer few large steps.

While a batch is under way the next one gathers, so the size of the batches follows the load by itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from cluster.errors import Undone

T = TypeVar("T")
R = TypeVar("R")

ENDED = "the volume has been closed"


class _Ticket(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item  # what `act` gets
        self.result: R | Exception | None = None  # set by `run` before `done`; an exception is the submitter's to raise
        self.done = trio.Event()  # also set when the batcher ends, so that no submitter waits for ever


class Batcher(Generic[T, R]):
    """Collects items that wait, and hands them to `act`, which returns a result or an exception for each, in order.

    `act` runs once at a time. An item that was submitted is acted on even if its submitter is cancelled. `count` says how many of
    those that wait go together, one at least.
    """

    def __init__(
        self, act: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], *, count: Callable[[Sequence[T]], int]
    ) -> None:
        self._act = act  # called with one batch at a time
        self._count = count  # of those that wait, how many from the front make one batch
        self._waiting: list[_Ticket[T, R]] = []  # submitted and not yet taken, oldest first
        self._wake = trio.Event()  # set by `submit`; made anew by `run` when nothing waits
        self._has_ended = False  # nobody works off what is submitted now: `submit` refuses it

    async def run(self) -> None:
        """Works off what is submitted until cancelled; what waits then, or comes later, gets `Undone`."""
        try:
            while True:
                while not self._waiting:
                    self._wake = trio.Event()
                    await self._wake.wait()
                # While `act` runs, others submit: they are the next batch. That is what makes batches grow with the load.
                batch = self._take()
                for ticket, result in zip(batch, await self._results(batch), strict=True):
                    ticket.result = result
                    ticket.done.set()
        finally:
            self._has_ended = True
            # The batch under way is not among them: `in_thread` lets it end first, and a pull's is cancelled with the whole
            # agent.
            for ticket in self._waiting:
                ticket.result = Undone(ENDED)
                ticket.done.set()

    def _take(self) -> list[_Ticket[T, R]]:
        count = self._count([ticket.item for ticket in self._waiting])
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _results(self, batch: list[_Ticket[T, R]]) -> Sequence[R | Exception]:
        items = [ticket.item for ticket in batch]
        try:
            results = await self._act(items)
        except Exception as error:
            # One exception for all of them: `act` did not say which item it was about.
            return [error] * len(batch)
        # A wrong count cannot be told apart from a wrong order, so nobody gets a result that may be another's.
        return results if len(results) == len(batch) else [RuntimeError(f"{len(results)} results of {len(batch)}")] * len(batch)

    async def submit(self, item: T) -> R:
        """The result for *item*; raises the exception that `act` returned for it."""
        if self._has_ended:
            raise Undone(ENDED)
        ticket: _Ticket[T, R] = _Ticket(item)
        self._waiting.append(ticket)
        self._wake.set()
        await ticket.done.wait()
        result = ticket.result
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]


def in_thread(
    function: Callable[[Sequence[T]], Sequence[R | Exception]], limiter: trio.CapacityLimiter
) -> Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]:
    """An `act` for a `Batcher` that runs *function* in a thread, and waits for it even when cancelled."""

    async def act(items: Sequence[T]) -> Sequence[R | Exception]:
        results: list[R | Exception] = []
        # A thread cannot be stopped: left alone, it would rename or delete while the caller believes that nothing happens any
        # more.
        with trio.CancelScope(shield=True):
            results += await trio.to_thread.run_sync(function, items, limiter=limiter)
        return results

    return act


async def side_by_side(act: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """What *act* returns for each item, in order."""
    results: dict[int, R] = {}

    async def run(at: int, item: T) -> None:
        results[at] = await act(item)

    async with trio.open_nursery() as nursery:
        for at, item in enumerate(items):
            nursery.start_soon(run, at, item)
    return [results[at] for at in range(len(items))]


def at_most(limit: int) -> Callable[[Sequence[T]], int]:
    """A `count` for a `Batcher`: batches of at most *limit* items."""
    return lambda items: min(limit, len(items))
