"""Answers connections (`cluster.rpc.connection` asks).

`listen` takes them, `serve` answers one until it ends. Whatever comes over a connection, and whatever goes wrong while it is
answered, ends that request or that connection at most. What a peer may take of this process is in `cluster.rpc.bounds`.
"""

import errno
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from cluster.clock import monotonic_s
from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, OutOfRange, ProtocolError, Refused, Unavailable, error_text
from cluster.faults import faults
from cluster.messages import Failure, Greeting, Working
from cluster.rpc.bounds import PATIENCE, TASK_S, Door, Patience, Visit
from cluster.rpc.bulk import TURN_BYTES, NextBody, send_bodies
from cluster.rpc.connection import Answer
from cluster.rpc.frames import GREETING_NUMBER, LARGEST, Frame, FrameParser, Limits, pack
from cluster.rpc.handshake import NotProven, shake_hands
from cluster.rpc.wire import Wire, parse_address, proven, turn_away
from cluster.trust.credentials import Credentials, NotBelieved
from cluster.trust.identity import Peer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 64 * 1024
ANSWERS_BYTES = 256 * 1024  # of what is answered at once and goes together
SMALL_BYTES = 64 * 1024  # of a frame, for which no room is looked for before it is there
UNCOUNTED_BYTES = 4096  # of a request with its reply: `MAX_CALLS_IN_FLIGHT` bounds them
MAX_CALLS_IN_FLIGHT = 1024  # more than a mount works on at once: all of that may wait for its own answer to a recall

_encode = msgspec.msgpack.Encoder().encode
_greeting_of: Decode[Greeting] = from_msgpack(Greeting)

SendReply = Callable[[Any, bytes | memoryview], Awaitable[None]]


class Replies:
    """Sends replies to one request; it is a `SendReply`."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self._number = number

    async def __call__(self, reply: Any, body: bytes | memoryview = b"") -> None:
        await self._wire.send(pack(self._number, _encode(reply), body))

    async def working(self) -> None:
        """Has the peer wait for the reply as long again as it would from now on. Raises `Unavailable`."""
        await self(Working())

    async def bodies(
        self, reply: Any, next_body: NextBody, limiter: trio.CapacityLimiter, *, turn_bytes: int = TURN_BYTES
    ) -> None:
        """Sends *reply* with one body after the other, see `send_bodies`: other replies of the connection wait for the end."""
        await send_bodies(self._wire, self._number, reply, next_body, limiter, turn_bytes=turn_bytes)


class Handler(Protocol):
    """The answering end of one connection, or of several."""

    def at_once(self, request: Any) -> Any:
        """The reply to a request that needs no waiting, or None: then `handle` is asked. Raises `GodwitError` to refuse."""

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        """Answers one request: returns the reply, or an `Answer` with a body; raises `GodwitError` to refuse.

        *send* sends replies before the last one, for requests that are answered by several.
        """

    def greeted(self, greeting: Greeting) -> None:  # noqa: ARG002
        """The peer says who it is; raises `ProtocolError` to have the connection closed."""
        return

    @property
    def is_guest(self) -> bool:
        """Whether the peer is no process of the network's: its requests get a part of the time, see `cluster.rpc.bounds`."""
        return False

    def reply_bytes(self, request: Any) -> int:  # noqa: ARG002
        """How long the body of the reply may be, for which room is kept until it is sent."""
        return 0

    def closed(self) -> None:
        """The connection has ended."""


async def serve(
    stream: trio.SocketStream,
    decode: Decode[Any],
    make_handler: Callable[[Peer], Handler],
    door: Door,
    credentials: Credentials,
    limits: Limits = LARGEST,
) -> None:
    """Answers one connection until it ends; raises nothing. Requests are handled side by side, a bounded number at once."""
    try:
        host, port = stream.socket.getpeername()[:2]
        visit = door.enter(host)
    except (OSError, ProtocolError) as error:
        if isinstance(error, ProtocolError):
            faults.note(log, "too many connections", f"closed a connection: {error_text(error)}")
        await trio.aclose_forcefully(stream)
        return
    try:
        wire = await _proven(stream, f"{host}:{port}", visit, credentials)
        if wire is not None:
            if wire.peer.identity is not None:
                visit.introduced()
            with closing(wire):
                await _answered(_ServedConnection(wire, decode, visit, limits), make_handler, wire.peer)
    finally:
        visit.left()


