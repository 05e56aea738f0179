"""A secured TCP socket, made for many small messages.

trio's own streams yield to the scheduler at every operation, which for a message of a hundred bytes costs more than the
system call, and its `SSLStream` costs ten times that. A `Wire` sends at once what the kernel takes and waits only when it takes
no more; it still gives way to other tasks when a peer keeps it busy.

TLS is OpenSSL's, on the socket itself (`ssl.SSLSocket`, not blocking). Two things follow from that. What was not taken has to
come again, unchanged, before anything else. And two threads must never use one connection at the same time: while it is lent, the
event loop only waits for its descriptor.
"""

import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import msgspec
import trio

from cluster.errors import ProtocolError, Refused, Unavailable, Undone, error_text
from cluster.messages import PROTOCOL, Failure, Greeting, Volume
from cluster.rpc.frames import GREETING_NUMBER, PREFACE, pack
from cluster.rpc.handshake import certificate_of, reason_of, shake_hands
from cluster.trust.credentials import Credentials, Newcomer, NotBelieved
from cluster.trust.identity import Identity, Peer, Role

DEAD_PEER_S = 15.0
HANG_UP_S = 1.0  # that the peer has to hang up, once it is told so
RECORD_BYTES = 16 * 1024  # of plain text in one TLS record at most: who reads so much at a time leaves nothing within OpenSSL
PIECE_BYTES = 64 * 1024  # that are sent at a time

_encode = msgspec.msgpack.Encoder().encode

