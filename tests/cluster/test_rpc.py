"""Connections: calls side by side, cancelled, broken; garbage at either end harms only the connection it came over."""

import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from cluster.decoding import Decode, from_msgpack
from cluster.errors import Changed, GodwitError, NoSpace, Refused, TimedOut, Unavailable
from cluster.messages import (
    AGENT_UNION,
    Chunk,
    Content,
    Data,
    Done,
    ObjectStat,
    PullEnd,
    PullHeader,
    PullObject,
    ReadObject,
    Stamp,
    StatObject,
    SyncObject,
    WriteObject,
    Written,
)
from cluster.rpc.bounds import PATIENCE, Patience
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.frames import BODY_MAX_BYTES, HEADER, PREFACE, pack
from cluster.rpc.serving import Handler, Replies, listen
from cluster.rpc.wire import ANYBODY, parse_address
from tests.support.trust import credentials, raw

pytestmark = pytest.mark.deadline(30)

TIMEOUT_S = 5.0
PULL = PullObject(1, 1, 1, Stamp(0, 0, 0), b"")
STAT = ObjectStat(Content(1, 2, 3, 4))


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Service(Handler):
    """A handler whose answers depend on the request; `release` lets SyncObject go on."""

    def __init__(self) -> None:
        self.release = trio.Event()
        self.started = 0
        self.cancelled = 0
        self.connections_closed = 0

    def at_once(self, request: Any) -> Any:
        match request:
            case StatObject(ino=5):
                return STAT
            case StatObject(ino=6):
                raise Refused("no such thing", errno.ENOENT)
            case StatObject(ino=7):
                raise RuntimeError("a bug")
        return None

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        self.started += 1
        match request:
            case StatObject(ino=1):
                return STAT
            case StatObject(ino=2):
                raise Refused("no such thing", errno.ENOENT)
            case StatObject(ino=3):
                raise NoSpace("full")
            case StatObject():
                raise RuntimeError("a bug")
            case ReadObject():
                return Answer(Data(), bytes(request.length))
            case WriteObject():
                return Written(len(body))
            case SyncObject():
                try:
                    await self.release.wait()
                except trio.Cancelled:
                    self.cancelled += 1
                    raise
                return Done()
            case PullObject():
                await send(PullHeader(request.version), b"")
                for _ in range(request.version):
                    await send(Chunk(), b"x" * 100_000)
                if request.ino == 2:
                    raise Changed("while it was read")
                return PullEnd(b"digest")

    def closed(self) -> None:
        self.connections_closed += 1


@asynccontextmanager
async def served(
    service: Service | None = None, patience: Patience = PATIENCE
) -> AsyncIterator[tuple[Service, str, trio.Nursery]]:
    service, address = service or Service(), free_address()
    async with trio.open_nursery() as nursery:
        serving = partial(listen, address, DECODER, lambda _peer: service, credentials("s1", "agent"), patience=patience)
        await nursery.start(lambda task_status: serving(task_status=task_status))
        yield service, address, nursery
        nursery.cancel_scope.cancel()


DECODER: Decode[Any] = from_msgpack(AGENT_UNION)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(TIMEOUT_S):
        while not condition():
            await trio.sleep(0.005)


async def drain(channel: Channel, request: PullObject, after: trio.Event | None = None) -> None:
    """Reads a stream until it raises; waits for *after* before the first reply."""
    async with channel.open_stream(request) as replies:
        if after is not None:
            await after.wait()
        async for _answer in replies:
            pass


class AtWork(Service):
    """Says every 50 ms that it is at work on what it never answers, `says` times."""

    says = 0

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        for _ in range(self.says):
            await trio.sleep(0.05)
            await send.working()
        return await super().handle(request, body, send)


