"""The moves of one file that a migration has found: one for each replica on the volumes that it is to leave.

A file is moved by one migration at a time: another one skips it and says so, or comes back to it (`Selector.repeats`).
Which files there are to move is found by `manager.changes.selectors`.
"""

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from cluster.clock import file_time_ns
from cluster.messages import MoveState
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow
from manager.catalog.schema import moves
from manager.catalog.store import Transaction
from manager.changes.alignment import replicas_of
from manager.rules.moves import UNFINISHED, Event, next_state, taken_by

_UNFINISHED = or_(*(moves.c.state == name for name in UNFINISHED))
# By the index (ino).
_KNOWN = Hot(select(moves.c.migration, moves.c.source, moves.c.state).where(moves.c.ino == bindparam("ino")))
_OTHER = Hot(
    select(moves.c.migration).where(moves.c.ino == bindparam("ino"), moves.c.migration != bindparam("migration"), _UNFINISHED)
)
_INSERT = Hot(
    insert(moves).values(
        {name: bindparam(name) for name in ("migration", "ino", "source", "target", "state", "bytes", "error", "changed_ns")}
    )
)
# By the whole primary key; `target` is chosen anew when the move begins.
_PLAN_AGAIN = Hot(
    update(moves)
    .where(
        moves.c.migration == bindparam("b_migration"), moves.c.ino == bindparam("b_ino"), moves.c.source == bindparam("b_source")
    )
    .values(state=bindparam("to_state"), target=0, bytes=bindparam("size"), error="", changed_ns=bindparam("now"))
)
Order = InodeRow  # a row of `migrations`


def moved_by_others(connection: Connection, ino: int, migration: int) -> int:
    """Another migration that moves the inode now; 0 if none does."""
    found = _OTHER.all(connection, {"ino": ino, "migration": migration})
    return int(found[0].migration) if found else 0


def plan_file(tx: Transaction, order: Order, inode: InodeRow, sources: Collection[int], *, repeats: bool) -> None:
    """One move for each replica of the file on the volumes that are left; what is planned already stays as it is.

    *repeats*: the selector comes back to the file, so that nothing is noted of a file that another migration moves now, and
    a replica that has returned is moved again.
    """
    # The file may be there in no, one or several replicas: each is moved by itself.
    held = [row.volume for row in replicas_of(tx.connection, inode.ino) if row.volume in sources]
    if not held:
        return
    known = {row.source: row.state for row in _KNOWN.all(tx.connection, {"ino": inode.ino}) if row.migration == order.migration}
    other = moved_by_others(tx.connection, inode.ino, order.migration)
    for source in held:
        if source in known:
            if repeats and not other and known[source] in (MoveState.DONE, MoveState.SKIPPED):
                _plan_again(tx, order, inode, source, known[source])
        # A selector that repeats comes back when the other one is done; one that does not says now why it skips the file.
        elif not (other and repeats):
            _insert(tx, order, inode, source, other)


def _insert(tx: Transaction, order: Order, inode: InodeRow, source: int, other: int) -> None:
    values = {
        "migration": order.migration,
        "ino": inode.ino,
        "source": source,
        "target": 0,
        "state": next_state(MoveState.PLANNED, Event.TAKEN) if other else MoveState.PLANNED,
        "bytes": inode.size,
        "error": taken_by(other) if other else "",
        "changed_ns": file_time_ns(),
    }
    _INSERT.run(tx.connection, values)


def _plan_again(tx: Transaction, order: Order, inode: InodeRow, source: int, present: str) -> None:
    values = {
        "b_migration": order.migration,
        "b_ino": inode.ino,
        "b_source": source,
        "to_state": next_state(present, Event.RETURNED),
        "size": inode.size,
        "now": file_time_ns(),
    }
    _PLAN_AGAIN.run(tx.connection, values)
