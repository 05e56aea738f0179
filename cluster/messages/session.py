"""Introductions: who speaks, what it holds, and that it is still there."""

from __future__ import annotations

from enum import StrEnum

from cluster.catalog_point import CatalogPoint
from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Message, Reply, Value
from cluster.messages.locks import HeldLocks


class OpenInode(Value, frozen=True):
    """One inode that a session holds open."""

    ino: int
    write: bool


class Greeting(Message, frozen=True):
    """Who is connected, before larger requests than a stranger's are taken. It has a number of its own, and no reply."""

    protocol: int
    cluster: str
    server: str
    role: str


class Welcome(Reply, frozen=True):
    """The manager's answer to `Hello`."""

    term: int
    manager: str  # its server's name
    session_timeout_s: float  # how long a silent session keeps what it has open
    lost: list[int]  # presented inodes that do not exist any more
    now_s: float = 0.0  # as of `Beat`
    managers: list[str] = []  # addresses of the candidates of all members
    unlocked: list[int] = []  # presented inodes on which it has no locks any more
    locks_s: float = 0.0  # how long after the last exchange it may believe in its locks
    point: CatalogPoint | None = None  # how far the catalog has come
    lease_key: bytes = b""  # with which lease tokens for this agent are sealed; empty for all but agents
    revoked: dict[str, int] = {}  # the least epoch that is believed of servers that were revoked
    authorities: bytes = b""  # that are believed: `cluster.trust.believed`


class Hello(ManagerRequest[Welcome], frozen=True):
    """First request on every connection to a manager.

    A new session of the same server and role replaces the older one. A mount presents all that it has, so that a new manager
    knows it; requests for locks that wait are made anew.
    """

    protocol: int
    cluster: str
    server: str
    role: str  # mount, agent or cli
    session: int  # a random number, drawn at the start of the process and kept over reconnections
    opens: list[OpenInode] = []
    tokens: list[bytes] = []  # lease tokens for what is open
    caching: list[int] = []  # inodes that it or its kernel may still be caching
    locks: list[HeldLocks] = []  # those of its processes
    seen: CatalogPoint | None = None  # how far an agent has seen the catalog come
    unsent: bool = False  # it has records to send (`ApplyRecords`): until then others must not see what these change


class Beat(Reply, frozen=True):
    """`now_s` is the manager's monotonic clock: see `cluster.leases.ManagerClock`."""

    term: int
    now_s: float
    revoked: dict[str, int] | None = None  # as of `Welcome`; None: as this session was told before
    authorities: bytes = b""  # as of `Welcome`; empty: as this session was told before


class Joined(Reply, frozen=True):
    """What a new server's configuration and trust are made of."""

    cluster: str
    managers: list[str]  # addresses of the candidates
    certificates: dict[str, bytes]  # PEM, by role
    authorities: bytes  # their certificates, PEM
    manager: dict[str, int | float]  # settings on which all servers must agree, of this section
    mount: dict[str, int | float]  # and of this one
    # Of candidates only, else empty:
    database: str = ""  # the catalog's URL, with its password
    authority: bytes = b""  # key and certificate of the one that signs, PEM
    master: bytes = b""  # the master secret


class Elsewhere(Reply, frozen=True):
    """The candidate that was asked is not in office; `address` is that of the one that is, empty if it knows none."""

    address: str


class Join(ManagerRequest[Joined | Elsewhere], frozen=True):
    """A machine that is no server yet shows the secret of its one-time token. Needs no `Hello`, and no certificate."""

    protocol: int
    secret: str  # of the token from `godwit servers add`
    server: str  # its name to be
    manager: str  # where its candidate will listen, if it becomes one; empty: it cannot be one
    requests: dict[str, bytes]  # to sign (PKCS #10, DER), by role; a used token is good for the same keys a little longer
    again: bool = False  # the server has its configuration, and so knows the database if it is a candidate


class Authorities(Reply, frozen=True):
    """The certificates of the authorities that a manager believes, as PEM."""

    pem: bytes


class AskAuthority(ManagerRequest[Authorities], frozen=True):
    """Asked of any candidate by a machine that has only a token: by its pin it knows the authority, and so its managers."""


class Certified(Reply, frozen=True):
    """A new certificate, as PEM, and those of the authorities that are believed now."""

    certificate: bytes
    authorities: bytes


class RenewCertificate(ManagerRequest[Certified], frozen=True):
    """Has a certificate signed for whom the connection's names, and nobody else. Needs no `Hello`."""

    request: bytes  # to sign (PKCS #10, DER): of a new key


class DataPath(StrEnum):
    """How a mount's files are read and written: passed through to the kernel, on some volumes or on all, or not."""

    PASSED = "passthrough"
    PARTLY_PASSED = "partly"
    FALLBACK = "fallback"


class Answerer(StrEnum):
    """Who answers the kernel what a mount knows already: lookups, stats, and opens to read."""

    EXTENSION = "extension"  # the C extension, without the mount process's Python
    PYTHON = "python"


class MountCounts(Value, frozen=True):
    """What a mount process has done since its start."""

    kernel_requests: int = 0  # that the kernel made of it
    manager_requests: int = 0  # that it made of managers
    recalls: int = 0  # that it obeyed
    caching: int = 0  # inodes that it holds a lease to cache at the moment
    why_not_passed: str = ""  # why files are not passed through
    files: str = ""  # a `DataPath`; empty while nobody knows
    problems: list[str] = []  # sentences for people
    answerer: str = ""  # an `Answerer`; empty while nobody knows
    unsent: int = 0  # changes of its own that the manager has not applied yet
    lost: int = 0  # changes of its own that could not be applied


class Heartbeat(ManagerRequest[Beat], frozen=True):
    """Keeps the session alive; a mount says what it has done.

    `metrics`: the process's counters and gauges, see `cluster.counters`.
    """

    counts: MountCounts | None = None
    metrics: dict[str, float] = {}
