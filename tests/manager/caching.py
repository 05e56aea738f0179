"""Mounts that cache, and say so: for tests of grants and recalls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from cluster.errors import NotManager
from cluster.messages import Described, Found, GetAttr, Grant, Listing, Lookup, ReadDir, Recall, RecallDone
from manager.memory.mutations import QUIET_S
from tests.manager.office import Office, Peer, until
from tests.support.clocks import skip


class CachingMount:
    """A mount that watches recalls. `obedient`: it answers them at once; else they come together in `unanswered`."""

    def __init__(self, peer: Peer, *, obedient: bool = True) -> None:
        self.peer = peer
        self.obedient = obedient
        self.recalls: list[Recall] = []
        self.unanswered: list[Recall] = []
        self.came = trio.Event()
        self.opens: list[int] = []
        self.stopped = trio.Event()

    async def watch(self) -> None:
        """Takes recalls until the manager tells no more."""
        try:
            await self.peer.watch(self._obey)
        except NotManager:
            self.stopped.set()

    async def _obey(self, recall: Recall) -> None:
        self.recalls.append(recall)
        self.unanswered.append(recall)
        self.came.set()
        if self.obedient:
            await self.answer()

    async def recalled(self) -> None:
        """Waits for the next recall."""
        with trio.fail_after(10):
            await self.came.wait()
        self.came = trio.Event()

    async def answer(self, *opens: int) -> None:
        """Answers all recalls that have come."""
        numbers = [recall.number for recall in self.unanswered]
        self.unanswered.clear()
        await self.peer.ask(RecallDone(numbers, list(opens), sequence=50))

    async def attr(self, ino: int) -> Described:
        return await self.peer.ask(GetAttr(ino))

    async def lookup(self, name: bytes, parent: int = 1) -> Found:
        return await self.peer.ask(Lookup(parent, name))

    async def listing(self, ino: int = 1) -> Listing:
        return await self.peer.ask(ReadDir(ino, 0, 1000))

    async def caches(self, ino: int) -> None:
        """Has it granted the inode's attributes."""
        assert granted(await self.attr(ino)) == {ino}


def granted(answer: Any) -> set[int]:
    """What an answer lets the mount cache."""
    grant: Grant | None = answer.grant
    return set() if grant is None else set(grant.inodes)


async def watching(office: Office, mount: CachingMount) -> None:
    """Waits until the manager may grant the mount something."""

    async def is_watched() -> bool:
        session = office.state.sessions.get(mount.peer.number)
        return session is not None and session.watches

    await until(is_watched)


@asynccontextmanager
async def caching_mount(office: Office, server: str, *, obedient: bool = True) -> AsyncIterator[CachingMount]:
    """A mount of *server* that watches recalls inside the block."""
    mount = CachingMount(await office.peer(server), obedient=obedient)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.watch)
        await watching(office, mount)
        yield mount
        nursery.cancel_scope.cancel()


async def quiet() -> None:
    """Until what others have just changed may be granted."""
    await skip(QUIET_S)
