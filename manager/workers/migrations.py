"""Carries migrations out, in the background: plans their moves, keeps a window of them going, and ends them.

Everything is in the catalog, and each step is one transaction, so that the next manager goes on where this one stopped. What
is in memory only says what was looked at lately. A move goes on by itself when an agent reports (`manager.changes.moves`); here
it is begun, and looked at again when something may have changed that nobody reports: a writer has closed, a volume has room.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import trio

from cluster.clock import monotonic_s
from cluster.messages import MigrationState, MoveState
from manager.catalog.store import Transaction
from manager.changes.migrations import change_some, count_moves, end_if_over, open_orders, plan_some, reexamine, start_some
from manager.changes.planning import Order
from manager.changes.selectors import selector_of
from manager.memory.state import MIGRATE, State
from manager.rules.moves import ACTIVE, UNFINISHED, Event
from manager.term import Term

T = TypeVar("T")

PLAN_AT_ONCE = 8  # batches that are planned before the window is looked at again
GATHER_S = 0.05  # what ends meanwhile is replaced together
LOOK_S = 0.5  # how often moves that wait for a writer are looked at
LOOK_AT_ALL_S = 5.0  # how often all active moves are


class _Progress:
    """What one manager remembers of a migration; the next one begins anew. Times are those of `monotonic_s`."""

    def __init__(self, now: float) -> None:
        self.known_state = ""  # its state when its moves were last brought in line with it
        self.began_s = now  # when this manager first saw it
        self.looked_s = now  # at the moves that wait for a writer
        self.looked_at_all_s = now  # at all active moves
        self.asked_s = now  # its selector, whether the migration has ended


class Migrator:
    """Works on all migrations of a term in turn."""

    def __init__(self, term: Term) -> None:
        self._term = term  # whose catalog it works on
        self._state = term.state
        self._progress: dict[int, _Progress] = {}  # by migration; of those that are not over

    async def run_once(self) -> bool:
        """One round; whether there is anything to come back for."""
        orders = await self._term.store.read(open_orders)
        self._progress = {order.migration: self._of(order) for order in orders}
        busy = any(order.state in (MigrationState.PLANNING, MigrationState.RUNNING, MigrationState.CANCELLED) for order in orders)
        self._term.throttle.migrating = busy
        for order in orders:
            await self._work_on(order)
        return busy

    def _of(self, order: Order) -> _Progress:
        return self._progress.get(order.migration) or _Progress(monotonic_s())

    async def _work_on(self, order: Order) -> None:
        progress = self._progress[order.migration]
        if order.state == MigrationState.CANCELLED:
            states = [state for state in (*UNFINISHED, MoveState.FAILED) if state != MoveState.DELETING]
            # Deletions go on: what an agent was told to delete cannot be taken back.
            while await self._write(partial(change_some, migration=order.migration, states=states, event=Event.CANCEL)):
                pass
        if progress.known_state != order.state:
            # A change of office or of the order: whatever is under way is brought in line.
            await self._look(order, ACTIVE)
            progress.known_state = order.state
        if order.state in (MigrationState.PLANNING, MigrationState.RUNNING):
            await self._go_on(order)
        if order.state in (MigrationState.PLANNING, MigrationState.RUNNING, MigrationState.CANCELLED):
            await self._look_now_and_then(order, progress)
        if order.state == MigrationState.CANCELLED or (order.state == MigrationState.RUNNING and self._may_end(order, progress)):
            await self._end(order)

    async def _go_on(self, order: Order) -> None:
        if not order.planned:
            for _ in range(PLAN_AT_ONCE):
                if not await self._write(partial(plan_some, migration=order.migration)):
                    break
            # The next round comes at once: to plan on, or to find that all is planned.
            self._state.bells.ring(MIGRATE)
        # A batch in each transaction, so that requests get their turn in between.
        while await self._write(partial(start_some, migration=order.migration)):
            pass

    async def _look_now_and_then(self, order: Order, progress: _Progress) -> None:
        now = monotonic_s()
        if now - progress.looked_at_all_s >= LOOK_AT_ALL_S:
            await self._look(order, ACTIVE)
            progress.looked_at_all_s = progress.looked_s = monotonic_s()
        elif now - progress.looked_s >= LOOK_S:
            await self._look(order, (MoveState.WAITING,))
            progress.looked_s = monotonic_s()

    def _may_end(self, order: Order, progress: _Progress) -> bool:
        now, selector = monotonic_s(), selector_of(order)
        return now - progress.began_s >= selector.least_s and now - progress.asked_s >= selector.pass_s

    async def _end(self, order: Order) -> None:
        unfinished = partial(count_moves, migration=order.migration, states=UNFINISHED, limit=1)
        # A cheap look first; `end_if_over` counts again in its transaction, as moves may have been added meanwhile.
        if not await self._term.store.read(unfinished):
            await self._write(partial(end_if_over, migration=order.migration))
            self._progress[order.migration].asked_s = monotonic_s()

    async def _look(self, order: Order, states: Iterable[str]) -> None:
        for name in states:
            after = 0
            while True:
                after = await self._write(partial(reexamine, migration=order.migration, move_state=name, after=after))
                if not after:
                    break

    async def _write(self, work: Callable[[Transaction, State], T]) -> T:
        return await self._term.store.write(lambda tx: work(tx, self._state), grows=True)


async def migrate_loop(term: Term) -> None:
    """Carries out what there is, and waits for news."""
    migrator = Migrator(term)
    while True:
        with term.state.bells.listening(MIGRATE) as bell:
            # Listening meanwhile: what changes during the round makes the next one come at once.
            busy = await migrator.run_once()
            with trio.move_on_after(LOOK_S if busy else float("inf")):
                await bell.wait()
        await trio.sleep(GATHER_S)
