"""Other agents: where their volumes are, and connections to them.

Small objects are asked for together, over one connection to each peer. A large object has a connection of its own, so a slow
writer at this end holds up nobody else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import trio

from agent.batches import Batcher, side_by_side
from agent.copying.pulls import SmallObject
from agent.keyed_locks import KeyedLocks
from cluster.clock import monotonic_s
from cluster.errors import Fenced, GodwitError, NotManager, ProtocolError, TimedOut, Unavailable, from_failure
from cluster.messages import (
    PULLED_MAX_BYTES,
    PULLS_MAX,
    Chunk,
    Failure,
    Greeting,
    ListVolumes,
    Pulled,
    PullEnd,
    PullHeader,
    PullObject,
    PullObjects,
    SumBlocks,
    Volume,
)
from cluster.rpc.bulk import BulkConnection
from cluster.rpc.connection import Answer, Channel, connect, greeting_frame
from cluster.rpc.session import ManagerSession
from cluster.rpc.wire import connect_wire
from cluster.tending import Tasks

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0  # a peer on the same network answers within milliseconds, or is gone
FAILURE_HOLDS_S = 1.0  # that nobody tries an address again which has just failed
STALL_S = 20.0  # without a byte of a large object, or until the answer with small ones
DIRECTORY_AGE_S = 5.0  # a volume that moved to another address is found again after that
DIRECTORY_RETRY_S = 0.5  # between questions for a volume that the manager does not list
MANAGER_TIMEOUT_S = 15.0  # one question; the attempt that asks is repeated later


class VolumeDirectory:
    """All volumes of the network as the manager listed them a few seconds ago at most."""

    def __init__(self, session: ManagerSession) -> None:
        self._session = session  # who lists them
        self._volumes: dict[int, Volume] = {}  # by number, as listed last
        self._listed_s = -1e9  # monotonic, when that was; long ago at first
        self._lock = trio.Lock()  # one question at a time: those who wait for it find its answer

    async def find(self, number: int) -> Volume:
        """The volume; raises `Unavailable` if the manager does not list it or cannot be asked."""
        async with self._lock:
            age_s = monotonic_s() - self._listed_s
            if age_s > DIRECTORY_AGE_S or (number not in self._volumes and age_s > DIRECTORY_RETRY_S):
                listing = await self._session.call(ListVolumes(), timeout_s=MANAGER_TIMEOUT_S)
                self._volumes = {volume.volume: volume for volume in listing.volumes}
                self._listed_s = monotonic_s()
        # Read after the lock is free, without an await in between: the listing is the one that was just looked at.
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
    """Connections to agents by address, which are told *greeting*; their receivers run in *tasks*."""

    def __init__(self, tasks: Tasks, greeting: Greeting) -> None:
        self._tasks = tasks  # where receivers of connections run, until the agent ends
        self._greeting = greeting  # which cluster and protocol this is; a peer of another one refuses it
        self._failed: dict[str, tuple[float, Unavailable]] = {}  # by address: when the last attempt failed (monotonic), and why
        self._shared: dict[str, Channel] = {}  # by address; broken ones stay until somebody wants them
        self._connecting: KeyedLocks[str] = KeyedLocks()  # one attempt at an address at a time

    async def shared(self, address: str) -> Channel:
        """The connection for small requests, made anew if it broke."""
        async with self._connecting.hold(address):
            # Looked up under the lock: who waited for it uses the connection that the first one made.
            channel = self._shared.get(address)
            if channel is None or channel.broken.is_set():
                channel = self._shared[address] = await self._connect(address)
            return channel

    @asynccontextmanager
    async def own(self, address: str) -> AsyncIterator[BulkConnection]:
        """A connection for one large transfer."""
        wire = await self._attempt(address, partial(connect_wire, address, timeout_s=CONNECT_TIMEOUT_S))
        try:
            # The greeting and the request go without an answer in between: one round trip less for each large copy.
            await wire.send(greeting_frame(self._greeting))
            yield BulkConnection(wire)
        finally:
            wire.close()

    async def _connect(self, address: str) -> Channel:
        connect_to_it = partial(connect, address, self._tasks, timeout_s=CONNECT_TIMEOUT_S, greeting=self._greeting)
        return await self._attempt(address, connect_to_it)

    async def _attempt(self, address: str, connect_to_it: Callable[[], Awaitable[T]]) -> T:
        """Connects, unless the address failed less than `FAILURE_HOLDS_S` ago: many copies may want the same dead peer."""
        failed_s, failure = self._failed.get(address, (-1e9, None))
        if failure is not None and monotonic_s() - failed_s < FAILURE_HOLDS_S:
            # A new exception: raising the old one again would add to its traceback each time.
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
        self._left = size  # bytes announced that have not come
        self._announced = False  # the header has come, which must be the first
        self.end: PullEnd | None = None  # the source's digest; set exactly once, by the last reply

    def accept(self, reply: Any, body: bytes | memoryview) -> None:
        """Notes a reply, the last of which becomes `end`; raises `ProtocolError` for one that makes no sense here."""
        if not self._announced:
            # A size other than the stamp's is a defect of the peer; the object has just been checked against the stamp there.
            if not isinstance(reply, PullHeader) or reply.size != self._left:
                raise ProtocolError(f"{self._peer} announced {reply!r:.100} instead of {self._left} bytes")
            self._announced = True
        elif isinstance(reply, PullEnd) and self._left == 0:
            self.end = reply
        elif isinstance(reply, Chunk) and 0 < len(body) <= self._left:
            # More than announced is refused before it reaches the disk.
            self._left -= len(body)
        else:
            what = f"{type(reply).__name__} with {len(body)} bytes"
            raise ProtocolError(f"{self._peer} sent {what} where {self._left} bytes were left")


class SmallPulls:
    """Pulls small objects: those wanted of one volume while its agent answers go into the next request together."""

    def __init__(self, channels: PeerChannels, tasks: Tasks, *, stall_s: float = STALL_S) -> None:
        self._channels = channels
        self._tasks = tasks
        self._stall_s = stall_s  # until the answer to one request
        # by address and volume; one for each that was ever asked, until the agent ends
        self._batchers: dict[tuple[str, int], Batcher[PullObject, SmallObject]] = {}

    async def pull(self, address: str, request: PullObject) -> SmallObject:
        """The content, exactly as long as the stamp says, and the digest that the source computed.

        Raises what the source answers, `Unavailable` when it stalls, `ProtocolError` (and closes the connection) when it
        sends something else.
        """
        key = address, request.volume  # a disk that hangs holds up no other
        batcher = self._batchers.get(key)
        if batcher is None:
            batcher = self._batchers[key] = Batcher(partial(self._pull, address), count=_together)
            # No await since the lookup: two tasks never make two batchers for one volume.
            self._tasks.start_soon(batcher.run)
        return await batcher.submit(request)

    async def _pull(self, address: str, requests: Sequence[PullObject]) -> Sequence[SmallObject | Exception]:
        channel = await self._channels.shared(address)
        try:
            return await self._exchange(channel, requests)
        except Unavailable as error:
            # Alone it has had its chance; a broken connection is everybody's trouble, and the attempts come again by themselves.
            if len(requests) == 1 or channel.broken.is_set() or not isinstance(error, TimedOut):
                raise
        # A disk may have given one of them after minutes, or never: the others need not wait for it.
        return await side_by_side(partial(self._pull_alone, channel), requests)

    async def _pull_alone(self, channel: Channel, request: PullObject) -> SmallObject | Exception:
        try:
            (result,) = await self._exchange(channel, [request])
        except Exception as error:
            # As a value: `side_by_side` would cancel the other pulls if one of them raised.
            return error
        return result

    async def _exchange(self, channel: Channel, requests: Sequence[PullObject]) -> list[SmallObject | Exception]:
        with _answers_of(channel.peer):
            answer = await channel.exchange(PullObjects(list(requests)), timeout_s=self._stall_s)
        try:
            return _small_objects(channel.peer, requests, answer)
        except ProtocolError:
            # What else is in flight on this connection cannot be told apart any more.
            channel.close()
            raise


def _together(requests: Sequence[PullObject]) -> int:
    """How many of the first fit into one answer."""
    sizes = accumulate(request.stamp.size for request in requests[:PULLS_MAX])
    # One at least: a single object beyond the limit is refused by the source, not left waiting here for ever.
    return max(1, sum(size <= PULLED_MAX_BYTES for size in sizes))


def _small_objects(peer: str, requests: Sequence[PullObject], answer: Answer) -> list[SmallObject | Exception]:
    results = answer.reply.results if isinstance(answer.reply, Pulled) else []
    # The answer is not trusted: `zip` may be short here, which the next line finds.
    sizes = [0 if isinstance(result, Failure) else request.stamp.size for request, result in zip(requests, results, strict=False)]
    # The lengths alone decide where an object ends in the body, so they must add up to the byte.
    if len(results) != len(requests) or sum(sizes) != len(answer.body):
        what = f"{answer.reply!r:.100} with {len(answer.body)} bytes"
        raise ProtocolError(f"{peer} answered {what} when asked for {len(requests)} objects")
    objects: list[SmallObject | Exception] = []
    start = 0
    for result, size in zip(results, sizes, strict=True):
        if isinstance(result, Failure):
            objects.append(_answered(peer, from_failure(result.kind, result.errno, result.message)))
        else:
            objects.append(SmallObject(answer.body[start : start + size], result.checksum))
            start += size
    return objects


async def pull_bulk(
    connection: BulkConnection,
    request: PullObject | SumBlocks,
    size: int,
    sink: Callable[[memoryview], None],
    limiter: trio.CapacityLimiter,
    stall_s: float = STALL_S,
) -> PullEnd:
    """Receives *size* bytes into *sink*, which runs in threads of *limiter*, over a connection of its own.

    Raises what the source answers, `Unavailable` when nothing comes for *stall_s*, `ProtocolError` when it sends something else.
    """
    incoming = _Incoming(connection.peer, size)

    def take(reply: Any, body: memoryview) -> bool:
        incoming.accept(reply, body)
        if body:
            sink(body)
        return incoming.end is not None

    with _answers_of(connection.peer):
        await connection.ask(request, take, limiter=limiter, stall_s=stall_s)
    if incoming.end is None:
        raise ProtocolError(f"{connection.peer} did not end its answer")
    return incoming.end


@contextmanager
def _answers_of(peer: str) -> Iterator[None]:
    try:
        yield
    except (Fenced, NotManager) as error:
        raise _answered(peer, error) from error


def _answered(peer: str, error: GodwitError) -> GodwitError:
    """A peer's error as this agent has to treat it."""
    if isinstance(error, (Fenced, NotManager)):
        # Both are a manager's to say: `Fenced` ends the process (`tended`), and no peer may do that.
        return Unavailable(f"{peer} answered what no agent answers: {error}")
    return error
