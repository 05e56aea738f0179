"""Mounts that hold directories and record what they change there: for tests of both."""

import itertools
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from cluster.messages import (
    ROOT_INO,
    ApplyRecords,
    Create,
    Expected,
    HeldDirectory,
    Hold,
    NamesPolicy,
    Node,
    Operation,
    Record,
    RecordsApplied,
    SetPolicy,
)
from tests.manager.caching import CachingMount, watching
from tests.manager.office import NOW, Office, Peer, small_network

M = TypeVar("M", bound="HoldingMount")


class HoldingMount(CachingMount):
    """Sends what it has recorded before it answers a recall."""

    def __init__(self, office: Office, peer: Any, *, obedient: bool = True) -> None:
        super().__init__(peer, obedient=obedient)
        self._office = office
        self._sequences = itertools.count(1)
        self.journal: list[Record] = []  # all that it has recorded
        self.sent = 0  # how many of them

    async def hold(self, ino: int = ROOT_INO) -> HeldDirectory:
        """Asks to be alone in a directory."""
        return await self.peer.ask(Hold(ino))

    async def holds(self, ino: int = ROOT_INO) -> HeldDirectory:
        """Is let alone in a directory."""
        answer = await self.hold(ino)
        assert answer.grant is not None, answer
        assert answer.grant.inodes[0] == ino
        return answer

    def record(self, operation: Operation, *expected: Node | Expected) -> None:
        """Records a change; it is not sent."""
        known = [item if isinstance(item, Expected) else Expected(item.ino, item.version) for item in expected]
        self.journal.append(Record(operation, known))

    async def create(self, name: bytes, parent: int = ROOT_INO, mode: int = stat.S_IFREG | 0o644, **more: Any) -> int:
        """Records that something is made; its number."""
        ino = await self.peer.new_ino()
        volume = int(self.peer.server[1:]) if stat.S_ISREG(mode) else 0
        fields = {"uid": 0, "gid": 0, "rdev": 0, "now_ns": NOW, "home_volume": volume, **more}
        self.record(Create(parent, name, ino, mode, **fields))
        return ino

    async def mkdir(self, name: bytes, parent: int = ROOT_INO) -> int:
        return await self.create(name, parent, stat.S_IFDIR | 0o755)

    def unsent(self, **more: Any) -> ApplyRecords:
        """The message with all that was not sent."""
        return ApplyRecords(self.peer.number, self.sent + 1, self.journal[self.sent :], **more)

    async def send(self, **more: Any) -> RecordsApplied:
        """Sends what was recorded and not sent yet."""
        request = self.unsent(**more)
        reply: RecordsApplied = await self.peer.ask(request)
        self.sent = max(self.sent, request.first + len(request.records) - 1)
        assert reply.last >= self.sent
        return reply

    async def answer(self, *opens: int) -> None:
        if len(self.journal) > self.sent:
            await self.send()
        await super().answer(*opens)


def alone_with(answer: Any) -> set[int]:
    """With what an answer says that the mount is alone."""
    return set() if answer.grant is None else set(answer.grant.inodes)


@asynccontextmanager
async def holding_mount(office: Office, server: str, kind: type[M]) -> AsyncIterator[M]:
    """A mount of *server* that watches recalls inside the block."""
    mount = kind(office, await office.peer(server))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.watch)
        await watching(office, mount)
        yield mount
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def held_network(url: str, **settings: Any) -> AsyncIterator[tuple[Office, HoldingMount, HoldingMount]]:
    """An office with three agents, where directories may be held; the mounts of s1, which holds as a rule, and of s2."""
    async with small_network(url, **settings) as (office, _):
        await office.admin.ask(SetPolicy(ROOT_INO, 2, 1, names=NamesPolicy.HELD))
        async with holding_mount(office, "s1", HoldingMount) as holder, holding_mount(office, "s2", HoldingMount) as other:
            yield office, holder, other


async def follow(peer: Peer, office: Office, *, unsent: bool = False) -> None:
    """The peer introduces itself to the next manager."""
    peer.connection = peer.connected(office)
    await peer.hello(unsent=unsent)


async def begun(nursery: trio.Nursery, work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Begins *work*, and returns when it waits for something; what it returns comes into the list."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await work())

    nursery.start_soon(run)
    # Longer than a thread takes that reads the catalog.
    await trio.sleep(0.05)
    return results
