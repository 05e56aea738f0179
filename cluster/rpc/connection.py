"""Requests and replies over one TCP connection.

`connect` gives a `Channel`, on which any number of calls are under way at once. `serve` answers one accepted connection.
A channel that breaks fails all its calls with `Unavailable` and stays broken; who wants another one connects again. No
call waits without a deadline. Garbage closes the connection it came over and is logged, nothing more.
"""

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec
import trio

from cluster.errors import GodwitError, ProtocolError, Unavailable, Undone, from_failure
from cluster.messages import Failure, Reply, Request
from cluster.rpc.bulk import NextBody, send_bodies
from cluster.rpc.frames import Frame, FrameParser, pack
from cluster.rpc.wire import Wire, connect_wire, parse_address

log = logging.getLogger(__name__)

R = TypeVar("R")

RECEIVE_BYTES = 256 * 1024
PREFACE_TIMEOUT_S = 10.0
MAX_CALLS_IN_FLIGHT = 1024  # more than a mount works on at once: all of that may wait for its own answer to a recall
STREAM_WINDOW = 4

_encode = msgspec.msgpack.Encoder().encode
_reply_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Reply)


class Answer(NamedTuple):
    """A reply with the bytes that came behind it."""

    reply: Any
    body: bytes


class _Replies:
    """Where the replies to one request go: the first to `first`, those of a stream through `more`."""

    __slots__ = ("arrived", "item", "more")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.item: Answer | GodwitError | None = None
        self.more: trio.MemorySendChannel[Answer | GodwitError] | None = None


class Channel:
    """The asking end of a connection. Made by `connect`."""

    def __init__(self, wire: Wire) -> None:
        self.peer = wire.peer
        self.broken = trio.Event()
        self._wire = wire
        self._next_number = 1
        self._waiting: dict[int, _Replies] = {}

    async def call(self, request: Request[R], *, timeout_s: float, body: bytes | memoryview = b"") -> R:
        """Sends a request and waits for its reply; raises the `GodwitError` that the peer answers, or `Unavailable`:
        `Undone` if it was not sent."""
        return cast(R, (await self.exchange(request, timeout_s=timeout_s, body=body)).reply)

    async def exchange(
        self, request: Request[Any], *, timeout_s: float, body: bytes | memoryview = b"", once: bool = False
    ) -> Answer:
        """As `call`, with the body of the reply.

        *once*: the request must not be done twice. It is not sent, then, to a peer that has closed the connection already.
        """
        if once and self._wire.has_ended():
            self.close()
        number, replies = self._expect()
        try:
            with trio.move_on_after(timeout_s):
                await self._send(pack(number, _encode(request), body))
                await replies.arrived.wait()
        finally:
            self._waiting.pop(number, None)
        if replies.item is None:
            what = type(request).__name__
            raise Unavailable(f"{self.peer} did not answer {what} within {timeout_s:g} s", errno.ETIMEDOUT)
        if isinstance(replies.item, GodwitError):
            raise replies.item
        return replies.item

    @asynccontextmanager
    async def open_stream(self, request: Request[Any], *, body: bytes | memoryview = b"") -> AsyncIterator[AsyncIterator[Answer]]:
        """Sends a request that is answered by several replies, and gives them one by one.

        A slow reader holds up the whole connection, so that nothing is buffered without bound: a bulk stream wants a
        channel of its own. Deadlines are the caller's.
        """
        number, replies = self._expect()
        replies.more, receiver = trio.open_memory_channel[Answer | GodwitError](STREAM_WINDOW)
        try:
            await self._send(pack(number, _encode(request), body))
            yield self._stream_of(receiver)
        finally:
            self._waiting.pop(number, None)
            receiver.close()

    def _expect(self) -> tuple[int, _Replies]:
        number = self._next_number
        self._next_number += 1
        replies = self._waiting[number] = _Replies()
        return number, replies

    async def _stream_of(self, receiver: trio.MemoryReceiveChannel[Answer | GodwitError]) -> AsyncIterator[Answer]:
        while True:
            try:
                item = await receiver.receive()
            except trio.EndOfChannel:
                raise Unavailable(f"the connection to {self.peer} broke") from None
            if isinstance(item, GodwitError):
                raise item
            yield item

    async def _send(self, data: bytes) -> None:
        if self.broken.is_set():
            raise Undone(f"the connection to {self.peer} is broken")
        try:
            await self._wire.send(data)
        except Unavailable:
            self.close()
            raise

    async def receive_loop(self) -> None:
        """Hands replies to their callers until the connection ends; runs as a task beside the calls."""
        parser = FrameParser(expect_preface=False)
        try:
            while data := await self._wire.receive(RECEIVE_BYTES):
                for frame in parser.feed(data):
                    await self._dispatch(frame)
        except (ProtocolError, msgspec.DecodeError) as error:
            log.error("%s sent garbage, closing the connection: %s", self.peer, error)
        except Unavailable as error:
            log.debug("%s", error)
        finally:
            self.close()

    async def _dispatch(self, frame: Frame) -> None:
        waiting = self._waiting.get(frame.number)
        if waiting is None:
            return
        reply = _reply_decoder.decode(frame.head)
        item: Answer | GodwitError = Answer(reply, frame.body)
        if isinstance(reply, Failure):
            item = from_failure(reply.kind, reply.errno, reply.message)
        if waiting.more is None:
            waiting.item = item
            waiting.arrived.set()
            return
        try:
            await waiting.more.send(item)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader has left, or the channel was closed meanwhile

    def close(self) -> None:
        """Breaks the channel: every call under way fails with `Unavailable`."""
        self.broken.set()
        self._wire.close()
        waiting, self._waiting = self._waiting, {}
        for replies in waiting.values():
            if replies.more is not None:
                replies.more.close()
            else:
                replies.item = replies.item or Unavailable(f"the connection to {self.peer} broke")
                replies.arrived.set()


