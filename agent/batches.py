"""Work of one moment done together: disks, connections and the interpreter all want few large steps.

While a batch is under way the next one gathers, so the size of the batches follows the load by itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")


class _Ticket(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | Exception | None = None
        self.done = trio.Event()


class Batcher(Generic[T, R]):
    """`act` gets items that wait together and returns a result or an exception for each, in order.

    It runs once at a time. An item that was submitted is acted on even if its submitter is cancelled. `count` says how many of
    those that wait go together, one at least.
    """

    def __init__(
        self, act: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], *, count: Callable[[Sequence[T]], int]
    ) -> None:
        self._act = act
        self._count = count
        self._waiting: list[_Ticket[T, R]] = []
        self._wake = trio.Event()

    async def run(self) -> None:
        """Works off what is submitted until cancelled."""
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            count = self._count([ticket.item for ticket in self._waiting])
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            results = await self._results(batch)
            for ticket, result in zip(batch, results, strict=True):
                ticket.result = result
                ticket.done.set()

    async def _results(self, batch: list[_Ticket[T, R]]) -> Sequence[R | Exception]:
        items = [ticket.item for ticket in batch]
        try:
            return await self._act(items)
        except Exception as error:
            return [error] * len(batch)

    async def submit(self, item: T) -> R:
        """The result for *item*; raises the exception that `act` returned for it."""
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
    """What blocks, for a `Batcher`; it is waited for even when cancelled."""

    async def act(items: Sequence[T]) -> Sequence[R | Exception]:
        results: list[R | Exception] = []
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
    """So many go together, for a `Batcher`."""
    return lambda items: min(limit, len(items))
