"""The locks of one term: who has locked what, and who waits for it. In memory only; `docs/locks.md` has the rules.

A mount has locks as long as it is heard; a new manager adopts what mounts present to it, and grants nothing until all that were
there have done so. Record locks and locks of whole files (`flock`) are apart, as they are in Linux.

Invariants: spans of two owners never exclude each other. A waiter stays in its queue until it is granted, withdrawn, or its
session introduces itself again or ends. Everything runs in the event loop.
"""

import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from cluster.clock import monotonic_s
from cluster.config import ManagerConfig
from cluster.errors import NotManager, refused
from cluster.leases import SERIAL_TERM_BITS, margin_s
from cluster.messages import HeldLocks, LockOutcome, LockSpan, SetLock, Unlock
from cluster.spans import common, conflict, covers, normal, with_span, within, without
from manager.memory.sessions import Session
from manager.rules.liveness import TICK_S
from manager.rules.locks import File, Held, Owner, Queue, Waiter

TABLE_MAX = 200_000  # spans and waiters
SESSION_MAX = 20_000  # the same of one session
TERMS_TO_ELECT = 2.5  # that pass at most until there is another manager


def believed_s(config: ManagerConfig) -> float:
    """How long a mount believes in its locks after the last exchange with a manager.

    So short that a lock is free within the access time after its server died, even if the manager died with it; but long enough
    to outlast an election, which comes first where the access time is too short for both.
    """
    election_s = TERMS_TO_ELECT * config.term_s
    return max(config.access_s - margin_s(config.access_s) - TICK_S - election_s, min(config.access_s, election_s))


def kept_s(config: ManagerConfig) -> float:
    """How long the manager keeps them after it heard the mount."""
    believed = believed_s(config)
    return believed + margin_s(believed)


class Listed(NamedTuple):
    """A lock, or the waiting for one, by a process since a time."""

    file: File  # records and whole files apart
    owner: Owner  # session and the kernel's number
    span: LockSpan  # bytes, and whether to write
    pid: int  # of the process that locked last, on its server
    waiting: bool  # false: it has the lock
    since_s: float  # of `monotonic_s`


@dataclass(eq=False)
class Holder:
    """A session that may have locks. `count`: its spans and waiters. `woken`: tickets that are to be asked for again."""

    session: Session
    count: int = 0
    woken: dict[int, int] = field(default_factory=dict)
    bell: trio.Event = field(default_factory=trio.Event)

    def wake(self, serial: int, ticket: int) -> None:
        self.woken[serial] = ticket
        if len(self.woken) > SESSION_MAX:
            del self.woken[next(iter(self.woken))]
        self.ring()

    def ring(self) -> None:
        self.bell.set()
        self.bell = trio.Event()


