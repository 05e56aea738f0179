"""Who a process is: what its certificate says, and nothing else is believed."""

import math
import re
import ssl
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from cluster.errors import ProtocolError

BACKDATED_S = 86400.0  # certificates are in force for so long before they are signed: clocks of servers may differ
RENEWED_AFTER = 2 / 3  # of the life of a certificate
WARNED_S = 60 * 86400.0

_AUTHORITY = re.compile(r"godwit .+ authority (?P<number>[0-9]{1,9})")
_URI = re.compile(
    r"godwit://(?P<cluster>[A-Za-z0-9._-]{1,63})/(?P<server>[A-Za-z0-9._-]{1,63})/(?P<role>[a-z]{1,16})\?epoch=(?P<epoch>[0-9]{1,9})"
)


class Role(StrEnum):
    """What a process does for its server. Each has a certificate of its own."""

    MANAGER = "manager"
    AGENT = "agent"
    MOUNT = "mount"
    ADMIN = "admin"
    """A command that somebody types."""


class Identity(NamedTuple):
    """Whom a certificate names."""

    cluster: str
    server: str
    role: Role
    epoch: int
    """How often the server has been let in: revoking it makes all certificates of this epoch and earlier ones void."""

    @property
    def uri(self) -> str:
        """As a certificate has it, in its subject's alternative names (RFC 5280, 4.2.1.6)."""
        return f"godwit://{self.cluster}/{self.server}/{self.role}?epoch={self.epoch}"

    def __str__(self) -> str:
        return f"the {self.role} of {self.server}"


class Peer(NamedTuple):
    """Who is at the other end of a connection."""

    address: str
    """`host:port`, for messages."""
    identity: Identity | None = None
    """None: a machine that has shown no certificate."""
    ends_s: float = math.inf
    """When its certificate does, in seconds since the epoch."""
    replace_s: float = math.inf
    """From when on a new connection is to be made, since it has another certificate by then."""

    missed_s: float = math.inf
    """From when on it is a problem that it is still this one."""

    authority: int = 0
    """The number of the authority that has signed its certificate; 0: it has none."""

    def __str__(self) -> str:
        return self.address if self.identity is None else f"{self.identity} at {self.address}"


def merged(*maps: Mapping[str, int]) -> dict[str, int]:
    """The least epochs that are believed, by server, after all of these were heard: none is ever lowered."""
    return {server: max(least.get(server, 0) for least in maps) for server in set[str]().union(*maps)}


def parse_identity(uri: str) -> Identity:
    """The identity that was written as *uri*; raises `ValueError`."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri!r} names no process of a network")
    return Identity(found["cluster"], found["server"], Role(found["role"]), int(found["epoch"]))


def identity_of(certificate: Mapping[str, Any]) -> Identity:
    """Whom a verified certificate names, as `ssl.SSLSocket.getpeercert` gives it. Raises `ProtocolError`."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    try:
        (uri,) = names
        return parse_identity(uri)
    except ValueError:
        raise ProtocolError(f"its certificate names no process of a network, but {names!r:.200}") from None


def authority_name(cluster: str, number: int) -> str:
    """The common name of the *number*th authority of a network."""
    return f"godwit {cluster} authority {number}"


def authority_number(name: str) -> int:
    """The number in an authority's common name; 0 for a name that is none."""
    found = _AUTHORITY.fullmatch(name)
    return 0 if found is None else int(found["number"])


def authority_of(certificate: Mapping[str, Any]) -> int:
    """The number of the authority that has signed a verified certificate, as `ssl.SSLSocket.getpeercert` gives it."""
    names = [value for names in certificate.get("issuer", ()) for kind, value in names if kind == "commonName"]
    return authority_number(names[0]) if len(names) == 1 else 0


def renewed_from(issued_s: float, ends_s: float) -> float:
    """When a process asks for its next certificate: when two thirds of the life of the present one are over."""
    return issued_s + (ends_s - issued_s) * RENEWED_AFTER


def missed_from(issued_s: float, ends_s: float) -> float:
    """When a certificate that was not renewed is a problem: 60 days before its end, or for the last quarter of a shorter life."""
    return ends_s - min(WARNED_S, (ends_s - issued_s) / 4)


def lasting(certificate: Mapping[str, Any], now_s: float) -> tuple[float, float, float]:
    """`ends_s`, `replace_s` and `missed_s` of a `Peer` that has shown this certificate *now_s*."""
    ends_s = end_of(certificate)
    issued_s = float(ssl.cert_time_to_seconds(certificate["notBefore"])) + BACKDATED_S
    missed_s = missed_from(issued_s, ends_s)
    # It has renewed it then; one that has not is looked at again, ever more often.
    return ends_s, max(missed_s, now_s + (ends_s - now_s) / 2), missed_s


def end_of(certificate: Mapping[str, Any]) -> float:
    """When a verified certificate ends, in seconds since the epoch."""
    return float(ssl.cert_time_to_seconds(certificate["notAfter"]))
