"""Other agents: where their volumes are, and connections to them.

Small objects of one peer share a connection: their replies fit into the stream's window, so none of them can hold up
another. A large object has a connection of its own, so a slow writer at this end holds up nobody else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from agent.locks import KeyedLocks
from cluster.clock import monotonic_s
from cluster.errors import Fenced, NotManager, ProtocolError, Unavailable
from cluster.messages import Chunk, ListVolumes, PullEnd, PullHeader, PullObject, Volume
from cluster.rpc import Answer, Channel, connect
from cluster.session import ManagerSession

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
    async def own(self, address: str) -> AsyncIterator[Channel]:
        """A connection for one large transfer."""
        channel = await self._connect(address)
        try:
            yield channel
        finally:
            channel.close()

    async def _connect(self, address: str) -> Channel:
        """One attempt speaks for all that follow within a moment: many copies may want the same dead peer."""
        failed_s, failure = self._failed.get(address, (-1e9, None))
        if failure is not None and monotonic_s() - failed_s < FAILURE_HOLDS_S:
            raise Unavailable(str(failure), failure.errno)
        try:
            channel = await connect(address, self._nursery, timeout_s=CONNECT_TIMEOUT_S)
        except Unavailable as error:
            self._failed[address] = (monotonic_s(), error)
            raise
        self._failed.pop(address, None)
        return channel


async def pull(channel: Channel, request: PullObject, sink: Callable[[bytes], Awaitable[None]]) -> PullEnd:
    """Receives an object's bytes into *sink*, exactly as many as the stamp says.

    Raises what the source answers, `Unavailable` when it stalls, `ProtocolError` (and closes the connection) when it
    sends something else.
    """
    try:
        async with channel.open_stream(request) as replies:
            header = (await _next(replies, channel)).reply
            if not isinstance(header, PullHeader) or header.size != request.stamp.size:
                raise ProtocolError(f"{channel.peer} announced {header!r:.100} instead of {request.stamp.size} bytes")
            left = header.size
            while True:
                answer = await _next(replies, channel)
                if isinstance(answer.reply, PullEnd) and left == 0:
                    return answer.reply
                if not isinstance(answer.reply, Chunk) or not 0 < len(answer.body) <= left:
                    what = f"{type(answer.reply).__name__} with {len(answer.body)} bytes"
                    raise ProtocolError(f"{channel.peer} sent {what} where {left} bytes were left")
                left -= len(answer.body)
                await sink(answer.body)
    except ProtocolError:
        channel.close()
        raise
    except (Fenced, NotManager) as error:
        raise Unavailable(f"{channel.peer} answered what no agent answers: {error}") from error


async def _next(replies: AsyncIterator[Answer], channel: Channel) -> Answer:
    with trio.move_on_after(STALL_S):
        return await anext(replies)
    raise Unavailable(f"{channel.peer} sent nothing for {STALL_S:g} s")