class Locks:
    """All locks of one term. *all_known*: every mount that may have locks has presented them, or has none any more."""

    def __init__(self, term: int, lasts_s: float, all_known: Callable[[], bool], now: Callable[[], float] = monotonic_s) -> None:
        self._now = now  # `monotonic_s`, but in tests
        self._lasts_s = lasts_s  # after which silence a session's locks end: see `kept_s`
        self._all_known = all_known  # false until the mounts of earlier terms have presented theirs: nothing is granted then
        self._queues: dict[File, Queue] = {}  # only of files with a lock or a waiter: see `_tidy`
        self._holders: dict[int, Holder] = {}  # by session number
        self._waiting: dict[Owner, dict[int, File]] = {}  # for what each owner waits, by ticket
        self._serials = itertools.count(term << SERIAL_TERM_BITS | 1)  # of wakings; they grow over all terms
        self._count = 0  # spans and waiters of all sessions: see `TABLE_MAX`

    def __len__(self) -> int:
        return self._count

    # ----------------------------------------------------------------------------------------- coming and going

    def introduced(self, session: Session, presented: list[HeldLocks], *, adopt: bool) -> list[int]:
        """Makes what the session presents all that it has; the inodes on which it has nothing, although it presented something.

        *adopt*: it may have locks of an earlier term. One that was silent for too long has lost what it had.
        """
        holder = self._holders.get(session.number)
        known = holder is not None
        if holder is None:
            holder = self._holders[session.number] = Holder(session)
        holder.session = session
        # A mount that introduces itself asks anew for what it waits for: its old tickets mean nothing any more.
        holder.woken.clear()
        self._withdraw_all(session.number)
        claims = {(File(item.ino, item.whole), Owner(session.number, item.owner)): item for item in presented}
        # Of this term: the mount may have missed answers, so it keeps at most what both sides know.
        if known:
            for file, queue in list(self._queues.items()):
                for owner in [owner for owner in queue.held if owner.session == session.number]:
                    claim = claims.get((file, owner))
                    self._reduce(file, owner, [] if claim is None else claim.spans)
                self._changed(file)
        refused_inodes = set()
        for (file, owner), claim in claims.items():
            if not (self._has(file, owner, claim.spans) if known else adopt and self._adopt(file, owner, claim)):
                refused_inodes.add(file.ino)
        for ino in refused_inodes:
            # All locks of the inode, also those that could be kept: the mount takes all of them for lost.
            self._drop(session.number, ino)
        return sorted(refused_inodes)

    def _has(self, file: File, owner: Owner, spans: list[LockSpan]) -> bool:
        queue = self._queues.get(file)
        return queue is not None and queue.spans_of(owner) == spans

    def _adopt(self, file: File, owner: Owner, claim: HeldLocks) -> bool:
        queue = self._queues.setdefault(file, Queue())
        # Somebody else was granted it, or presented it earlier: two mounts cannot both have it.
        if any(next(queue.blockers(owner, span), None) is not None for span in claim.spans):
            return False
        self._replace(queue, owner, claim.spans, claim.pid)
        return True

    def holds(self, number: int) -> bool:
        """Whether the session may believe that it has locks."""
        holder = self._holders.get(number)
        return holder is not None and holder.count > 0

    def expire(self) -> None:
        """Ends what sessions have that were not heard for too long, and lets those go on that have waited for long enough."""
        for number, holder in list(self._holders.items()):
            # Longer than the mount believes in them itself (`believed_s`): it has stopped before.
            if self._now() - holder.session.heard_s > self._lasts_s:
                self.end_session(number)
        for file, queue in list(self._queues.items()):
            # A waiter that gave way to others is granted after some time, which nothing else rings for.
            if queue.waiters:
                self._advance(file)

    def end_session(self, number: int) -> None:
        """The session's process is dead, or takes its locks for ended."""
        if number not in self._holders:
            return
        self._withdraw_all(number)
        self._drop(number)
        self._holders.pop(number).ring()

    def settle(self) -> None:
        """Decides about all waiters, now that all locks of earlier terms are known."""
        for file in list(self._queues):
            self._advance(file)

    def end(self) -> None:
        """The term is over: wakes everybody to find that out."""
        for holder in self._holders.values():
            holder.ring()

    # ---------------------------------------------------------------------------------------------- asked by mounts

    def holder(self, session: Session) -> Holder:
        """Raises `NotManager` if the session must introduce itself again."""
        holder = self._holders.get(session.number)
        if holder is None:
            raise NotManager("the session was silent for so long that its locks have ended: introduce yourself again")
        return holder

    def set(self, session: Session, request: SetLock) -> LockOutcome:
        """What becomes of a request. Raises `Refused`: EDEADLK, ENOLCK."""
        holder = self.holder(session)
        file, owner = File(request.ino, request.whole), Owner(session.number, request.owner)
        queue = self._queues.setdefault(file, Queue())
        try:
            return self._set(holder, file, queue, owner, request)
        finally:
            self._tidy(file)

    def _set(self, holder: Holder, file: File, queue: Queue, owner: Owner, request: SetLock) -> LockOutcome:
        span = request.span
        has_it = covers(queue.spans_of(owner), span)
        blockers = list(queue.blockers(owner, span))
        at = next((i for i, w in enumerate(queue.waiters) if w.owner == owner and w.ticket == request.ticket), None)
        # A repeat keeps its place in the queue: it must not give way to those behind it.
        earlier = queue.waiters if at is None else queue.waiters[:at]
        now = self._now()
        since_s = now if at is None else queue.waiters[at].since_s
        is_free = not blockers and not (request.wait and queue.gives_way(owner, span, earlier, now - since_s))
        # Who is in the table already, waiting or holding, may ask again even if the table is full.
        if at is None and not has_it:
            self._check_room(holder)
        # What it has it may be told again at any time: the answer before may have been lost.
        if has_it or (is_free and self._all_known()):
            self._withdraw(file, owner, request.ticket)
            self._replace(queue, owner, with_span(queue.spans_of(owner), span), request.pid)
            self._advance(file)
            return LockOutcome.GRANTED
        if request.whole:  # flock(2): a lock that is to become another one ends first
            self._reduce(file, owner, [])
            self._advance(file)
        if blockers and not request.wait:
            self._withdraw(file, owner, request.ticket)
            return LockOutcome.HELD
        # Linux looks for deadlocks of record locks only, as fcntl(2) says.
        if not request.whole and self._is_deadlock(owner, blockers):
            self._withdraw(file, owner, request.ticket)
            raise refused(errno.EDEADLK, f"a lock of inode {file.ino}")
        if at is None:
            queue.waiters.append(Waiter(owner, request.ticket, span, request.pid, request.wait, now))
            self._waiting.setdefault(owner, {})[request.ticket] = file
            self._add(owner.session, 1)
        return LockOutcome.WAITING

    def _check_room(self, holder: Holder) -> None:
        if holder.count >= SESSION_MAX or self._count >= TABLE_MAX:
            raise refused(errno.ENOLCK, f"{holder.session.server} has {holder.count} locks, all together {self._count}")

    def unlock(self, session: Session, request: Unlock) -> None:
        """Ends locks, and the waiting for one. Never grants anything: a repeat that comes late does no harm."""
        file, owner = File(request.ino, request.whole), Owner(session.number, request.owner)
        queue = self._queues.get(file)
        if queue is None:
            return
        if request.ticket:
            self._withdraw(file, owner, request.ticket)
        spans = queue.spans_of(owner)
        # *kept* says what remains of it; together with what the owner has, so that an old message adds nothing.
        kept = common(within(spans, request.start, request.end), request.kept)
        self._reduce(file, owner, normal([*without(spans, request.start, request.end), *kept]))
        self._changed(file)

    def find_conflict(self, ino: int, owner: Owner, span: LockSpan) -> tuple[Owner, Held, LockSpan] | None:
        """A record lock that excludes this one."""
        queue = self._queues.get(File(ino, False), Queue())
        for other, held in queue.held.items():
            found = conflict(held.spans, span) if other != owner else None
            if found is not None:
                return other, held, found
        return None

    def woken(self, session: Session, after: int) -> tuple[int, list[int]]:
        """The tickets that can be asked for again, and the serial of the last; those up to *after* have been told."""
        holder = self.holder(session)
        for serial in [serial for serial in holder.woken if serial <= after]:
            del holder.woken[serial]
        # Told again until the mount names a serial that includes them: answers may be lost.
        return max(holder.woken, default=after), list(holder.woken.values())

    # --------------------------------------------------------------------------------------------------- deciding

    def _advance(self, file: File) -> None:
        """Grants what can be granted."""
        queue = self._queues.get(file)
        if queue is None or not self._all_known():
            return
        ahead: list[Waiter] = []
        now = self._now()
        for waiter in list(queue.waiters):
            blocked = next(queue.blockers(waiter.owner, waiter.span), None) is not None
            # Later ones must not overtake it where they overlap: `gives_way`.
            if waiter.wait and (blocked or queue.gives_way(waiter.owner, waiter.span, ahead, now - waiter.since_s)):
                ahead.append(waiter)
                continue
            # Granted, or (one that does not wait) refused now that all locks are known: it is told either way.
            self._withdraw(file, waiter.owner, waiter.ticket)
            if not blocked:
                spans = with_span(queue.spans_of(waiter.owner), waiter.span)
                self._replace(queue, waiter.owner, spans, waiter.pid)
            self._holders[waiter.owner.session].wake(next(self._serials), waiter.ticket)

    def _is_deadlock(self, owner: Owner, blockers: list[Owner]) -> bool:
        """Whether one of *blockers* waits for *owner*, directly or through others."""
        visited: set[Owner] = set()
        todo = list(blockers)
        while todo:
            other = todo.pop()
            if other == owner:
                return True
            if other in visited:
                continue
            visited.add(other)
            for ticket, file in self._waiting.get(other, {}).items():
                queue = self._queues[file]
                # Waiting for a lock of a whole file is no part of a cycle, as in Linux.
                if not file.whole:
                    span = next(w.span for w in queue.waiters if w.owner == other and w.ticket == ticket)
                    todo.extend(queue.blockers(other, span))
        return False

    # ---------------------------------------------------------------------------------------------------- the table

    def _replace(self, queue: Queue, owner: Owner, spans: list[LockSpan], pid: int) -> None:
        self._add(owner.session, len(spans) - len(queue.spans_of(owner)))
        queue.held[owner] = Held(spans, pid, self._now())

    def _reduce(self, file: File, owner: Owner, kept: list[LockSpan]) -> None:
        """Leaves the owner at most these."""
        queue = self._queues[file]
        held = queue.held.get(owner)
        if held is None:
            return
        before = len(held.spans)
        held.spans = common(held.spans, kept)
        self._add(owner.session, len(held.spans) - before)
        if not held.spans:
            del queue.held[owner]

    def _withdraw(self, file: File, owner: Owner, ticket: int) -> None:
        waiting = self._waiting.get(owner, {})
        if waiting.get(ticket) != file:
            return
        del waiting[ticket]
        if not waiting:
            del self._waiting[owner]
        queue = self._queues[file]
        queue.waiters = [waiter for waiter in queue.waiters if (waiter.owner, waiter.ticket) != (owner, ticket)]
        self._add(owner.session, -1)

    def _withdraw_all(self, session: int) -> None:
        waits = [(owner, dict(tickets)) for owner, tickets in self._waiting.items() if owner.session == session]
        for owner, tickets in waits:
            for ticket, file in tickets.items():
                self._withdraw(file, owner, ticket)
        for file in {file for _owner, tickets in waits for file in tickets.values()}:
            self._changed(file)

    def _drop(self, session: int, ino: int = 0) -> None:
        """Ends all locks of a session, or those on one inode."""
        for file, queue in list(self._queues.items()):
            if ino and file.ino != ino:
                continue
            for owner in [owner for owner in queue.held if owner.session == session]:
                self._reduce(file, owner, [])
            self._changed(file)

    def _changed(self, file: File) -> None:
        """Something has been unlocked, or is not wanted any more."""
        self._advance(file)
        self._tidy(file)

    def _tidy(self, file: File) -> None:
        queue = self._queues.get(file)
        if queue is not None and not queue.held and not queue.waiters:
            del self._queues[file]

    def _add(self, session: int, count: int) -> None:
        self._count += count
        self._holders[session].count += count

    # ------------------------------------------------------------------------------------------------------ to be seen

    def listed(self, ino: int = 0) -> Iterator[Listed]:
        """Each lock and each waiter, by inode; those of one inode, or 0 for all."""
        for file, queue in sorted(self._queues.items(), key=lambda item: item[0]):
            if ino and file.ino != ino:
                continue
            for owner, held in queue.held.items():
                yield from (Listed(file, owner, span, held.pid, False, held.since_s) for span in held.spans)
            yield from (Listed(file, w.owner, w.span, w.pid, True, w.since_s) for w in queue.waiters)

    def server_of(self, session: int) -> str:
        """The server whose mount has the session."""
        return self._holders[session].session.server
