"""Lease tokens: the right of one server to use one inode in one mode for an access time.

A token is made by the manager and sealed with the cluster's secret, so that any agent can check it without asking. Time is
counted thrice, and never compared between machines:

- the *holder* counts the access time from before it asked;
- the *manager* counts it from the grant, and waits `MARGIN` longer before it acts on the end;
- an *agent* counts on the manager's clock, of which it knows how far it can have run at most: see `ManagerClock`.

So the holder stops first, whatever a message or a process was delayed by, as long as clocks run at rates that differ by less
than `CLOCK_RATE`. `docs/leases.md` has the argument in full.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac

from cluster.decoding import Decode, Finite, Int64, from_msgpack
from cluster.errors import Malformed, TokenRefused

READ = "read"
WRITE = "write"
SHARED = "shared"
MAY_WRITE = frozenset({WRITE, SHARED})

SERIAL_TERM_BITS = 40  # serials are `term << SERIAL_TERM_BITS | number`, so that they grow over all terms
SEAL_BYTES = 32
MARGIN = 0.05  # of the access time, and at least `MARGIN_MIN_S`: how much longer the manager waits than the holder acts
MARGIN_MIN_S = 0.25
SHORTEST = 2 / 3  # of the access time that any grant lasts: more than `RENEWALS_PER_ACCESS` leaves between two renewals
CLOCK_RATE = 0.01  # by which a clock may be faster or slower than another
CHECKED_MAX = 4096
TERMS_KEPT = 4


class LeaseToken(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    serial: Int64  # larger than those of all earlier tokens and grants
    ino: Int64
    mode: str  # `READ`, `SHARED` or `WRITE`
    holder: str  # the server that may use it
    home_volume: Int64  # 0 for what has no content
    address: str  # of the home's agent
    version: Int64  # of the content when it was granted
    home_epoch: Int64  # an object that was written under a later one refuses the token
    term: Int64
    access_s: Finite  # for how long it lasts, from when its holder asked
    issued_s: Finite  # the manager's monotonic clock at the grant, which means something in `term` only
    object_ctime_ns: Int64 = 0  # what the home's object shows while it has the content of `version`; 0 where that may be newer
    size: Int64 = -1  # the same; -1 where it may have newer content


_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[LeaseToken] = from_msgpack(LeaseToken)


class Sealer:
    """Seals and opens tokens with the cluster's secret (HMAC-SHA-256, RFC 2104)."""

    def __init__(self, secret: str) -> None:
        self._keyed = hmac.HMAC(bytes.fromhex(secret), hashes.SHA256())

    def seal(self, token: LeaseToken) -> bytes:
        """The token as it travels."""
        body = _encode(token)
        keyed = self._keyed.copy()
        keyed.update(body)
        return keyed.finalize() + body

    def open(self, sealed: bytes) -> LeaseToken:
        """The token that was sealed; raises `TokenRefused` for anything that this cluster's manager did not make."""
        body = sealed[SEAL_BYTES:]
        keyed = self._keyed.copy()
        keyed.update(body)
        try:
            keyed.verify(sealed[:SEAL_BYTES])
            return _decode(body)
        except (InvalidSignature, Malformed):
            raise TokenRefused("the lease token was not made by a manager of this cluster") from None


def read_token(sealed: bytes) -> LeaseToken:
    """What a token says that has just come from the manager. Raises `TokenRefused` if it is none."""
    try:
        return _decode(sealed[SEAL_BYTES:])
    except Malformed:
        raise TokenRefused("not a lease token") from None


# ------------------------------------------------------------------------------------------------------- deciding


class Decision(Enum):
    """What a holder does when a token's timer fires."""

    RENEW = "renew"
    LAPSE = "lapse"


def decide(*, is_open: bool, is_dirty: bool, used: bool) -> Decision:
    """The rule of the timer: *used* since the last renewal."""
    return Decision.RENEW if is_open or is_dirty or used else Decision.LAPSE


def mode_for(*, writer: bool, at_home: bool, others: Iterable[bool], in_grace: bool) -> str:
    """The mode of a grant.

    *writer*: the holder wants to write; *at_home*: its server is the home's; *others*: for each other holder, whether it
    writes; *in_grace*: a new manager does not know all holders yet, so that nobody is known to be alone.
    """
    others_write = list(others)
    if not writer:
        return SHARED if any(others_write) else READ
    return WRITE if at_home and not others_write and not in_grace else SHARED


def grant_lasts_s(access_s: float, extended_s: float, now: float) -> float:
    """For how long a manager grants at *now* whose office was last extended by what began at *extended_s*.

    Its grants end an access time after that, so that a manager that follows can count from the last beat that was seen, and need
    not add the time of its election. A manager that has not been able to extend for long grants `SHORTEST` of an access time.
    """
    return min(access_s, max(extended_s + access_s - now, access_s * SHORTEST))


