"""What people ask about migrations: start, drain, list, pause, resume, cancel."""

import errno
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy import Connection, func, insert, select, update

from cluster.clock import file_time_ns
from cluster.decoding import from_json
from cluster.errors import Malformed, Refused, refused
from cluster.events import EventKind
from cluster.membership import Event as ServerEvent
from cluster.messages import (
    ChangeMigration,
    DrainServer,
    ListMigrations,
    ListMoves,
    MigrationChange,
    MigrationRow,
    MigrationRows,
    MigrationState,
    MoveCount,
    MoveRow,
    MoveRows,
    MoveState,
    StartMigration,
)
from manager.catalog.events import note
from manager.catalog.inodes import find_inode, path_of
from manager.catalog.schema import migrations, moves
from manager.catalog.store import Transaction
from manager.changes.migrations import change_some
from manager.changes.planning import Order
from manager.changes.selectors import DRAIN, PATHS, selector_of
from manager.changes.standing import change_standing
from manager.memory.members import Members
from manager.memory.sessions import Session
from manager.rules.limits import TEXT_MAX, check_count, check_number, clean_text
from manager.rules.moves import ACTIVE, TRANSITIONS, Event
from manager.term import Term

log = logging.getLogger(__name__)

_subject_of = from_json(list[str])

PATHS_MAX = 1000  # chosen in one order
LIST_MAX = 10_000  # rows for people
_TOLD = {
    MigrationState.PAUSED: EventKind.MIGRATION_PAUSED,
    MigrationState.RUNNING: EventKind.MIGRATION_RESUMED,
    MigrationState.CANCELLED: EventKind.MIGRATION_CANCELLED,
}
TOKEN_BITS = 62  # of the random numbers of drains, whose negatives clash with no client's token


# ------------------------------------------------------------------------------------------------------- starting


def check_servers(members: Members, source: str, target: str) -> None:
    """Refuses servers that are unknown, equal, or of which nothing can come or to which nothing can go."""
    known = sorted({volume.server for volume in members.volumes()})
    for server in (source, target):
        if server not in known:
            names = ", ".join(known) or "none"
            raise Refused(f"there is no server {clean_text(server, 63)!r} with a volume; there are: {names}", errno.ENOENT)
    if source == target:
        raise refused(errno.EINVAL, f"source and target are both {source}")
    if not members.accepts(target):
        raise Refused(f"{target} is being drained: it takes no new copies")


async def start_migration(term: Term, _session: Session, request: StartMigration) -> MigrationRow:
    """Writes the order down; the moves are planned in the background."""
    check_count(len(request.inodes), PATHS_MAX, "paths")
    check_number(request.token, "token")
    if not request.inodes or len(request.paths) != len(request.inodes) or request.token == 0:
        raise refused(errno.EINVAL, "a migration needs paths and a token")
    if any(len(path) > TEXT_MAX for path in request.paths):
        raise refused(errno.ENAMETOOLONG)
    check_servers(term.state.members, request.source, request.target)

    def work(tx: Transaction) -> int:
        # A repeat of a request whose reply was lost: the migration that it began.
        known = tx.execute(select(migrations.c.migration).where(migrations.c.token == request.token)).scalar_one_or_none()
        if known is not None:
            return int(known)
        found = [find_inode(tx.connection, ino) for ino in request.inodes]
        for path, inode in zip(request.paths, found, strict=True):
            if inode is None or inode.nlink == 0:
                raise refused(errno.ENOENT, os.fsdecode(path))
        order = _insert(tx, PATHS.kind, request.source, request.target, request.paths, request.token)
        PATHS.begin(tx, term.state, order, [inode for inode in found if inode is not None])
        tx.after(term.state.begin_moves)
        return int(order.migration)

    return await _show(term, await term.store.write(work, durable=True, grows=True))


def _insert(tx: Transaction, kind: str, source: str, target: str, paths: list[bytes], token: int) -> Order:
    values = {
        "kind": kind,
        "state": MigrationState.PLANNING,
        "source": source,
        "target": target,
        "subject": json.dumps([os.fsdecode(path) for path in paths]),
        "created_ns": file_time_ns(),
        "token": token,
    }
    (number,) = tx.execute(insert(migrations).returning(migrations.c.migration), values).one()
    note(tx.connection, EventKind.MIGRATION_STARTED, server=source, migration=number, order=kind, source=source, target=target)
    return tx.execute(select(migrations).where(migrations.c.migration == number)).one()


