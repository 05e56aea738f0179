"""The leases of one term: who may use which inode in which mode for how long. In memory only.

A new manager adopts the tokens that mounts present to it, and until they have had the time to, it grants nobody to be
alone with an inode (`State.in_grace`). Invariant: whoever a live lease lets write has `writer` set, until it has closed the
inode or the lease has ended by the manager's clock, which is after the holder has stopped.

Everything here runs in the event loop; `is_written` may also be asked from the store's thread.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cluster.errors import TokenRefused
from cluster.leases import READ, SHARED, WRITE, LeaseToken, Sealer, margin_s, mode_for
from cluster.messages import LeaseCounts, Node
from manager.members import Members
from manager.sessions import Session

SERIAL_TERM_BITS = 40


@dataclass(frozen=True)
class Lease:
    """One holder's right to one inode. `ends_s` is when the manager takes it for ended, by its own clock.

    `mode` is the token's until another holder comes, or this one has closed the inode: until the next renewal the token may
    say more than the holder may rely on.
    """

    token: LeaseToken
    mode: str
    session: int
    writer: bool
    since_s: float
    ends_s: float
    renewals: int = 0


@dataclass
class Counts:
    """What has happened in this term."""

    granted: int = 0
    renewed: int = 0
    expired: int = 0
    refused: int = 0

    def message(self) -> LeaseCounts:
        return LeaseCounts(self.granted, self.renewed, self.expired, self.refused)


class Leases:
    """The table of live leases: at most one for each inode and session."""

    def __init__(self, term: int, access_s: float, sealer: Sealer, members: Members) -> None:
        self.access_s = access_s
        self.counts = Counts()
        self._term = term
        self._sealer = sealer
        self._members = members
        self._serials = itertools.count(term << SERIAL_TERM_BITS | 1)
        self._holders: dict[int, dict[int, Lease]] = {}
        self._by_end: OrderedDict[tuple[int, int], None] = OrderedDict()  # all leases last equally long: in order of their ends

    def __len__(self) -> int:
        return len(self._by_end)

    # --------------------------------------------------------------------------------------------------- granting

    def grant(self, session: Session, node: Node, *, writer: bool, in_grace: bool, now: float) -> bytes:
        """A sealed token for the session: a new lease, or the one that it has for another access time."""
        holders = self._holders.setdefault(node.ino, {})
        known = holders.get(session.number)
        others = [lease.writer for number, lease in holders.items() if number != session.number and lease.ends_s > now]
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
            access_s=self.access_s,
            issued_s=now,
        )
        for number, lease in holders.items():
            if lease.mode == WRITE and number != session.number:
                holders[number] = replace(lease, mode=SHARED)
        self._put(holders, session.number, self._next(known, token, session.number, writer, now))
        return self._sealer.seal(token)

    def pass_for(self, server: str, ino: int, version: int, home_epoch: int, now: float) -> bytes:
        """A token with which *server*'s agent may read the inode's replicas to copy them. It is nobody's lease."""
        serial = next(self._serials)
        token = LeaseToken(serial, ino, READ, server, 0, "", version, home_epoch, self._term, self.access_s, now)
        return self._sealer.seal(token)

    def adopt(self, session: Session, sealed: list[bytes], is_writer: Callable[[int], bool], now: float) -> None:
        """Takes over what a mount holds from an earlier term, as if it had been granted now; what is no token of its is left."""
        ends_s = now + self.access_s + margin_s(self.access_s)
        for item in sealed:
            try:
                token = self._sealer.open(item)
            except TokenRefused:
                continue
            holders = self._holders.setdefault(token.ino, {})
            if token.holder == session.server and session.number not in holders:
                lease = Lease(token, token.mode, session.number, is_writer(token.ino), now, ends_s)
                self._put(holders, session.number, lease)
            elif not holders:
                del self._holders[token.ino]

    def _next(self, known: Lease | None, token: LeaseToken, session: int, writer: bool, now: float) -> Lease:
        ends_s = now + self.access_s + margin_s(self.access_s)
        if known is None or known.ends_s <= now:
            self.counts.granted += 1
            return Lease(token, token.mode, session, writer, now, ends_s)
        self.counts.renewed += 1
        return replace(known, token=token, mode=token.mode, writer=writer, ends_s=ends_s, renewals=known.renewals + 1)

    def _put(self, holders: dict[int, Lease], session: int, lease: Lease) -> None:
        ino = lease.token.ino
        holders[session] = lease
        self._by_end.pop((ino, session), None)
        self._by_end[ino, session] = None

    # ----------------------------------------------------------------------------------------------------- ending

    def stops_writing(self, session: Session, ino: int) -> None:
        """The holder has closed the inode for writing; the lease goes on as one to read."""
        lease = self._holders.get(ino, {}).get(session.number)
        if lease is not None and lease.writer:
            self._holders[ino][session.number] = replace(lease, writer=False, mode=READ)

    def end_session(self, session: int) -> None:
        """The holder is known to be dead (a process that was fenced may still believe in its tokens)."""
        for ino, number in [key for key in self._by_end if key[1] == session]:
            self._drop(ino, number)

    def gone(self, ino: int) -> None:
        """The inode does not exist any more."""
        for session in list(self._holders.get(ino, {})):
            self._drop(ino, session)

    def expire(self, now: float) -> None:
        """Forgets what has ended."""
        while self._by_end:
            ino, session = next(iter(self._by_end))
            if self._holders[ino][session].ends_s > now:
                return
            self._drop(ino, session)
            self.counts.expired += 1

    def _drop(self, ino: int, session: int) -> None:
        del self._by_end[ino, session]
        holders = self._holders[ino]
        del holders[session]
        if not holders:
            del self._holders[ino]

    # ----------------------------------------------------------------------------------------------------- asking

    def is_written(self, ino: int, *, besides: Session | None = None) -> bool:
        """Whether a live lease of anybody (but *besides*) lets its holder write."""
        holders = list(self._holders.get(ino, {}).values())
        return any(lease.writer for lease in holders if besides is None or lease.session != besides.number)

    def ending_first(self, server: str = "", ino: int = 0) -> Iterator[Lease]:
        """The live leases of a server (empty: of all) for an inode (0: for all), those that end first at the top."""
        for key in self._by_end:
            lease = self._holders[key[0]][key[1]]
            if server in ("", lease.token.holder) and ino in (0, lease.token.ino):
                yield lease
