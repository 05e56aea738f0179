"""A connected TCP socket, made for many small messages.

trio's own stream yields to the scheduler at every operation, which for a message of a hundred bytes costs more than the
system call. A `Wire` sends at once what the kernel takes and waits only when it takes no more; it still gives way to other
tasks when a peer keeps it busy.
"""

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from cluster.errors import Unavailable, Undone
from cluster.rpc.frames import PREFACE

DEAD_PEER_S = 15.0


class Wire:
    """Takes over *stream*'s socket. Errors of the connection are `Unavailable`; after one the wire is closed."""

    def __init__(self, stream: trio.SocketStream, peer: str) -> None:
        self.peer = peer
        self.closed = False
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Silence of a peer that has unsent data of ours breaks the connection instead of waiting for minutes.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_PEER_S * 1000))
        self._sending = trio.Lock()
        self._lent = False
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
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.close()
            raise Unavailable(f"the connection to {self.peer} broke: {error.strerror}") from error

    async def receive(self, limit: int) -> bytes:
        """Some bytes, at most *limit*; none at the end of the connection. One task at a time."""
        while not self.closed:
            if self._drained:
                await self._wait(trio.lowlevel.wait_readable)
            else:
                await trio.lowlevel.checkpoint()
            try:
                data = self._socket.recv(limit)
            except BlockingIOError:
                self._drained = True
                continue
            except OSError as error:
                self.close()
                raise Unavailable(f"the connection to {self.peer} broke: {error.strerror}") from error
            self._drained = len(data) < limit
            return data
        return b""

    def has_ended(self) -> bool:
        """Whether the peer has closed the connection already, even if nobody has read that yet."""
        try:
            return self.closed or not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[socket.socket]:
        """The socket for threads, which does not block them, and on which nobody else sends meanwhile.

        It is a descriptor of its own: closing the wire ends the connection, but leaves its number to the thread.
        """
        async with self._sending:
            if self.closed:
                raise Unavailable(f"the connection to {self.peer} is closed")
            self._lent = True
            try:
                with self._socket.dup() as lent:
                    yield lent
            finally:
                self._lent = False

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
        try:
            await ready(self._socket)
        except trio.ClosedResourceError:
            raise Unavailable(f"the connection to {self.peer} is closed") from None

    def close(self) -> None:
        """Closes the socket; whoever waits on it gets `Unavailable`."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self._socket)
            if self._lent:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` as a pair; raises `ValueError` with what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)


async def connect_wire(address: str, *, timeout_s: float) -> Wire:
    """Connects to `host:port` and sends the preface. Raises `Undone`."""
    try:
        host, port = parse_address(address)
        with trio.fail_after(timeout_s):
            wire = Wire(await trio.open_tcp_stream(host, port, happy_eyeballs_delay=math.inf), address)
            await wire.send(PREFACE)
            return wire
    except (OSError, ValueError, trio.TooSlowError, Unavailable) as error:  # addresses come over the network, too
        reason = f"no connection within {timeout_s:g} s" if isinstance(error, trio.TooSlowError) else str(error)
        raise Undone(f"cannot reach {address}: {reason}") from error
