"""Follows up when servers and volumes are heard or fall silent, and finds other places for copies that wait for them."""

import logging
from functools import partial
from typing import Any

import trio
from sqlalchemy import bindparam, func, or_, select

from cluster.membership import Event, IllegalTransition
from cluster.messages import TaskOperation, TaskState
from manager.catalog.schema import tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode
from manager.changes.standing import AWAY, change_standing, change_volume
from manager.memory.state import DOWN, State
from manager.term import Term

log = logging.getLogger(__name__)

REQUEUE_BATCH = 64
REQUEUE_PAUSE_S = 0.005  # between batches, so that requests go first

# What is queued later was placed by who knew that the server is down.
_NEWEST_TASK = select(func.coalesce(func.max(tasks.c.task), 0))
_PLANNED = (
    select(tasks.c.task, tasks.c.ino)
    .where(
        tasks.c.server == bindparam("server"),
        tasks.c.state == bindparam("state"),
        tasks.c.task > bindparam("after"),
        tasks.c.task <= bindparam("until"),
        tasks.c.operation == TaskOperation.COPY,
        or_(bindparam("volume") == 0, tasks.c.volume == bindparam("volume")),
    )
    .order_by(tasks.c.task)
    .limit(REQUEUE_BATCH)
)


async def tick_members(term: Term, now: float) -> None:
    """Changes the states of servers and volumes that have been heard, or silent, for long enough."""
    # One transaction each; what has happened meanwhile is found by `change_standing`, which reads the state again.
    for server, event in term.state.members.tick(now).items():
        await term.store.write(partial(_time_has_passed, term=term, server=server, event=event), durable=True)

    for volume, standing in term.state.members.due_volumes(now).items():
        await term.store.write(partial(change_volume, state=term.state, volume=volume, standing=standing), durable=True)


def _time_has_passed(tx: Transaction, term: Term, server: str, event: Event) -> None:
    try:
        change_standing(tx, term.state, term.claims, server, event)
    except IllegalTransition as error:
        # It was removed while this waited for its turn.
        log.info("%s: %s", server, error)


async def requeue_loop(term: Term) -> None:
    """Finds other places for copies that wait in the queues of servers that are down, or for volumes that do not count.

    A volume's scan finds files by their replicas; a first copy that was never made has none. Begins again with each term.
    """
    done: dict[str | int, int] = {}
    while True:
        with term.state.bells.listening(DOWN) as bell:
            out = _out(term.state)
            # Who is down since another time was back in between, and may have got new copies to make.
            todo = {what: since for what, since in out.items() if done.get(what) != since}
            done = {what: since for what, since in done.items() if what in out}
            if not todo:
                await bell.wait()
        for what, since in todo.items():
            await _requeue(term, what)
            done[what] = since


def _out(state: State) -> dict[str | int, int]:
    """The servers that are down and the volumes that do not count, and since when, where that is known."""
    down: dict[str | int, int] = {
        name: member.changed_ns for name, member in state.members.servers().items() if member.state in AWAY
    }
    return down | dict.fromkeys(state.members.outs(), 0)


async def _requeue(term: Term, what: str | int) -> None:
    until = await term.store.read(lambda connection: connection.execute(_NEWEST_TASK).scalar_one())
    volume = what if isinstance(what, int) else 0
    # After the wait: the volume may have gone.
    known = term.state.members.get(volume)
    server = what if isinstance(what, str) else "" if known is None else known.server
    for state in (TaskState.WAITING, TaskState.DEFERRED, TaskState.DEAD):
        after: int | None = 0
        # It may have come back between two batches: then its copies stay where they are queued.
        while after is not None and what in _out(term.state):
            query = {"server": server, "volume": volume, "state": state, "after": after, "until": until}
            after = await term.store.write(partial(_requeue_some, state=term.state, query=query))
            await trio.sleep(REQUEUE_PAUSE_S)


def _requeue_some(tx: Transaction, state: State, query: dict[str, Any]) -> int | None:
    """Looks at the files of some waiting copies; the last task, or None when there are no more."""
    page = tx.execute(_PLANNED, query).all()
    for row in page:
        align_inode(tx, state, row.ino)
    return page[-1].task if len(page) == REQUEUE_BATCH else None
