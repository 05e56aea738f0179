"""The moves of one file, inside a transaction: read, decided and written down.

Called by `manager.tasks.align` whenever something about the file has changed, so that a move goes on in the very transaction
in which a copy or a deletion was reported. Paused moves have no effect on where copies go; what they made stays meanwhile.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import Connection, bindparam, or_, select, update

from cluster.clock import file_time_ns
from cluster.messages import (
    DELETE,
    MOVE_COPYING,
    MOVE_DELETING,
    MOVE_FAILED,
    MOVE_PLANNED,
    PAUSED,
    PLANNING,
    RUNNING,
)
from cluster.messages import MIGRATION_FAILED as FAILED
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow
from manager.catalog.schema import migrations, moves, replicas
from manager.catalog.store import Transaction
from manager.memory.state import MIGRATE, State
from manager.rules.limits import ERROR_MAX, clean_text
from manager.rules.moves import ACTIVE, VANISHED, Event, Move, Step, decide, look_at_target, next_state, taken_by
from manager.rules.placement import Layout, Place

_MOVES = Hot(
    select(
        moves.c.migration,
        moves.c.source,
        moves.c.target,
        moves.c.state,
        moves.c.error,
        migrations.c.state.label("order_state"),
    )
    .join_from(moves, migrations, migrations.c.migration == moves.c.migration)
    .where(
        moves.c.ino == bindparam("ino"),
        or_(*(moves.c.state == name for name in (*ACTIVE, MOVE_FAILED))),
    )
)
_SET = Hot(
    update(moves)
    .where(
        moves.c.migration == bindparam("b_migration"), moves.c.ino == bindparam("b_ino"), moves.c.source == bindparam("b_source")
    )
    .values(state=bindparam("to_state"), error=bindparam("to_error"), changed_ns=bindparam("to_changed_ns"))
)
_REPLICA = Hot(select(replicas.c.ino).where(replicas.c.ino == bindparam("ino"), replicas.c.volume == bindparam("volume")))
_OPEN_ORDER = select(migrations.c.migration).where(migrations.c.ended_ns == 0).limit(1)
_REOPEN = Hot(
    update(migrations)
    .where(migrations.c.migration == bindparam("b_migration"), migrations.c.state == FAILED)
    .values(state=bindparam("to_state"))
)


def moves_of(tx: Transaction, ino: int) -> list[Move]:
    """The active moves of an inode, and those that failed in migrations that are not over."""
    return [
        Move(row.migration, row.source, row.target, row.state, row.order_state == PAUSED, row.error)
        for row in _MOVES.all(tx.connection, {"ino": ino})
        if row.state != MOVE_FAILED or row.order_state in (PLANNING, RUNNING, PAUSED, FAILED)
    ]


def has_open_orders(connection: Connection) -> bool:
    """Whether any migration is not over."""
    return connection.execute(_OPEN_ORDER).first() is not None


def active_moves(tx: Transaction, state: State, ino: int) -> list[Move]:
    """The moves that the file is in; none are looked for where no migration exists."""
    if not state.has_moves:
        return []
    return [move for move in moves_of(tx, ino) if move.state != MOVE_FAILED]


def record(tx: Transaction, state: State, ino: int, move: Move, step: Step) -> Move:
    """Writes down what has become of a move; wakes whoever fills the window."""
    following = replace(move, state=next_state(move.state, step.event), error=clean_text(step.text, ERROR_MAX))
    if following != move:
        values = {
            "b_migration": move.migration,
            "b_ino": ino,
            "b_source": move.source,
            "to_state": following.state,
            "to_error": following.error,
            "to_changed_ns": file_time_ns(),
        }
        _SET.run(tx.connection, values)
        if move.state == MOVE_FAILED:
            # The migration may have none left that failed: it is looked at anew.
            _REOPEN.run(tx.connection, {"b_migration": move.migration, "to_state": RUNNING})
        tx.after(lambda: state.bells.ring(MIGRATE))
    return following


def effective_moves(
    tx: Transaction, state: State, inode: InodeRow, found: list[Move], stored: Collection[int], places: Mapping[int, Place]
) -> list[Move]:
    """Those of the file's active moves that may have an effect now; what keeps the others is written down."""
    effective = []
    for move in found:
        if move.source not in stored:
            record(tx, state, inode.ino, move, Step(Event.DELETED))
        elif move.paused:
            record(tx, state, inode.ino, move, Step(Event.COPIES_MISSING))
        elif (obstacle := look_at_target(move, inode.size, stored, places)) is not None:
            record(tx, state, inode.ino, move, obstacle)
        else:
            effective.append(move)
    return effective


def advance(
    tx: Transaction,
    state: State,
    inode: InodeRow,
    effective: list[Move],
    *,
    copies: int,
    layout: Layout,
    is_current: Collection[int],
) -> list[int]:
    """Decides about each move; the volumes whose replicas are to be deleted now."""
    leaving = []
    for move in effective:
        step = decide(move, home=inode.home_volume, copies=copies, layout=layout, is_current=is_current)
        record(tx, state, inode.ino, move, step)
        if step.event is Event.CLEAR:
            leaving.append(move.source)
    return leaving


def settle_going(tx: Transaction, state: State, ino: int, going: list[Move]) -> None:
    """Moves whose deletion an agent was given: nothing can stop it any more."""
    for move in going:
        if move.state != MOVE_DELETING:
            record(tx, state, ino, move, Step(Event.CLEAR))


def file_gone(tx: Transaction, state: State, ino: int) -> None:
    """The file has been removed: its objects are deleted with it."""
    if not state.has_moves:
        return
    for move in moves_of(tx, ino):
        if move.state != MOVE_DELETING:
            record(tx, state, ino, move, VANISHED)
        elif _REPLICA.one_or_none(tx.connection, {"ino": ino, "volume": move.source}) is None:
            record(tx, state, ino, move, Step(Event.DELETED))


def object_deleted(tx: Transaction, state: State, ino: int, volume: int) -> None:
    """An agent has deleted the replica on *volume*."""
    if not state.has_moves:
        return
    for move in moves_of(tx, ino):
        if move.source == volume:
            record(tx, state, ino, move, Step(Event.DELETED))


def task_dead(tx: Transaction, state: State, ino: int, operation: str, volume: int, error: str) -> None:
    """A task of the file was given up: so are the moves that need it."""
    if not state.has_moves:
        return
    for move in active_moves(tx, state, ino):
        if move.source == volume if operation == DELETE else move.state == MOVE_COPYING:
            record(tx, state, ino, move, Step(Event.GAVE_UP, f"{operation}, volume {volume}: {error}"))


def copy_arrived(tx: Transaction, state: State, ino: int) -> None:
    """A copy of the file was made: moves that were given up for want of one go on, unless another migration moves it now."""
    if not state.has_moves:
        return
    found = moves_of(tx, ino)
    movers = {move.migration for move in found if move.state != MOVE_FAILED}
    for move in found:
        if move.state == MOVE_FAILED and movers <= {move.migration}:
            movers.add(move.migration)
            record(tx, state, ino, move, Step(Event.ARRIVED))


def start_move(tx: Transaction, state: State, ino: int, move: Move) -> None:
    """A planned move begins, unless another migration moves the file by now; `align` does the rest."""
    assert move.state == MOVE_PLANNED
    other = next((found.migration for found in active_moves(tx, state, ino) if found.migration != move.migration), 0)
    if other:
        record(tx, state, ino, move, Step(Event.TAKEN, taken_by(other)))
    else:
        record(tx, state, ino, move, Step(Event.START))
