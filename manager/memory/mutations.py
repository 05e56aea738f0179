"""Changes under way, and those of the last moments: what they touch is not granted to be cached.

Every mutation claims the inodes that it changes before it writes anything: from then on nobody is granted to cache them
until the transaction is committed and its effects have run. If somebody else may be caching one of them
already, the claim stays, but the mutation is turned back with `HeldElsewhere`: it is run again when that has been called back.
So an answer that was read before a change is never cached after it, and no change is visible to one mount while another one
caches what was before.

The claim is made where the inodes are known, in the body of the transaction, which on PostgreSQL is in the store's thread,
while grants are made in the event loop: a lock makes each of them one step.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import GodwitError
from manager.catalog.gathered import Gathered
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


class Held(NamedTuple):
    """The session of this number may be caching the inode."""

    ino: int
    session: int


class HeldElsewhere(GodwitError):
    """A mutation cannot go on before others have stopped caching. It never leaves the manager.

    `absent`: servers whose mounts have not presented themselves to this manager yet and may be caching; `unshown`: those that may
    be alone with what is only looked at.
    """

    def __init__(self, held: list[Held], absent: frozenset[str] = frozenset(), unshown: frozenset[str] = frozenset()) -> None:
        super().__init__(f"cached by {len(held)} others")
        self.held = held
        self.absent = absent
        self.unshown = unshown


class _Stamp(NamedTuple):
    """A change that has been made: when, and by whom."""

    when_s: float
    session: int


@dataclass(eq=False)
class Mutation:
    """One request that changes the catalog."""

    session: Session  # that asked for it: what it caches itself need not be called back
    began_s: float  # before its present attempt
    inodes: dict[int, None] = field(default_factory=dict)  # all that it has claimed, in any attempt
    is_recorded: bool = False  # its mount has told programs of it already, and was alone there then
    recalls: Collection[Part] = ()  # by the operation that is being applied: a row of `manager.changes.operations`
    stamp: _Stamp | None = None  # set once it is done
    gathered: Gathered | None = None  # records: what the present attempt is going to add; None: it is added at once
    born: set[int] | None = None  # records: what the present attempt has made where the session is alone; None: of no interest


class Mutations:
    """What is being changed, and what was."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases  # says who may be caching
        self._claimed: dict[int, int] = {}  # by inode: how many mutations under way have claimed it
        self._recent: OrderedDict[int, _Stamp] = OrderedDict()  # by inode: its last change, oldest first
        self._forgotten_s = -1e9  # of changes up to then `_recent` may lack some: what was read before is not granted
        self.lock = threading.Lock()  # makes a claim, or a check with its grant, one step

    def claim(self, mutation: Mutation, recalled: Iterable[int], others: Iterable[int] = ()) -> list[Held]:
        """Claims *recalled* and *others*; returns who else may be caching one of *recalled*. Callable from the store's thread."""
        held: list[Held] = []
        with self.lock:
            for ino in recalled:
                self._claim(mutation, ino)
                for session in self._leases.caching(ino, mutation.began_s, besides=mutation.session):
                    held.append(Held(ino, session))  # noqa: PERF401 - nearly always there are none
            for ino in others:
                self._claim(mutation, ino)
        return held

    def _claim(self, mutation: Mutation, ino: int) -> None:
        # An attempt that was turned back has left its claims: each is counted once.
        if ino not in mutation.inodes:
            mutation.inodes[ino] = None
            self._claimed[ino] = self._claimed.get(ino, 0) + 1

    def done(self, mutation: Mutation, now: float) -> None:
        """The mutation is committed: an effect of its transaction."""
        stamp = mutation.stamp = _Stamp(now, mutation.session.number)
        for ino in mutation.inodes:
            self._recent[ino] = stamp
            # The order of the stamps, by which the oldest are forgotten.
            self._recent.move_to_end(ino)
        while self._recent:
            oldest = next(iter(self._recent.values()))
            if oldest.when_s > now - RECENT_S and len(self._recent) <= RECENT_MAX:
                return
            self._recent.popitem(last=False)
            self._forgotten_s = max(self._forgotten_s, oldest.when_s)

    def release(self, mutation: Mutation) -> None:
        """The mutation is over, whatever became of it."""
        with self.lock:
            for ino in mutation.inodes:
                if self._claimed[ino] == 1:
                    del self._claimed[ino]
                else:
                    self._claimed[ino] -= 1

    def quiet_in_s(self, ino: int, session: int, now: float) -> float:
        """In how many seconds another session's last change of the inode will have come to rest; 0 if it has."""
        stamp = self._recent.get(ino)
        return 0.0 if stamp is None or stamp.session == session else max(0.0, stamp.when_s + QUIET_S - now)

    def is_only_claim(self, ino: int, mutation: Mutation, began_s: float) -> bool:
        """Whether nobody but *mutation* has claimed the inode, or changed it since *began_s*. To be asked under the lock."""
        if self._claimed.get(ino, 0) != (ino in mutation.inodes) or began_s <= self._forgotten_s:
            return False
        stamp = self._recent.get(ino)
        return stamp is None or stamp.when_s < began_s

    def is_at_rest(self, ino: int, session: Session, began_s: float, now: float, own: Mutation | None = None) -> bool:
        """Whether what was read since *began_s* is the newest, is not being changed, and is not changed by others again and
        again. *own*: the mutation itself brought what was read. Ask it under the lock, together with what it is asked for."""
        if ino in self._claimed or began_s <= self._forgotten_s:
            return False
        stamp = self._recent.get(ino)
        if stamp is None or (own is not None and stamp is own.stamp):
            return True
        # Read after the change; and another's change must have come to rest, or the grant would be recalled at once.
        return stamp.when_s < began_s and (stamp.session == session.number or now - stamp.when_s >= QUIET_S)
