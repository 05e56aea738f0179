"""A manager in office without a network: requests go straight to its connections."""

import errno
import itertools
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import trio

from cluster.clock import monotonic_s
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig
from cluster.errors import refused
from cluster.messages import (
    PROTOCOL,
    ROOT_INO,
    Applied,
    Apply,
    ClaimTasks,
    Commit,
    Content,
    Create,
    GetAttr,
    Hello,
    Lookup,
    Node,
    OpenInode,
    Operation,
    Recall,
    RegisterVolumes,
    ReportTasks,
    Request,
    Stamp,
    TakeInodes,
    Task,
    TaskReport,
    VolumeState,
    WatchRecalls,
    Welcome,
)
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.office import read_office, take_office
from manager.catalog.store import STORE_LIMITS, Store, StoreLimits
from manager.memory.bounds import BOUNDS, Bounds
from manager.requests.connection import Connection
from manager.requests.routes import ROUTES, Candidate, Who
from manager.term import Term
from manager.workers.housekeeping import reap_loop, scan_loop
from manager.workers.migrations import migrate_loop
from manager.workers.volume_scans import volume_scan_loop
from tests.manager.databases import make_catalog
from tests.support.clocks import HURRY, hurried
from tests.support.trust import MASTER, trust_of
from tests.support.trust import peer as peer_of

R = TypeVar("R")

NOW = 1_700_000_000_000_000_000
GIB = 2**30
SECRET = MASTER
_sessions = itertools.count(1000)


def config(url: str, server: str = "s1", state: str = "/nonexistent", **settings: Any) -> ServerConfig:
    """*settings* are those of the manager; only whole candidates remember anything in *state*."""
    return ServerConfig(
        "test",
        server,
        ["127.0.0.1:7601"],
        ManagerConfig("127.0.0.1:7601", url, **{"max_attempts": 3, **settings}),
        AgentConfig("127.0.0.1:7602"),
        MountConfig("/mnt/godwit"),
        state,
        trust_of(server),
    )