def all_ended_s(access_s: float, extended_s: float, began_s: float) -> float:
    """When what was granted in earlier terms has ended.

    *extended_s*: the last extension of an earlier term began before that; *began_s*: nobody has acted in one since.
    """
    return max(extended_s + access_s, began_s + access_s * SHORTEST) + margin_s(access_s)


def margin_s(access_s: float) -> float:
    """How much longer than the access time the manager takes a lease for live."""
    return max(MARGIN_MIN_S, access_s * MARGIN)


# --------------------------------------------------------------------------------------------------- at the agents


@dataclass
class _Reading:
    """At *local_s* by our clock, the manager's showed *shown_s* at most."""

    local_s: float
    shown_s: float

    def latest(self, now: float) -> float:
        return self.shown_s + (now - self.local_s) * (1 + CLOCK_RATE)


class ManagerClock:
    """How far the clocks of the last few managers can have run, from their answers: an upper bound, good to a round trip."""

    def __init__(self) -> None:
        self._terms: OrderedDict[int, _Reading] = OrderedDict()

    def heard(self, term: int, shown_s: float, asked_s: float) -> None:
        """The manager of *term* answered with its clock to what was asked at *asked_s* by ours.

        It was read after *asked_s*, so that less time has passed since than we count.
        """
        reading = _Reading(asked_s, shown_s)
        known = self._terms.get(term)
        if known is None or reading.latest(asked_s) <= known.latest(asked_s):
            self._terms[term] = reading
        while len(self._terms) > TERMS_KEPT:
            self._terms.popitem(last=False)

    def latest(self, term: int, now: float) -> float | None:
        """What the clock of that term's manager shows at most; None for a term that was never heard of."""
        reading = self._terms.get(term)
        return None if reading is None else reading.latest(now)


class TokenGate:
    """Checks the tokens that come with requests for data. Raises `TokenRefused` with what is wrong."""

    def __init__(self, sealer: Sealer, clock: ManagerClock) -> None:
        self._sealer = sealer
        self._clock = clock
        self._checked: OrderedDict[bytes, LeaseToken] = OrderedDict()

    def check(self, sealed: bytes, ino: int, now: float, *, to_write: bool = False) -> LeaseToken:
        """The token, if it is good for this inode now; with *to_write*, good for changing its content."""
        token = self._opened(sealed)
        if token.ino != ino:
            raise TokenRefused(f"the lease token is for inode {token.ino}, not for {ino}")
        if to_write and token.mode not in MAY_WRITE:
            raise TokenRefused(f"a lease token in mode {token.mode} is no right to write inode {ino}")
        latest = self._clock.latest(token.term, now)
        if latest is None:
            raise TokenRefused(f"the lease token is of term {token.term}, of which this agent has not heard")
        if latest > token.issued_s + token.access_s:
            raise TokenRefused(f"the lease token for inode {ino} has expired")
        return token

    def _opened(self, sealed: bytes) -> LeaseToken:
        token = self._checked.get(sealed)
        if token is None:
            token = self._checked[sealed] = self._sealer.open(sealed)
            if len(self._checked) > CHECKED_MAX:
                self._checked.popitem(last=False)
        return token


# ----------------------------------------------------------------------------------------------- for docs/leases.md


def mode_table() -> str:
    """`mode_for` as a table in Markdown."""
    lines = ["| the holder | other holders | granted |", "|---|---|---|"]
    holders = {"reads": (False, False), "writes, at the home": (True, True), "writes, elsewhere": (True, False)}
    others: dict[str, tuple[bool, ...]] = {"none": (), "only readers": (False,), "one that writes": (True,)}
    for holder, (writer, at_home) in holders.items():
        for who, writing in others.items():
            mode = mode_for(writer=writer, at_home=at_home, others=writing, in_grace=False)
            early = mode_for(writer=writer, at_home=at_home, others=writing, in_grace=True)
            note = "" if mode == early else f" (`{early}` while the manager is new)"
            lines.append(f"| {holder} | {who} | `{mode}`{note} |")
    return "\n".join(lines) + "\n"


def timer_table() -> str:
    """`decide` as a table in Markdown."""
    lines = ["| open | dirty | used since the last renewal | when the timer fires |", "|---|---|---|---|"]
    for is_open, is_dirty, used in itertools.product((True, False), repeat=3):
        facts = ["yes" if fact else "no" for fact in (is_open, is_dirty, used)]
        lines.append(f"| {' | '.join(facts)} | {decide(is_open=is_open, is_dirty=is_dirty, used=used).value} |")
    return "\n".join(lines) + "\n"
