"""The manager's memory of one term; whatever matters is presented again, or found in the catalog."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio
from sqlalchemy import Connection

from cluster.clock import monotonic_s
from cluster.messages import COOKIE_TERM_BITS, Node
from cluster.trust.identity import Role
from manager.catalog.store import Transaction
from manager.memory.bounds import BOUNDS, Bounds
from manager.memory.holds import Holds
from manager.memory.journals import Journals
from manager.memory.leases import Leases
from manager.memory.locks import Locks
from manager.memory.members import Members
from manager.memory.mutations import Held, HeldElsewhere, Mutation, Mutations, Part
from manager.memory.notes import Notes, holding, looking_at
from manager.memory.policies import Policies
from manager.memory.recalls import Recalls
from manager.memory.sessions import NOT_WRITING, Session, Sessions

# Keys of bells; the copies of an inode ring under its number.
REAP = "reap"  # an orphan that nobody has open
SCAN = "scan"  # a directory whose files are to be looked at
QUEUE = "queue"  # with a server: tasks that wait for its agent
DOWN = "down"  # a server or a volume whose copies have to go elsewhere
MIGRATE = "migrate"  # a migration or one of its moves has changed
VOLUME_SCAN = "volume scan"  # a volume whose files are to be looked at
DAMAGE = "damage"  # a home with a damaged object
PRESENT = "present"  # a mount has presented itself


class Bells:
    """Wakes the tasks that wait for news about a key, such as a server's queue or an inode's copies."""

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[trio.Event, int]] = {}  # by key: the event of the next ring, and how many listen

    def ring(self, key: object) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting[0].set()
            del self._waiting[key]

    def ring_all(self) -> None:
        """Wakes everybody, to find that the term is over."""
        for key in list(self._waiting):
            self.ring(key)

    @contextmanager
    def listening(self, key: object) -> Iterator[trio.Event]:
        """An event that is set at the next ring; look for what is there already after entering."""
        event, listeners = self._waiting.get(key, (trio.Event(), 0))
        self._waiting[key] = (event, listeners + 1)
        try:
            yield event
        finally:
            current = self._waiting.get(key)
            # Else it has rung meanwhile, and others listen for the ring after it.
            if current is not None and current[0] is event:
                if current[1] == 1:
                    del self._waiting[key]
                else:
                    self._waiting[key] = (event, current[1] - 1)


class State:
    """The memory of one term. Bodies of transactions read it from the store's thread and change it only by `tx.after`."""

    def __init__(
        self,
        term: int,
        sessions: Sessions,
        members: Members,
        policies: Policies,
        leases: Leases,
        locks_s: float,
        notes: Notes,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.bounds = bounds  # of the term
        self.sessions = sessions  # processes, and what they have open
        self.members = members  # servers and volumes
        self.leases = leases  # who may use and cache which inode
        self.notes = notes  # directories in which servers may be caching, as the catalog has them
        self.mutations = Mutations(leases)  # inodes that are being changed, or were just now
        self.holds = Holds(leases, leases.counters)  # how often directories are held and called back
        self.recalls = Recalls(leases, sessions, self.holds)  # what was asked back and not answered yet
        self.locks = Locks(term, locks_s, lambda: not self.may_lock)  # of processes on files
        self.journals = Journals()  # how far those of mounts have been applied
        self.may_hold: frozenset[str] = frozenset()  # those of `absent` whose mounts may be alone with something
        self.absent: frozenset[str] = frozenset()  # servers whose mounts may be caching, but have not presented themselves
        self.presenting: frozenset[str] = frozenset()  # those of `absent` whose leases are known, and whose records come next
        self.may_lock: frozenset[str] = frozenset()  # the same of those that may have locks
        self.policies = policies  # cache of policies by directory
        self.bells = Bells()  # wakes loops and waiting requests
        self.in_grace = term > 1  # mounts of earlier terms may hold what they have not presented; the first term has none
        self.unlinked: set[int] = set()  # orphans that are open; the others are found when the grace time ends
        self.reaping: set[int] = set()  # inodes whose removal is under way: nobody may open them any more
        self.orphaned: OrderedDict[int, float] = OrderedDict()  # that nobody has open, and since when
        self.has_moves = False  # whether any file may have moves: else nobody looks for them
        self.damaged_homes: dict[int, None] = {}  # which another replica is about to take over from
        self.has_shortfalls = False  # whether any file may be in `shortfalls`: else none is taken out
        self.has_abandoned = False  # whether any object is to be left alone: else nobody looks for them
        self._changing: Counter[int] = Counter()  # requests under way that may change what an open reads, by inode
        self._commit_sequences: dict[tuple[int, int], int] = {}  # the committer's opens for writing that a commit ends
        self.newest_cookie = term << COOKIE_TERM_BITS  # that was given to an entry; those of earlier terms are smaller

    def ring(self, server: str) -> None:
        """Tasks have come for the server."""
        self.bells.ring((QUEUE, server))

    def cookie(self) -> int:
        """A position behind all entries that exist. (Never used twice: terms only grow.)"""
        self.newest_cookie += 1
        return self.newest_cookie

    @contextmanager
    def changing(self, session: Session, inodes: Iterable[int]) -> Iterator[None]:
        """While inside, opens of *inodes* do not trust what they read of dirty flags and capabilities: see `is_changing`."""
        changing = Counter(inodes)
        self._changing.update(changing)
        for ino in changing:
            # Remembered when the request arrives: an open that comes later is not ended by this commit.
            self._commit_sequences[session.number, ino] = self.sessions.write_sequence(session, ino)
        try:
            yield
        finally:
            self._changing.subtract(changing)
            for ino in changing:
                self._commit_sequences.pop((session.number, ino), None)
                # `is_changing` asks for the key alone.
                if self._changing[ino] <= 0:
                    del self._changing[ino]

    def is_changing(self, ino: int) -> bool:
        """Whether a queued transaction may clear `dirty` or add a capability: an open has to queue behind it."""
        return ino in self._changing

    def may_clean(self, ino: int, committer: Session, begun: int) -> bool:
        """Whether a final commit may clear `dirty` (asked in the transaction)."""
        # A mount that has not presented itself may be writing it; so may the holder of a lease that lost its session.
        if self.in_grace or self.sessions.is_owed(ino, begun) or self.leases.is_written(ino, besides=committer):
            return False
        return not self.sessions.is_written(ino, besides=committer, until=self.commit_sequence(ino, committer))

    def commit_sequence(self, ino: int, committer: Session) -> int:
        """Which opens for writing of the committer the commit under way ends."""
        return self._commit_sequences.get((committer.number, ino), NOT_WRITING)

    def may_move_home(self, ino: int) -> bool:
        """Whether nobody can be writing the inode (asked in the transaction that moves its home, with `dirty` clear)."""
        return not (self.in_grace or self.is_changing(ino) or self.is_written(ino))

    def is_cached(self, ino: int) -> bool:
        """Whether any mount may be caching the inode; for a moment longer than it may."""
        # Whatever time it is: leases that have ended count until they are swept.
        return bool(self.leases.caching(ino, 0.0))

    def may_draw_home(self, ino: int, opener: Session) -> bool:
        """Whether the home may move to the server of *opener*, which opens the inode for writing: nobody else has it open.

        Readers count, too, since they may be reading at the home.
        """
        if self.in_grace or self.is_changing(ino) or self.leases.is_written(ino, besides=opener):
            return False
        return not self.sessions.is_open(ino, besides=opener)

    def holders_of_old_home(self, writer: Session, ino: int, home_epoch: int, now: float) -> list[int]:
        """The sessions, except the writer's, that may be reading at an earlier home: they opened the inode before it moved."""
        found = self.leases.holders_of_old_home(ino, home_epoch, now, besides=writer)
        return [number for number in found if self.sessions.has_open(number, ino)]

    def is_written(self, ino: int) -> bool:
        """Whether anybody may be writing it: has it open for writing, or went away with a lease that has not ended."""
        return self.sessions.is_written(ino) or self.leases.is_written(ino)

    def adopt_leases(self, session: Session, tokens: list[bytes], caching: list[int], now: float) -> None:
        """Takes over the leases that a mount has presented together with what it holds open."""
        self.leases.adopt(session, tokens, caching, lambda ino: self.sessions.write_sequence(session, ino) != NOT_WRITING, now)

    def presented(self, server: str) -> None:
        """The server's mount has said what it caches, or caches nothing any more."""
        if server in self.absent:
            self.absent -= {server}
            self.presenting -= {server}
            self.may_hold -= {server}
            self.bells.ring(PRESENT)
        self.presented_locks(server)

    def presents(self, server: str) -> None:
        """The server's mount has said what it caches; what it has changed by itself comes next."""
        self.presenting |= self.absent & {server}
        self.presented_locks(server)

    def holds_ended(self, servers: frozenset[str]) -> None:
        """These servers' mounts are alone with nothing any more that an earlier manager has let them be alone with."""
        if servers & self.may_hold:
            self.may_hold -= servers
            self.bells.ring(PRESENT)

    def presented_locks(self, server: str) -> None:
        """The server's mount has said what it has locked, or has no locks any more."""
        if server in self.may_lock:
            self.may_lock -= {server}
            if not self.may_lock:
                self.locks.settle()
                self.bells.ring(PRESENT)

    def grant(self, session: Session, node: Node, now: float) -> bytes:
        """A lease for what the session has registered: to write, if it has the inode open for writing."""
        writer = self.sessions.write_sequence(session, node.ino) != NOT_WRITING
        return self.leases.grant(session, node, writer=writer, in_grace=self.in_grace, now=now)

    def claim(self, tx: Transaction, mutation: Mutation, parts: Mapping[Part, int]) -> None:
        """Called by each operation when it knows what it changes, before it writes: claims that (see `manager.memory.mutations`).

        Raises `HeldElsewhere` if others may be caching what the operation recalls.
        """
        wanted = mutation.recalls
        recalled = [ino for part, ino in parts.items() if part in wanted]
        self.claim_inodes(tx, mutation, recalled, [ino for part, ino in parts.items() if part not in wanted])

    def claim_inodes(self, tx: Transaction, mutation: Mutation, recalled: list[int], others: Iterable[int] = ()) -> None:
        """Claims these inodes; raises `HeldElsewhere` if others may be caching one of *recalled*."""
        # Claimed first and then looked: nobody is granted anything in between.
        held = self.mutations.claim(mutation, recalled, others)
        absent = self.looking_at(tx.connection, recalled) - self._known_to(mutation) if self.absent else self.absent
        if held or absent:
            raise HeldElsewhere(held, absent)

    def check_known(self, tx: Transaction, mutation: Mutation, ino: int) -> None:
        """Raises `HeldElsewhere` if others are alone with an inode that is only looked at: the catalog may not know all of it."""
        held = self.alone_elsewhere([ino], mutation.session, mutation.began_s)
        unshown = self.holding(tx.connection, [ino], mutation.session) - self._known_to(mutation)
        if held or unshown:
            raise HeldElsewhere(held, unshown=unshown)

    def _known_to(self, mutation: Mutation) -> frozenset[str]:
        """The servers for whose mounts it need not wait, although their records are still to come."""
        known = _own(mutation.session)
        # What two mounts have recorded touches different inodes, since each was alone there. Were the records of one to wait for
        # those of the other, these would wait for the first. What they cache, and have said so, is called back as ever.
        return known | self.presenting if mutation.is_recorded else known

    def alone_elsewhere(self, inodes: Iterable[int], session: Session, now: float) -> list[Held]:
        """The other sessions that are alone with one of the inodes. Callable from the store's thread."""
        leases = self.leases
        if not leases.anybody_alone:
            return []
        found = ((ino, leases.alone_elsewhere(ino, session.number, now)) for ino in inodes)
        return [Held(ino, number) for ino, number in found if number is not None]

    @property
    def may_hide(self) -> bool:
        """Whether the catalog may lack what some mount has changed by itself: else nobody need look."""
        return self.leases.anybody_alone or (bool(self.may_hold) and self.notes.any_held)

    def holding(self, connection: Connection, inodes: Iterable[int], session: Session) -> frozenset[str]:
        """Which of the absent servers' mounts may be alone with one of the inodes, but that of the *session*."""
        if not self.may_hold or not self.notes.any_held:
            return frozenset()
        return holding(connection, self.notes, inodes, self.may_hold - _own(session))

    def looking_at(self, connection: Connection, inodes: Iterable[int]) -> frozenset[str]:
        """Which of the absent servers may be caching one of the inodes, as far as the catalog can tell."""
        return looking_at(connection, self.notes, self.members, inodes, self.absent)

    def wake_all(self) -> None:
        """Wakes all waiters at the end of the term, so that they find out."""
        self.bells.ring_all()
        self.recalls.end()
        self.locks.end()

    def begin_moves(self) -> None:
        """Wakes the migrator; from now on, files are looked at for their moves."""
        self.has_moves = True
        self.bells.ring(MIGRATE)

    def fell_short(self) -> None:
        """A file has no place for a copy: from now on it is noted when one has."""
        self.has_shortfalls = True

    def forsook(self) -> None:
        """A file fell back to an older replica: from now on files are looked at for objects that are to be left alone."""
        self.has_abandoned = True

    def damaged_home(self, ino: int) -> None:
        """The home's object is damaged, and could not be left yet."""
        self.damaged_homes[ino] = None
        self.bells.ring(DAMAGE)

    def lost_name(self, ino: int) -> None:
        """The last name of an inode is gone: it is reaped now, or when the last session closes it."""
        # The last close hands it on (`Term.unused`). During the grace time nothing is reaped: `Term.end_grace` finds the
        # orphans.
        if self.sessions.is_open(ino):
            self.unlinked.add(ino)
        elif not self.in_grace:
            self.orphaned[ino] = monotonic_s()
            self.bells.ring(REAP)

    def got_name(self, ino: int) -> None:
        """An inode has its first name: it is no orphan any more."""
        self.unlinked.discard(ino)
        self.orphaned.pop(ino, None)

    def take_doomed(self, before: float, limit: int) -> list[int]:
        """The orphans that are to be reaped now: nobody has them open, and whose last name went before that time.

        Who has looked a name up opens what it meant a moment later: that is an open file, then, not a stale one.
        """
        doomed: list[int] = []
        while self.orphaned and len(doomed) < limit:
            # In the order in which they came: the first that is too young ends the batch.
            ino, since_s = next(iter(self.orphaned.items()))
            if since_s > before:
                break
            del self.orphaned[ino]
            if self.sessions.is_open(ino):
                self.unlinked.add(ino)
            else:
                doomed.append(ino)
        # In the same step in which nobody had them open: from now on an `Open` is refused.
        self.reaping.update(doomed)
        return doomed

    def register_creator(self, session: Session, ino: int) -> None:
        """What a session creates it has open for writing; a `Close` with any sequence above 0 ends that."""
        # It may have ended while its transaction ran: nobody would ever close the inode.
        if self.sessions.is_live(session):
            self.sessions.open(session, ino, write=True, sequence=0)


def _own(session: Session) -> frozenset[str]:
    """The server of a mount, for which it need not wait itself."""
    return frozenset({session.server}) if session.role == Role.MOUNT else frozenset()