BLOCKED = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class Wire:
    """Takes over a secured socket. Errors of the connection are `Unavailable`; after one the wire is closed."""

    def __init__(self, secured: ssl.SSLSocket, peer: Peer) -> None:
        self.peer = peer
        self.closed = False
        self._socket = secured
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Silence of a peer that has unsent data of ours breaks the connection instead of waiting for minutes.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_PEER_S * 1000))
        self._sending = trio.Lock()
        self._lent = False
        self._returned = trio.Event()  # set while it is not lent
        self._returned.set()
        self._drained = True  # nothing is likely to be there: waiting comes before reading

    async def send(self, data: bytes) -> None:
        """Sends all of *data*, whole and in turn, or, cancelled before its turn came, nothing."""
        if self.closed:
            raise Unavailable(f"the connection to {self.peer} is closed")
        sent = 0
        if self._sending.locked():
            await self._sending.acquire()
        else:
            sent = self._send_some(data)
            if sent == len(data):
                return
            self._sending.acquire_nowait()
        try:
            await self._send_rest(memoryview(data)[sent:])
        finally:
            self._sending.release()

    async def _send_rest(self, rest: memoryview) -> None:
        # What was sent in part must be finished, or the peer could make no sense of what follows.
        with trio.move_on_after(DEAD_PEER_S, shield=True):
            while rest:
                if self.closed:
                    raise Unavailable(f"the connection to {self.peer} is closed")
                rest = rest[self._send_some(rest) :]
                if rest:
                    await self._wait(trio.lowlevel.wait_writable)
            return
        self.close()
        raise Unavailable(f"{self.peer} took no data for {DEAD_PEER_S:g} s")

    def _send_some(self, data: bytes | memoryview) -> int:
        """How many bytes went, in whole pieces. What did not has to be given again, from where it begins."""
        sent = 0
        try:
            if len(data) <= PIECE_BYTES:
                return self._socket.send(data)
            view = memoryview(data)
            while sent < len(data):
                sent += self._socket.send(view[sent : sent + PIECE_BYTES])
        except BLOCKED:
            return sent
        except OSError as error:
            raise self._broken(error) from error
        return sent

    def _broken(self, error: OSError) -> Unavailable:
        self.close()
        return Unavailable(f"the connection to {self.peer} broke: {reason_of(error)}")

    async def receive(self, limit: int) -> bytes:
        """Some bytes, about *limit* at most; none at the end of the connection. One task at a time."""
        while not self.closed:
            if self._drained:
                await self._wait(trio.lowlevel.wait_readable)
            else:
                await trio.lowlevel.checkpoint()
            if self._lent:
                await self._returned.wait()
                continue
            data = self._receive_some(limit)
            if data is not None:
                return data
        return b""

    def _receive_some(self, limit: int) -> bytes | None:
        """What is there; None if that is nothing yet."""
        records: list[bytes] = []
        size = 0
        self._drained = True
        try:
            while True:
                record = self._socket.recv(RECORD_BYTES)
                size += len(record)
                if len(record) < RECORD_BYTES and not records:
                    return record  # the usual case: one message, and nothing behind it yet
                records.append(record)
                if len(record) < RECORD_BYTES:
                    break
                if size + RECORD_BYTES > limit:
                    self._drained = False
                    break
        except BLOCKED:
            return b"".join(records) if records else None
        except OSError as error:
            if not records:
                raise self._broken(error) from error
            self._drained = False  # it comes again
        return b"".join(records)

    def has_ended(self) -> bool:
        """Whether the peer has closed the connection already, even if nobody has read that yet."""
        try:
            # Past TLS: what has come is looked at, and stays.
            return self.closed or not socket.socket.recv(self._socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def session(self) -> ssl.SSLSession | None:
        """By which another connection to the same peer may be made sooner; it is there once something was received."""
        return None if self.closed or self._lent else self._socket.session

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[ssl.SSLSocket]:
        """The socket for threads, which does not block them, and which nobody else uses meanwhile.

        Closing the wire ends the connection then, but leaves descriptor and TLS to the thread until it is returned.
        """
        async with self._sending:
            if self.closed:
                raise Unavailable(f"the connection to {self.peer} is closed")
            self._lent = True
            self._returned = trio.Event()
            try:
                yield self._socket
            finally:
                self._lent = False
                self._returned.set()
                if self.closed:
                    self._socket.close()

    async def writable_within(self, seconds: float) -> bool:
        """Waits until the peer takes more; whether it did so in time."""
        with trio.move_on_after(seconds) as scope:
            await self._wait(trio.lowlevel.wait_writable)
        return not scope.cancelled_caught

    async def readable_within(self, seconds: float) -> bool:
        """Waits until there is something to receive, or the end; whether it came in time."""
        with trio.move_on_after(seconds) as scope:
            await self._wait(trio.lowlevel.wait_readable)
        return not scope.cancelled_caught

    async def _wait(self, ready: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self.closed:
            raise Unavailable(f"the connection to {self.peer} is closed")
        try:
            await ready(self._socket)
        except trio.ClosedResourceError:
            raise Unavailable(f"the connection to {self.peer} is closed") from None

    def close(self) -> None:
        """Closes the socket; whoever waits on it gets `Unavailable`. No TLS alert: a frame says where it ends."""
        if self.closed:
            return
        self.closed = True
        trio.lowlevel.notify_closing(self._socket)
        if self._lent:
            with suppress(OSError):
                # Not its own method, which would take TLS away from the thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        else:
            self._socket.close()

    async def hang_up(self) -> None:
        """Closes it once the peer has hung up, too, or after `HANG_UP_S`: so that what was sent last arrives."""
        if not self.closed:
            await _hang_up(self._socket)
            self.close()


async def _hang_up(secured: ssl.SSLSocket) -> None:
    """Sends nothing more, and receives, unread, what still comes: a connection that is closed with something left to read is
    reset, and what was sent last is lost."""
    with suppress(OSError, trio.ClosedResourceError), trio.move_on_after(HANG_UP_S):
        # Past TLS, which is not needed any more.
        socket.socket.shutdown(secured, socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(secured)
            if not socket.socket.recv(secured, PIECE_BYTES):
                break


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` as a pair; raises `ValueError` with what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)


def proven(secured: ssl.SSLSocket, address: str, credentials: Credentials) -> Wire:
    """A wire to who is at *address*. Raises `NotBelieved` if that is nobody to talk to; the socket is the caller's then."""
    certificate = certificate_of(secured)
    identity = credentials.judge(certificate)
    wire = Wire(secured, credentials.peer_at(address, identity, certificate))
    # Closed if the peer is revoked, or its authority is believed no more.
    credentials.connections.add(wire)
    return wire


async def turn_away(secured: ssl.SSLSocket, error: NotBelieved) -> None:
    """Tells who has connected why it is not believed, and closes the socket.

    It has a certificate of this network's authority.
    """
    try:
        with suppress(OSError):
            secured.send(pack(GREETING_NUMBER, _encode(Failure(Refused.kind, errno.EPERM, str(error)))))
            await _hang_up(secured)
    finally:
        trio.lowlevel.notify_closing(secured)
        secured.close()


class Party(NamedTuple):
    """Who is expected to be at an address."""

    role: Role | None
    """None: anybody, who need not even say who it is."""
    server: str = ""
    """Empty: whichever it is."""

    def check(self, identity: Identity | None) -> None:
        """Raises `ProtocolError` if it is somebody else."""
        if self.role is None:
            return
        if identity is None or identity.role is not self.role or (self.server and identity.server != self.server):
            wanted = f"the {self.role} of {self.server}" if self.server else f"a {self.role}"
            raise ProtocolError(f"it is {identity or 'nobody who says who it is'}, not {wanted}")


def _greeting(credentials: Credentials) -> bytes:
    """The first frame: which version of the protocol this process speaks. It is not answered."""
    if isinstance(credentials, Newcomer):
        return b""
    identity = credentials.identity
    greeting = Greeting(PROTOCOL, identity.cluster, identity.server, identity.role)
    return pack(GREETING_NUMBER, _encode(greeting))


A_MANAGER, ANYBODY = Party(Role.MANAGER), Party(None)


class AgentAt(NamedTuple):
    """Whose agent is meant, and where it is. Who is there has to prove that it is this one."""

    server: str
    address: str

    @classmethod
    def of(cls, volume: Volume) -> "AgentAt":
        """The agent that has a volume."""
        return cls(volume.server, volume.address)

    @property
    def party(self) -> Party:
        return Party(Role.AGENT, self.server)


async def connect_wire(address: str, credentials: Credentials, party: Party, *, timeout_s: float) -> Wire:
    """Connects to `host:port`, verifies that *party* is there, and greets it. Raises `Undone`."""
    try:
        host, port = parse_address(address)
        with trio.fail_after(timeout_s):
            # Another process of this server may have renewed them.
            credentials.refresh()
            stream = await trio.open_tcp_stream(host, port, happy_eyeballs_delay=math.inf)
            session = credentials.session_for(address)
            secured = await shake_hands(stream, credentials.asking, is_server=False, session=session)
            try:
                wire = proven(secured, address, credentials)
            except ProtocolError:
                secured.close()
                raise
            try:
                party.check(wire.peer.identity)
                await wire.send(PREFACE + _greeting(credentials))
            except BaseException:
                wire.close()
                raise
            return wire
    # `ValueError`: addresses come over the network, too.
    except (OSError, ValueError, trio.TooSlowError, Unavailable, ProtocolError) as error:
        reason = f"no connection within {timeout_s:g} s" if isinstance(error, trio.TooSlowError) else error_text(error)
        raise Undone(f"cannot reach {address}: {reason}") from error
