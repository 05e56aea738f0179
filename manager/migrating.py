"""Carries migrations out, in the background: plans their moves, keeps a window of them going, and ends them.

Everything is in the catalog, and each step is one transaction, so that the next manager goes on where this one stopped. What
is in memory only says what was looked at lately. A move goes on by itself when an agent reports (`manager.changes.moves`); here it is
begun, and looked at again when something may have changed that nobody reports: a writer has closed, a volume has room.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import trio
from sqlalchemy import Connection, bindparam, func, literal_column, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.messages import (
    KIND_DRAIN,
    MIGRATION_CANCELLED,
    MIGRATION_DONE,
    MIGRATION_FAILED,
    MOVE_COPYING,
    MOVE_DELETING,
    MOVE_FAILED,
    MOVE_PLANNED,
    MOVE_WAITING,
    PLANNING,
    RUNNING,
)
from manager.catalog.hot import Hot
from manager.catalog.inodes import find_inode
from manager.catalog.schema import migrations, moves
from manager.catalog.store import Transaction
from manager.changes.holdings import holds_anything
from manager.changes.moves import record, start_move
from manager.memory.state import MIGRATE, State
from manager.planning import Order, plan_from_the_start, plan_some
from manager.rules.moves import ACTIVE, UNFINISHED, VANISHED, Event, Move, Step
from manager.rules.placement import Place, draw, has_room
from manager.tasks import align_inode, replicas_of
from manager.term import Term

T = TypeVar("T")

WINDOW = 256  # moves of a migration whose copies or deletions may be in the queues at once
BATCH = 64
PLAN_AT_ONCE = 8  # batches that are planned before the window is looked at again
GATHER_S = 0.05  # what ends meanwhile is replaced together
LOOK_S = 0.5  # how often moves that wait for a writer are looked at
LOOK_AT_ALL_S = 5.0  # how often all active moves are
PASS_S = 1.0  # between a drain's looks at the whole server
DRAIN_LEAST_S = 5.0  # until all mounts know that nothing new belongs there

_OPEN = select(migrations).where(migrations.c.ended_ns == 0).order_by(migrations.c.migration)
_IN_STATE = Hot(
    select(moves.c.ino, moves.c.source, moves.c.target, moves.c.state)
    .where(moves.c.migration == bindparam("migration"), moves.c.state == bindparam("state"), moves.c.ino > bindparam("after"))
    .order_by(moves.c.ino)
    .limit(bindparam("n"))
)
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


def start_some(tx: Transaction, state: State, migration: int) -> bool:
    """Begins planned moves as far as the window has room; whether it began any."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.state not in (PLANNING, RUNNING):
        return False
    room = WINDOW - count_moves(tx.connection, migration, (MOVE_COPYING, MOVE_DELETING), WINDOW)
    if room <= 0:
        return False
    values = {"migration": migration, "state": MOVE_PLANNED, "after": 0, "n": min(BATCH, room)}
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
            target = pick_target(row.ino, inode.size, order.target, stored, places)
            key = {"b_migration": migration, "b_ino": row.ino, "b_source": row.source}
            _AIM.run(tx.connection, {**key, "to_target": target})
        start_move(tx, state, row.ino, move)
        align_inode(tx, state, row.ino)
    return bool(planned)


def look_again(tx: Transaction, state: State, migration: int, move_state: str, after: int) -> int:
    """Looks at the files of the next moves in a state; the inode to go on after, 0 at the end."""
    values = {"migration": migration, "state": move_state, "after": after, "n": BATCH}
    found = _IN_STATE.all(tx.connection, values)
    for ino in sorted({row.ino for row in found}):
        align_inode(tx, state, ino)
    return int(found[-1].ino) if len(found) == BATCH else 0


def change_some(tx: Transaction, state: State, migration: int, states: Iterable[str], event: Event) -> bool:
    """Has *event* happen to some of the moves in *states*; False when there is none left."""
    for move_state in states:
        found = _IN_STATE.all(tx.connection, {"migration": migration, "state": move_state, "after": 0, "n": BATCH})
        for row in found:
            record(tx, state, row.ino, Move(migration, row.source, row.target, row.state), Step(event))
        if move_state in ACTIVE:
            for ino in {row.ino for row in found}:
                align_inode(tx, state, ino)
        if found:
            return True
    return False