class Peer:
    """A process that has introduced itself."""

    def __init__(self, office: Candidate, server: str, role: str, number: int) -> None:
        self.server, self.role, self.number = server, role, number
        self.connection = self.connected(office)
        self._office = office
        self.ids = itertools.count(1)
        self._outstanding: set[int] = set()
        self._inodes: itertools.count[int] | None = None

    def connected(self, office: Candidate) -> Connection:
        """A connection of this process to another manager."""
        return Connection(office, "test", peer_of(self.server, self.role))

    async def hello(
        self, opens: list[OpenInode] | None = None, caching: list[int] | None = None, *, unsent: bool = False
    ) -> Welcome:
        opened, cached = opens or [], caching or []
        return await self.ask(Hello(PROTOCOL, "test", self.server, self.role, self.number, opened, [], cached, unsent=unsent))

    async def ask(self, request: Request[R]) -> R:
        """As `cluster.rpc.connection` does for a process elsewhere; what only people may ask is asked by a command."""
        who = ROUTES[type(request)].who  # type: ignore[index]
        if self.role not in who and Who.ADMIN in who and isinstance(self._office, Office):
            return await self._office.admin.ask(request)

        async def send(_reply: Any, _body: Any) -> None:
            raise AssertionError("managers answer once")

        reply = self.connection.at_once(request)
        return cast(R, await self.connection.handle(request, b"", send) if reply is None else reply)

    async def watch(self, obey: Callable[[Recall], Awaitable[None]]) -> None:
        """Has *obey* called with each recall, one after the other, until the manager tells no more."""

        async def send(recall: Any, _body: Any) -> None:
            await obey(recall)

        await self.connection.handle(WatchRecalls(), b"", send)

    async def applied(self, *operations: Operation) -> Applied:
        number = next(self.ids)
        self._outstanding.add(number)
        try:
            return await self.ask(Apply(number, min(self._outstanding), list(operations)))
        finally:
            self._outstanding.discard(number)

    async def apply(self, *operations: Operation) -> list[Node | None]:
        return (await self.applied(*operations)).nodes

    async def one(self, operation: Operation) -> Node:
        (node,) = await self.apply(operation)
        assert node is not None
        return node

    async def new_ino(self) -> int:
        if self._inodes is None:
            self._inodes = itertools.count((await self.ask(TakeInodes(10_000))).first)
        return next(self._inodes)

    async def make(self, name: bytes, parent: int = ROOT_INO, mode: int = stat.S_IFREG | 0o644, **more: Any) -> Node:
        volume = 1 if stat.S_ISREG(mode) else 0
        fields = {"uid": 0, "gid": 0, "rdev": 0, "now_ns": NOW, "home_volume": volume, **more}
        return await self.one(Create(parent, name, await self.new_ino(), mode, **fields))

    async def mkdir(self, name: bytes, parent: int = ROOT_INO, mode: int = 0o755) -> Node:
        return await self.make(name, parent, stat.S_IFDIR | mode)

    async def attr(self, ino: int) -> Node:
        return (await self.ask(GetAttr(ino))).node

    async def lookup(self, name: bytes, parent: int = ROOT_INO) -> Node:
        node = (await self.ask(Lookup(parent, name))).node
        if node is None:
            raise refused(errno.ENOENT)
        return node

    async def commit(self, ino: int, version: int, *, final: bool = True, size: int = 10) -> Node:
        content = Content(size, -(-size // 4096) * 8, NOW + version, NOW + version)
        return await self.one(Commit(ino, 1, version, content, final))

    async def volume(self, uuid: str, *, free: int = 100 * GIB, total: int = 200 * GIB, device: str = "") -> int:
        state = VolumeState(uuid, f"/{uuid}", total, free, device or uuid)
        return (await self.ask(RegisterVolumes("127.0.0.1:7602", [state]))).volumes[0]

    async def claim(self, limit: int = 10, wait_s: float = 0.0) -> list[Task]:
        return (await self.ask(ClaimTasks(limit, wait_s))).tasks

    async def done(self, task: Task) -> None:
        report = TaskReport(task.task, task.claim, "done", version=task.version, checksum=b"c" * 32, stamp=Stamp(10, 1, 1))
        await self.ask(ReportTasks([report]))


class Office:
    """A term in office, as `manager.requests.routes.Candidate`."""

    def __init__(self, term: Term) -> None:
        self.term: Term | None = term
        self.number = term.number
        self.store = term.store
        self.state = term.state
        self.admin = Peer(self, "admin", Who.ADMIN, next(_sessions))

    def describe_manager(self) -> str:
        return "nobody"

    def answer(self, request: Any) -> Any:
        raise AssertionError(f"an office is no candidate: {request}")

    async def peer(self, server: str = "s1", role: str = "mount", opens: list[OpenInode] | None = None) -> Peer:
        peer = Peer(self, server, role, next(_sessions))
        await peer.hello(opens)
        return peer

    async def three_servers(self) -> tuple[Peer, Peer, Peer]:
        """The agents of s1, s2, s3 with volumes 1, 2, 3."""
        agents = []
        for number in (1, 2, 3):
            agent = await self.peer(f"s{number}", "agent")
            assert await agent.volume(f"u{number}") == number
            agents.append(agent)
        return agents[0], agents[1], agents[2]

    async def background(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Lets orphans be reaped, and scans and migrations be worked off, until *condition* holds."""
        assert self.term is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reap_loop, self.term)
            nursery.start_soon(scan_loop, self.term)
            nursery.start_soon(volume_scan_loop, self.term)
            nursery.start_soon(migrate_loop, self.term)
            with hurried():
                await until(condition, 10.0 * HURRY)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    """Waits until *condition* holds."""
    with trio.fail_after(within_s):
        while not await condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def in_office(
    url: str, server: str = "s1", *, bounds: Bounds = BOUNDS, limits: StoreLimits = STORE_LIMITS, **settings: Any
) -> AsyncIterator[Office]:
    """Takes the next term and holds it, without extending it, until the end of the block."""
    make_catalog(url)
    writer, reader = make_engines(url)
    with write_transaction(writer) as connection:
        seen = read_office(connection)
        assert take_office(connection, seen, server, "127.0.0.1:7601")
    async with trio.open_nursery() as nursery:
        store = Store(writer, reader, seen.term + 1, on_deposed=lambda: None, limits=limits)
        nursery.start_soon(store.run)
        now = monotonic_s()
        term = Term(config(url, server, **settings), store, now + 1e6, now + 1e6, now, bounds)
        await term.begin()
        office = Office(term)
        await office.admin.hello()
        yield office
        nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()


@asynccontextmanager
async def small_network(url: str, **settings: Any) -> AsyncIterator[tuple[Office, Peer]]:
    """An office with three agents, and the mount of s1."""
    async with in_office(url, **settings) as office:
        await office.three_servers()
        yield office, await office.peer()
