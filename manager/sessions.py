"""Who is there and what they hold open: in memory only, presented again to a new manager.

Everything here runs in the event loop; `is_written` and `is_open` may also be asked from the store's thread. Invariant:
`_openers` and the sessions' `opens` say the same.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.errors import Fenced

REPLACED_MAX = 4096

MOUNT = "mount"
AGENT = "agent"
CLI = "cli"


@dataclass
class OpenState:
    """One inode that a session holds open: since which sequence, and for writing since which (-1: not).

    `final_version` is the version of the session's last commit if it was its final one, else 0.
    """

    sequence: int
    write_sequence: int = -1
    final_version: int = 0


@dataclass(eq=False)
class Session:
    """One process. `connection` counts its introductions: requests that came over an older connection are void.

    `floor`: mutations with smaller ids have been acknowledged. `newest`: no reply with a larger id is stored. `trimmed`:
    stored replies below it have been deleted.
    """

    number: int
    server: str
    role: str
    heard_s: float
    connection: int = 0
    floor: int = 0
    newest: int = 0
    trimmed: int = 0
    opens: dict[int, OpenState] = field(default_factory=dict)


@dataclass(frozen=True)
class Closed:
    """What an end of use means for an inode: nobody has it open, or its last writer left what `settles` names (else 0)."""

    ino: int
    unused: bool
    settles: int


class Sessions:
    """The live sessions of one term."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._live: dict[int, Session] = {}
        self._replaced: OrderedDict[int, None] = OrderedDict()
        self._openers: dict[int, dict[Session, OpenState]] = {}

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
            if role != CLI:
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

    def end(self, session: Session) -> list[Closed]:
        """Forgets a session and what it had open."""
        self._live.pop(session.number, None)
        return [closed for ino in list(session.opens) if (closed := self._drop(session, ino, settle=False))]

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
            state = session.opens[ino] = OpenState(sequence)
            self._openers.setdefault(ino, {})[session] = state
        state.sequence = max(state.sequence, sequence)
        if write:
            state.write_sequence = max(state.write_sequence, sequence)
            for other in self._openers[ino].values():
                other.final_version = 0
        return new

    def close(self, session: Session, ino: int, sequence: int, *, still_open: bool) -> Closed | None:
        """Ends what was registered with smaller sequences; None if that changes nothing for others."""
        state = session.opens.get(ino)
        if state is None:
            return None
        ends_writing = -1 < state.write_sequence < sequence
        if not still_open and state.sequence < sequence:
            return self._drop(session, ino, settle=True)
        if not ends_writing:
            return None
        state.write_sequence = -1
        return Closed(ino, False, self._settles(ino, state))

    def present(self, session: Session, opens: Iterable[tuple[int, bool]]) -> list[Closed]:
        """Makes what the session says in a `Hello` the whole of what it has open."""
        presented = dict(opens)
        dropped = [self._drop(session, ino, settle=False) for ino in list(session.opens) if ino not in presented]
        for ino, write in presented.items():
            self.open(session, ino, write=write, sequence=0)
        return [closed for closed in dropped if closed is not None]

    def committed(self, session: Session, ino: int, version: int, *, final: bool) -> None:
        """A commit of the session went through while the inode stays dirty."""
        state = session.opens.get(ino)
        if state is not None and state.write_sequence >= 0:
            state.final_version = version if final else 0

    def is_open(self, ino: int) -> bool:
        return ino in self._openers

    def is_written(self, ino: int, *, besides: Session | None = None) -> bool:
        """Whether any session (but one) has it open for writing."""
        openers = self._openers.get(ino)
        if not openers:
            return False
        return any(state.write_sequence >= 0 for opener, state in list(openers.items()) if opener is not besides)

    def writers(self, ino: int) -> list[str]:
        """The servers that have it open for writing."""
        return sorted({s.server for s, state in self._openers.get(ino, {}).items() if state.write_sequence >= 0})

    def _drop(self, session: Session, ino: int, *, settle: bool) -> Closed | None:
        state = session.opens.pop(ino)
        openers = self._openers[ino]
        del openers[session]
        unused = not openers
        if unused:
            del self._openers[ino]
        settles = self._settles(ino, state) if settle and state.write_sequence >= 0 else 0
        return Closed(ino, unused, settles) if unused or settles else None

    def _settles(self, ino: int, left: OpenState) -> int:
        """The version with which the inode is clean, now that the writer *left* is gone.

        Only its own final commit counts: a writer that leaves without one leaves the home's agent to look at the object.
        """
        remaining = [state for state in self._openers.get(ino, {}).values() if state is not left and state.write_sequence >= 0]
        if not left.final_version:
            for state in remaining:
                state.final_version = 0
        return 0 if remaining else left.final_version
