"""Transactions in which a server comes to stand otherwise, and what they set going.

The catalog is first, the memory follows (`tx.after`): so a new manager knows who is down, drained or gone. Whoever stops or
begins to count has the files of its volumes looked at again in the background; nothing is copied here.
"""

import logging
from functools import partial
from typing import Any

import trio
from sqlalchemy import bindparam, func, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.membership import (
    MEANINGS,
    UP,
    Event,
    IllegalTransition,
    ServerState,
    Standing,
    standing_of,
    stored_state,
    transition,
)
from cluster.messages import COPY, DEAD, DEFERRED, ROOT_INO, WAITING
from manager.catalog.schema import servers, tasks
from manager.catalog.store import Transaction
from manager.changes.namespace import queue_scan
from manager.changes.tasks import release_claims
from manager.memory.state import DOWN, State
from manager.tasks import align_inode
from manager.term import Term
from manager.workers.volume_scans import queue_volume_scan

log = logging.getLogger(__name__)

AWAY = (ServerState.DOWN, ServerState.LOST)  # whose queues nobody works off
REQUEUE_BATCH = 64
REQUEUE_PAUSE_S = 0.005  # between batches, so that requests go first

_NEWEST_TASK = select(func.coalesce(func.max(tasks.c.task), 0))
_PLANNED = (
    select(tasks.c.task, tasks.c.ino)
    .where(
        tasks.c.server == bindparam("server"),
        tasks.c.state == bindparam("state"),
        tasks.c.task > bindparam("after"),
        tasks.c.task <= bindparam("until"),
        tasks.c.operation == COPY,
    )
    .order_by(tasks.c.task)
    .limit(REQUEUE_BATCH)
)


def stored_standing(tx: Transaction, server: str) -> Standing:
    """How the catalog says that the server stands; one whose introduction was never stored is up, and stored now."""
    row = tx.execute(select(servers.c.state, servers.c.draining).where(servers.c.server == server)).one_or_none()
    if row is None:
        tx.execute(insert(servers), {"server": server, "joined_ns": file_time_ns()})
        return UP
    return standing_of(row.state, wanted_empty=bool(row.draining))


def change_standing(tx: Transaction, term: Term, server: str, event: Event) -> Standing:
    """Applies *event* to a server that the memory knows, and sets going what follows from it. Raises `IllegalTransition`."""
    old = stored_standing(tx, server)
    new = transition(old, event)
    if new == old:
        return new
    state = term.state
    since_ns = file_time_ns()
    values: dict[str, Any] = {"state": str(stored_state(new)), "draining": int(new.wanted_empty), "since_ns": since_ns}
    tx.execute(update(servers).where(servers.c.server == server).values(**values))
    before, now = MEANINGS[old.state], MEANINGS[new.state]
    if (before.counts != now.counts and now.belongs) or new.state is ServerState.LOST:
        for volume in state.members.of_server(server):
            queue_volume_scan(tx, state, volume)
    if now.accepts and not before.accepts:
        # Files that had no place for a copy meanwhile may have none here either: only a look at all of them finds them.
        queue_scan(tx, state, ROOT_INO)
    if not now.works:
        _take_back_claims(tx, term, server)
    tx.after(partial(_settled, state, server, new, since_ns))
    return new


def _take_back_claims(tx: Transaction, term: Term, server: str) -> None:
    claims = term.claims.of_server(server)
    release_claims(tx, term.state, claims)
    tx.after(lambda: term.claims.end_all(claims))


def _settled(state: State, server: str, standing: Standing, since_ns: int) -> None:
    log.info("%s is %s", server, standing)
    state.members.settled(server, standing, since_ns, monotonic_s())
    if standing.state in AWAY:
        state.bells.ring(DOWN)
    if MEANINGS[standing.state].works:
        state.ring(server)


async def tick_members(term: Term, now: float) -> None:
    """Takes note of who was heard, and of who was not."""
    for server, event in term.state.members.tick(now).items():
        await term.store.write(partial(_time_has_passed, term=term, server=server, event=event), durable=True)


def _time_has_passed(tx: Transaction, term: Term, server: str, event: Event) -> None:
    try:
        change_standing(tx, term, server, event)
    except IllegalTransition as error:
        # It was removed while this waited for its turn.
        log.info("%s: %s", server, error)


async def requeue_loop(term: Term) -> None:
    """Finds other places for copies that wait in the queues of servers that are down.

    A volume's scan finds files by their replicas; a first copy that was never made has none. Begins again with each term.
    """
    members = term.state.members
    done: dict[str, int] = {}
    while True:
        with term.state.bells.listening(DOWN) as bell:
            down = {name: member.settled_ns for name, member in members.servers().items() if member.state in AWAY}
            todo = {name: since for name, since in down.items() if done.get(name) != since}
            if not todo:
                await bell.wait()
        for server, since in todo.items():
            await _requeue(term, server)
            done[server] = since


async def _requeue(term: Term, server: str) -> None:
    until = await term.store.read(lambda connection: connection.execute(_NEWEST_TASK).scalar_one())
    for state in (WAITING, DEFERRED, DEAD):
        after: int | None = 0
        while after is not None and not term.state.members.works(server):
            query = {"server": server, "state": state, "after": after, "until": until}
            after = await term.store.write(partial(_requeue_some, state=term.state, query=query))
            await trio.sleep(REQUEUE_PAUSE_S)


def _requeue_some(tx: Transaction, state: State, query: dict[str, Any]) -> int | None:
    """Looks at the files of some waiting copies; the last task, or None when there are no more."""
    page = tx.execute(_PLANNED, query).all()
    for row in page:
        align_inode(tx, state, row.ino)
    return page[-1].task if len(page) == REQUEUE_BATCH else None
