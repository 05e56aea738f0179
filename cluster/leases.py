"""Lease tokens: the right of one server to use one inode in one mode for an access time.

A token is made by the manager for one agent, and sealed with that server's key, so that the agent can check it without asking.
Keys are derived from a master that only managers use: who knows one server's key can make tokens for that server's agent, which
has no need of them, and for no other. Time is counted thrice, and never compared between machines:

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
ALONE = "alone"  # of no token: as `READ` or `WRITE`, and nobody else is told anything (docs/held-directories.md)
MAY_WRITE = frozenset({WRITE, SHARED})

SERIAL_TERM_BITS = 40  # serials are `term << SERIAL_TERM_BITS | number`, so that they grow over all terms
SEAL_BYTES = 32
KEY_LABEL = b"godwit lease token\0"  # followed by the server's name: sets these keys apart from others of the same master
MARGIN = 0.05  # of the access time, and at least `MARGIN_MIN_S`: how much longer the manager waits than the holder acts
MARGIN_MIN_S = 0.25
ALONE_S = 3.0  # for which a grant lets its holder be alone at most: as long as others may have to wait for one that has died
ALONE_SHORTEST = 0.0  # of `ALONE_S` that any grant lasts: without one the manager makes the changes, and nothing has to wait
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
    checked_by: str = ""  # the server whose agent checks it, by whose key it is sealed; empty: no agent does


_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[LeaseToken] = from_msgpack(LeaseToken)


class Sealer:
    """Seals and opens tokens with one server's key (HMAC-SHA-256, RFC 2104)."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.HMAC(key, hashes.SHA256())

    def seal(self, token: LeaseToken) -> bytes:
        """The token as it travels."""
        body = _encode(token)
        keyed = self._keyed.copy()
        keyed.update(body)
        return keyed.finalize() + body

    def open(self, sealed: bytes) -> LeaseToken:
        """The token that was sealed; raises `TokenRefused` for anything that was not sealed with this key."""
        body = sealed[SEAL_BYTES:]
        keyed = self._keyed.copy()
        keyed.update(body)
        try:
            keyed.verify(sealed[:SEAL_BYTES])
            return _decode(body)
        except (InvalidSignature, Malformed):
            raise TokenRefused("the lease token was not made by a manager of this cluster for this server") from None


class LeaseKeys:
    """What managers seal with: a key for each server, derived from the network's master secret."""

    def __init__(self, master: bytes) -> None:
        self._master = hmac.HMAC(master, hashes.SHA256())
        self._sealers: dict[str, Sealer] = {}  # of servers for which something was sealed, by name

    def key_of(self, server: str) -> bytes:
        """The key of a server's agent: HMAC-SHA-256 under the master of the label and the name."""
        keyed = self._master.copy()
        keyed.update(KEY_LABEL + server.encode())
        return keyed.finalize()

    def seal(self, token: LeaseToken) -> bytes:
        """The token as it travels, for the agent that checks it. No server has an empty name: for "", no agent takes it."""
        sealer = self._sealers.get(token.checked_by)
        if sealer is None:
            sealer = self._sealers[token.checked_by] = Sealer(self.key_of(token.checked_by))
        return sealer.seal(token)

    def open(self, sealed: bytes) -> LeaseToken:
        """The token, for whichever agent it was sealed; raises `TokenRefused` for anything that no manager made.

        The token itself says for which: who knows one server's key can make such tokens, of any holder.
        """
        server = read_token(sealed).checked_by
        sealer = self._sealers.get(server) or Sealer(self.key_of(server))
        token = sealer.open(sealed)
        # Not before: until the seal is checked, the name is anybody's.
        self._sealers[server] = sealer
        return token


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


def grant_lasts_s(access_s: float, extended_s: float, now: float, shortest: float = SHORTEST) -> float:
    """For how long a manager grants at *now* whose office was last extended by what began at *extended_s*.

    Its grants end an access time after that, so that a manager that follows can count from the last beat that was seen, and need
    not add the time of its election. A manager that has not been able to extend for long grants *shortest* of an access time.
    """
    return min(access_s, max(extended_s + access_s - now, access_s * shortest))


def all_ended_s(access_s: float, extended_s: float, began_s: float, shortest: float = SHORTEST) -> float:
    """When what was granted in earlier terms has ended, as `grant_lasts_s` says how long that lasts.

    *extended_s*: the last extension of an earlier term began before that; *began_s*: nobody has acted in one since.
    """
    return max(extended_s + access_s, began_s + access_s * shortest) + margin_s(access_s)


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
    """Checks the tokens that come with requests for data. Raises `TokenRefused` with what is wrong.

    Until a manager has given it the key of its server it refuses all.
    """

    def __init__(self, clock: ManagerClock) -> None:
        self._clock = clock
        self._key = b""
        self._sealer: Sealer | None = None  # with that key; None before there is one
        self._checked: OrderedDict[bytes, LeaseToken] = OrderedDict()  # seals that were good with it

    def take_key(self, key: bytes) -> None:
        """The key of this server, as a manager says that it is."""
        if key != self._key:
            self._key, self._sealer = key, Sealer(key) if key else None
            self._checked.clear()

    def check(self, sealed: bytes, ino: int, now: float, holder: str, *, to_write: bool = False) -> LeaseToken:
        """The token, if it is good for this inode now; with *to_write*, good for changing its content.

        *holder*: the server that the peer has proved to be of.
        """
        token = self._opened(sealed)
        if token.holder != holder:
            raise TokenRefused(f"the lease token is {token.holder}'s, not {holder}'s")
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
            if self._sealer is None:
                raise TokenRefused("this agent can check no lease token: no manager has given it its server's key yet")
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
