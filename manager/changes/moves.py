"""The moves of one file, inside a transaction: read, decided and written down.

Called by `manager.changes.alignment.align` whenever something about the file has changed, so that a move goes on in the very
transaction in which a copy or a deletion was reported. Paused moves have no effect on where copies go; what they made stays
meanwhile.
"""

from dataclasses import replace

from sqlalchemy import Connection, bindparam, or_, select, update

from cluster.clock import file_time_ns
from cluster.messages import MigrationState, MoveState, TaskOperation
from manager.catalog.hot import Hot
from manager.catalog.schema import migrations, moves, replicas
from manager.catalog.store import Transaction
from manager.memory.state import MIGRATE, State
from manager.rules.limits import ERROR_MAX, clean_text
from manager.rules.moves import ACTIVE, VANISHED, Event, Move, Step, next_state, taken_by

# By the index (ino): the few moves of a file. The join brings the states of their migrations.
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
        or_(*(moves.c.state == name for name in (*ACTIVE, MoveState.FAILED))),
    )
)
# By the whole primary key. It does not ask for the old state: that was read in the same transaction.
_SET = Hot(
    update(moves)
    .where(
        moves.c.migration == bindparam("b_migration"), moves.c.ino == bindparam("b_ino"), moves.c.source == bindparam("b_source")
    )
    .values(state=bindparam("to_state"), error=bindparam("to_error"), changed_ns=bindparam("to_changed_ns"))
)
_REPLICA = Hot(select(replicas.c.ino).where(replicas.c.ino == bindparam("ino"), replicas.c.volume == bindparam("volume")))
# By the index (ended_ns): the history of migrations may be long.
_OPEN_ORDER = select(migrations.c.migration).where(migrations.c.ended_ns == 0).limit(1)
# Only a migration that has failed: one that is paused or cancelled stays so.
_REOPEN = Hot(
    update(migrations)
    .where(migrations.c.migration == bindparam("b_migration"), migrations.c.state == MigrationState.FAILED)
    .values(state=bindparam("to_state"))
)


def moves_of(tx: Transaction, ino: int) -> list[Move]:
    """The active moves of an inode, and those that failed in migrations that are not over."""
    return [
        Move(row.migration, row.source, row.target, row.state, row.order_state == MigrationState.PAUSED, row.error)
        for row in _MOVES.all(tx.connection, {"ino": ino})
        if row.state != MoveState.FAILED
        or row.order_state in (MigrationState.PLANNING, MigrationState.RUNNING, MigrationState.PAUSED, MigrationState.FAILED)
    ]


def has_open_orders(connection: Connection) -> bool:
    """Whether any migration is not over."""
    return connection.execute(_OPEN_ORDER).first() is not None


def active_moves(tx: Transaction, state: State, ino: int) -> list[Move]:
    """The moves that the file is in; none are looked for where no migration exists."""
    if not state.has_moves:
        return []
    return [move for move in moves_of(tx, ino) if move.state != MoveState.FAILED]


def record(tx: Transaction, state: State, ino: int, move: Move, step: Step) -> Move:
    """Stores the state to which *step* leads, and wakes the migrator. Returns the move as it is now."""
    following = replace(move, state=next_state(move.state, step.event), error=clean_text(step.text, ERROR_MAX))
    # The same state with the same reason is not written again, and wakes nobody: `align` runs often.
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
        if move.state == MoveState.FAILED:
            # The migration may have none left that failed: it is looked at anew.
            _REOPEN.run(tx.connection, {"b_migration": move.migration, "to_state": MigrationState.RUNNING})
        tx.after(lambda: state.bells.ring(MIGRATE))
    return following


def file_gone(tx: Transaction, state: State, ino: int) -> None:
    """Ends the moves of a file that has been removed: its objects are deleted anyway."""
    if not state.has_moves:
        return
    for move in moves_of(tx, ino):
        if move.state != MoveState.DELETING:
            record(tx, state, ino, move, VANISHED)
        # While the replica's row is there its deletion is still queued, and the report of that ends the move.
        elif _REPLICA.one_or_none(tx.connection, {"ino": ino, "volume": move.source}) is None:
            record(tx, state, ino, move, Step(Event.DELETED))


def object_deleted(tx: Transaction, state: State, ino: int, volume: int) -> None:
    """Ends the moves away from *volume*, since an agent has deleted the replica there."""
    if not state.has_moves:
        return
    for move in moves_of(tx, ino):
        if move.source == volume:
            record(tx, state, ino, move, Step(Event.DELETED))


def task_dead(tx: Transaction, state: State, ino: int, operation: str, volume: int, error: str) -> None:
    """Fails the moves that wait for a task which was given up."""
    if not state.has_moves:
        return
    for move in active_moves(tx, state, ino):
        # A dead deletion stops only the move of that replica; a dead copy all moves that still wait for copies.
        if move.source == volume if operation == TaskOperation.DELETE else move.state == MoveState.COPYING:
            record(tx, state, ino, move, Step(Event.GAVE_UP, f"{operation}, volume {volume}: {error}"))


def copy_arrived(tx: Transaction, state: State, ino: int) -> None:
    """Resumes moves that had failed, now that a copy was made, unless another migration moves the file."""
    if not state.has_moves:
        return
    found = moves_of(tx, ino)
    # A file is moved by one migration at a time.
    movers = {move.migration for move in found if move.state != MoveState.FAILED}
    for move in found:
        if move.state == MoveState.FAILED and movers <= {move.migration}:
            # Now this one moves it: failed moves of further migrations stay as they are.
            movers.add(move.migration)
            record(tx, state, ino, move, Step(Event.ARRIVED))


def start_move(tx: Transaction, state: State, ino: int, move: Move) -> None:
    """Begins a planned move, or skips it if another migration moves the file by now; `align` does the rest."""
    assert move.state == MoveState.PLANNED
    # Looked at again: another migration may have begun with the file since the move was planned.
    other = next((found.migration for found in active_moves(tx, state, ino) if found.migration != move.migration), 0)
    if other:
        record(tx, state, ino, move, Step(Event.TAKEN, taken_by(other)))
    else:
        record(tx, state, ino, move, Step(Event.START))
