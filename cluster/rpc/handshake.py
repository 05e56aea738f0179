"""TLS handshakes, in threads: the elliptic curves of one take a millisecond, which an event loop has better uses for.

A thread does one step at a time and waits for nobody: a peer that is slow costs no thread.
"""

import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from cluster.errors import Unavailable

THREADS_MAX = 2

_threads = trio.lowlevel.RunVar[trio.CapacityLimiter]("handshakes")


class NotProven(Unavailable):
    """A peer has not proved who it is. `cause`: the kind of reason, one of a few."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(f"no secure connection: {why}")
        self.cause = cause


async def shake_hands(
    stream: trio.SocketStream, context: ssl.SSLContext, *, is_server: bool, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """Takes over *stream*'s socket; returns it secured, and not blocking. Raises `NotProven` with why it cannot be."""
    plain = socket.socket(fileno=stream.socket.detach())
    try:
        secured = context.wrap_socket(plain, server_side=is_server, do_handshake_on_connect=False, session=session)
    except (OSError, ValueError) as error:
        plain.close()
        raise NotProven("broken", str(error)) from error
    try:
        secured.setblocking(False)
        await _shake(secured)
    except BaseException as error:
        trio.lowlevel.notify_closing(secured)
        secured.close()
        if isinstance(error, OSError):
            raise NotProven(_cause_of(error), reason_of(error)) from error
        raise
    return secured


async def _shake(secured: ssl.SSLSocket) -> None:
    limiter = _limiter()
    while True:
        try:
            # Not abandoned when cancelled: the object must not be closed beneath a thread. A step waits for nobody.
            await trio.to_thread.run_sync(partial(secured.do_handshake, block=False), limiter=limiter)
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(secured)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(secured)
        else:
            return


def _limiter() -> trio.CapacityLimiter:
    try:
        return _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS_MAX)
        _threads.set(limiter)
        return limiter


def certificate_of(secured: ssl.SSLSocket) -> Mapping[str, Any] | None:
    """The peer's verified certificate; None if it has shown none."""
    return secured.getpeercert() or None


ALERTS = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "our certificate is of an authority that it does not know",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it speaks HTTP",
    "UNEXPECTED_EOF_WHILE_READING": "it hung up",
}
"""What OpenSSL calls them, and what they mean here."""


def _cause_of(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    return error.reason or "broken" if isinstance(error, ssl.SSLError) else "broken"


def reason_of(error: OSError) -> str:
    """Why a connection broke, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this network that is in force ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        return ALERTS.get(reason, reason.lower().replace("_", " ") or "it hung up")
    return error.strerror or str(error)
