"""The steps of a migration, each in one transaction: moves are begun, looked at again and ended, and so is the migration.

What does them in turn is `manager.workers.migrations`.
"""

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, bindparam, func, literal_column, select, update

from cluster.clock import file_time_ns
from cluster.events import EventKind
from cluster.messages import MigrationState, MoveState
from manager.catalog.events import note
from manager.catalog.hot import Hot
from manager.catalog.inodes import find_inode, needed_bytes
from manager.catalog.schema import migrations, moves
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode, replicas_of
from manager.changes.moves import record, start_move
from manager.changes.planning import Order
from manager.changes.selectors import Outcome, selector_of
from manager.memory.state import State
from manager.rules.moves import ACTIVE, UNFINISHED, VANISHED, Event, Move, Step
from manager.rules.placement import Place, draw, has_room

BATCH = 64  # files of one transaction, for which requests wait

_OPEN = select(migrations).where(migrations.c.ended_ns == 0).order_by(migrations.c.migration)
# Walks the index (migration, state, ino) from *after* on.
_IN_STATE = Hot(
    select(moves.c.ino, moves.c.source, moves.c.target, moves.c.state)
    .where(moves.c.migration == bindparam("migration"), moves.c.state == bindparam("state"), moves.c.ino > bindparam("after"))
    .order_by(moves.c.ino)
    .limit(bindparam("n"))
)
# The inner LIMIT bounds what is read: a migration may have millions of moves.
_COUNT = Hot(
    select(func.count().label("count")).select_from(
        select(literal_column("1"))
        .select_from(moves)
        .where(moves.c.migration == bindparam("migration"), moves.c.state == bindparam("state"))
        .limit(bindparam("n"))
        .subquery()
    )
)
_AIM = Hot(
    update(moves)
    .where(
        moves.c.migration == bindparam("b_migration"), moves.c.ino == bindparam("b_ino"), moves.c.source == bindparam("b_source")
    )
    .values(target=bindparam("to_target"))
)


def count_moves(connection: Connection, migration: int, states: Iterable[str], limit: int) -> int:
    """How many moves are in these states, each counted up to *limit*."""
    return sum(_COUNT.one_or_none(connection, {"migration": migration, "state": state, "n": limit}).count for state in states)


def open_orders(connection: Connection) -> list[Order]:
    """The migrations that are not over."""
    return list(connection.execute(_OPEN).all())


# --------------------------------------------------------------------------------------------------------- one step


def pick_target(ino: int, size: int, server: str, stored: Iterable[int], places: Mapping[int, Place]) -> int:
    """The volume of *server* to which a file goes: where it is already, else by the draw among those with room.

    If none has room, the one that comes nearest, so that the refusal names it; 0 if the server has no volume.
    """
    there = [place for place in places.values() if place.server == server]
    kept = [place.volume for place in there if place.volume in stored]
    if kept:
        return min(kept)
    roomy = [place for place in there if place.counts and place.accepts and has_room(place, size)]
    if roomy:
        return min(roomy, key=lambda place: draw(ino, place)).volume
    return max(there, key=lambda place: (place.free_bytes, -place.volume)).volume if there else 0


def plan_some(tx: Transaction, state: State, migration: int) -> bool:
    """Plans the next few files; False when there is nothing to plan (any more)."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.state not in (MigrationState.PLANNING, MigrationState.RUNNING) or order.planned:
        return False
    if selector_of(order).plan(tx, state, order):
        return True
    # Not before a round that found nothing: until then `end_if_over` must not take the migration for done.
    tx.execute(update(migrations).where(migrations.c.migration == migration).values(planned=1, state=MigrationState.RUNNING))
    return False


def start_some(tx: Transaction, state: State, migration: int) -> bool:
    """Begins planned moves as far as the window has room; whether it began any."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.state not in (MigrationState.PLANNING, MigrationState.RUNNING):
        return False
    # Moves that wait for a writer do not count: they would fill the window without any work in the queues.
    window = state.bounds.moves_max
    room = window - count_moves(tx.connection, migration, (MoveState.COPYING, MoveState.DELETING), window)
    if room <= 0:
        return False
    values = {"migration": migration, "state": MoveState.PLANNED, "after": 0, "n": min(BATCH, room)}
    planned = _IN_STATE.all(tx.connection, values)
    places = state.members.places()
    for row in planned:
        move = Move(migration, row.source, row.target, row.state)
        inode = find_inode(tx.connection, row.ino)
        if inode is None or inode.nlink == 0:
            record(tx, state, row.ino, move, VANISHED)
            continue
        if order.target:
            stored = [replica.volume for replica in replicas_of(tx.connection, row.ino)]
            target = pick_target(row.ino, needed_bytes(inode), order.target, stored, places)
            key = {"b_migration": migration, "b_ino": row.ino, "b_source": row.source}
            # Chosen only now: at the time of planning nobody knew which volume would have room by the time the move begins.
            _AIM.run(tx.connection, {**key, "to_target": target})
        # The state first: `align_inode` queues what the active moves want.
        start_move(tx, state, row.ino, move)
        align_inode(tx, state, row.ino)
    return bool(planned)


def reexamine(tx: Transaction, state: State, migration: int, move_state: str, after: int) -> int:
    """Aligns the files of the next moves in a state. Returns the inode to go on after, 0 at the end."""
    values = {"migration": migration, "state": move_state, "after": after, "n": BATCH}
    found = _IN_STATE.all(tx.connection, values)
    for ino in sorted({row.ino for row in found}):
        align_inode(tx, state, ino)
    # A file with several moves may be cut at the end of a page: they were all looked at with the first one.
    return int(found[-1].ino) if len(found) == BATCH else 0


def change_some(tx: Transaction, state: State, migration: int, states: Iterable[str], event: Event) -> bool:
    """Has *event* happen to some of the moves in *states*; False when there is none left."""
    for move_state in states:
        found = _IN_STATE.all(tx.connection, {"migration": migration, "state": move_state, "after": 0, "n": BATCH})
        for row in found:
            # It leaves *states*, so that the next call finds others: no cursor is needed.
            record(tx, state, row.ino, Move(migration, row.source, row.target, row.state), Step(event))
        if move_state in ACTIVE:
            for ino in {row.ino for row in found}:
                align_inode(tx, state, ino)
        if found:
            return True
    return False


def end_if_over(tx: Transaction, state: State, migration: int) -> None:
    """Ends a migration whose moves are all over, as done or failed; or lets its selector look for more files."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.ended_ns or count_moves(tx.connection, migration, UNFINISHED, 1):
        return
    failed = count_moves(tx.connection, migration, (MoveState.FAILED,), 1)
    if order.state == MigrationState.CANCELLED:
        _set_state(tx, order, MigrationState.CANCELLED, over=True)
    elif order.state == MigrationState.RUNNING and order.planned:
        selector = selector_of(order)
        outcome = selector.ended(tx, state, order, failed=failed > 0)
        if outcome is Outcome.AGAIN:
            selector.again(tx, order)
        else:
            done = outcome is Outcome.DONE
            _set_state(tx, order, MigrationState.DONE if done else MigrationState.FAILED, over=done)


def _set_state(tx: Transaction, order: Order, name: str, *, over: bool = False) -> None:
    values = {"state": name, "ended_ns": file_time_ns() if over else 0}
    tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(**values))
    # That it is cancelled was told when somebody asked for it.
    if name != MigrationState.CANCELLED:
        kind = EventKind.MIGRATION_DONE if name == MigrationState.DONE else EventKind.MIGRATION_FAILED
        note(tx.connection, kind, server=order.source, migration=order.migration)
