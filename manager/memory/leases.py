"""The leases of one term: who may use which inode, and cache what of it, for how long. In memory only.

A lease is the row for one inode and one session. It may have a *token*, which agents want to see at I/O, and it may let the
holder *cache*; then nobody else changes the inode before it was called back (`manager.memory.recalls`). A new manager adopts what
mounts present to it, and until they have had the time to, it grants nobody to be alone with an inode (`State.in_grace`).

Invariants: whoever a live lease lets write has `writer` set, until it has closed the inode or the lease has ended by the
manager's clock, which is after the holder has stopped. Whoever may be caching has `cached_until_s` in the future. Who is *alone*
with an inode (docs/held-directories.md) is one who may be caching it; there is at most one, and while there is nobody else is
granted anything of it. That ends earlier than caching does, unless it is prolonged: then others may look, and change nothing. It
does not end for others while records of the holder are being applied.

Changed in the event loop only; `is_written`, `caching`, `get` and who is alone may also be asked from the store's thread.
"""

import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from cluster.clock import monotonic_s
from cluster.counters import Counters, counter, gauge
from cluster.errors import TokenRefused
from cluster.leases import (
    ALONE,
    ALONE_S,
    ALONE_SHORTEST,
    READ,
    SERIAL_TERM_BITS,
    SHARED,
    WRITE,
    LeaseKeys,
    LeaseToken,
    grant_lasts_s,
    margin_s,
    mode_for,
)
from cluster.messages import LeaseCounts, Node
from manager.memory.bounds import BOUNDS, Bounds
from manager.memory.members import Members
from manager.memory.sessions import Session


@dataclass(slots=True, eq=False)
class Lease:
    """One holder's right to one inode."""

    ino: int
    session: int  # the holder's number
    server: str  # the holder's
    since_s: float  # when it was first granted
    ends_s: float = 0.0  # when the manager takes it for ended, by its own clock
    serial: int = 0  # of the newest grant or token
    token: LeaseToken | None = None  # the newest; None where only caching was granted
    writer: bool = False  # it was granted to write
    cached_until_s: float = 0.0  # as `ends_s`, for what the holder caches; 0 if it may not
    cache_serial: int = 0  # of its newest grant to cache
    alone_since_s: float = 0.0  # since when the holder is alone with it; 0 if it is not
    alone_until_s: float = 0.0  # as `cached_until_s`, which is no earlier, for being alone
    directory: int = 0  # under which the catalog notes that the server caches it (0: not known): see `manager.memory.notes`
    renewals: int = 0  # for people
    known_epoch: int = 0  # the holder knows that the token is for no newer home than this

    @property
    def is_directory(self) -> bool:
        """Whether what may be cached is a directory: these are noted under themselves, and hardly anything else is."""
        return self.directory == self.ino

    def mode(self, now: float) -> str:
        """`SHARED` if the holder may not cache; then the token may say more than the holder may rely on."""
        if self.cached_until_s <= now:
            return SHARED
        if self.alone_until_s > now:
            return ALONE
        return WRITE if self.writer else READ


GRANTED = counter("godwit_leases_granted_total", "Leases granted to mounts.")
RENEWED = counter("godwit_leases_renewed_total", "Leases granted again to who had them.")
EXPIRED = counter("godwit_leases_expired_total", "Leases that ran out, unused or unheard.")
REFUSED = counter("godwit_leases_refused_total", "Leases asked for inodes that are not there.")
RECALLED = counter("godwit_leases_recalled_total", "Leases that were called back.")
WAITED_OUT = counter("godwit_leases_waited_out_total", "Recalled leases that ended by time instead of an answer.")
GIVEN_BACK = counter("godwit_leases_given_back_total", "Leases that mounts gave back unasked.")
LIVE = gauge("godwit_leases", "Leases that have not ended.")
HELD_S = counter(
    "godwit_holds_seconds_total", "For how long directories were held, added up; each is counted when it is held no more."
)
REQUESTS = counter("godwit_mount_requests_total", "Requests of mounts that the manager has answered.")


