"""Looks for what is to be told and has no transaction of its own, and forgets what was told long ago.

Files at risk, full volumes, faults of the catalog's disk, what processes say is wrong with their servers: in numbers, and when it
has changed (`manager.rules.events`). What was told is in the catalog, so that an election doubles nothing.
"""

import logging
from functools import partial

import trio
from sqlalchemy import Connection, func, select

from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import CatalogFault
from cluster.events import EventKind
from cluster.messages import TaskOperation
from cluster.trust.identity import Role
from manager.catalog.events import cause_of, forget_oldest, newest_of, note, note_problem
from manager.catalog.schema import events, shortfalls, tasks
from manager.catalog.store import Transaction
from manager.changes.damage import count_damaged
from manager.rules.events import RISK_S, SOON_S, Change, Told, View, changes
from manager.term import Term

log = logging.getLogger(__name__)

LOOK_S = 5.0  # between looks
COST_PART = 0.02  # of the time goes at most into looking: files at risk are counted among all tasks
FORGET_S = 3600.0  # between deletions of old events


class Watch:
    """What is remembered from one look to the next."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._waiting_s = monotonic_s()  # when copies were last found that had waited for `SOON_S`
        self._fault = ""  # of the catalog's disk
        self._fault_ns = 0  # when it was found
        self._problems: frozenset[tuple[str, str]] = frozenset()  # servers, and causes of what is wrong there

    async def look(self) -> None:
        """Tells what is new."""
        self._look_at_catalog()
        now_ns = file_time_ns()
        told, slow, at_risk, damaged = await self._term.store.read_slowly(partial(_read, now_ns=now_ns))
        if slow:
            self._waiting_s = monotonic_s()
        view = View(
            at_risk,
            monotonic_s() - self._waiting_s >= RISK_S,
            damaged,
            dict(self._term.state.members.places()),
            bool(self._term.store.room.fault),
        )
        # One that has come and gone between two looks, when nothing could be written.
        passed = bool(self._fault) and not view.catalog_fails and not told.catalog_fails
        if passed or changes(told, view):
            await self._term.store.write(partial(self._tell, view=view, passed=passed))
        if not view.catalog_fails:
            self._fault = ""
        await self._tell_problems()

    def _look_at_catalog(self) -> None:
        fault = self._term.store.room.fault
        if fault is not None and not self._fault:
            self._fault, self._fault_ns = str(fault), file_time_ns()

    def _tell(self, tx: Transaction, *, view: View, passed: bool) -> None:
        # Again: what is told of damage is told in other transactions, too.
        told = read_told(tx.connection)
        if passed and not told.catalog_fails:
            self._tell_fault(tx)
            told = read_told(tx.connection)
        for change in changes(told, view):
            if change.kind is EventKind.DAMAGE_MENDED and count_damaged(tx.connection):
                continue
            if change.kind is EventKind.CATALOG_FAULT:
                self._tell_fault(tx)
            else:
                self._tell_change(tx, change)

    def _tell_fault(self, tx: Transaction) -> None:
        note(tx.connection, EventKind.CATALOG_FAULT, time_ns=self._fault_ns, server=self._term.config.server, fault=self._fault)

    def _tell_change(self, tx: Transaction, change: Change) -> None:
        volume = self._term.state.members.find(change.volume)
        if volume is None:
            note(tx.connection, change.kind, count=change.count)
        else:
            note(tx.connection, change.kind, server=volume.server, volume=change.volume, path=volume.path)

    async def _tell_problems(self) -> None:
        found = {(server, cause_of(problem)): problem for server, problem in _problems(self._term)}
        new = [(server, problem) for (server, cause), problem in found.items() if (server, cause) not in self._problems]
        if new:
            await self._term.store.write(partial(_note_problems, problems=new))
        self._problems = frozenset(found)


def _note_problems(tx: Transaction, *, problems: list[tuple[str, str]]) -> None:
    for server, problem in problems:
        note_problem(tx.connection, server, problem)


def _problems(term: Term) -> list[tuple[str, str]]:
    """What agents and mounts say is wrong."""
    of_agents = [(name, text) for name, member in term.state.members.servers().items() for text in member.problems]
    of_mounts = [
        (session.server, text)
        for session in term.state.sessions.all()
        if session.role == Role.MOUNT and session.counts is not None
        for text in session.counts.problems
    ]
    return of_agents + of_mounts


def read_told(connection: Connection) -> Told:
    """What the newest events say."""
    risk, safe = (newest_of(connection, kind) for kind in (EventKind.FILES_AT_RISK, EventKind.FILES_SAFE))
    found, mended = (newest_of(connection, kind) for kind in (EventKind.DAMAGE_FOUND, EventKind.DAMAGE_MENDED))
    fault, back = (newest_of(connection, kind) for kind in (EventKind.CATALOG_FAULT, EventKind.CATALOG_BACK))
    count = select(events.c.count).where(events.c.event == risk)
    at_risk = connection.execute(count).scalar_one() if risk > safe else 0
    return Told(at_risk, found > mended, _told_full(connection), fault > back)


def _told_full(connection: Connection) -> frozenset[int]:
    full, room = (_newest_by_volume(connection, kind) for kind in (EventKind.VOLUME_FULL, EventKind.VOLUME_ROOM))
    return frozenset(volume for volume, event in full.items() if event > room.get(volume, 0))


def _newest_by_volume(connection: Connection, kind: EventKind) -> dict[int, int]:
    newest = select(events.c.volume, func.max(events.c.event)).where(events.c.kind == str(kind)).group_by(events.c.volume)
    return {row[0]: row[1] for row in connection.execute(newest)}


def _read(connection: Connection, *, now_ns: int) -> tuple[Told, int, int, int]:
    """What was told; how many files' copies have waited for `SOON_S`, and for `RISK_S`; how many replicas are damaged."""
    slow = count_waiting(connection, now_ns - int(SOON_S * 1e9))
    at_risk = count_waiting(connection, now_ns - int(RISK_S * 1e9)) if slow else 0
    return read_told(connection), slow, at_risk, count_damaged(connection)


def count_waiting(connection: Connection, before_ns: int) -> int:
    """How many files have waited for their copies since that time."""
    short = select(func.count()).select_from(shortfalls).where(shortfalls.c.since_ns <= before_ns)
    queued = select(func.count(tasks.c.ino.distinct())).where(
        tasks.c.operation == TaskOperation.COPY, tasks.c.queued_ns <= before_ns, tasks.c.ino.not_in(select(shortfalls.c.ino))
    )
    return int(connection.execute(short).scalar_one()) + int(connection.execute(queued).scalar_one())


async def event_loop(term: Term) -> None:
    """Tells what is new, and forgets what is old."""
    watch, forgot_s = Watch(term), monotonic_s() - FORGET_S
    while True:
        began_s = monotonic_s()
        try:
            await watch.look()
        except CatalogFault as error:
            log.debug("what has happened is told later: %s", error)
        if began_s - forgot_s >= FORGET_S:
            forgot_s = began_s
            await forget_old(term)
        await trio.sleep(max(LOOK_S, (monotonic_s() - began_s) / COST_PART))


async def forget_old(term: Term) -> None:
    """Deletes events that are older than they are kept, and those that are too many."""
    before_ns = file_time_ns() - int(term.config.manager.events_keep_s * 1e9)
    while await term.store.write(lambda tx: forget_oldest(tx.connection, before_ns)):
        pass
