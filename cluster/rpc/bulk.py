"""Bulk bodies over a connection, moved by threads: the event loop only waits for the socket, and copies no byte.

On the wire they are frames like all others, but that the body of a plain `Chunk` goes beneath TLS: its head is a record of its
own, after which the body follows on the socket as it is. (OpenSSL reads from a socket no further than to the end of a record.) A
thread works in turns: as long as the peer keeps up, and for at most `TURN_BYTES`. So a slow peer holds no thread, and many
transfers share a few.
"""

import enum
import mmap
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from cluster.decoding import Decode, from_msgpack
from cluster.errors import Malformed, ProtocolError, Unavailable, from_failure
from cluster.messages import REPLY_UNION, Chunk, Failure, PullObject, Reply, Request
from cluster.rpc.frames import HEADER, lengths_of, pack, pack_head
from cluster.rpc.handshake import reason_of
from cluster.rpc.wire import BLOCKED, DEAD_PEER_S, PIECE_BYTES, RECORD_BYTES, Wire

TURN_BYTES = 32 * 1024 * 1024
PATIENCE_MS = 20
BUFFER_BYTES = 1024 * 1024
NO_BODY_BYTES = 1024 * 1024  # as which a reply without a body counts in a turn: what it stands for may have taken time

NextBody = Callable[[], bytes | memoryview | Reply | None]
"""The next body, which stays as it is until the next call, or a reply that goes without one; None at the end. Blocks."""
Send = Callable[[Any, memoryview], int]
"""Sends some bytes over the socket; returns how many."""
TakeReply = Callable[[Any, memoryview], bool]
"""Takes a reply with its body, which is good for the time of the call; True for the last one. Blocks."""

_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[Any] = from_msgpack(REPLY_UNION)


class _Turn(enum.Enum):
    """Why a thread's turn is over: all is done, the peer was waited for, or others want the thread."""

    DONE = enum.auto()
    WAIT = enum.auto()
    MORE = enum.auto()


class _Sending:
    """Frames with one head, and a body each."""

    def __init__(self, peer: object, number: int, reply: Any, next_body: NextBody, turn_bytes: int) -> None:
        self._peer = peer
        self._number = number
        self._head = _encode(reply)
        self._plain = isinstance(reply, Chunk) and reply.plain
        self._next_body = next_body
        self._turn_bytes = turn_bytes
        # What is left of a frame, with how it goes. TLS wants what it has not taken again as it is.
        self._rest: list[tuple[Send, memoryview]] = []

    @property
    def within_frame(self) -> bool:
        """Whether a frame was begun: no other may follow before its end."""
        return bool(self._rest)

    def turn(self, lent: ssl.SSLSocket) -> _Turn:
        poller = select.poll()
        poller.register(lent, select.POLLOUT)
        sent = 0
        while sent < self._turn_bytes:
            if not self._rest:
                body = self._next_body()
                if body is None:
                    return _Turn.DONE
                if isinstance(body, Reply):
                    self._rest = _secured(pack(self._number, _encode(body)))
                    sent += NO_BODY_BYTES
                else:
                    head = pack_head(self._number, self._head, len(body))
                    rest: list[tuple[Send, memoryview]] = [(socket.socket.send, memoryview(body))]
                    if not self._plain:
                        rest = _secured(body)
                    self._rest = _secured(head) + rest
            send, piece = self._rest[0]
            try:
                count = send(lent, piece)
            except BLOCKED:
                if not poller.poll(PATIENCE_MS):
                    return _Turn.WAIT
            except OSError as error:
                raise Unavailable(f"the connection to {self._peer} broke: {reason_of(error)}") from error
            else:
                sent += count
                # Of a plain body the kernel takes what it has room for.
                self._rest[:1] = [(send, piece[count:])] if count < len(piece) else []
        return _Turn.MORE


def _secured(data: bytes | memoryview) -> "list[tuple[Send, memoryview]]":
    """What is given to TLS at a time: it takes all of a piece, or none of it."""
    view = memoryview(data)
    return [(ssl.SSLSocket.send, view[start : start + PIECE_BYTES]) for start in range(0, len(view), PIECE_BYTES)]


async def send_bodies(
    wire: Wire, number: int, reply: Any, next_body: NextBody, limiter: trio.CapacityLimiter, *, turn_bytes: int = TURN_BYTES
) -> None:
    """Sends *reply* with each of the bodies, and what comes without; nothing else is sent over *wire* meanwhile. A thread's turn
    ends after *turn_bytes*.

    Raises what *next_body* raises, between two frames, or `Unavailable`. Cancelled within a frame it closes the wire.
    """
    sending = _Sending(wire.peer, number, reply, next_body, turn_bytes)
    async with wire.lent() as lent:
        try:
            while (turn := await trio.to_thread.run_sync(sending.turn, lent, limiter=limiter)) is not _Turn.DONE:
                if turn is _Turn.WAIT and not await wire.writable_within(DEAD_PEER_S):
                    raise Unavailable(f"{wire.peer} took no data for {DEAD_PEER_S:g} s")
        finally:
            if sending.within_frame:
                wire.close()