async def _proven(stream: trio.SocketStream, address: str, visit: Visit, credentials: Credentials) -> Wire | None:
    """The connection, once the peer has proved who it is, or has shown no certificate; None if it has failed to."""
    try:
        with trio.fail_after(visit.patience.preface_s):
            secured = await shake_hands(stream, credentials.serving, is_server=True)
    except trio.TooSlowError:
        faults.note(log, "no handshake", f"closed a connection of {address}: no handshake within {visit.patience.preface_s:g} s")
    except NotProven as error:
        faults.note(log, f"no proof ({error.cause})", f"refused {address}: {error}")
    except Exception as error:
        faults.unexpected(log, f"with the handshake of {address}", error)
    else:
        try:
            return proven(secured, address, credentials)
        except NotBelieved as error:
            faults.note(log, f"not believed ({error.cause})", f"refused {address}: {error}")
            await turn_away(secured, error)
    return None


async def _answered(connection: "_ServedConnection", make_handler: Callable[[Peer], Handler], peer: Peer) -> None:
    try:
        handler = make_handler(peer)
        try:
            await connection.run(handler)
        finally:
            handler.closed()
    except Unavailable as error:
        log.debug("%s", error)
    except ProtocolError as error:
        faults.note(log, "refused bytes", f"refused what {peer} sent and closed the connection: {error}")
    except Exception as error:
        faults.unexpected(log, f"in the connection of {peer}", error)