def end_if_over(tx: Transaction, state: State, migration: int) -> None:
    """Ends a migration that has nothing left to do, or says that it failed; sends a drain through its server once more."""
    order = tx.execute(select(migrations).where(migrations.c.migration == migration)).one_or_none()
    if order is None or order.ended_ns or count_moves(tx.connection, migration, UNFINISHED, 1):
        return
    failed = count_moves(tx.connection, migration, (MOVE_FAILED,), 1)
    if order.state == MIGRATION_CANCELLED:
        _set_state(tx, order, MIGRATION_CANCELLED, over=True)
    elif order.state != RUNNING or not order.planned:
        return
    elif order.kind == KIND_DRAIN and holds_anything(tx.connection, state.members.of_server(order.source)):
        if failed:
            _set_state(tx, order, MIGRATION_FAILED)
        else:
            plan_from_the_start(tx, migration)
    elif failed and order.kind != KIND_DRAIN:
        _set_state(tx, order, MIGRATION_FAILED)
    else:
        _set_state(tx, order, MIGRATION_DONE, over=True)


def _set_state(tx: Transaction, order: Order, name: str, *, over: bool = False) -> None:
    values = {"state": name, "ended_ns": file_time_ns() if over else 0}
    tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(**values))


# --------------------------------------------------------------------------------------------------------- the loop


class _Progress:
    """What is remembered of one migration: its state when it was last looked at, and when its moves were."""

    def __init__(self, now: float) -> None:
        self.seen_state = ""
        self.first_seen = now
        self.looked = now
        self.looked_at_all = now
        self.passed = now


class Migrator:
    """Works on all migrations of a term in turn."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._state = term.state
        self._progress: dict[int, _Progress] = {}

    async def run_once(self) -> bool:
        """One round; whether there is anything to come back for."""
        orders = await self._term.store.read(open_orders)
        self._progress = {order.migration: self._of(order) for order in orders}
        busy = any(order.state in (PLANNING, RUNNING, MIGRATION_CANCELLED) for order in orders)
        self._term.courtesy.migrating = busy
        for order in orders:
            await self._work_on(order)
        return busy

    def _of(self, order: Order) -> _Progress:
        return self._progress.get(order.migration) or _Progress(monotonic_s())

    async def _work_on(self, order: Order) -> None:
        progress = self._progress[order.migration]
        if order.state == MIGRATION_CANCELLED:
            states = [state for state in (*UNFINISHED, MOVE_FAILED) if state != MOVE_DELETING]
            while await self._write(partial(change_some, migration=order.migration, states=states, event=Event.CANCEL)):
                pass
        if progress.seen_state != order.state:
            # A change of office or of the order: whatever is under way is brought in line.
            await self._look(order, ACTIVE)
            progress.seen_state = order.state
        if order.state in (PLANNING, RUNNING):
            await self._go_on(order)
        if order.state in (PLANNING, RUNNING, MIGRATION_CANCELLED):
            await self._look_now_and_then(order, progress)
        if order.state == MIGRATION_CANCELLED or (order.state == RUNNING and self._may_end(order, progress)):
            await self._end(order)

    async def _go_on(self, order: Order) -> None:
        if not order.planned:
            for _ in range(PLAN_AT_ONCE):
                if not await self._write(partial(plan_some, migration=order.migration)):
                    break
            self._state.bells.ring(MIGRATE)
        while await self._write(partial(start_some, migration=order.migration)):
            pass

    async def _look_now_and_then(self, order: Order, progress: _Progress) -> None:
        now = monotonic_s()
        if now - progress.looked_at_all >= LOOK_AT_ALL_S:
            await self._look(order, ACTIVE)
            progress.looked_at_all = progress.looked = monotonic_s()
        elif now - progress.looked >= LOOK_S:
            await self._look(order, (MOVE_WAITING,))
            progress.looked = monotonic_s()

    def _may_end(self, order: Order, progress: _Progress) -> bool:
        if order.kind != KIND_DRAIN:
            return True
        now = monotonic_s()
        return now - progress.first_seen >= DRAIN_LEAST_S and now - progress.passed >= PASS_S

    async def _end(self, order: Order) -> None:
        unfinished = partial(count_moves, migration=order.migration, states=UNFINISHED, limit=1)
        if not await self._term.store.read(unfinished):
            await self._write(partial(end_if_over, migration=order.migration))
            self._progress[order.migration].passed = monotonic_s()

    async def _look(self, order: Order, states: Iterable[str]) -> None:
        for name in states:
            after = 0
            while True:
                after = await self._write(partial(look_again, migration=order.migration, move_state=name, after=after))
                if not after:
                    break

    async def _write(self, work: Callable[[Transaction, State], T]) -> T:
        return await self._term.store.write(lambda tx: work(tx, self._state))


async def migrate_loop(term: Term) -> None:
    """Carries out what there is, and waits for news."""
    migrator = Migrator(term)
    while True:
        with term.state.bells.listening(MIGRATE) as bell:
            busy = await migrator.run_once()
            with trio.move_on_after(LOOK_S if busy else float("inf")):
                await bell.wait()
        await trio.sleep(GATHER_S)