async def drain_server(term: Term, _session: Session, request: DrainServer) -> MigrationRow:
    """Marks the server, and starts the drain unless there is one already: that one goes on."""
    server = request.server
    term.state.members.require(server)
    # Outside of the transaction, whose body may run again.
    token = -random.getrandbits(TOKEN_BITS) - 1

    def work(tx: Transaction) -> int:
        change_standing(tx, term.state, term.claims, server, ServerEvent.DRAIN)
        tx.after(term.state.begin_moves)
        # In the transaction that would start another: two requests at once start one drain.
        known = DRAIN.going_on(tx, server)
        return known[0] if known else int(_insert(tx, DRAIN.kind, server, "", [], token).migration)

    number = await term.store.write(work, durable=True, grows=True)
    # In transactions of its own. If the manager dies before it, the drain is there, as it was; a repeat resumes it.
    await _resume(term, number)
    return await _show(term, number)


# ------------------------------------------------------------------------------------------------------- changing


async def change_migration(term: Term, _session: Session, request: ChangeMigration) -> MigrationRow:
    """Pauses, resumes or cancels; the moves follow in the background."""
    changes: dict[str, Callable[[Term, int], Awaitable[None]]] = {
        MigrationChange.PAUSE: _pause,
        MigrationChange.RESUME: _resume,
        MigrationChange.CANCEL: _cancel,
    }
    check_number(request.migration, "migration")
    if request.action not in changes:
        raise refused(errno.EINVAL, f"{clean_text(request.action, 20)!r} is not pause, resume or cancel")
    await changes[request.action](term, request.migration)
    return await _show(term, request.migration)


def _order(tx: Transaction, number: int) -> Order:
    order = tx.execute(select(migrations).where(migrations.c.migration == number)).one_or_none()
    if order is None:
        raise Refused(f"there is no migration {number}", errno.ENOENT)
    return order


def _require_open(order: Order, action: str) -> None:
    if order.state in (MigrationState.DONE, MigrationState.CANCELLED):
        raise Refused(f"migration {order.migration} is {order.state}: it cannot {action} any more")


def _set_state(tx: Transaction, term: Term, number: int, name: MigrationState) -> None:
    tx.execute(update(migrations).where(migrations.c.migration == number).values(state=name))
    note(tx.connection, _TOLD[name], server=_order(tx, number).source, migration=number)
    tx.after(term.state.begin_moves)


async def _pause(term: Term, number: int) -> None:
    def work(tx: Transaction) -> None:
        order = _order(tx, number)
        _require_open(order, "pause")
        if order.state in (MigrationState.PLANNING, MigrationState.RUNNING):
            _set_state(tx, term, number, MigrationState.PAUSED)

    await term.store.write(work, durable=True)


async def _resume(term: Term, number: int) -> None:
    """Moves that failed are planned again; the selector looks for more if it may find some."""

    def check(tx: Transaction) -> None:
        _require_open(_order(tx, number), "go on")

    def work(tx: Transaction) -> None:
        order = _order(tx, number)
        if order.state == MigrationState.FAILED:
            selector_of(order).again(tx, order)
        if order.state in (MigrationState.PAUSED, MigrationState.FAILED):
            _set_state(tx, term, number, MigrationState.RUNNING)

    # First alone: nothing is planned again of a migration that is over.
    await term.store.write(check)
    retry = partial(change_some, state=term.state, migration=number, states=(MoveState.FAILED,), event=Event.RESUME)
    # In batches, so that requests get their turn. One that had failed stays so meanwhile, and is not ended again.
    while await term.store.write(retry):
        pass
    await term.store.write(work, durable=True)


async def _cancel(term: Term, number: int) -> None:
    """What is being deleted is deleted; all else ends, and what the start changed besides is taken back."""

    def work(tx: Transaction) -> None:
        order = _order(tx, number)
        if order.state == MigrationState.DONE:
            _require_open(order, "be cancelled")
        if order.state == MigrationState.CANCELLED:
            return
        _set_state(tx, term, number, MigrationState.CANCELLED)
        # In the transaction of the state: no crash leaves a server marked for a drain that is over.
        selector_of(order).cancelled(tx, term.state, term.claims, order)

    await term.store.write(work, durable=True)


