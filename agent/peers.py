"""Other agents: where their volumes are, and connections to them.

Small objects of one peer share a connection: their replies fit into the stream's window, so none of them can hold up
another. A large object has a connection of its own, so a slow writer at this end holds up nobody else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from agent.locks import KeyedLocks
from cluster.bulk import BulkConnection
from cluster.clock import monotonic_s
from cluster.errors import Fenced, NotManager, ProtocolError, Unavailable
from cluster.messages import Chunk, ListVolumes, PullEnd, PullHeader, PullObject, SumBlocks, Volume
from cluster.rpc import Answer, Channel, connect
from cluster.session import ManagerSession
from cluster.wire import connect_wire

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
FAILURE_HOLDS_S = 1.0
STALL_S = 20.0
DIRECTORY_AGE_S = 5.0
DIRECTORY_RETRY_S = 0.5
MANAGER_TIMEOUT_S = 15.0


class VolumeDirectory:
    """All volumes of the network as the manager listed them a few seconds ago at most."""

    def __init__(self, session: ManagerSession) -> None:
        self._session = session
        self._volumes: dict[int, Volume] = {}
        self._listed_s = -1e9
        self._lock = trio.Lock()

    async def find(self, number: int) -> Volume:
        """The volume; raises `Unavailable` if the manager does not list it or cannot be asked."""
        async with self._lock:
            age_s = monotonic_s() - self._listed_s
            if age_s > DIRECTORY_AGE_S or (number not in self._volumes and age_s > DIRECTORY_RETRY_S):
                listing = await self._session.call(ListVolumes(), timeout_s=MANAGER_TIMEOUT_S)
                self._volumes = {volume.volume: volume for volume in listing.volumes}
                self._listed_s = monotonic_s()
        if number not in self._volumes:
            raise Unavailable(f"the manager knows no volume {number}")
        return self._volumes[number]

    async def is_up(self, number: int) -> bool:
        """Whether the manager hears the volume's server."""
        try:
            return (await self.find(number)).up
        except Unavailable:
            return False


class PeerChannels:
    """Connections to agents by address; their receivers run in *nursery*."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._failed: dict[str, tuple[float, Unavailable]] = {}
        self._shared: dict[str, Channel] = {}
        self._connecting: KeyedLocks[str] = KeyedLocks()

    async def shared(self, address: str) -> Channel:
        """The connection for small requests, made anew if it broke."""
        async with self._connecting.hold(address):
            channel = self._shared.get(address)
            if channel is None or channel.broken.is_set():
                channel = self._shared[address] = await self._connect(address)
            return channel

    @asynccontextmanager
    async def own(self, address: str) -> AsyncIterator[BulkConnection]:
        """A connection for one large transfer."""
        wire = await self._attempt(address, partial(connect_wire, address, timeout_s=CONNECT_TIMEOUT_S))
        try:
            yield BulkConnection(wire)
        finally:
            wire.close()

    async def _connect(self, address: str) -> Channel:
        return await self._attempt(address, partial(connect, address, self._nursery, timeout_s=CONNECT_TIMEOUT_S))

    async def _attempt(self, address: str, connect_to_it: Callable[[], Awaitable[T]]) -> T:
        """One attempt speaks for all that follow within a moment: many copies may want the same dead peer."""
        failed_s, failure = self._failed.get(address, (-1e9, None))
        if failure is not None and monotonic_s() - failed_s < FAILURE_HOLDS_S:
            raise Unavailable(str(failure), failure.errno)
        try:
            connection = await connect_to_it()
        except Unavailable as error:
            self._failed[address] = (monotonic_s(), error)
            raise
        self._failed.pop(address, None)
        return connection


class _Incoming:
    """What may be answered to a pull: exactly the announced bytes, then the end."""

    def __init__(self, peer: str, size: int) -> None:
        self._peer = peer
        self._left = size
        self._announced = False
        self.end: PullEnd | None = None

    def accept(self, reply: Any, body: bytes | memoryview) -> None:
        """Notes a reply, the last of which becomes `end`; raises `ProtocolError` for one that makes no sense here."""
        if not self._announced:
            if not isinstance(reply, PullHeader) or reply.size != self._left:
                raise ProtocolError(f"{self._peer} announced {reply!r:.100} instead of {self._left} bytes")
            self._announced = True
        elif isinstance(reply, PullEnd) and self._left == 0:
            self.end = reply
        elif isinstance(reply, Chunk) and 0 < len(body) <= self._left:
            self._left -= len(body)
        else:
            what = f"{type(reply).__name__} with {len(body)} bytes"
            raise ProtocolError(f"{self._peer} sent {what} where {self._left} bytes were left")


async def pull(channel: Channel, request: PullObject, sink: Callable[[bytes], None]) -> PullEnd:
    """Receives a small object's bytes into *sink*, exactly as many as the stamp says.

    Raises what the source answers, `Unavailable` when it stalls, `ProtocolError` (and closes the connection) when it
    sends something else.
    """
    incoming = _Incoming(channel.peer, request.stamp.size)
    try:
        with _answers_of(channel.peer):
            async with channel.open_stream(request) as replies:
                while incoming.end is None:
                    answer = await _next(replies, channel)
                    incoming.accept(answer.reply, answer.body)
                    if answer.body:
                        sink(answer.body)
    except ProtocolError:
        channel.close()
        raise
    return incoming.end


async def pull_bulk(
    connection: BulkConnection,
    request: PullObject | SumBlocks,
    size: int,
    sink: Callable[[memoryview], None],
    limiter: trio.CapacityLimiter,
) -> PullEnd:
    """As `pull`, of *size* bytes over a connection of its own; *sink* runs in threads of *limiter*."""
    incoming = _Incoming(connection.peer, size)

    def take(reply: Any, body: memoryview) -> bool:
        incoming.accept(reply, body)
        if body:
            sink(body)
        return incoming.end is not None

    with _answers_of(connection.peer):
        await connection.ask(request, take, limiter=limiter, stall_s=STALL_S)
    if incoming.end is None:
        raise ProtocolError(f"{connection.peer} did not end its answer")
    return incoming.end


@contextmanager
def _answers_of(peer: str) -> Iterator[None]:
    try:
        yield
    except (Fenced, NotManager) as error:
        raise Unavailable(f"{peer} answered what no agent answers: {error}") from error


async def _next(replies: AsyncIterator[Answer], channel: Channel) -> Answer:
    with trio.move_on_after(STALL_S):
        return await anext(replies)
    raise Unavailable(f"{channel.peer} sent nothing for {STALL_S:g} s")
