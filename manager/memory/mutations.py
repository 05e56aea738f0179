"""Changes under way, and those of the last moments: what may not be granted to be cached because of them.

Every mutation claims the inodes that it changes before it writes anything: from then on nobody is granted to cache them
(they are *fenced*), until the transaction is committed and its effects have run. If somebody else may be caching one of them
already, the claim stays, but the mutation is turned back with `HeldElsewhere`: it is run again when that has been called back.
So an answer that was read before a change is never cached after it, and no change is visible to one mount while another one
caches what was before.

The claim is made where the inodes are known, in the body of the transaction, which on PostgreSQL is in the store's thread,
while grants are made in the event loop: a lock makes each of them one step.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import GodwitError
from cluster.messages import (
    Commit,
    Create,
    CreateUnnamed,
    Link,
    Open,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from manager.memory.leases import Leases
from manager.memory.sessions import Session

QUIET_S = 0.5  # whoever is at work in a directory pays for one recall, not for one per file
RECENT_S = 10.0  # changes are remembered for so long, which is longer than a read of the catalog takes
RECENT_MAX = 100_000


class Part(StrEnum):
    """What an inode is to a mutation."""

    DIRECTORY = "the directory"
    NEW_DIRECTORY = "the new directory"
    INODE = "the inode"
    REPLACED = "what is replaced or exchanged"


# What every other session has to stop caching before the request may take effect; `docs/leases.md` quotes it.
RECALLED: Mapping[type, frozenset[Part]] = {
    Create: frozenset({Part.DIRECTORY}),
    CreateUnnamed: frozenset(),
    Link: frozenset({Part.DIRECTORY, Part.INODE}),
    Unlink: frozenset({Part.DIRECTORY, Part.INODE}),
    Rmdir: frozenset({Part.DIRECTORY, Part.INODE}),
    Rename: frozenset(Part),
    SetAttr: frozenset({Part.INODE}),
    SetXattr: frozenset({Part.INODE}),
    RemoveXattr: frozenset({Part.INODE}),
    Open: frozenset({Part.INODE}),  # for writing
    Commit: frozenset(),  # what anybody may see does not change
}


def as_markdown() -> str:
    """`RECALLED` as a table for the documentation."""
    lines = ["| request | is recalled from all other mounts |", "|---|---|"]
    for kind, parts in RECALLED.items():
        name = f"`{kind.__name__}`" + (" for writing" if kind is Open else "")
        lines.append(f"| {name} | {', '.join(part for part in Part if part in parts) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def directories_of(operation: Operation) -> list[int]:
    """The directories in which the operation changes names."""
    if isinstance(operation, Rename):
        return [operation.parent, operation.new_parent]
    return [operation.parent] if isinstance(operation, (Create, Link, Unlink, Rmdir)) else []


def known_before(operation: Operation) -> list[int]:
    """What of `RECALLED` can be told without reading the catalog."""
    if isinstance(operation, Link):
        return [operation.parent, operation.ino]
    if isinstance(operation, (SetAttr, SetXattr, RemoveXattr)):
        return [operation.ino]
    return directories_of(operation)


class Held(NamedTuple):
    """The session of this number may be caching the inode."""

    ino: int
    session: int


class HeldElsewhere(GodwitError):
    """A mutation cannot go on before others have stopped caching. It never leaves the manager.

    `absent`: servers whose mounts have not presented themselves to this manager yet and may be caching.
    """

    def __init__(self, held: list[Held], absent: frozenset[str] = frozenset()) -> None:
        super().__init__(f"cached by {len(held)} others")
        self.held = held
        self.absent = absent


class _Stamp(NamedTuple):
    """A change that has been made: when, and by whom."""

    when_s: float
    session: int


@dataclass(eq=False)
class Mutation:
    """One request that changes the catalog. `inodes`: all that it has claimed; `began_s`: before its present attempt.

    `stamp` is set once it is done.
    """

    session: Session
    began_s: float
    inodes: dict[int, None] = field(default_factory=dict)
    stamp: _Stamp | None = None


class Fences:
    """What is being changed, and what was."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._fenced: dict[int, int] = {}
        self._recent: OrderedDict[int, _Stamp] = OrderedDict()
        self._forgotten_s = -1e9
        self.lock = threading.Lock()

    def claim(self, mutation: Mutation, recalled: Iterable[int], others: Iterable[int] = ()) -> list[Held]:
        """Fences *recalled* and *others*; who else may be caching one of *recalled*. May be called from the store's thread."""
        held: list[Held] = []
        with self.lock:
            for ino in recalled:
                self._fence(mutation, ino)
                for session in self._leases.caching(ino, mutation.began_s, besides=mutation.session):
                    held.append(Held(ino, session))  # noqa: PERF401 - nearly always there are none
            for ino in others:
                self._fence(mutation, ino)
        return held

    def _fence(self, mutation: Mutation, ino: int) -> None:
        if ino not in mutation.inodes:
            mutation.inodes[ino] = None
            self._fenced[ino] = self._fenced.get(ino, 0) + 1

    def done(self, mutation: Mutation, now: float) -> None:
        """The mutation is committed: an effect of its transaction."""
        stamp = mutation.stamp = _Stamp(now, mutation.session.number)
        for ino in mutation.inodes:
            self._recent[ino] = stamp
            self._recent.move_to_end(ino)
        while self._recent:
            oldest = next(iter(self._recent.values()))
            if oldest.when_s > now - RECENT_S and len(self._recent) <= RECENT_MAX:
                return
            self._recent.popitem(last=False)
            self._forgotten_s = max(self._forgotten_s, oldest.when_s)

    def lift(self, mutation: Mutation) -> None:
        """The mutation is over, whatever became of it."""
        with self.lock:
            for ino in mutation.inodes:
                if self._fenced[ino] == 1:
                    del self._fenced[ino]
                else:
                    self._fenced[ino] -= 1

    def is_settled(self, ino: int, session: Session, began_s: float, now: float, own: Mutation | None = None) -> bool:
        """Whether what was read since *began_s* is the newest, is not being changed, and is not changed by others again and
        again. *own*: the mutation itself brought what was read. Ask it under the lock, together with what it is asked for."""
        if ino in self._fenced or began_s <= self._forgotten_s:
            return False
        stamp = self._recent.get(ino)
        if stamp is None or (own is not None and stamp is own.stamp):
            return True
        return stamp.when_s < began_s and (stamp.session == session.number or now - stamp.when_s >= QUIET_S)
