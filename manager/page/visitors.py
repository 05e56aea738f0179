"""Who may look at the page: sessions of those who gave the password, and how often it may be tried. Pure, but for random numbers.

Times are monotonic, and given by the caller. Sessions are kept in memory: they end with the process.
"""

import hashlib
import ipaddress
import secrets
from collections import OrderedDict
from dataclasses import dataclass

# The prefix binds it to this host, to TLS, and to the path / (RFC 6265bis).
COOKIE = "__Host-godwit"
SESSION_S = 12 * 3600.0
SESSIONS_MAX = 100
TOKEN_BYTES = 32

TRIES_OF_ADDRESS, TRY_OF_ADDRESS_S = 5, 20.0  # of one address at once, and another one each time
TRIES_OF_ALL, TRY_OF_ALL_S = 30, 2.0
ADDRESSES_MAX = 1000  # that are remembered
PREFIX = 64  # bits of an IPv6 address that somebody has for himself


@dataclass(frozen=True)
class _Session:
    until_s: float
    salt: bytes  # of the password that was given: another password ends the session


class Sessions:
    """Those that there are, by the digest of their token."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()  # the oldest first

    def begin(self, salt: bytes, now: float) -> str:
        """A cookie for who has just given the password that is kept with this *salt*."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._sessions[_digest(token)] = _Session(now + SESSION_S, salt)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return _cookie(token, int(SESSION_S))

    def is_known(self, cookies: str, salt: bytes, now: float) -> bool:
        """Whether who sends these cookies has given the password that is still kept with this *salt*."""
        session = self._sessions.get(_digest(_token_in(cookies)))
        return session is not None and now < session.until_s and session.salt == salt

    def end(self, cookies: str) -> str:
        """Ends the session of who sends these cookies, and gives the one that removes them."""
        self._sessions.pop(_digest(_token_in(cookies)), None)
        return _cookie("", 0)


def _digest(token: str) -> bytes:
    # Looked up by it: how long that takes tells nothing about the token.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _cookie(token: str, age_s: int) -> str:
    return f"{COOKIE}={token}; Path=/; Max-Age={age_s}; Secure; HttpOnly; SameSite=Strict"


def _token_in(cookies: str) -> str:
    """The session's token among these; empty if there is none."""
    pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")


@dataclass
class _Bucket:
    left: float  # tries
    at_s: float  # when that was


class Tries:
    """How often the password may be tried: by each address, and by all."""

    def __init__(self) -> None:
        self._all = _Bucket(TRIES_OF_ALL, 0.0)
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()  # who has tried longest ago first

    def take(self, address: str, now: float) -> float:
        """Takes one try; 0.0, or after how many seconds there is one, and nothing was taken."""
        name = _who(address)
        mine = self._addresses.pop(name, _Bucket(TRIES_OF_ADDRESS, now))
        self._addresses[name] = mine
        while len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)
        wait_s = max(_wait(self._all, TRIES_OF_ALL, TRY_OF_ALL_S, now), _wait(mine, TRIES_OF_ADDRESS, TRY_OF_ADDRESS_S, now))
        if not wait_s:
            self._all.left -= 1
            mine.left -= 1
        return wait_s

    def was_right(self, address: str) -> None:
        """The try that was taken was no wrong one."""
        self._addresses.pop(_who(address), None)
        self._all.left += 1


def _wait(bucket: _Bucket, most: int, each_s: float, now: float) -> float:
    bucket.left = min(float(most), bucket.left + (now - bucket.at_s) / each_s)
    bucket.at_s = now
    return 0.0 if bucket.left >= 1 else (1 - bucket.left) * each_s


def _who(address: str) -> str:
    """Whose address it is: that of IPv4, the network of one of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, PREFIX), strict=False))
