"""Migrations and their moves."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Reply, Value


class MoveState(StrEnum):
    """States of a move: `manager.rules.moves` has the transitions."""

    PLANNED = "planned"
    COPYING = "copying"
    WAITING = "waiting"
    DELETING = "deleting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class MigrationState(StrEnum):
    """States of a migration. Failed ones are not over: they can be resumed."""

    PLANNING = "planning"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class MigrationKind(StrEnum):
    """Kinds of migrations: chosen paths, or all that a server holds."""

    MOVE = "move"
    DRAIN = "drain"


class MigrationChange(StrEnum):
    """What can be asked of a migration."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


class MoveCount(Value, frozen=True):
    """How many moves of a migration are in a state; `size` is the bytes of their files when they were planned."""

    state: str
    files: int
    size: int


class MigrationRow(Reply, frozen=True):
    """A migration as people see it."""

    migration: int
    kind: str  # a `MigrationKind`
    state: str  # a `MigrationState`
    source: str  # a server
    target: str  # a server; empty where placement chooses
    paths: list[bytes]  # that were asked for
    planned: bool  # every file has its move
    counts: list[MoveCount]  # of its moves, by state
    problem: str  # why one of its moves failed or does not go on
    created_ns: int
    ended_ns: int  # 0 while it is not over
    elapsed_s: float  # since the start, by the manager's clock


class MigrationRows(Reply, frozen=True):
    migrations: list[MigrationRow]


class StartMigration(ManagerRequest[MigrationRow], frozen=True):
    """Moves the replicas of inodes and of all that is below them from one server to another."""

    inodes: list[int]
    paths: list[bytes]  # of the inodes as they were asked for, in the same order
    source: str
    target: str
    token: int  # a random number above 0: a repeat finds the migration that was started already


class DrainServer(ManagerRequest[MigrationRow], frozen=True):
    """Marks a server as wanted empty and moves away all that it holds; a drain that is not over yet goes on."""

    server: str


class MigrationPlan(Reply, frozen=True):
    """What a migration would do."""

    files: int  # that would move
    size: int  # of these, in bytes
    problem_files: int  # that cannot be moved
    problem_size: int
    problems: list[tuple[bytes, str]]  # some of these, with why
    in_use: int  # of `files`: they would wait, as they are being written
    truncated: bool  # there are more files than were looked at


class PlanMigration(ManagerRequest[MigrationPlan], frozen=True):
    """What `StartMigration` would do; changes nothing."""

    inodes: list[int]
    source: str
    target: str


class ListMigrations(ManagerRequest[MigrationRows], frozen=True):
    """The newest `limit` migrations, or one (empty if there is none of that number)."""

    migration: int = 0
    limit: int = 100


class ChangeMigration(ManagerRequest[MigrationRow], frozen=True):
    """`action` is `pause`, `resume` or `cancel`; each is harmless when it has been done already."""

    migration: int
    action: str


class MoveRow(Value, frozen=True):
    """One move as people see it."""

    ino: int
    path: bytes
    source: int  # a volume
    source_server: str
    target: int  # a volume; 0 where placement chooses, or has not yet
    target_server: str  # empty with it
    state: str  # a `MoveState`
    size: int  # of the file when it was planned
    error: str  # why it failed, or does not go on
    changed_ns: int  # when it came into its state


class MoveRows(Reply, frozen=True):
    """`total` counts all that match, of which at most `limit` are in `moves`."""

    moves: list[MoveRow]
    total: int


class ListMoves(ManagerRequest[MoveRows], frozen=True):
    """The moves of a migration; an empty `state` matches all."""

    migration: int
    state: str = ""
    limit: int = 100
