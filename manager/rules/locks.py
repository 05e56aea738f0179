"""Who has locked what of one file, and who waits for it.

Whoever waits is granted in the order of coming. Who comes later and has nothing locked of the file goes behind a waiter that it
would hold up, but for `PATIENCE_S` at most: the waiter's turn may depend on it in ways that nobody here can see.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.messages import LockSpan
from cluster.spans import conflict, excludes

PATIENCE_S = 2.0  # after which a waiter no longer goes behind earlier ones


class Owner(NamedTuple):
    """Who has a lock: `number` is the kernel's, on the mount whose session it is."""

    session: int
    number: int


class File(NamedTuple):
    """What is locked: `whole` files by flock(2) are apart from records."""

    ino: int
    whole: bool


@dataclass(eq=False)
class Held:
    """What one owner has locked of one file. `since_s`: its newest lock."""

    spans: list[LockSpan]
    pid: int
    since_s: float


@dataclass(eq=False)
class Waiter:
    """One request in a queue. Without `wait` it only waits until all locks are known."""

    owner: Owner  # who is granted it
    ticket: int  # drawn by the mount: by it a repeat is known, and it is told what has become of it
    span: LockSpan  # that is wanted
    pid: int  # for people, and for F_GETLK
    wait: bool  # F_SETLKW; else the answer comes as soon as all locks are known
    since_s: float  # when it came; a repeat keeps it


@dataclass(eq=False)
class Queue:
    """Everything about one file."""

    held: dict[Owner, Held] = field(default_factory=dict)
    waiters: list[Waiter] = field(default_factory=list)

    def blockers(self, owner: Owner, span: LockSpan) -> Iterator[Owner]:
        """The other owners that have locked something that excludes *span*."""
        return (other for other, held in self.held.items() if other != owner and conflict(held.spans, span))

    def spans_of(self, owner: Owner) -> list[LockSpan]:
        held = self.held.get(owner)
        return held.spans if held is not None else []

    def gives_way(self, owner: Owner, span: LockSpan, earlier: Iterable[Waiter], waited_s: float) -> bool:
        """Whether an owner that could have *span* has to let somebody go first that has come earlier."""
        if owner in self.held or waited_s >= PATIENCE_S:
            return False
        return any(waiter.wait and waiter.owner != owner and excludes(waiter.span, span) for waiter in earlier)