class Counts:
    """What has happened to leases in this term."""

    def __init__(self, counters: Counters) -> None:
        self.granted = counters.cell(GRANTED)
        self.renewed = counters.cell(RENEWED)
        self.expired = counters.cell(EXPIRED)
        self.refused = counters.cell(REFUSED)
        self.recalled = counters.cell(RECALLED)
        self.waited_out = counters.cell(WAITED_OUT)
        self.given_back = counters.cell(GIVEN_BACK)
        self.requests = counters.cell(REQUESTS)

    def message(self) -> LeaseCounts:
        return LeaseCounts(**{name: int(cell.value) for name, cell in vars(self).items()})


@dataclass(slots=True, eq=False)
class _Recording:
    """Records of one session that are being applied."""

    began_s: float  # when the first of them came
    messages: int = 0  # how many there are of
    over: trio.Event = field(default_factory=trio.Event)  # none are being applied any more


class Leases:
    """The table of live leases: at most one for each inode and session."""

    def __init__(
        self,
        term: int,
        access_s: float,
        keys: LeaseKeys,
        members: Members,
        extended_s: Callable[[], float],
        bounds: Bounds = BOUNDS,
        now: Callable[[], float] = monotonic_s,
    ) -> None:
        self.access_s = access_s  # for how long a holder may use what it was granted, unless it renews it
        self.lasts_s = access_s + margin_s(access_s)  # until the manager takes a lease for ended: later than its holder does
        self.alone_s = min(access_s, ALONE_S)  # as `access_s`, for being alone
        self.alone_lasts_s = self.alone_s + margin_s(self.alone_s)  # as `lasts_s`
        self.counters = Counters()  # of this term
        self.counters.follow(LIVE, lambda: len(self))
        self.counts = Counts(self.counters)  # for people and metrics
        self._held_s = self.counters.cell(HELD_S)
        self._now = now  # when a hold ends that does not end by time
        self._term = term  # number, which tokens carry
        self._keys = keys  # by which agents know tokens for the manager's
        self._members = members  # says where homes are
        self._extended_s = extended_s  # when the last extension of the office began
        self._bounds = bounds  # of the table
        self._serials = itertools.count(term << SERIAL_TERM_BITS | 1)  # larger than those of earlier terms
        self._holders: dict[int, dict[int, Lease]] = {}  # by inode, then by session
        self._by_end: OrderedDict[tuple[int, int], None] = OrderedDict()  # all leases last equally long: in order of their ends
        self._cached: Counter[int] = Counter()  # leases to cache, by session
        self._alone: dict[int, Lease] = {}  # by inode, those marked as alone, in order of when that ends: it may be over
        self._recording: dict[int, _Recording] = {}  # by session: while records of it are being applied

    def __len__(self) -> int:
        return len(self._by_end)

    def next_serial(self) -> int:
        """For a grant or a recall: larger than those of all before, in this term and earlier ones."""
        return next(self._serials)

    # --------------------------------------------------------------------------------------------------- granting

    def granted_s(self, now: float) -> float:
        """For how long what is granted at *now* lasts at its holder, from when that asked."""
        return grant_lasts_s(self.access_s, self._extended_s(), now)

    def granted_alone_s(self, now: float) -> float:
        """As `granted_s`, for a grant that lets its holder be alone; 0 if the office was not extended for as long."""
        return grant_lasts_s(self.alone_s, self._extended_s(), now, ALONE_SHORTEST)

    def grant(self, session: Session, node: Node, *, writer: bool, in_grace: bool, now: float) -> bytes:
        """A sealed token for the session: a new lease, or the one that it has for another access time."""
        holders = self._holders.get(node.ino, {})
        # Those of the session itself do not exclude it, and those that let only cache give no right to I/O.
        others = [
            lease.writer
            for number, lease in holders.items()
            if number != session.number and lease.token is not None and lease.ends_s > now
        ]
        home = self._members.get(node.home_volume)
        at_home = home is not None and home.server == session.server
        token = LeaseToken(
            serial=next(self._serials),
            ino=node.ino,
            mode=mode_for(writer=writer, at_home=at_home, others=others, in_grace=in_grace),
            holder=session.server,
            home_volume=node.home_volume,
            address="" if home is None else home.address,
            version=node.version,
            home_epoch=node.home_epoch,
            term=self._term,
            access_s=self.granted_s(now),
            issued_s=now,
            # While the file is dirty the catalog does not know what the object is like.
            object_ctime_ns=0 if node.dirty else node.object_ctime_ns,
            size=-1 if node.dirty else node.size,
            checked_by="" if home is None else home.server,
        )
        # The lease lasts longer than the token says, at least by the margin: for the way, and for clocks that run differently.
        lease = self._extended(session, node.ino, token.serial, now)
        lease.token, lease.writer = token, writer
        return self._keys.seal(token)

    def let_cache(self, session: Session, inodes: Iterable[int], directory: int, serial: int, now: float) -> None:
        """The session may cache these for an access time, noted under *directory*."""
        for ino in inodes:
            lease = self._extended(session, ino, serial, now)
            self._begin_caching(lease)
            lease.cache_serial = serial
            lease.directory = directory

    def let_alone(self, session: Session, inodes: Iterable[int], directory: int, serial: int, now: float) -> None:
        """As `let_cache`, and the session is alone with these, for `alone_s`. Nobody else may have a live lease for them."""
        chosen = list(inodes)
        self.let_cache(session, chosen, directory, serial, now)
        for ino in chosen:
            lease = self._holders[ino][session.number]
            before = self._alone.get(ino)
            # That of another has ended, but was not swept yet.
            if before is not None and before is not lease:
                self._end_alone(before)
            lease.alone_since_s = lease.alone_since_s or now
            lease.alone_until_s = now + self.alone_lasts_s
            # To the end, as in `_extended`.
            self._alone.pop(ino, None)
            self._alone[ino] = lease

    @contextmanager
    def recording(self, session: int) -> Iterator[None]:
        """While inside, records of the session are applied: others do not see yet what it was alone with when they came."""
        recording = self._recording.setdefault(session, _Recording(self._now()))
        recording.messages += 1
        try:
            yield
        finally:
            recording.messages -= 1
            if not recording.messages:
                del self._recording[session]
                recording.over.set()

    async def recorded(self, session: int) -> None:
        """Returns when no records of the session are being applied."""
        while (recording := self._recording.get(session)) is not None:
            await recording.over.wait()

    def has_room(self, session: Session, count: int = 1) -> bool:
        """Whether the session may be granted *count* more to cache."""
        bounds = self._bounds
        return len(self._by_end) + count <= bounds.leases_max and self._cached.get(session.number, 0) + count <= bounds.cached_max

    def pass_for(self, server: str, ino: int, version: int, home_epoch: int, now: float, *, checked_by: str) -> bytes:
        """A token with which *server* may read the inode's replicas at one agent. It is nobody's lease."""
        serial = next(self._serials)
        token = LeaseToken(
            serial, ino, READ, server, 0, "", version, home_epoch, self._term, self.access_s, now, checked_by=checked_by
        )
        return self._keys.seal(token)

    def adopt(
        self, session: Session, sealed: list[bytes], caching: list[int], is_writer: Callable[[int], bool], now: float
    ) -> None:
        """Takes over what a mount holds from an earlier term, as if it had been granted now; what is no token of its is left.

        What it has from this term stays as it is.
        """
        for item in sealed:
            try:
                token = self._keys.open(item)
            # No manager of this cluster made it: nobody has to heed it.
            except TokenRefused:
                continue
            known = self.get(token.ino, session.number)
            # A token of this term that was answered before the mount presented the older one is the newer one.
            if token.holder == session.server and (known is None or known.token is None):
                # A whole time from now: when it was granted is known only by a clock of the manager before.
                lease = self._extended(session, token.ino, token.serial, now, counted=False)
                lease.token, lease.writer = token, is_writer(token.ino)
        for ino in caching:
            known = self.get(ino, session.number)
            if known is None or not known.cached_until_s:
                self._begin_caching(self._extended(session, ino, 0, now, counted=False))

    def _extended(self, session: Session, ino: int, serial: int, now: float, *, counted: bool = True) -> Lease:
        """The session's lease for the inode, new or renewed, which ends `lasts_s` from now."""
        holders = self._holders.get(ino)
        if holders is None:
            holders = self._holders[ino] = {}
        lease = holders.get(session.number)
        # Ended, but not swept yet: what follows is a new lease, which inherits no right to write.
        if lease is not None and lease.ends_s <= now:
            self._drop(ino, session.number)
            self.counts.expired.value += 1
            # `_drop` has removed the inode's dictionary if it was the last holder.
            holders = self._holders.setdefault(ino, {})
            lease = None
        if lease is None:
            lease = holders[session.number] = Lease(ino, session.number, session.server, now)
            self.counts.granted.value += counted
        elif lease.ends_s != now + self.lasts_s:  # else it is for the same answer
            lease.renewals += 1
            self.counts.renewed.value += counted
        # Caching may have ended before the lease, and being alone before that; neither must come back by the extension.
        if lease.cached_until_s <= now:
            self._end_caching(lease)
        elif lease.alone_until_s <= now:
            self._end_alone(lease)
        lease.ends_s = now + self.lasts_s
        lease.serial = max(lease.serial, serial)
        key = (ino, session.number)
        # To the end, since it ends last now: `expire` looks only at the front.
        self._by_end[key] = None
        self._by_end.move_to_end(key)
        return lease

    def _begin_caching(self, lease: Lease) -> None:
        if not lease.cached_until_s:
            self._cached[lease.session] += 1
        lease.cached_until_s = lease.ends_s

    # ----------------------------------------------------------------------------------------------------- ending

    def stops_writing(self, session: Session, ino: int) -> None:
        """The holder has closed the inode for writing; the lease goes on as one to read."""
        lease = self.get(ino, session.number)
        if lease is not None:
            lease.writer = False

    def stops_caching(self, ino: int, session: int, *, up_to: int, is_open: bool) -> bool:
        """The holder caches nothing any more under grants with serials up to *up_to*; False if that changes nothing.

        What remains is a lease that lets it cache nothing, if it has a token or the inode open.
        """
        lease = self.get(ino, session)
        if lease is None or not lease.cached_until_s or lease.cache_serial > up_to:
            return False
        self._end_caching(lease)
        if lease.token is None and not is_open:
            self._drop(ino, session)
        return True

    def knows_home(self, ino: int, session: int, home_epoch: int) -> None:
        """The holder has been told to ask where the home is, when its epoch was this."""
        lease = self.get(ino, session)
        if lease is not None:
            lease.known_epoch = max(lease.known_epoch, home_epoch)

    def end_session(self, session: int, *, keep_alone_at: float = math.inf) -> None:
        """The holder is known to be dead (a process that was replaced may still believe in its tokens).

        What it is alone with at *keep_alone_at* stays so until its time is over: what it recorded there may still come.
        """
        for ino, number in [key for key in self._by_end if key[1] == session]:
            lease = self._holders[ino][number]
            if self.is_alone(ino, number, keep_alone_at):
                lease.token, lease.writer = None, False
            else:
                self._drop(ino, number)

    def shows(self, ino: int, session: int) -> None:
        """The holder is alone with the inode no more, and goes on caching it."""
        lease = self.get(ino, session)
        if lease is not None:
            self._end_alone(lease)

    def ends_alone(self, session: int) -> None:
        """The holder is alone with nothing any more; its kernel goes on believing what it was told, for as long as it may."""
        for lease in [lease for lease in self._alone.values() if lease.session == session]:
            self._end_alone(lease)

    def gone(self, ino: int) -> None:
        """The inode does not exist any more."""
        for session in list(self._holders.get(ino, {})):
            self._drop(ino, session)

    def expire(self, now: float) -> None:
        """Forgets what has ended."""
        while self._alone and not self._is_alone(first := next(iter(self._alone.values())), now):
            self._end_alone(first)
        while self._by_end:
            ino, session = next(iter(self._by_end))
            # All others end later.
            if self._holders[ino][session].ends_s > now:
                return
            self._drop(ino, session)
            self.counts.expired.value += 1

    def _end_alone(self, lease: Lease) -> None:
        if not lease.alone_since_s:
            return
        if lease.is_directory:
            # What has ended by time may be found out later.
            self._held_s.value += max(0.0, min(self._now(), lease.alone_until_s) - lease.alone_since_s)
        lease.alone_since_s = lease.alone_until_s = 0.0
        del self._alone[lease.ino]

    def _end_caching(self, lease: Lease) -> None:
        self._end_alone(lease)
        if lease.cached_until_s:
            lease.cached_until_s = 0.0
            self._cached[lease.session] -= 1
            if not self._cached[lease.session]:
                del self._cached[lease.session]

    def _drop(self, ino: int, session: int) -> None:
        del self._by_end[ino, session]
        holders = self._holders[ino]
        self._end_caching(holders.pop(session))
        if not holders:
            del self._holders[ino]

    # ----------------------------------------------------------------------------------------------------- asking

    def get(self, ino: int, session: int) -> Lease | None:
        """The session's lease for the inode, if there is one."""
        return self._holders.get(ino, {}).get(session)

    def is_written(self, ino: int, *, besides: Session | None = None) -> bool:
        """Whether a live lease of anybody (but *besides*) lets its holder write."""
        found = self._holders.get(ino)
        if found is None:
            return False
        # A copy in one step: the store's thread asks, too, while the event loop may change it. So it is in `caching`.
        return any(lease.writer for lease in list(found.values()) if besides is None or lease.session != besides.number)

    def caching(self, ino: int, now: float, *, besides: Session | None = None) -> list[int]:
        """The sessions that may be caching the inode, but *besides*."""
        found = self._holders.get(ino)
        if found is None:
            return []
        excepted = None if besides is None else besides.number
        return [lease.session for lease in list(found.values()) if lease.cached_until_s > now and lease.session != excepted]

    @property
    def anybody_alone(self) -> bool:
        """Whether anybody may be alone with anything: else nobody need look."""
        return bool(self._alone)

    def is_alone(self, ino: int, session: int, now: float) -> bool:
        """Whether the session is alone with the inode."""
        lease = self._alone.get(ino)
        return lease is not None and lease.session == session and self._is_alone(lease, now)

    def _is_alone(self, lease: Lease, now: float) -> bool:
        recording = self._recording.get(lease.session)
        return lease.alone_until_s > (now if recording is None else min(now, recording.began_s))

    def alone_elsewhere(self, ino: int, session: int, now: float) -> int | None:
        """The other session that is alone with the inode, if there is one."""
        lease = self._alone.get(ino)
        return None if lease is None or lease.session == session or not self._is_alone(lease, now) else lease.session

    def held(self, now: float) -> list[Lease]:
        """All leases whose holders are alone."""
        # A copy in one step, as in `is_written`.
        return [lease for lease in list(self._alone.values()) if self._is_alone(lease, now)]

    def count_held_directories(self) -> int:
        """With how many directories somebody is alone, or was until a moment ago."""
        return sum(lease.is_directory for lease in list(self._alone.values()))

    def others(self, ino: int, session: Session, now: float) -> bool:
        """Whether any other session has a live token for the inode, or may be caching it."""
        return any(
            lease.session != session.number and (lease.cached_until_s > now or (lease.token is not None and lease.ends_s > now))
            for lease in self._holders.get(ino, {}).values()
        )

    def caching_at(self, ino: int, server: str, now: float) -> list[int]:
        """The sessions of the server that may be caching the inode."""
        leases = list(self._holders.get(ino, {}).values())
        return [lease.session for lease in leases if lease.server == server and lease.cached_until_s > now]

    def holders_of_old_home(self, ino: int, home_epoch: int, now: float, *, besides: Session) -> list[int]:
        """The sessions, except *besides*, whose tokens name an earlier home of the inode, and that were not told since."""
        return [
            lease.session
            for lease in self._holders.get(ino, {}).values()
            if lease.session != besides.number
            and lease.ends_s > now
            and lease.token is not None
            and max(lease.token.home_epoch, lease.known_epoch) < home_epoch
        ]

    def may_cache(self, ino: int, session: Session, now: float) -> bool:
        """Whether the session's lease lets it cache the inode now."""
        lease = self.get(ino, session.number)
        return lease is not None and lease.cached_until_s > now

    def ending_first(self, server: str = "", ino: int = 0) -> Iterator[Lease]:
        """The live leases of a server (empty: of all) for an inode (0: for all), those that end first at the top."""
        for key in self._by_end:
            lease = self._holders[key[0]][key[1]]
            if server in ("", lease.server) and ino in (0, lease.ino):
                yield lease