async def connect(address: str, nursery: trio.Nursery, *, timeout_s: float) -> Channel:
    """Connects to `host:port`; the channel's receiver runs in *nursery*. Raises `Undone`."""
    channel = Channel(await connect_wire(address, timeout_s=timeout_s))
    nursery.start_soon(channel.receive_loop)
    return channel


async def ask_once(address: str, request: Request[R], *, timeout_s: float) -> R:
    """The reply to one request, over a connection of its own; connecting and answering may take *timeout_s* each.

    Raises what the peer answers, or `Unavailable`.
    """
    outcome: R | GodwitError
    async with trio.open_nursery() as nursery:
        try:
            channel = await connect(address, nursery, timeout_s=timeout_s)
            outcome = await channel.call(request, timeout_s=timeout_s)
        except GodwitError as error:
            outcome = error
        nursery.cancel_scope.cancel()
    if isinstance(outcome, GodwitError):
        raise outcome
    return outcome


# ------------------------------------------------------------------------------------------------------- serving

SendReply = Callable[[Any, bytes | memoryview], Awaitable[None]]


class Replies:
    """Sends replies to one request; it is a `SendReply`."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self._number = number

    async def __call__(self, reply: Any, body: bytes | memoryview = b"") -> None:
        await self._wire.send(pack(self._number, _encode(reply), body))

    async def bodies(self, reply: Any, next_body: NextBody, limiter: trio.CapacityLimiter) -> None:
        """Sends *reply* with one body after the other, see `send_bodies`: other replies of the connection wait for the end."""
        await send_bodies(self._wire, self._number, reply, next_body, limiter)


class Handler(Protocol):
    """The answering end of one connection."""

    def at_once(self, request: Any) -> Any:
        """The reply to a request that needs no waiting, or None: then `handle` is asked. Raises `GodwitError` to refuse."""

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        """Answers one request: returns the reply, or an `Answer` with a body; raises `GodwitError` to refuse.

        *send* sends replies before the last one, for requests that are answered by several.
        """

    def closed(self) -> None:
        """The connection has ended."""


async def serve(stream: trio.SocketStream, decoder: msgspec.msgpack.Decoder[Any], make_handler: Callable[[str], Handler]) -> None:
    """Answers one connection until it ends. Requests are handled side by side, a bounded number of them at once."""
    try:
        peer = "{}:{}".format(*stream.socket.getpeername()[:2])
    except OSError:
        await trio.aclose_forcefully(stream)
        return
    wire = Wire(stream, peer)
    handler = make_handler(peer)
    try:
        await _ServedConnection(wire, decoder, handler).run()
    except Unavailable as error:
        log.debug("%s", error)
    except (ProtocolError, msgspec.DecodeError, trio.TooSlowError) as error:
        log.error("refused what %s sent and closed the connection: %s", peer, error or "no preface in time")
    finally:
        handler.closed()
        wire.close()


class _ServedConnection:
    def __init__(self, wire: Wire, decoder: msgspec.msgpack.Decoder[Any], handler: Handler) -> None:
        self._wire = wire
        self._decoder = decoder
        self._handler = handler
        self._slots = trio.Semaphore(MAX_CALLS_IN_FLIGHT)

    async def run(self) -> None:
        parser = FrameParser(expect_preface=True)
        with trio.fail_after(PREFACE_TIMEOUT_S):
            data = await self._wire.receive(RECEIVE_BYTES)
        async with trio.open_nursery() as nursery:
            problem = await self._receive(parser, data, nursery)
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _receive(self, parser: FrameParser, data: bytes, nursery: trio.Nursery) -> Exception | None:
        try:
            while data:
                answers = []
                for frame in parser.feed(data):
                    request = self._decoder.decode(frame.head)
                    reply = self._at_once(request)
                    if reply is not None:
                        answers.append(pack(frame.number, _encode(reply)))
                        continue
                    await self._slots.acquire()
                    nursery.start_soon(self._answer, frame.number, request, frame.body)
                if answers:
                    await self._wire.send(b"".join(answers))
                data = await self._wire.receive(RECEIVE_BYTES)
        except (ProtocolError, msgspec.DecodeError, Unavailable) as error:
            return error
        return None

    async def _answer(self, number: int, request: Any, body: bytes) -> None:
        send = Replies(self._wire, number)
        try:
            result = await self._result(request, body, send)
            if self._wire.closed:
                return
            try:
                await send(result.reply, result.body)
            except ProtocolError as error:
                log.error("the reply to %s from %s cannot be sent: %s", type(request).__name__, self._wire.peer, error)
                await send(Failure(GodwitError.kind, errno.EIO, str(error)))
        except Unavailable:
            # Several answers may fail at once: none may leave here, as a group of errors would end the whole server.
            self._wire.close()
        finally:
            self._slots.release()

    def _at_once(self, request: Any) -> Any:
        try:
            return self._handler.at_once(request)
        except GodwitError as error:
            return Failure(error.kind, error.errno, str(error))
        except Exception:
            return self._unexpected(request)

    def _unexpected(self, request: Any) -> Failure:
        log.exception("unexpected error while handling %s from %s", type(request).__name__, self._wire.peer)
        return Failure(GodwitError.kind, errno.EIO, "unexpected error, see the server's log")

    async def _result(self, request: Any, body: bytes, send: Replies) -> Answer:
        try:
            result = await self._handler.handle(request, body, send)
        except GodwitError as error:
            result = Failure(error.kind, error.errno, str(error))
        except Exception:
            result = self._unexpected(request)
        return result if isinstance(result, Answer) else Answer(result, b"")


async def _serve_accepted(
    decoder: msgspec.msgpack.Decoder[Any], make_handler: Callable[[str], Handler], stream: trio.SocketStream
) -> None:
    await serve(stream, decoder, make_handler)


async def listen(
    address: str,
    decoder: msgspec.msgpack.Decoder[Any],
    make_handler: Callable[[str], Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves connections on `host:port` until cancelled. Raises `Unavailable` if the address cannot be bound."""
    host, port = parse_address(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error}") from error
    async with trio.open_nursery() as nursery:
        task_status.started()
        await trio.serve_listeners(partial(_serve_accepted, decoder, make_handler), listeners, handler_nursery=nursery)
