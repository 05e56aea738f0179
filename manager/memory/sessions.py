"""Who is there and what they hold open: in memory only, presented again to a new manager.

Everything here runs in the event loop; `is_written` and `is_open` may also be asked from the store's thread. Invariant:
`_openers` and the sessions' `opens` say the same.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.errors import Fenced
from cluster.messages import MountCounts
from cluster.trust.identity import Peer, Role

REPLACED_MAX = 4096  # numbers of replaced sessions that are remembered: the newest
NOT_WRITING = -1  # smaller than every sequence; 0 is that of what is presented or created
RANGES_KEPT = 64  # per session; a mount uses its numbers in order, so that older ones are used up


@dataclass
class OpenState:
    """One inode that a session holds open: since which sequence, and for writing since which (-1: not)."""

    sequence: int
    write_sequence: int = NOT_WRITING


@dataclass(eq=False)
class Session:
    """One process."""

    number: int  # drawn by the process: the same over all its connections and all terms
    server: str  # on which it runs
    role: str  # of `Role`
    heard_s: float  # when it last said anything
    connection: int = 0  # counts its introductions: requests that came over an older connection are void
    floor: int = 0  # mutations with smaller ids have been acknowledged
    newest: int = 0  # no reply with a larger id is stored
    trimmed: int = 0  # stored replies below it have been deleted
    peer: Peer | None = None  # who has introduced it last
    told: int = 0  # how often certificates had become void when it was told last which are
    told_revision: int = -1  # of the list of authorities that it was told last
    watches: bool = False  # it can be told of recalls; else it is granted nothing to cache
    counts: MountCounts | None = None  # what a mount last said of itself
    metrics: dict[str, float] = field(default_factory=dict)  # what its process last said that it has counted
    claimed_s: float = -math.inf  # when tasks were last handed out to it
    opens: dict[int, OpenState] = field(default_factory=dict)  # inodes that it has open
    numbers: deque[range] = field(default_factory=lambda: deque(maxlen=RANGES_KEPT))  # newest ranges of inode numbers given to it

    def may_use(self, ino: int) -> bool:
        """Whether the number is of a range that this session was given."""
        for given in reversed(self.numbers):  # noqa: SIM110 - for each file that is made; a generator takes twice as long
            if ino in given:
                return True
        return False


class Sessions:
    """The live sessions of one term."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s  # silence after which a session ends
        self._live: dict[int, Session] = {}  # by number
        self._replaced: OrderedDict[int, None] = OrderedDict()  # numbers, oldest first: their processes must not come back
        self._openers: dict[int, dict[Session, OpenState]] = {}  # by inode: who has it open
        self._left: set[int] = set()  # inodes that were open for writing when their session ended
        self.writers_ended = 0  # counts writers that left without a final commit; orders commits and these
        self._owed: dict[int, int] = {}  # inodes whose home's agent has to commit, by the count when the last writer left

    def all(self) -> list[Session]:
        return list(self._live.values())

    # ---------------------------------------------------------------------------------------- coming and going

    def introduce(self, number: int, server: str, role: str, now: float) -> tuple[Session, list[Session]]:
        """The session of a `Hello` and those that it replaces. Raises `Fenced` for one that has itself been replaced."""
        if number in self._replaced:
            raise Fenced(f"a newer {role} of {server} has taken over")
        session = self._live.get(number)
        if session is not None and (session.server, session.role) != (server, role):
            raise Fenced(f"session {number} is that of the {session.role} of {session.server}")
        replaced = []
        if session is None:
            # A server has one mount and one agent; of command lines there may be any number.
            if role != Role.ADMIN:
                replaced = [other for other in self._live.values() if (other.server, other.role) == (server, role)]
            session = self._live[number] = Session(number, server, role, now)
        for other in replaced:
            self._replaced[other.number] = None
            if len(self._replaced) > REPLACED_MAX:
                self._replaced.popitem(last=False)
        session.heard_s = now
        session.connection += 1
        return session, replaced

    def is_live(self, session: Session) -> bool:
        return self._live.get(session.number) is session

    def silent(self, now: float) -> list[Session]:
        """The sessions whose time has run out."""
        return [session for session in self._live.values() if now - session.heard_s > self._timeout_s]

    def end(self, session: Session) -> list[int]:
        """Forgets a session; the inodes that nobody has open now."""
        self._live.pop(session.number, None)
        # Before the opens are dropped, which forgets who was writing.
        self._left.update(ino for ino, state in session.opens.items() if state.write_sequence != NOT_WRITING)
        return [ino for ino in list(session.opens) if self._drop(session, ino)]

    def get(self, number: int) -> Session | None:
        """The live session of that number."""
        return self._live.get(number)

    def numbers(self) -> set[int]:
        return set(self._live)

    def of_server(self, server: str, role: str) -> Session | None:
        return next((s for s in self._live.values() if s.server == server and s.role == role), None)

    # ------------------------------------------------------------------------------------------------- openers

    def open(self, session: Session, ino: int, *, write: bool, sequence: int) -> bool:
        """Registers an open; True if the session did not have the inode open."""
        state = session.opens.get(ino)
        new = state is None
        if state is None:
            # The same object in both places: what is changed in one is changed in the other.
            state = session.opens[ino] = OpenState(sequence)
            self._openers.setdefault(ino, {})[session] = state
        # Opens may overtake each other; a close ends all that were registered before it.
        state.sequence = max(state.sequence, sequence)
        if write:
            state.write_sequence = max(state.write_sequence, sequence)
        return new

    def close(self, session: Session, ino: int, sequence: int, *, still_open: bool) -> int | None:
        """Closes what was opened with sequences below *sequence*. Returns the inode if nobody has it open now, else None."""
        state = session.opens.get(ino)
        if state is None:
            return None
        # An open with a larger sequence was answered after the close had been sent: the inode stays open.
        if not still_open and state.sequence < sequence:
            return self._drop(session, ino)
        if state.write_sequence < sequence:
            self._end_writing(ino, state)
        return None

    def _end_writing(self, ino: int, state: OpenState) -> None:
        """A writer left without having committed: what it wrote is committed by the home's agent, which is owed."""
        if state.write_sequence != NOT_WRITING:
            state.write_sequence = NOT_WRITING
            self.writers_ended += 1
            self._owed[ino] = self.writers_ended

    def committed(self, session: Session, ino: int, until: int) -> None:
        """The session's final commit is through: what it registered up to *until* is over, and nothing is owed for it."""
        state = session.opens.get(ino)
        if state is not None and state.write_sequence <= until:
            state.write_sequence = NOT_WRITING

    def is_owed(self, ino: int, begun: int) -> bool:
        """Whether a commit that began when `writers_ended` was *begun* may lack what a writer that has closed wrote."""
        return self._owed.get(ino, 0) > begun

    def settled(self, ino: int, begun: int) -> None:
        """A commit that began at *begun* is through."""
        if not self.is_owed(ino, begun):
            self._owed.pop(ino, None)
            self._left.discard(ino)

    def is_orderly(self, ino: int) -> bool:
        """Whether all that wrote it since the last commit have closed it, as far as this term knows."""
        return ino in self._owed and ino not in self._left

    def gone(self, ino: int) -> None:
        """The inode does not exist any more."""
        self._owed.pop(ino, None)
        self._left.discard(ino)

    def forget(self, session: Session, ino: int) -> int | None:
        """Takes back an open that failed; the inode if nobody has it open now."""
        return self._drop(session, ino) if ino in session.opens else None

    def present(self, session: Session, opens: Iterable[tuple[int, bool]]) -> list[int]:
        """Makes what the session says in a `Hello` the whole of what it has open; the inodes nobody has open now."""
        presented = dict(opens)
        unused = [ino for ino in list(session.opens) if ino not in presented and self._drop(session, ino)]
        for ino, write in presented.items():
            self.open(session, ino, write=write, sequence=0)
        return unused

    def is_open(self, ino: int, *, besides: Session | None = None) -> bool:
        """Whether any session (but *besides*) has it open."""
        return any(opener is not besides for opener in list(self._openers.get(ino, ())))

    def is_open_at(self, ino: int, server: str) -> bool:
        """Whether a session of the server has it open."""
        return any(opener.server == server for opener in list(self._openers.get(ino, ())))

    def has_open(self, number: int, ino: int) -> bool:
        """Whether the session of that number has the inode open."""
        session = self._live.get(number)
        return session is not None and ino in session.opens

    def is_written(self, ino: int, *, besides: Session | None = None, until: int | None = None) -> bool:
        """Whether any session has it open for writing, but for what *besides* registered (up to the sequence *until*)."""
        for opener, state in list(self._openers.get(ino, {}).items()):
            excepted = opener is besides and (until is None or state.write_sequence <= until)
            if state.write_sequence != NOT_WRITING and not excepted:
                return True
        return False

    def write_sequence(self, session: Session, ino: int) -> int:
        """Since which sequence the session has it open for writing; `NOT_WRITING` if it has not."""
        state = session.opens.get(ino)
        return NOT_WRITING if state is None else state.write_sequence

    def writers(self, ino: int) -> list[str]:
        """The servers that have it open for writing."""
        return sorted({s.server for s, state in self._openers.get(ino, {}).items() if state.write_sequence != NOT_WRITING})

    def _drop(self, session: Session, ino: int) -> int | None:
        """Forgets an open; the inode if nobody else has it open."""
        self._end_writing(ino, session.opens.pop(ino))
        openers = self._openers[ino]
        del openers[session]
        if openers:
            return None
        del self._openers[ino]
        return ino
