"""Tells mounts whose requests take long that the disk works, so that they go on waiting, as they do for their own disks.

A disk that has to write much answers small questions meanwhile; one that hangs answers none. So it is asked one, again and again,
while somebody waits for it, and what it answers is passed on: who hears nothing gives up in the time that it has for that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from agent.volumes.volume import LocalVolume
from cluster.clock import monotonic_s
from cluster.errors import Unavailable
from cluster.rpc.serving import Replies
from cluster.volume.probe import probe

WORKING_S = 1.0  # between two questions; a request that ends within it costs none


class _Waiting:
    """One request that is under way; `is_told` while its peer is being told."""

    __slots__ = ("began_s", "is_told", "send", "volume")

    def __init__(self, volume: LocalVolume, send: Replies) -> None:
        self.volume = volume
        self.send = send
        self.began_s = monotonic_s()
        self.is_told = False


class Progress:
    """The requests for which a disk is at work."""

    def __init__(self, ask: Callable[[str], OSError | None] = probe) -> None:
        self._ask_disk = ask
        self._waiting: dict[_Waiting, None] = {}  # oldest first
        self._asked: set[LocalVolume] = set()  # those whose disks have a question to answer

    @contextmanager
    def waited_for(self, volume: LocalVolume, send: Replies) -> Iterator[None]:
        """Inside, a request waits for the disk of *volume*, and *send* answers who made it."""
        waiting = _Waiting(volume, send)
        self._waiting[waiting] = None
        try:
            yield
        finally:
            del self._waiting[waiting]

    async def run(self) -> None:
        """Asks disks until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(WORKING_S)
                for volume in {waiting.volume for waiting in self._waited_long()} - self._asked:
                    self._asked.add(volume)
                    nursery.start_soon(self._ask, volume, nursery)

    def _waited_long(self) -> list[_Waiting]:
        since_s = monotonic_s() - WORKING_S
        return [waiting for waiting in self._waiting if waiting.began_s < since_s]

    async def _ask(self, volume: LocalVolume, nursery: trio.Nursery) -> None:
        """One question at a time: its thread stays as long as the disk does not answer."""
        # The file of the reports: a new one would need the journal, which waits for all that is being written. And with a
        # limiter of its own: all threads of the disk may be waiting for it.
        path, limiter = f"{volume.layout.root}/probe", trio.CapacityLimiter(1)
        try:
            trouble = await trio.to_thread.run_sync(self._ask_disk, path, limiter=limiter, abandon_on_cancel=True)
        finally:
            self._asked.discard(volume)
        if trouble is not None:
            return  # what waits for such a disk gets its error
        for waiting in self._waited_long():
            if waiting.volume is volume and not waiting.is_told:
                waiting.is_told = True
                nursery.start_soon(self._tell, waiting)

    async def _tell(self, waiting: _Waiting) -> None:
        # In a task of its own: a peer that takes nothing holds up no other.
        with suppress(Unavailable):  # who has gone waits no longer
            await waiting.send.working()
        waiting.is_told = False