async def test_who_is_told_that_the_peer_is_at_work_goes_on_waiting() -> None:
    async with served(AtWork()) as (service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        assert isinstance(service, AtWork)
        service.says = 10
        told: list[float] = []
        began_s = trio.current_time()
        with pytest.raises(TimedOut):
            await channel.exchange(SyncObject(1, 1, b""), timeout_s=0.3, works=lambda: told.append(trio.current_time()))
        took_s = trio.current_time() - began_s
        assert len(told) == 10
        assert took_s > told[-1] - began_s + 0.25
        service.release.set()
        assert await channel.call(SyncObject(1, 1, b""), timeout_s=TIMEOUT_S) == Done()


def _closed_since(service: Service, before: int) -> bool:
    return service.connections_closed > before


async def still_serves(address: str, nursery: trio.Nursery) -> None:
    channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
    assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT
    channel.close()


async def test_what_is_answered_at_once_comes_back_too() -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        assert await channel.call(StatObject(5, 1, b""), timeout_s=TIMEOUT_S) == STAT
        with pytest.raises(Refused, match="no such thing"):
            await channel.call(StatObject(6, 1, b""), timeout_s=TIMEOUT_S)
        with pytest.raises(GodwitError, match="unexpected error"):
            await channel.call(StatObject(7, 1, b""), timeout_s=TIMEOUT_S)
        assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT


async def test_replies_bodies_and_errors_come_back() -> None:
    async with served() as (service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT
        answer = await channel.exchange(ReadObject(1, 1, b"", 0, BODY_MAX_BYTES), timeout_s=TIMEOUT_S)
        assert answer == Answer(Data(), bytes(BODY_MAX_BYTES))
        body = memoryview(os.urandom(BODY_MAX_BYTES))
        assert (await channel.call(WriteObject(1, 1, b"", 0), body=body, timeout_s=TIMEOUT_S)).count == BODY_MAX_BYTES
        with pytest.raises(Refused, match="no such thing") as refusal:
            await channel.call(StatObject(2, 1, b""), timeout_s=TIMEOUT_S)
        assert refusal.value.errno == errno.ENOENT
        with pytest.raises(NoSpace):
            await channel.call(StatObject(3, 1, b""), timeout_s=TIMEOUT_S)
        channel.close()
        await until(lambda: service.connections_closed == 1)


async def test_a_bug_in_a_handler_is_an_error_of_that_call_only(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        with pytest.raises(GodwitError, match="see the server's log"):
            await channel.call(StatObject(4, 1, b""), timeout_s=TIMEOUT_S)
        assert "a bug" in caplog.text
        assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT


async def test_a_reply_too_large_to_send_is_an_error_of_that_call_only() -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        with pytest.raises(GodwitError, match="too large"):
            await channel.call(ReadObject(1, 1, b"", 0, BODY_MAX_BYTES + 1), timeout_s=TIMEOUT_S)
        assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT


async def test_slow_calls_hold_up_no_others_and_time_out() -> None:
    async with served() as (service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        with pytest.raises(TimedOut, match=r"within 0\.05 s") as timeout:
            await channel.call(SyncObject(1, 1, b""), timeout_s=0.05)
        assert timeout.value.errno == errno.EIO
        async with trio.open_nursery() as calls:
            calls.start_soon(lambda: channel.call(SyncObject(1, 1, b""), timeout_s=TIMEOUT_S))
            assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT
            service.release.set()


async def test_a_cancelled_call_leaves_the_channel_usable() -> None:
    async with served() as (service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        large = bytes(BODY_MAX_BYTES)
        for number in range(20):
            with trio.move_on_after(0.0005 * number):
                await channel.call(WriteObject(1, 1, b"", 0), body=large, timeout_s=TIMEOUT_S)
            with trio.CancelScope() as scope:
                scope.cancel()
                await channel.call(SyncObject(1, 1, b""), timeout_s=TIMEOUT_S)
            assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT
        service.release.set()
        assert not channel.broken.is_set()


async def test_a_stream_that_is_left_early_leaves_the_channel_usable() -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        async with channel.open_stream(msgspec.structs.replace(PULL, version=50)) as replies:
            assert (await anext(replies)).reply == PullHeader(50)
        assert await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S) == STAT


async def test_a_stream_ends_with_its_end_or_its_error() -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        async with channel.open_stream(msgspec.structs.replace(PULL, version=9)) as replies:
            received = [await anext(replies) for _ in range(11)]
        assert received[0].reply == PullHeader(9)
        assert sum(len(answer.body) for answer in received) == 900_000
        assert received[-1].reply == PullEnd(b"digest")
        with pytest.raises(Changed):
            await drain(channel, msgspec.structs.replace(PULL, ino=2, version=9))


@pytest.mark.parametrize("unread", [0, 1, 50])
async def test_a_broken_connection_fails_every_call_and_stream(unread: int) -> None:
    async with served() as (service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        failed = 0

        async def call() -> None:
            nonlocal failed
            with pytest.raises(Unavailable):
                await channel.call(SyncObject(1, 1, b""), timeout_s=TIMEOUT_S)
            failed += 1

        async def stream() -> None:
            nonlocal failed
            with pytest.raises(Unavailable):
                await drain(channel, msgspec.structs.replace(PULL, version=unread), after=channel.broken)
            failed += 1

        async with trio.open_nursery() as calls:
            for _ in range(10):
                calls.start_soon(call)
            calls.start_soon(stream)
            await until(lambda: service.started == 11)
            channel.close()
        assert failed == 11
        with pytest.raises(Unavailable):
            await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S)
        await until(lambda: service.cancelled == 10)
        await still_serves(address, nursery)


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    PREFACE + os.urandom(4096),
    PREFACE + b"\xff" * 100,
    PREFACE + HEADER.pack(2**31, 0, 1),
    PREFACE + pack(1, b"not msgpack"),
    PREFACE + pack(1, msgspec.msgpack.encode(["statobject"])),
    PREFACE + pack(1, msgspec.msgpack.encode(["statobject", "seven", 1, 1])),
    PREFACE + pack(1, msgspec.msgpack.encode(["format-all-disks"])),
    PREFACE + pack(1, msgspec.msgpack.encode({"a": 1})),
    PREFACE + pack(1, b""),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_a_server_lives_after_garbage(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with served() as (_service, address, nursery):
            stream = await raw(address, credentials("s9", "mount"))
            await stream.send_all(garbage)
            with trio.fail_after(TIMEOUT_S):
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
            await stream.aclose()
            await still_serves(address, nursery)
    assert "closed the connection" in caplog.text


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)])
async def test_a_server_lives_after_what_is_no_handshake(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with served(patience=Patience(preface_s=0.3)) as (service, address, nursery):
            stream = await trio.open_tcp_stream(*parse_address(address))
            await stream.send_all(data)
            with trio.fail_after(TIMEOUT_S), suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            await stream.aclose()
            await still_serves(address, nursery)
    assert service.connections_closed <= 1, "it comes to no handler"


@pytest.mark.parametrize("data", [b"", PREFACE[:3], PREFACE, PREFACE + pack(1, bytes(50))[:20]])
async def test_a_server_lives_after_a_client_that_stops_in_the_middle(data: bytes) -> None:
    async with served() as (service, address, nursery):
        stream = await raw(address, credentials("s9", "mount"))
        await stream.send_all(data)
        await stream.aclose()
        await until(lambda: service.connections_closed == 1)
        await still_serves(address, nursery)


async def test_a_server_lives_after_a_client_that_vanishes_with_many_answers_under_way() -> None:
    async with served() as (service, address, nursery):
        for _ in range(5):
            stream = await raw(address, credentials("s9", "mount"))
            reads = (pack(number, msgspec.msgpack.encode(ReadObject(1, 1, b"", 0, 1_000_000))) for number in range(40))
            before = service.connections_closed
            await stream.send_all(PREFACE + b"".join(reads))
            await until(lambda: service.started > 0)
            stream.transport_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await trio.aclose_forcefully(stream)
            await until(partial(_closed_since, service, before))
        await still_serves(address, nursery)


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[Channel]:
    """A channel to a peer that answers anything with *reply* and then hangs up."""
    address = free_address()

    async def answer(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, credentials("s1", "agent").serving, server_side=True, https_compatible=True)
        received = 0
        while received <= len(PREFACE):
            received += len(await stream.receive_some())
        await stream.send_all(reply)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(parse_address(address)[1], host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)
        nursery.cancel_scope.cancel()


REPLIES = [
    b"",
    b"HTTP/1.1 400 Bad Request\r\n\r\n" * 5,
    b"\xff" * 64,
    HEADER.pack(0, 2**31, 1),
    pack(1, b"not msgpack"),
    pack(1, msgspec.msgpack.encode(["unheard-of"])),
    pack(1, msgspec.msgpack.encode(["node", "x"])),
    pack(77, msgspec.msgpack.encode(["unheard-of"])),
    pack(1, msgspec.msgpack.encode(["done"]))[:-1],
]


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
async def test_a_client_lives_after_garbage(reply: bytes) -> None:
    async with answering(reply) as channel:
        with pytest.raises(Unavailable):
            await channel.call(StatObject(1, 1, b""), timeout_s=TIMEOUT_S)
        assert channel.broken.is_set()
    async with served() as (_service, address, nursery):
        await still_serves(address, nursery)


async def test_a_silent_client_is_hung_up_on() -> None:
    async with served(patience=Patience(preface_s=0.05)) as (_service, address, nursery):
        stream = await trio.open_tcp_stream(*parse_address(address))
        with trio.fail_after(TIMEOUT_S):
            assert await stream.receive_some() == b""
        await stream.aclose()
        await still_serves(address, nursery)


async def test_nobody_there_is_unavailable() -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(Unavailable, match="cannot reach"):
            await connect(free_address(), nursery, credentials("s9", "mount"), ANYBODY, timeout_s=TIMEOUT_S)


async def test_an_address_in_use_is_unavailable() -> None:
    async with served() as (service, address, _nursery):
        with pytest.raises(Unavailable, match="cannot listen"):
            await listen(address, DECODER, lambda _peer: service, credentials("s1", "agent"))


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:http", "host:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("example.org:80") == ("example.org", 80)
    assert parse_address("[::1]:7000") == ("::1", 7000)
