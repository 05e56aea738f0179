"""What there is at the page's address, and who may have it.

The page itself, its style and its script hold nothing of the network, and anybody may have them. What they show, one JSON object,
is for who has shown an administrator's certificate, or has given the password since.
"""

import logging
import math
import time
from http import HTTPStatus
from importlib.resources import files
from typing import NamedTuple, Protocol

import msgspec
import trio

from cluster.clock import monotonic_s
from cluster.decoding import Decode, from_json
from cluster.durable import read_file
from cluster.errors import Malformed, error_text
from cluster.faults import faults
from cluster.rpc.wire import parse_address
from cluster.trust.credentials import Credentials
from cluster.trust.identity import Peer, Role
from cluster.trust.password import Kept, is_right, load
from manager.page.exchange import Answer, Asked
from manager.page.visitors import Sessions, Tries

log = logging.getLogger(__name__)

JSON = "application/json"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Cache-Control", "no-store"),
)
"""Of every answer."""


class Tell(Protocol):
    """Makes the JSON object; *password*: for somebody who has given it."""

    async def __call__(self, *, password: bool) -> bytes: ...


class _Static(NamedTuple):
    body: bytes
    kind: str


class _Login(msgspec.Struct, frozen=True):
    password: str


class _Denied(msgspec.Struct, frozen=True):
    """Why there is nothing to see."""

    why: str
    password: bool = False  # one can be given


_decode_login: Decode[_Login] = from_json(_Login)


class Site:
    """Answers requests; *tell* makes the JSON object."""

    def __init__(self, credentials: Credentials, tell: Tell) -> None:
        self._credentials = credentials  # of the manager
        self._tell = tell
        self._sessions = Sessions()
        self._tries = Tries()
        self._trying = trio.CapacityLimiter(1)  # each takes 32 MiB, and a processor
        self._password: Kept | None = None  # as it was read
        self._read: tuple[int, int] | None = None  # the file that it was read of
        folder = files("manager.page") / "files"
        page = _Static((folder / "page.html").read_bytes(), "text/html; charset=utf-8")
        self._static = {
            "/": page,
            "/page.css": _Static((folder / "page.css").read_bytes(), "text/css; charset=utf-8"),
            "/page.js": _Static((folder / "page.js").read_bytes(), "text/javascript; charset=utf-8"),
        }

    async def answer(self, asked: Asked, peer: Peer) -> Answer:
        """What *peer* gets, whose certificate was verified, and believed, when it connected."""
        if refusal := self._refusal(peer):
            return Answer(HTTPStatus.FORBIDDEN, f"{refusal}\n".encode(), ends=True)
        if asked.path in ("/login", "/logout"):
            if asked.method != "POST":
                return _wrong_method("POST")
            return await self._log_in(asked, peer) if asked.path == "/login" else self._log_out(asked)
        static = self._static.get(asked.path)
        if static is None and asked.path != "/network.json":
            return Answer(HTTPStatus.NOT_FOUND, b"there is one page, at /\n")
        if asked.method not in ("GET", "HEAD"):
            return _wrong_method("GET, HEAD")
        if static is not None:
            return Answer(HTTPStatus.OK, static.body, static.kind)
        if not self._may_look(asked, peer):
            return self._denied(HTTPStatus.UNAUTHORIZED, "who looks at the network has to give its password first")
        return Answer(HTTPStatus.OK, await self._tell(password=peer.identity is None), JSON)

    # ------------------------------------------------------------------------------------------------- who may look

    def _refusal(self, peer: Peer) -> str:
        """Why somebody is refused altogether who has shown a certificate; empty: he is not."""
        if peer.identity is None:
            return ""
        if peer.identity.role is not Role.ADMIN:
            return f"this page is for the certificate of an administrator (admin.pem), or a password, not for {peer.identity}"
        if peer.ends_s <= time.time():
            return f"the certificate of {peer.identity} has expired (godwit certs renew admin)"
        if self._credentials.is_revoked(peer.identity):
            return f"{peer.identity} was revoked"
        return ""

    def _may_look(self, asked: Asked, peer: Peer) -> bool:
        if peer.identity is not None:
            return True  # an administrator, see `_refusal`
        kept = self._kept()
        return kept is not None and self._sessions.is_known(asked.headers.get("cookie", ""), kept.salt, monotonic_s())

    def _denied(self, status: int, why: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        return Answer(status, msgspec.json.encode(_Denied(why, self._kept() is not None)), JSON, headers)

    async def _log_in(self, asked: Asked, peer: Peer) -> Answer:
        # A page of somebody else cannot send that without being asked whether it may.
        if asked.headers.get("content-type", "").partition(";")[0].strip() != JSON:
            return Answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, b"a password comes as application/json\n")
        try:
            given = _decode_login(asked.body)
        except Malformed as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        kept = self._kept()
        if kept is None:
            return self._denied(HTTPStatus.FORBIDDEN, "no password was set on this server (godwit page password)")
        address = parse_address(peer.address)[0]
        if wait_s := self._tries.take(address, monotonic_s()):
            again = math.ceil(wait_s)
            why = f"too many wrong passwords: the next one can be tried in {again} s"
            return self._denied(HTTPStatus.TOO_MANY_REQUESTS, why, (("Retry-After", str(again)),))
        if not await trio.to_thread.run_sync(is_right, given.password, kept, limiter=self._trying):
            faults.note(log, "wrong password", f"a wrong password for the page came from {address}", level=logging.WARNING)
            return self._denied(HTTPStatus.UNAUTHORIZED, "that is not the password")
        self._tries.was_right(address)
        log.info("the page is looked at from %s, with the password", address)
        return Answer(HTTPStatus.NO_CONTENT, headers=(("Set-Cookie", self._sessions.begin(kept.salt, monotonic_s())),))

    def _log_out(self, asked: Asked) -> Answer:
        return Answer(HTTPStatus.NO_CONTENT, headers=(("Set-Cookie", self._sessions.end(asked.headers.get("cookie", ""))),))

    def _kept(self) -> Kept | None:
        """What is kept of the password now; None if there is none, or it cannot be read."""
        path = self._credentials.folder.page_password
        try:
            there = path.stat()
            if (read := (there.st_ino, there.st_mtime_ns)) != self._read:
                # First: one that is damaged is told once.
                self._password, self._read = None, read
                self._password = load(read_file(path))
        except FileNotFoundError:
            self._password = self._read = None
        except (OSError, Malformed) as error:
            faults.note(log, "no password of the page", f"{path} cannot be used: {error_text(error, with_file=False)}")
            self._password = None
        return self._password


def _wrong_method(allowed: str) -> Answer:
    return Answer(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}\n".encode(), headers=(("Allow", allowed),))
