"""Requests and replies over one TCP connection: the asking end (`cluster.rpc.serving` is the other).

`connect` gives a `Channel`, on which any number of calls are under way at once. A channel that breaks fails all its calls with
`Unavailable` and stays broken; who wants another one connects again. No call waits without a deadline. Garbage, and a reply that
is none to what was asked, closes the connection it came over and is logged, nothing more.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import trio

from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, ProtocolError, TimedOut, Unavailable, Undone, from_failure
from cluster.faults import faults
from cluster.messages import REPLY_UNION, Failure, Greeting, Request, replies_to
from cluster.rpc.frames import GREETING_NUMBER, Frame, FrameParser, pack
from cluster.rpc.wire import Wire, connect_wire
from cluster.tending import Tasks

log = logging.getLogger(__name__)

R = TypeVar("R")

RECEIVE_BYTES = 256 * 1024
STREAM_WINDOW = 4

_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[Any] = from_msgpack(REPLY_UNION)
_replies_to = lru_cache(maxsize=None)(replies_to)


class Answer(NamedTuple):
    """A reply with the bytes that came behind it."""

    reply: Any
    body: bytes


def greeting_frame(greeting: Greeting) -> bytes:
    """What makes a peer that has a listener's preface already no stranger to it. It is not answered."""
    return pack(GREETING_NUMBER, _encode(greeting))


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
        """Sends a request and waits for its reply; raises the `GodwitError` that the peer answers, `Unavailable`: `Undone` if
        it was not sent, or `ProtocolError` (and breaks the channel) for a reply to something else."""
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
            raise TimedOut(f"{self.peer} did not answer {what} within {timeout_s:g} s")
        if isinstance(replies.item, GodwitError):
            raise replies.item
        if type(replies.item.reply) not in _replies_to(type(request)):
            what = f"{type(request).__name__} with {type(replies.item.reply).__name__}"
            faults.note(log, "a reply to something else", f"{self.peer} answered {what}, closing the connection")
            self.close()
            raise ProtocolError(f"{self.peer} answered {what}")
        return replies.item

    async def greet(self, greeting: Greeting) -> None:
        """Says who asks, so that larger requests are taken. Raises `Undone`."""
        await self._send(greeting_frame(greeting))

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
        except ProtocolError as error:
            faults.note(log, "garbage for a reply", f"{self.peer} sent garbage, closing the connection: {error}")
        except Unavailable as error:
            log.debug("%s", error)
        except Exception as error:  # whose nursery this is must not end for what a peer sends
            faults.unexpected(log, f"in what {self.peer} sent", error)
        finally:
            self.close()

    async def _dispatch(self, frame: Frame) -> None:
        waiting = self._waiting.get(frame.number)
        if waiting is None:
            return
        reply = _decode(frame.head)
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


async def connect(address: str, tasks: Tasks, *, timeout_s: float, greeting: Greeting | None = None) -> Channel:
    """Connects to `host:port`, and greets; the channel's receiver runs in *tasks*. Raises `Undone`."""
    channel = Channel(await connect_wire(address, timeout_s=timeout_s))
    tasks.start_soon(channel.receive_loop)
    if greeting is not None:
        await channel.greet(greeting)
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
