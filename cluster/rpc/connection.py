"""Requests and replies over one TCP connection: the asking end (`cluster.rpc.serving` is the other).

`connect` gives a `Channel`, on which any number of calls are under way at once. A channel that breaks fails all its calls with
`Unavailable` and stays broken; who wants another one connects again. No call waits without a deadline, which a peer may put off
by saying that it is at work. Garbage, and a reply that is none to what was asked, closes the connection it came over and is
logged, nothing more.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import trio

from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, ProtocolError, TimedOut, Unavailable, Undone, from_failure
from cluster.faults import faults
from cluster.messages import REPLY_UNION, Failure, Request, Working, replies_to
from cluster.rpc.frames import GREETING_NUMBER, Frame, FrameParser, pack
from cluster.rpc.wire import A_MANAGER, Party, Wire, connect_wire
from cluster.tending import Tasks
from cluster.trust.credentials import Credentials

log = logging.getLogger(__name__)

R = TypeVar("R")

RECEIVE_BYTES = 64 * 1024
STREAM_WINDOW = 4

_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[Any] = from_msgpack(REPLY_UNION)
_replies_to = lru_cache(maxsize=None)(replies_to)


class Answer(NamedTuple):
    """A reply with the bytes that came behind it."""

    reply: Any
    body: bytes


class _Replies:
    """Where the replies to one request go: the first to `item`, those of a stream through `more`.

    `works` is called when the peer says that it is at work.
    """

    __slots__ = ("arrived", "item", "more", "works")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.works: Callable[[], None] | None = None
        self.item: Answer | GodwitError | None = None
        self.more: trio.MemorySendChannel[Answer | GodwitError] | None = None


class Channel:
    """The asking end of a connection. Made by `connect`."""

    def __init__(self, wire: Wire, credentials: Credentials) -> None:
        self.peer = wire.peer.address
        self.broken = trio.Event()
        self._wire = wire
        self._credentials = credentials  # with which it was made
        self._generation = credentials.generation  # of them, then
        self._retired = False  # it ends with the last of its calls
        self._why = ""  # it broke, as far as the peer has said
        self._next_number = 1
        self._waiting: dict[int, _Replies] = {}

    async def call(self, request: Request[R], *, timeout_s: float, body: bytes | memoryview = b"") -> R:
        """Sends a request and waits for its reply; raises the `GodwitError` that the peer answers, `Unavailable`: `Undone` if
        it was not sent, or `ProtocolError` (and breaks the channel) for a reply to something else."""
        return cast(R, (await self.exchange(request, timeout_s=timeout_s, body=body)).reply)

    async def exchange(
        self,
        request: Request[Any],
        *,
        timeout_s: float,
        body: bytes | memoryview = b"",
        once: bool = False,
        works: Callable[[], None] | None = None,
    ) -> Answer:
        """As `call`, with the body of the reply; *timeout_s* begins anew, and *works* is called, with each `Working`.

        *once*: the request must not be done twice. It is not sent, then, to a peer that has closed the connection already.
        """
        if once and self._wire.has_ended():
            self.close()
        number, replies = self._expect()
        try:
            with trio.move_on_after(timeout_s) as scope:

                def go_on() -> None:
                    scope.deadline = trio.current_time() + timeout_s
                    if works is not None:
                        works()

                replies.works = go_on
                await self._send(pack(number, _encode(request), body))
                await replies.arrived.wait()
        finally:
            self._answered(number)
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
            self._answered(number)
            receiver.close()

    @property
    def is_stale(self) -> bool:
        """Whether one of both ends has another certificate by now: who needs a connection for long makes a new one."""
        return self._generation != self._credentials.generation or time.time() >= self._wire.peer.replace_s

    def retire(self) -> None:
        """Ends the connection when nothing is asked over it any more. Nobody may ask anything new."""
        self._retired = True
        if not self._waiting:
            self.close()

    def _answered(self, number: int) -> None:
        self._waiting.pop(number, None)
        if self._retired and not self._waiting:
            self.close()

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

    async def receive_loop(self, heard: Callable[[], None] | None = None) -> None:
        """Hands replies to their callers until the connection ends; runs as a task beside the calls. *heard* is called once."""
        parser = FrameParser(expect_preface=False)
        try:
            while data := await self._wire.receive(RECEIVE_BYTES):
                for frame in parser.feed(data):
                    await self._dispatch(frame)
                if heard is not None:
                    heard()
                    heard = None
        except ProtocolError as error:
            faults.note(log, "garbage for a reply", f"{self.peer} sent garbage, closing the connection: {error}")
        except Unavailable as error:
            log.debug("%s", error)
        except Exception as error:  # whose nursery this is must not end for what a peer sends
            faults.unexpected(log, f"in what {self.peer} sent", error)
        finally:
            self.close()

    async def _dispatch(self, frame: Frame) -> None:
        if frame.number == GREETING_NUMBER:
            self._refused(_decode(frame.head))
        waiting = self._waiting.get(frame.number)
        if waiting is None:
            return
        reply = _decode(frame.head)
        if type(reply) is Working:
            if waiting.works is not None:
                waiting.works()
            return
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

    def _refused(self, reply: Any) -> None:
        """The peer does not believe this process; it hangs up next."""
        if isinstance(reply, Failure):
            self._why = f": it says that {reply.message:.200}"
            faults.note(log, "not believed by a peer", f"{self.peer} refuses this process: {reply.message:.200}")

    def close(self) -> None:
        """Breaks the channel: every call under way fails with `Unavailable`."""
        self.broken.set()
        self._wire.close()
        waiting, self._waiting = self._waiting, {}
        for replies in waiting.values():
            if replies.more is not None:
                replies.more.close()
            else:
                replies.item = replies.item or Unavailable(f"the connection to {self.peer} broke{self._why}")
                replies.arrived.set()


async def connect(
    address: str,
    tasks: Tasks,
    credentials: Credentials,
    party: Party,
    *,
    timeout_s: float,
) -> Channel:
    """Connects to `host:port`, and verifies that *party* is there; the channel's receiver runs in *tasks*. Raises `Undone`."""
    wire = await connect_wire(address, credentials, party, timeout_s=timeout_s)
    channel = Channel(wire, credentials)
    generation = credentials.generation

    async def receive() -> None:
        await channel.receive_loop(heard)

    def heard() -> None:
        # The tickets of TLS 1.3 come with the first answer.
        if credentials.generation == generation:
            credentials.keep_session(address, wire.session, wire.peer.replace_s)

    tasks.start_soon(receive)
    return channel


async def ask_once(
    address: str, request: Request[R], credentials: Credentials, party: Party = A_MANAGER, *, timeout_s: float
) -> R:
    """The reply to one request, over a connection of its own; connecting and answering may take *timeout_s* each.

    Raises what the peer answers, or `Unavailable`.
    """
    outcome: R | GodwitError
    async with trio.open_nursery() as nursery:
        try:
            channel = await connect(address, nursery, credentials, party, timeout_s=timeout_s)
            outcome = await channel.call(request, timeout_s=timeout_s)
        except GodwitError as error:
            outcome = error
        nursery.cancel_scope.cancel()
    if isinstance(outcome, GodwitError):
        raise outcome
    return outcome
