"""What a pull takes from a peer, and what it does about one that cannot be reached or makes no sense."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from agent import peers
from agent.peers import PeerChannels, pull, pull_bulk
from cluster.bulk import BulkConnection
from cluster.errors import Fenced, GodwitError, NotManager, ProtocolError, Unavailable
from cluster.messages import AgentRequest, Chunk, Done, PullEnd, PullHeader, PullObject, Stamp
from cluster.rpc import Channel, SendReply, connect, listen
from cluster.wire import connect_wire
from tests.agent.network import TIMEOUT_S, free_address, run

REQUEST = PullObject(7, 1, 1, Stamp(10, 0, 0), b"")
END = PullEnd(b"digest")

Script = list[tuple[Any, bytes] | GodwitError]


class Source:
    """Answers a pull with what its script says."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def at_once(self, request: Any) -> None:
        del request

    async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
        del request, body
        for step in self._script:
            if isinstance(step, GodwitError):
                raise step
            await send(*step)
        await trio.sleep_forever()

    def closed(self) -> None:
        return


@asynccontextmanager
async def channel_to(script: Script) -> AsyncIterator[Channel]:
    address = free_address()
    decoder = msgspec.msgpack.Decoder(AgentRequest)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: listen(address, decoder, lambda _peer: Source(script), task_status=task_status))
        yield await connect(address, nursery, timeout_s=TIMEOUT_S)
        nursery.cancel_scope.cancel()


HEADER: tuple[Any, bytes] = (PullHeader(10), b"")

NONSENSE: list[Script] = [
    [(PullHeader(11), b"")],
    [(PullHeader(-1), b"")],
    [(Chunk(), b"x")],
    [(Done(), b"")],
    [HEADER, (END, b"")],
    [HEADER, (Chunk(), b"")],
    [HEADER, (Chunk(), b"x" * 11)],
    [HEADER, (Chunk(), b"x" * 10), (Chunk(), b"x")],
    [HEADER, HEADER],
    [HEADER, (Chunk(), b"x" * 9), (END, b"")],
]


async def received(script: Script) -> tuple[bytes, Channel]:
    content = b""

    def take(data: bytes) -> None:
        nonlocal content
        content += data

    async with channel_to(script) as channel:
        assert await pull(channel, REQUEST, take) == END
    return content, channel


@pytest.mark.parametrize("script", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_closes_the_connection(script: Script) -> None:
    async def test() -> None:
        def take(data: bytes) -> None:
            assert len(data) <= 10

        async with channel_to(script) as channel:
            with pytest.raises(ProtocolError):
                await pull(channel, REQUEST, take)
            assert channel.broken.is_set()

    run(test)


async def received_in_bulk(script: Script) -> bytes:
    content = b""

    def take(data: memoryview) -> None:
        nonlocal content
        content += data
        assert len(content) <= 10

    async with channel_to(script) as channel:
        wire = await connect_wire(channel.peer, timeout_s=TIMEOUT_S)
        try:
            assert await pull_bulk(BulkConnection(wire), REQUEST, 10, take, trio.CapacityLimiter(1)) == END
        finally:
            wire.close()
    return content


@pytest.mark.parametrize("script", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_in_bulk_too(script: Script) -> None:
    async def test() -> None:
        with pytest.raises(BaseExceptionGroup) as problem:
            await received_in_bulk(script)
        assert problem.group_contains(ProtocolError)

    run(test)


def test_exactly_the_announced_bytes_are_taken() -> None:
    async def test() -> None:
        content, _ = await received([HEADER, (Chunk(), b"abcd"), (Chunk(), b"efghij"), (END, b"")])
        assert content == b"abcdefghij"
        assert await received_in_bulk([HEADER, (Chunk(), b"abcd"), (Chunk(), b"efghij"), (END, b"")]) == content

    run(test)


@pytest.mark.parametrize("receive", [received, received_in_bulk])
@pytest.mark.parametrize("error", [Fenced("no"), NotManager("no"), Unavailable("no")])
def test_no_answer_of_a_peer_ends_this_agent(error: GodwitError, receive: Callable[[Script], Awaitable[Any]]) -> None:
    async def test() -> None:
        with pytest.raises(BaseExceptionGroup) as problem:
            await receive([HEADER, error])
        assert problem.group_contains(Unavailable)
        assert not problem.group_contains((Fenced, NotManager))

    run(test)


@pytest.mark.parametrize("receive", [received, received_in_bulk])
def test_a_silent_source_is_given_up(monkeypatch: pytest.MonkeyPatch, receive: Callable[[Script], Awaitable[Any]]) -> None:
    monkeypatch.setattr(peers, "STALL_S", 0.05)

    async def test() -> None:
        with pytest.raises(BaseExceptionGroup) as problem:
            await receive([HEADER, (Chunk(), b"abcd")])
        assert problem.group_contains(Unavailable, match="sent nothing")

    run(test)


def test_one_failed_connection_speaks_for_many() -> None:
    async def test() -> None:
        address = free_address()
        async with trio.open_nursery() as nursery:
            channels = PeerChannels(nursery)
            messages = set()
            for _ in range(50):
                with pytest.raises(Unavailable) as problem:
                    await channels.shared(address)
                messages.add(str(problem.value))
            assert len(messages) == 1
            decoder = msgspec.msgpack.Decoder(AgentRequest)
            await nursery.start(lambda task_status: listen(address, decoder, lambda _peer: Source([]), task_status=task_status))
            channel = None
            while channel is None:
                try:
                    channel = await channels.shared(address)
                except Unavailable:
                    await trio.sleep(0.02)
            assert await channels.shared(address) is channel
            channel.close()
            assert await channels.shared(address) is not channel
            nursery.cancel_scope.cancel()

    run(test)
