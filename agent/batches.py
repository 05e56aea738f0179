"""Work of one moment done together in one thread: disks and the interpreter both want few large steps.

While a batch is under way the next one gathers, so the size of the batches follows the load by itself.
"""

from collections.abc import Callable, Sequence
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
    """`act` gets the items that wait together and returns a result or an exception for each, in order.

    It runs in a thread, once at a time. An item that was submitted is acted on even if its submitter is cancelled.
    """

    def __init__(
        self, act: Callable[[Sequence[T]], Sequence[R | Exception]], *, limit: int, limiter: trio.CapacityLimiter
    ) -> None:
        self._act = act
        self._limit = limit
        self._limiter = limiter
        self._waiting: list[_Ticket[T, R]] = []
        self._wake = trio.Event()

    async def run(self) -> None:
        """Works off what is submitted until cancelled."""
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
            with trio.CancelScope(shield=True):
                results = await self._results(batch)
            for ticket, result in zip(batch, results, strict=True):
                ticket.result = result
                ticket.done.set()

    async def _results(self, batch: list[_Ticket[T, R]]) -> Sequence[R | Exception]:
        items = [ticket.item for ticket in batch]
        try:
            return await trio.to_thread.run_sync(self._act, items, limiter=self._limiter)
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
