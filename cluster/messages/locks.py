"""Locks of programs, and what people see of them."""

from __future__ import annotations

from enum import IntEnum

from cluster.decoding import Finite, Int64, Unsigned64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value

LOCK_END = 2**63 - 1  # the last byte that a file can have: a lock up to there is one to the end


class LockOutcome(IntEnum):
    """What becomes of a request for a lock."""

    GRANTED = 0
    HELD = 1
    WAITING = 2


class LockSpan(Value, frozen=True):
    """A range of bytes that is locked, both ends included: for writing, or shared for reading."""

    start: int
    end: int
    write: bool


class HeldLocks(Value, frozen=True):
    """What one owner on a mount has locked of an inode. `owner` is the kernel's number: a process, or an open file.

    `whole`: by flock(2), which knows no ranges and excludes no record locks. `spans` are sorted and do not overlap.
    """

    ino: int
    whole: bool
    owner: Unsigned64
    pid: int
    spans: list[LockSpan]


class LockAnswer(Reply, frozen=True):
    """`outcome`: `LockOutcome.GRANTED`, `LockOutcome.HELD` by somebody else, or `LockOutcome.WAITING`: to be asked again, with
    the same ticket.
    """

    outcome: int


class SetLock(ManagerRequest[LockAnswer], frozen=True):
    """Locks `span`, in the place of whatever the owner has locked of it.

    `ticket` is a number that the session draws for what it wants; who asks again with it keeps the place in the queue, until the
    session introduces itself again. Without `wait`, the answer is `LockOutcome.WAITING` only while a new manager does not know
    all locks yet. Refused with EDEADLK (record locks only) or ENOLCK. A repeat finds what is locked already.
    """

    ino: int
    whole: bool
    owner: Unsigned64
    pid: int
    span: LockSpan
    ticket: int
    wait: bool


class Unlock(ManagerRequest[Done], frozen=True):
    """From `start` to `end` the owner has at most `kept` locked from now on, and does not wait for `ticket` any more."""

    ino: int
    whole: bool
    owner: Unsigned64
    start: int
    end: int
    kept: list[LockSpan] = []
    ticket: int = 0


class WokenLocks(Reply, frozen=True):
    """Asking again is worth while for these tickets; `serial` is for the next question."""

    serial: int
    tickets: list[int]


class AwaitLocks(ManagerRequest[WokenLocks], frozen=True):
    """Waits for up to `wait_s` seconds until the session's tickets can be asked for again that it was not told of at `after`."""

    after: int
    wait_s: float


class LockConflict(Reply, frozen=True):
    """A lock that is in the way, of a process of `server`; no span if there is none."""

    span: LockSpan | None
    server: str = ""
    pid: int = 0


class AskConflict(ManagerRequest[LockConflict], frozen=True):
    """What keeps an owner from setting a record lock."""

    ino: int
    owner: Unsigned64
    span: LockSpan


class LockRow(Value, frozen=True):
    """A lock as people see it, held or waited for, by a process of `holder`; `whole` as in `HeldLocks`."""

    ino: int
    path: bytes
    whole: bool
    span: LockSpan
    holder: str
    pid: int
    waiting: bool
    since_s: float


class LockRows(Reply, frozen=True):
    """`total` counts all that match, of which at most `limit` are in `locks`."""

    locks: list[LockRow]
    total: int


class ListLocks(ManagerRequest[LockRows], frozen=True):
    """Locks and who waits for them, by inode; an empty server and inode 0 match all."""

    server: str = ""
    ino: int = 0
    limit: int = 1000
