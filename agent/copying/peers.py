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
    Hole,
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
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.session import ManagerSession
from cluster.rpc.wire import AgentAt, connect_wire
from cluster.tending import Tasks
from cluster.trust.credentials import Credentials

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
    """Connections to agents; their receivers run in *tasks*."""

    def __init__(self, tasks: Tasks, credentials: Credentials) -> None:
        self._tasks = tasks  # where receivers of connections run, until the agent ends
        self._credentials = credentials  # of this agent
        self._failed: dict[AgentAt, tuple[float, Unavailable]] = {}  # when the last attempt failed (monotonic), and why
        self._shared: dict[AgentAt, Channel] = {}  # broken ones stay until somebody wants them
        self._connecting: KeyedLocks[AgentAt] = KeyedLocks()  # one attempt at a time

    async def shared(self, agent: AgentAt) -> Channel:
        """The connection for small requests, made anew if it broke."""
        async with self._connecting.hold(agent):
            # Looked up under the lock: who waited for it uses the connection that the first one made.
            channel = self._shared.get(agent)
            if channel is not None and channel.is_stale:
                channel.retire()
                channel = None
            if channel is None or channel.broken.is_set():
                channel = self._shared[agent] = await self._connect(agent)
            return channel

    @asynccontextmanager
    async def own(self, agent: AgentAt) -> AsyncIterator[BulkConnection]:
        """A connection for one large transfer."""
        wire = await self._attempt(
            agent, partial(connect_wire, agent.address, self._credentials, agent.party, timeout_s=CONNECT_TIMEOUT_S)
        )
        try:
            yield BulkConnection(wire)
        finally:
            wire.close()

    async def _connect(self, agent: AgentAt) -> Channel:
        connect_to_it = partial(
            connect,
            agent.address,
            self._tasks,
            self._credentials,
            agent.party,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        return await self._attempt(agent, connect_to_it)

    async def _attempt(self, agent: AgentAt, connect_to_it: Callable[[], Awaitable[T]]) -> T:
        """Connects, unless that failed less than `FAILURE_HOLDS_S` ago: many copies may want the same dead peer."""
        failed_s, failure = self._failed.get(agent, (-1e9, None))
        if failure is not None and monotonic_s() - failed_s < FAILURE_HOLDS_S:
            # A new exception: raising the old one again would add to its traceback each time.
            raise Unavailable(str(failure), failure.errno)
        try:
            connection = await connect_to_it()
        except Unavailable as error:
            self._failed[agent] = (monotonic_s(), error)
            raise
        self._failed.pop(agent, None)
        return connection


class _Incoming:
    """What may be answered to a pull: exactly the announced bytes, then the end."""

    def __init__(self, peer: str, size: int, *, takes_holes: bool) -> None:
        self._peer = peer
        self._takes_holes = takes_holes
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
        elif isinstance(reply, Hole) and self._takes_holes and not body and 0 < reply.size <= self._left:
            self._left -= reply.size
        else:
            what = f"{type(reply).__name__} with {len(body)} bytes"
            raise ProtocolError(f"{self._peer} sent {what} where {self._left} bytes were left")


class SmallPulls:
    """Pulls small objects: those wanted of one volume while its agent answers go into the next request together."""

    def __init__(self, channels: PeerChannels, tasks: Tasks, *, stall_s: float = STALL_S) -> None:
        self._channels = channels
        self._tasks = tasks
        self._stall_s = stall_s  # until the answer to one request
        # by agent and volume; one for each that was ever asked, until the agent ends
        self._batchers: dict[tuple[AgentAt, int], Batcher[PullObject, SmallObject]] = {}

    async def pull(self, agent: AgentAt, request: PullObject) -> SmallObject:
        """The content, exactly as long as the stamp says, and the digest that the source computed.

        Raises what the source answers, `Unavailable` when it stalls, `ProtocolError` (and closes the connection) when it
        sends something else.
        """
        key = agent, request.volume  # a disk that hangs holds up no other
        batcher = self._batchers.get(key)
        if batcher is None:
            batcher = self._batchers[key] = Batcher(partial(self._pull, agent), count=together)
            # No await since the lookup: two tasks never make two batchers for one volume.
            self._tasks.start_soon(batcher.run)
        return await batcher.submit(request)

    async def pull_together(self, agent: AgentAt, requests: Sequence[PullObject]) -> Sequence[SmallObject | Exception]:
        """As `pull`, at once, for objects of one volume that fit into one answer (`together`); an exception for each that fails.

        Raises what all of them fail with: nobody asks for them one by one here.
        """
        return await self._exchange(await self._channels.shared(agent), requests)

    async def _pull(self, agent: AgentAt, requests: Sequence[PullObject]) -> Sequence[SmallObject | Exception]:
        channel = await self._channels.shared(agent)
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


def together(requests: Sequence[PullObject]) -> int:
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
    skip: Callable[[int], None] | None = None,
) -> PullEnd:
    """Receives *size* bytes into *sink*, which runs in threads of *limiter*, over a connection of its own. *skip* gets the
    lengths of holes, where the request takes them.

    Raises what the source answers, `Unavailable` when nothing comes for *stall_s*, `ProtocolError` when it sends something else.
    """
    incoming = _Incoming(connection.peer, size, takes_holes=skip is not None)

    def take(reply: Any, body: memoryview) -> bool:
        incoming.accept(reply, body)
        if body:
            sink(body)
        elif skip is not None and isinstance(reply, Hole):
            skip(reply.size)
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