def cancel_drains(tx: Transaction, term: Term, server: str) -> None:
    """Ends the server's drains that are not over, as `_cancel` does; how the server stands is the caller's to change."""
    for number in DRAIN.going_on(tx, server):
        _set_state(tx, term, number, MigrationState.CANCELLED)


# -------------------------------------------------------------------------------------------------------- listing

_PROBLEM_STATES = (MoveState.FAILED, *ACTIVE)


async def _show(term: Term, number: int) -> MigrationRow:
    rows = await list_migrations(term, None, ListMigrations(number))
    if not rows.migrations:
        raise Refused(f"there is no migration {number}", errno.ENOENT)
    return rows.migrations[0]


async def list_migrations(term: Term, _session: Session | None, request: ListMigrations) -> MigrationRows:
    """The counts of each are summed up from its moves, so this takes time in proportion to them."""
    check_number(request.migration, "migration")
    limit = max(0, min(request.limit, LIST_MAX))

    def ask(connection: Connection) -> MigrationRows:
        chosen = select(migrations).order_by(migrations.c.migration.desc()).limit(limit)
        if request.migration:
            chosen = chosen.where(migrations.c.migration == request.migration)
        return MigrationRows([_migration_row(connection, order) for order in connection.execute(chosen).all()])

    return await term.store.read_slowly(ask)


def open_migrations(connection: Connection, limit: int) -> list[MigrationRow]:
    """The newest *limit* of those that are not over, the newest first. Takes time in proportion to their moves: for a thread."""
    chosen = select(migrations).where(migrations.c.ended_ns == 0).order_by(migrations.c.migration.desc()).limit(limit)
    return [_migration_row(connection, order) for order in connection.execute(chosen).all()]


def _paths_of(order: Order) -> list[bytes]:
    """What the order names; nothing for a row that is damaged, which must not hide the others."""
    try:
        return [os.fsencode(path) for path in _subject_of(order.subject.encode("utf-8", "surrogatepass"))]
    except (Malformed, ValueError) as error:
        log.warning("migration %s has a damaged subject: %s", order.migration, error)
        return []


def _migration_row(connection: Connection, order: Order) -> MigrationRow:
    mine = moves.c.migration == order.migration
    sums = select(moves.c.state, func.count().label("files"), func.coalesce(func.sum(moves.c.bytes), 0).label("size"))
    found = {row.state: row for row in connection.execute(sums.where(mine).group_by(moves.c.state))}
    counts = [MoveCount(state, found[state].files, int(found[state].size)) for state in TRANSITIONS if state in found]
    ended_ns = order.ended_ns or file_time_ns()
    return MigrationRow(
        migration=order.migration,
        kind=order.kind,
        state=order.state,
        source=order.source,
        target=order.target,
        paths=_paths_of(order),
        planned=bool(order.planned),
        counts=counts,
        problem=_problem(connection, order.migration),
        created_ns=order.created_ns,
        ended_ns=order.ended_ns,
        elapsed_s=max(0.0, (ended_ns - order.created_ns) / 1e9),
    )


def _problem(connection: Connection, number: int) -> str:
    """Why one of the moves failed, or else does not go on."""
    for state in _PROBLEM_STATES:
        chosen = select(moves.c.error).where(moves.c.migration == number, moves.c.state == state, moves.c.error != "")
        error = connection.execute(chosen.order_by(moves.c.ino).limit(1)).scalar_one_or_none()
        if error:
            return str(error)
    return ""


async def list_moves(term: Term, _session: Session, request: ListMoves) -> MoveRows:
    check_number(request.migration, "migration")
    limit = max(0, min(request.limit, LIST_MAX))
    members = term.state.members

    def server_of(volume: int) -> str:
        known = members.get(volume)
        return known.server if known is not None else ""

    def ask(connection: Connection) -> MoveRows:
        chosen = moves.c.migration == request.migration
        if request.state:
            chosen &= moves.c.state == request.state
        total = connection.execute(select(func.count()).select_from(moves).where(chosen)).scalar_one()
        rows = connection.execute(select(moves).where(chosen).order_by(moves.c.ino, moves.c.source).limit(limit)).all()
        return MoveRows(
            [
                MoveRow(
                    row.ino,
                    path_of(connection, row.ino),
                    row.source,
                    server_of(row.source),
                    row.target,
                    server_of(row.target),
                    row.state,
                    row.bytes,
                    row.error,
                    row.changed_ns,
                )
                for row in rows
            ],
            total,
        )

    return await term.store.read_slowly(ask)
