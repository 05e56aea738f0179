"""Takes the connections of browsers: TLS 1.3, few at a time, at a pace.

Whoever reaches the port can connect. Before he has proved who he is, and afterwards, too, he takes a bounded number of
connections, bytes, and moments of the event loop, and whatever he sends ends his connection at most.
"""

import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from http import HTTPStatus
from pathlib import Path

import trio

from cluster.clock import monotonic_s
from cluster.config import PageConfig, ServerConfig
from cluster.errors import Unavailable, error_text
from cluster.faults import faults
from cluster.listening import RETRY_S, listeners_at, take_connections
from cluster.rpc.handshake import NotProven, shake_hands
from cluster.rpc.wire import Wire, proven
from cluster.tending import tended
from cluster.trust.credentials import Credentials, NotBelieved
from cluster.trust.credentials import context as tls_context
from cluster.trust.identity import Peer
from manager.page.exchange import Answer, Asked, converse
from manager.page.picture import Viewer
from manager.page.site import HEADERS, Site
from manager.requests.routes import Candidate

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
CONNECTIONS_PER_ADDRESS = 16  # a browser makes six
HANDSHAKE_S = 5.0
REST_S = 0.005  # between two requests, whoever asks: each takes some tenths of a millisecond

Answering = Callable[[Asked, Peer], Awaitable[Answer]]


async def serve_page(config: ServerConfig, credentials: Credentials, candidate: Candidate) -> None:
    """Serves the page until cancelled; returns at once if the configuration wants none. Raises nothing that others caused."""
    address = config.page.listen
    if not address:
        return
    certificate = ShownCertificate(config.page, credentials)
    await certificate.wait()
    viewer = Viewer(candidate, config)
    site = Site(credentials, viewer.tell)
    listeners = await listeners_at(address, "the pages for browsers")
    log.info("the page is at https://%s/", address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tended, viewer.look_loop)
        await Browsers(credentials, certificate, site.answer).serve(listeners)


class ShownCertificate:
    """The TLS context of the page: with the manager's own certificate, or that of the configuration."""

    def __init__(self, page: PageConfig, credentials: Credentials) -> None:
        self._page = page
        self._credentials = credentials
        self._context: ssl.SSLContext | None = None
        self._made_of: object = None  # the files, and the manager's certificates, when it was made

    @property
    def context(self) -> ssl.SSLContext | None:
        """The present one. If the files cannot be read (any more), that is logged, and it is the one of before, or None."""
        if not self._page.certificate:
            return self._credentials.serving
        try:
            made_of = (self._credentials.generation, *map(_identity, self._page.files))
            if made_of != self._made_of:
                # First: files that are wrong are looked at once.
                self._made_of = made_of
                self._context = self._make()
        except (OSError, ValueError) as error:
            why = f"the certificate of the page, {self._page.certificate}, cannot be used: {error_text(error)}"
            faults.note(log, "no certificate of the page", why)
        return self._context

    def _make(self) -> ssl.SSLContext:
        made = tls_context(ssl.PROTOCOL_TLS_SERVER, self._credentials.authorities.decode("ascii", "replace"))
        made.verify_mode = ssl.CERT_OPTIONAL  # a browser may have a certificate of this network
        made.load_cert_chain(self._page.certificate, self._page.key or None, password=_no_password)
        return made

    async def wait(self) -> None:
        """Returns once there is one."""
        while self.context is None:
            await trio.sleep(RETRY_S)


def _identity(path: str) -> tuple[int, int]:
    there = Path(path).stat()
    return there.st_ino, there.st_mtime_ns


def _no_password() -> str:
    # Else OpenSSL would ask for it on the terminal, and wait.
    raise ValueError("its key has a password")


class Browsers:
    """Answers connections."""

    def __init__(self, credentials: Credentials, certificate: ShownCertificate, answer: Answering) -> None:
        self._credentials = credentials
        self._certificate = certificate
        self._answer = answer
        self._connections: Counter[str] = Counter()  # by address
        self._next_s = 0.0  # when the next request has its turn

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Takes connections until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(take_connections, listener, self._serve_one, nursery)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # it has gone already
            await trio.aclose_forcefully(stream)
            return
        if self._connections.total() >= CONNECTIONS_MAX or self._connections[host] >= CONNECTIONS_PER_ADDRESS:
            faults.note(log, "too many browsers", f"closed a connection of {host} to the page: there are too many")
            await trio.aclose_forcefully(stream)
            return
        self._connections[host] += 1
        try:
            await self._talk(stream, f"{host}:{port}")
        except Unavailable as error:
            log.debug("%s", error)
        except Exception as error:
            faults.unexpected(log, f"while {host} was answered", error)
        finally:
            self._connections[host] -= 1
            if not self._connections[host]:
                del self._connections[host]

    async def _talk(self, stream: trio.SocketStream, address: str) -> None:
        context = self._certificate.context
        assert context is not None  # `serve_page` has waited for it
        with trio.move_on_after(HANDSHAKE_S) as scope:
            try:
                secured = await shake_hands(stream, context, is_server=True)
            except NotProven as error:
                log.debug("no handshake with %s: %s", address, error)
                return
        if scope.cancelled_caught:
            return
        try:
            wire, answer = proven(secured, address, self._credentials), self._in_turn
        except NotBelieved as error:
            faults.note(log, f"not believed ({error.cause})", f"refused {address} the page: {error}")
            wire, answer = Wire(secured, Peer(address)), partial(_refuse, why=str(error))
        with closing(wire):
            await converse(wire, partial(answer, peer=wire.peer), HEADERS)

    async def _in_turn(self, asked: Asked, peer: Peer) -> Answer:
        """Answers one request after the other, with pauses: however much is asked here, the event loop has other things to do."""
        turn_s = max(monotonic_s(), self._next_s)
        self._next_s = turn_s + REST_S
        await trio.sleep_until(turn_s)
        return await self._answer(asked, peer)


async def _refuse(_asked: Asked, peer: Peer, why: str) -> Answer:  # noqa: ARG001
    return Answer(HTTPStatus.FORBIDDEN, f"{why}\n".encode(), ends=True)
