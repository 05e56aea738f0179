"""Bulk bodies: whole and in order at any size, between threads that no slow peer holds; what breaks ends only its connection."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio

from cluster.decoding import Decode, from_msgpack
from cluster.errors import Changed, GodwitError, ProtocolError, Unavailable
from cluster.messages import AGENT_UNION, Chunk, Done, Hole, Message, PullEnd, PullObject, Stamp
from cluster.rpc.bulk import TURN_BYTES, BulkConnection
from cluster.rpc.connection import connect
from cluster.rpc.frames import BODY_MAX_BYTES, pack
from cluster.rpc.serving import Handler, Replies, listen
from cluster.rpc.wire import ANYBODY, Wire, connect_wire, parse_address
from tests.agent.network import TIMEOUT_S, free_address
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)

PULL = PullObject(1, 1, 1, Stamp(0, 0, 0), b"")
SIZES = [1, 5, 4096, 1 << 20, BODY_MAX_BYTES, 77]
CONTENT = [os.urandom(size) for size in SIZES]
MANY = 64
"""Chunks of 1 MiB: more than the buffers between a source and a reader that has stopped."""

WITH_HOLES: list[bytes | Hole] = [Hole(1), b"content", Hole(2), Hole(3)] * MANY


class Source(Handler):
    """Sends `CONTENT` for version 1, then fails for inode 2; for version 2 a long row of chunks. It has one thread."""

    def __init__(self, turn_bytes: int = TURN_BYTES) -> None:
        self.limiter = trio.CapacityLimiter(1)
        self.turn_bytes = turn_bytes
        self.closed_connections = 0

    def at_once(self, request: Any) -> None:
        del request

    async def handle(self, request: PullObject, body: bytes, send: Replies) -> PullEnd:
        del body
        rest = self._parts(request.version)

        def next_body() -> bytes | Hole | None:
            if not rest and request.ino == 2:
                raise Changed("while it was read")
            return rest.pop(0) if rest else None

        await send.bodies(Chunk(plain=request.takes_plain), next_body, self.limiter, turn_bytes=self.turn_bytes)
        return PullEnd(b"digest")

    def _parts(self, version: int) -> list[bytes | Hole]:
        if version == 3:
            return list(WITH_HOLES)
        return [bytes(1 << 20)] * MANY if version == 2 else list(CONTENT)

    def closed(self) -> None:
        self.closed_connections += 1


@asynccontextmanager
async def served(turn_bytes: int = TURN_BYTES) -> AsyncIterator[tuple[Source, str, trio.Nursery]]:
    source, address = Source(turn_bytes), free_address()
    decoder: Decode[Any] = from_msgpack(AGENT_UNION)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: listen(
                address, decoder, lambda _peer: source, credentials("s1", "agent"), task_status=task_status
            )
        )
        yield source, address, nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connection_to(address: str, turn_bytes: int = TURN_BYTES) -> AsyncIterator[tuple[BulkConnection, Wire]]:
    wire = await connect_wire(address, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
    try:
        yield BulkConnection(wire, turn_bytes), wire
    finally:
        wire.close()


async def bodies_of(connection: BulkConnection, request: PullObject = PULL) -> list[bytes]:
    bodies: list[bytes] = []

    def take(reply: Message, body: memoryview) -> bool:
        bodies.append(bytes(body))
        return isinstance(reply, PullEnd)

    await connection.ask(request, take, limiter=trio.CapacityLimiter(1), stall_s=TIMEOUT_S)
    return bodies


@pytest.mark.parametrize("plain", [False, True])
async def test_bodies_of_all_sizes_come_whole_and_in_order(plain: bool) -> None:
    async with served() as (_source, address, _nursery), connection_to(address) as (connection, _wire):
        for _ in range(3):
            assert await bodies_of(connection, msgspec.structs.replace(PULL, takes_plain=plain)) == [*CONTENT, b""]
            assert await bodies_of(connection) == [*CONTENT, b""]


async def test_a_plain_body_that_was_not_asked_for_is_none() -> None:
    await answered_with(pack(1, msgspec.msgpack.encode(Chunk(plain=True)), b"content"), ProtocolError)


async def test_replies_without_a_body_come_in_order_and_let_others_have_the_thread() -> None:
    turn_bytes = 3 << 20
    async with served(turn_bytes) as (_source, address, _nursery):
        came: list[tuple[int, Message | bytes]] = []
        limiter = trio.CapacityLimiter(1)

        async def ask(who: int) -> None:
            def take(reply: Message, body: memoryview) -> bool:
                came.append((who, bytes(body) or reply))
                return isinstance(reply, PullEnd)

            async with connection_to(address, turn_bytes) as (connection, _wire):
                await connection.ask(msgspec.structs.replace(PULL, version=3), take, limiter=limiter, stall_s=TIMEOUT_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            nursery.start_soon(ask, 2)
    for who in (1, 2):
        assert [what for its, what in came if its == who] == [*WITH_HOLES, PullEnd(b"digest")]
    taken = [who for who, _what in came]
    assert sum(one != other for one, other in pairwise(taken)) > MANY // 2


async def test_they_are_frames_like_all_others() -> None:
    async with served() as (_source, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        async with channel.open_stream(PULL) as replies:
            for content in CONTENT:
                assert (await anext(replies)).body == content
            assert (await anext(replies)).reply == PullEnd(b"digest")
        channel.close()


async def test_a_failure_comes_in_the_place_of_a_body_and_leaves_the_connection_good() -> None:
    async with served() as (_source, address, _nursery), connection_to(address) as (connection, _wire):
        with pytest.raises(Changed, match="while it was read"):
            await bodies_of(connection, msgspec.structs.replace(PULL, ino=2))
        assert await bodies_of(connection) == [*CONTENT, b""]


async def test_a_reader_that_stops_holds_no_thread() -> None:
    async with served() as (source, address, _nursery):
        async with connection_to(address) as (_connection, wire):
            await wire.send(pack(1, msgspec.msgpack.encode(msgspec.structs.replace(PULL, version=2))))
            assert await wire.readable_within(TIMEOUT_S)
            async with connection_to(address) as (other, _wire):
                assert await bodies_of(other) == [*CONTENT, b""]
        with trio.fail_after(TIMEOUT_S):
            while source.closed_connections < 2:
                await trio.sleep(0.005)
        async with connection_to(address) as (other, _wire):
            assert len(await bodies_of(other, msgspec.structs.replace(PULL, version=2))) == MANY + 1


async def test_many_transfers_take_turns_in_one_thread() -> None:
    turn_bytes = 3 << 20
    async with served(turn_bytes) as (_source, address, _nursery):
        finished: list[int] = []

        async def ask(version: int) -> None:
            async with connection_to(address, turn_bytes) as (connection, _wire):
                await bodies_of(connection, msgspec.structs.replace(PULL, version=version))
                finished.append(version)

        async with trio.open_nursery() as asking:
            asking.start_soon(ask, 2)
            asking.start_soon(ask, 2)
            asking.start_soon(ask, 1)
        assert sorted(finished) == [1, 2, 2]


async def test_what_the_taker_raises_is_raised_and_a_silent_peer_is_given_up() -> None:
    def refuse(_reply: Message, _body: memoryview) -> bool:
        raise OSError("disk")

    async with served() as (_source, address, _nursery):
        async with connection_to(address) as (connection, _wire):
            with pytest.raises(OSError, match="disk"):
                await connection.ask(PULL, refuse, limiter=trio.CapacityLimiter(1), stall_s=TIMEOUT_S)
        async with connection_to(address) as (connection, _wire):
            with pytest.raises(Unavailable, match="sent nothing"):
                await connection.ask(PULL, lambda _reply, _body: False, limiter=trio.CapacityLimiter(1), stall_s=0.05)


async def answered_with(answer: bytes, expected: type[GodwitError]) -> None:
    """What is raised when a peer answers a request with these bytes, and then ends the connection."""
    address = free_address()

    async def peer(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, credentials("s1", "agent").serving, server_side=True, https_compatible=True)
        await stream.receive_some()
        await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(parse_address(address)[1], host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, peer, listeners)
        async with connection_to(address) as (connection, _wire):
            with pytest.raises(expected):
                await bodies_of(connection)
        nursery.cancel_scope.cancel()


CHUNK = msgspec.msgpack.encode(Chunk())
NONSENSE: dict[str, tuple[bytes, type[GodwitError]]] = {
    "another number": (pack(2, CHUNK), ProtocolError),
    "no head": (pack(1, b""), ProtocolError),
    "garbage in the head": (pack(1, b"\xc1garbage"), ProtocolError),
    "no such message": (pack(1, msgspec.msgpack.encode(["nonsense"])), ProtocolError),
    "too long": (b"\xff" * 16, ProtocolError),
    "an end within a frame": (pack(1, CHUNK, b"x" * 100)[:-1], Unavailable),
    "an end within a header": (pack(1, msgspec.msgpack.encode(Done()))[:7], Unavailable),
}


@pytest.mark.parametrize("case", NONSENSE.values(), ids=list(NONSENSE))
async def test_nonsense_and_broken_connections_are_errors(case: tuple[bytes, type[GodwitError]]) -> None:
    await answered_with(*case)


async def test_a_wire_that_is_closed_while_it_is_lent_ends_the_transfer() -> None:
    async def until_it_fails(transfer: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(Unavailable):
            await transfer()

    async with served() as (_source, address, nursery), connection_to(address) as (connection, wire):
        async with trio.open_nursery() as asking:
            started = trio.Event()

            async def stall() -> None:
                def take(_reply: Message, _body: memoryview) -> bool:
                    trio.from_thread.run_sync(started.set)
                    return False

                await connection.ask(PULL, take, limiter=trio.CapacityLimiter(1), stall_s=TIMEOUT_S)

            asking.start_soon(until_it_fails, stall)
            await started.wait()
            wire.close()
        nursery.cancel_scope.cancel()
