"""Which replicas a migration moves: found in the background, a few at a time, with cursors in the catalog.

Chosen paths are walked directory by directory (`migration_scans`); what is created in a directory after it was walked is not
included. A drain goes through the replicas on its server's volumes by number, again and again until there is none.
A file is moved by one migration at a time: another one skips it and says so, and a drain comes back to it.
"""

import stat
from collections.abc import Collection

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from cluster.clock import file_time_ns
from cluster.messages import (
    KIND_DRAIN,
    MOVE_DONE,
    MOVE_PLANNED,
    MOVE_SKIPPED,
    PLANNING,
    RUNNING,
)
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, children, find_inode
from manager.catalog.schema import migration_scans, migrations, moves
from manager.catalog.store import Transaction
from manager.memory.state import State
from manager.rules.moves import UNFINISHED, Event, next_state, taken_by
from manager.tasks import inodes_on, replicas_of

PLAN_BATCH = 64

_UNFINISHED = or_(*(moves.c.state == name for name in UNFINISHED))
_KNOWN = Hot(select(moves.c.migration, moves.c.source, moves.c.state).where(moves.c.ino == bindparam("ino")))
_OTHER = Hot(
    select(moves.c.migration).where(moves.c.ino == bindparam("ino"), moves.c.migration != bindparam("migration"), _UNFINISHED)
)
_INSERT = Hot(
    insert(moves).values(
        {name: bindparam(name) for name in ("migration", "ino", "source", "target", "state", "bytes", "error", "changed_ns")}
    )
)
_PLAN_AGAIN = Hot(
    update(moves)
    .where(
        moves.c.migration == bindparam("b_migration"), moves.c.ino == bindparam("b_ino"), moves.c.source == bindparam("b_source")
    )
    .values(state=bindparam("to_state"), target=0, bytes=bindparam("size"), error="", changed_ns=bindparam("now"))
)
_FIRST_SCAN = Hot(
    select(migration_scans.c.ino, migration_scans.c.after)
    .where(migration_scans.c.migration == bindparam("migration"))
    .order_by(migration_scans.c.ino)
    .limit(1)
)

Order = InodeRow  # a row of `migrations`


def moved_by_others(connection: Connection, ino: int, migration: int) -> int:
    """Another migration that moves the inode now; 0 if none does."""
    found = _OTHER.all(connection, {"ino": ino, "migration": migration})
    return int(found[0].migration) if found else 0


def plan_inode(tx: Transaction, state: State, order: Order, inode: InodeRow) -> None:
    """Plans the moves of a file, or has a directory walked."""
    if stat.S_ISDIR(inode.mode):
        known = tx.execute(
            select(migration_scans.c.ino).where(
                migration_scans.c.migration == order.migration, migration_scans.c.ino == inode.ino
            )
        )
        if known.first() is None:
            tx.execute(insert(migration_scans), {"migration": order.migration, "ino": inode.ino, "after": 0})
    elif inode.home_volume and inode.nlink:
        plan_file(tx, order, inode, state.members.of_server(order.source))


def plan_file(tx: Transaction, order: Order, inode: InodeRow, sources: Collection[int]) -> None:
    """One move for each replica of the file on the volumes that are left; what is planned already stays as it is."""
    held = [row.volume for row in replicas_of(tx.connection, inode.ino) if row.volume in sources]
    if not held:
        return
    known = {row.source: row.state for row in _KNOWN.all(tx.connection, {"ino": inode.ino}) if row.migration == order.migration}
    other = moved_by_others(tx.connection, inode.ino, order.migration)
    drain = order.kind == KIND_DRAIN
    for source in held:
        if source in known:
            if drain and not other and known[source] in (MOVE_DONE, MOVE_SKIPPED):
                _plan_again(tx, order, inode, source, known[source])
        elif not (other and drain):
            _insert(tx, order, inode, source, other)


def _insert(tx: Transaction, order: Order, inode: InodeRow, source: int, other: int) -> None:
    values = {
        "migration": order.migration,
        "ino": inode.ino,
        "source": source,
        "target": 0,
        "state": next_state(MOVE_PLANNED, Event.TAKEN) if other else MOVE_PLANNED,
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


def plan_some(tx: Transaction, state: State, migration: int) -> bool:
    """Plans the next few files; False when there is nothing to plan (any more)."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.state not in (PLANNING, RUNNING) or order.planned:
        return False
    if order.kind == KIND_DRAIN:
        _plan_drain(tx, state, order)
    else:
        _plan_directory(tx, state, order)
    return True


def _plan_directory(tx: Transaction, state: State, order: Order) -> None:
    scan = _FIRST_SCAN.one_or_none(tx.connection, {"migration": order.migration})
    if scan is None:
        _planned(tx, order)
        return
    found = children(tx.connection, scan.ino, scan.after, PLAN_BATCH)
    for child in found:
        plan_inode(tx, state, order, child)
    mine = (migration_scans.c.migration == order.migration) & (migration_scans.c.ino == scan.ino)
    if len(found) < PLAN_BATCH:
        tx.execute(delete(migration_scans).where(mine))
    else:
        tx.execute(update(migration_scans).where(mine).values(after=found[-1].cookie))


def _plan_drain(tx: Transaction, state: State, order: Order) -> None:
    volumes = state.members.of_server(order.source)
    volume = next((number for number in volumes if number >= order.cursor_volume), None)
    if volume is None:
        _planned(tx, order)
        return
    after = order.cursor if volume == order.cursor_volume else 0
    found = inodes_on(tx.connection, volume, after, PLAN_BATCH)
    for ino in found:
        inode = find_inode(tx.connection, ino)
        if inode is not None and inode.nlink:
            plan_file(tx, order, inode, volumes)
    ended = len(found) < PLAN_BATCH
    values = {"cursor_volume": volume + 1, "cursor": 0} if ended else {"cursor_volume": volume, "cursor": found[-1]}
    tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(**values))


def _planned(tx: Transaction, order: Order) -> None:
    tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(planned=1, state=RUNNING))


def plan_from_the_start(tx: Transaction, migration: int) -> None:
    """A drain looks at its server's volumes once more."""
    tx.execute(update(migrations).where(migrations.c.migration == migration).values(planned=0, cursor=0, cursor_volume=0))