class _ServedConnection:
    def __init__(self, wire: Wire, decode: Decode[Any], visit: Visit, limits: Limits) -> None:
        self._wire = wire
        self._decode = decode
        self._visit = visit
        self._parser = FrameParser(expect_preface=True, limits=visit.limits(limits))
        self._slots = trio.Semaphore(MAX_CALLS_IN_FLIGHT)
        self._under_way = 0
        self._reserved = 0  # bytes of room for the frame that is coming
        self._heard_s = monotonic_s()  # when the last request was there as a whole
        self._frame_s = math.inf  # since when one is coming
        self._handler: Handler

    async def run(self, handler: Handler) -> None:
        """Until the connection ends. Raises `ProtocolError` or `Unavailable` for why it had to."""
        self._handler = handler
        self._visit.is_guest = handler.is_guest
        try:
            async with trio.open_nursery() as nursery:
                problem = await self._receive(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._visit.room.give(self._reserved)
        if problem is not None:
            raise problem

    # ------------------------------------------------------------------------------------------------- receiving

    async def _receive(self, nursery: trio.Nursery) -> Exception | None:
        try:
            while data := await self._next_bytes():
                await self._take(data, nursery)
        except (ProtocolError, Unavailable) as error:
            return error
        return None

    async def _next_bytes(self) -> bytes:
        frame_bytes = self._parser.frame_bytes
        if frame_bytes > SMALL_BYTES and not self._reserved:
            await self._visit.room.take(frame_bytes)
            self._reserved = frame_bytes
        while True:
            deadline, why = self._deadline()
            with trio.move_on_at(deadline):
                return await self._wire.receive(RECEIVE_BYTES)
            if not self._under_way or self._parser.is_within_frame:
                raise ProtocolError(why)
            self._heard_s = monotonic_s()  # it waits for us

    def _deadline(self) -> tuple[float, str]:
        patience = self._visit.patience
        if self._parser.expects_preface:
            return self._heard_s + patience.preface_s, "no preface in time"
        if self._visit.is_stranger:
            why = f"no request within {patience.stranger_s:g} s of somebody who has not said who it is"
            return self._heard_s + patience.stranger_s, why
        return self._frame_s + patience.frame_s, f"a request that took more than {patience.frame_s:g} s to come"

    async def _take(self, data: bytes, nursery: trio.Nursery) -> None:
        """Answers or begins to answer what *data* completes; gives way when the slice of the event loop is used up."""
        if self._wire.peer.ends_s <= time.time():
            raise ProtocolError(f"the certificate of {self._wire.peer.identity} has expired")
        visit, answers = self._visit, _Answers(self._wire)
        frames = 0
        if visit.must_give_way:
            await visit.give_way()
        began_s = monotonic_s()
        for frame in self._parser.feed(data):
            frames += 1
            if frame.number == GREETING_NUMBER:
                self._greet(frame)
                continue
            await self._begin(frame, answers, nursery)
            now_s = monotonic_s()
            visit.used(now_s - began_s)
            if visit.must_give_way or answers.size > ANSWERS_BYTES:
                await answers.send()
                await visit.give_way()
                now_s = monotonic_s()
            began_s = now_s
        await answers.send()
        self._note_progress(frames, began_s)

    def _note_progress(self, frames: int, now_s: float) -> None:
        if frames:
            self._heard_s = now_s
        if not self._parser.is_within_frame:
            self._frame_s = math.inf
        elif frames or self._frame_s == math.inf:
            self._frame_s = now_s

    def _greet(self, frame: Frame) -> None:
        self._handler.greeted(_greeting_of(frame.head))

    async def _begin(self, frame: Frame, answers: "_Answers", nursery: trio.Nursery) -> None:
        request, reply = self._decoded(frame)
        if reply is not None:
            answers.add(_packed(frame.number, request, reply, self._wire.peer))
            self._visit.room.give(self._reserved)
            self._reserved = 0
            return
        size = max(self._reserved, len(frame.head) + len(frame.body)) + self._handler.reply_bytes(request)
        if size <= UNCOUNTED_BYTES:
            size = 0
        elif not self._visit.room.has(size - self._reserved) or not self._slots.value:
            await answers.send()
        if size:
            await self._visit.room.take(size - self._reserved)
        self._reserved = size
        await self._slots.acquire()
        self._reserved = 0
        self._under_way += 1
        self._visit.used(TASK_S)
        nursery.start_soon(self._answer, frame.number, request, frame.body, size)

    # ------------------------------------------------------------------------------------------------- answering

    async def _answer(self, number: int, request: Any, body: bytes, size: int) -> None:
        """Sends the answer; raises nothing, as a group of errors would end the whole connection, and others' requests."""
        try:
            result = await self._result(request, body, Replies(self._wire, number))
            del body
            if not self._wire.closed:
                await self._wire.send(_packed(number, request, result.reply, self._wire.peer, result.body))
        except Unavailable:
            self._wire.close()
        except Exception as error:
            faults.unexpected(log, f"while answering {type(request).__name__} of {self._wire.peer}", error)
            self._wire.close()
        finally:
            self._slots.release()
            self._under_way -= 1
            if size:
                self._visit.room.give(size)

    def _decoded(self, frame: Frame) -> tuple[Any, Any]:
        """A request, and the reply to it if it can be answered at once. Raises `ProtocolError`."""
        try:
            request = self._decode(frame.head)
        except OutOfRange as error:
            return None, Failure(Refused.kind, errno.EINVAL, str(error))
        return request, self._at_once(request)

    def _at_once(self, request: Any) -> Any:
        try:
            return self._handler.at_once(request)
        except GodwitError as error:
            return Failure(error.kind, error.errno, str(error))
        except Exception as error:
            return _unexpected(request, self._wire.peer, error)

    async def _result(self, request: Any, body: bytes, send: Replies) -> Answer:
        try:
            result = await self._handler.handle(request, body, send)
        except GodwitError as error:
            result = Failure(error.kind, error.errno, str(error))
        except Exception as error:
            result = _unexpected(request, self._wire.peer, error)
        return result if isinstance(result, Answer) else Answer(result, b"")


class _Answers:
    """Frames that go together."""

    def __init__(self, wire: Wire) -> None:
        self.size = 0
        self._wire = wire
        self._frames: list[bytes] = []

    def add(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.size += len(frame)

    async def send(self) -> None:
        if self._frames:
            frames, self._frames, self.size = self._frames, [], 0
            await self._wire.send(b"".join(frames))


def _unexpected(request: Any, peer: Peer, error: Exception) -> Failure:
    faults.unexpected(log, f"while handling {type(request).__name__} from {peer}", error)
    return Failure(GodwitError.kind, errno.EIO, "unexpected error, see the server's log")


def _packed(number: int, request: Any, reply: Any, peer: Peer, body: bytes | memoryview = b"") -> bytes:
    """The frame of a reply, or of the failure to make one."""
    try:
        return pack(number, _encode(reply), body)
    except ProtocolError as error:
        log.error("the reply to %s from %s cannot be sent: %s", type(request).__name__, peer, error)
        return pack(number, _encode(Failure(GodwitError.kind, errno.EIO, str(error))))
    except Exception as error:  # a number that does not fit into a message …
        return pack(number, _encode(_unexpected(request, peer, error)))


async def listen(
    address: str,
    decode: Decode[Any],
    make_handler: Callable[[Peer], Handler],
    credentials: Credentials,
    *,
    limits: Limits = LARGEST,
    patience: Patience = PATIENCE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves connections on `host:port` until cancelled. Raises `Unavailable` if the address cannot be bound.

    *make_handler* gets who is connected; one that has shown no certificate is a stranger for as long as it stays. *limits*: of
    the requests of who is no stranger. *patience*: with peers that are silent.
    """
    host, port = parse_address(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error_text(error)}") from error
    door = Door(patience)
    async with trio.open_nursery() as nursery:
        task_status.started()
        accepted = partial(serve, decode=decode, make_handler=make_handler, door=door, credentials=credentials, limits=limits)
        await trio.serve_listeners(accepted, listeners, handler_nursery=nursery)