class _Receiving:
    """The replies to one request."""

    def __init__(
        self, peer: object, number: int, buffer: mmap.mmap, take: TakeReply, turn_bytes: int, *, takes_plain: bool
    ) -> None:
        self._peer = peer
        self._number = number
        self._take = take
        self._turn_bytes = turn_bytes
        # Pages of its own: the kernel copies several times slower from a body that begins anywhere.
        self._buffer = memoryview(buffer)
        self._header = bytearray(HEADER.size)
        self._body_bytes = 0
        self._received = 0  # in this turn
        self._takes_plain = takes_plain  # bodies may come beneath TLS
        self._receive: Callable[[Any, memoryview], int] = ssl.SSLSocket.recv_into
        self._head: Any = None
        self._wait_for(self._header_complete, memoryview(self._header))

    def turn(self, lent: ssl.SSLSocket) -> _Turn:
        poller = select.poll()
        poller.register(lent, select.POLLIN)
        self._received = 0
        while self._received < self._turn_bytes:
            try:
                count = self._receive(lent, self._target[self._filled :])
            except BLOCKED:
                if not self._await_data(lent, poller):
                    return _Turn.WAIT
                continue
            except OSError as error:
                raise Unavailable(f"the connection to {self._peer} broke: {reason_of(error)}") from error
            if not count:
                raise Unavailable(f"the connection to {self._peer} broke")
            self._received += count
            self._filled += count
            if self._filled == len(self._target) and self._complete(self._target):
                return _Turn.DONE
        return _Turn.MORE

    def _await_data(self, lent: ssl.SSLSocket, poller: select.poll) -> bool:
        """Whether the rest of what is being received has come; to be woken for every segment would take the sender longer than
        sending does."""
        # At least so much has still to come: OpenSSL may have taken a part of one record from the socket already.
        taken = RECORD_BYTES if self._receive is ssl.SSLSocket.recv_into else 0
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(1, len(self._target) - self._filled - taken))
        if poller.poll(PATIENCE_MS):
            return True
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return False

    def _wait_for(self, complete: Callable[[memoryview], bool], target: memoryview) -> None:
        self._target, self._filled, self._complete = target, 0, complete

    def _header_complete(self, header: memoryview) -> bool:
        head_bytes, self._body_bytes, number = lengths_of(header)
        if number != self._number or not head_bytes:
            raise ProtocolError(f"{self._peer} answered request {number} with {head_bytes} bytes, asked was {self._number}")
        self._wait_for(self._head_complete, memoryview(bytearray(head_bytes)))
        return False

    def _head_complete(self, head: memoryview) -> bool:
        self._head = self._decoded(head)
        if not self._body_bytes:
            self._received += NO_BODY_BYTES
            return self._body_complete(self._buffer[:0])
        if self._body_bytes > len(self._buffer):
            self._buffer = memoryview(mmap.mmap(-1, self._body_bytes))
        if isinstance(self._head, Chunk) and self._head.plain:
            if not self._takes_plain:
                raise ProtocolError(f"{self._peer} sent unencrypted what was asked for encrypted")
            self._receive = socket.socket.recv_into
        self._wait_for(self._body_complete, self._buffer[: self._body_bytes])
        return False

    def _body_complete(self, body: memoryview) -> bool:
        self._receive = ssl.SSLSocket.recv_into
        self._wait_for(self._header_complete, memoryview(self._header))
        return self._take(self._head, body)

    def _decoded(self, head: memoryview) -> Any:
        try:
            reply = _decode(head)
        except Malformed as error:
            raise ProtocolError(f"{self._peer} sent garbage: {error}") from error
        if isinstance(reply, Failure):
            raise from_failure(reply.kind, reply.errno, reply.message)
        return reply


class BulkConnection:
    """The asking end of a connection for bulk replies: one request after the other. Who made the wire closes it.

    A thread's turn ends after *turn_bytes*.
    """

    def __init__(self, wire: Wire, turn_bytes: int = TURN_BYTES) -> None:
        self.peer = wire.peer.address
        self._wire = wire
        self._turn_bytes = turn_bytes
        self._number = 0
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)

    async def ask(self, request: Request[Any], take: TakeReply, *, limiter: trio.CapacityLimiter, stall_s: float) -> None:
        """Hands the replies to *take* in threads until it says that one was the last.

        Raises the `GodwitError` that the peer answers, what *take* raises, or `Unavailable`, also when nothing comes for
        *stall_s*. After anything but what the peer answers instead of a first body, the connection is of no use any more.
        """
        self._number += 1
        await self._wire.send(pack(self._number, _encode(request)))
        takes_plain = isinstance(request, PullObject) and request.takes_plain
        receiving = _Receiving(self.peer, self._number, self._buffer, take, self._turn_bytes, takes_plain=takes_plain)
        async with self._wire.lent() as lent:
            while (turn := await trio.to_thread.run_sync(receiving.turn, lent, limiter=limiter)) is not _Turn.DONE:
                if turn is _Turn.WAIT and not await self._wire.readable_within(stall_s):
                    raise Unavailable(f"{self.peer} sent nothing for {stall_s:g} s")
