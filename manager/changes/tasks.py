"""The agents' queues: claims, reports, back-offs, dead tasks.

The state of a task is in the catalog, the deadline of a claim or a back-off in memory on the monotonic clock. A report is
heeded only while its claim is in force.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, delete, func, select, update

from cluster.messages import Replica, Stamp, TaskOperation, TaskReport, TaskState
from manager.catalog.hot import Hot, HotByKeys, HotDelete, HotInsert, HotUpdate
from manager.catalog.inodes import InodeRow, find_inode, find_inodes
from manager.catalog.schema import replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import Rows, align, replica_row, replicas_of_all, restart_task, tasks_of_all
from manager.changes.moves import copy_arrived, object_deleted, task_dead
from manager.memory.state import State
from manager.rules.limits import ERROR_MAX, check_number, clean_text
from manager.rules.tasks import Event, next_state, states_after

BACKOFF_FIRST_S = 1.0  # after the first failure, at most; doubled with each further one
BACKOFF_MAX_S = 60.0  # what was mended is noticed within a minute
CHANGED_BACKOFF_S = 0.5  # on average: whoever writes has then perhaps finished; no attempt is counted
SOURCE_DOWN_BACKOFF_S = 3.0  # until it is looked whether a source has come back

# Outcomes of a report, as agents send them.
DONE = "done"
CHANGED = "changed"
RETRY = "retry"
FAILED = "failed"

_BY_ID = Hot(select(tasks).where(tasks.c.task == bindparam("task")))
_BY_IDS = HotByKeys(lambda keys: select(tasks).where(tasks.c.task.in_(keys)))
_SET: dict[str, BindParameter[Any]] = {name: bindparam(f"to_{name}") for name in ("state", "claim", "attempts", "error")}
_UPDATE = Hot(update(tasks).where(tasks.c.task == bindparam("b_task")).values(_SET))
_DELETE = HotDelete(tasks, "task")
_COPY = ("version", "stamp_size", "stamp_mtime_ns", "stamp_ctime_ns", "checksum")
_UPDATE_REPLICA = HotUpdate(replicas, ["ino", "volume"], _COPY, fault="")
_ADD_REPLICA = HotInsert(replicas, "ino", "volume", *_COPY)
# Whoever copied a version has read all of it, which a commit does not take.
_LEARN_CHECKSUM = HotUpdate(replicas, ["ino", "volume"], ["checksum"])


def backoff_s(attempts: int, draw: float) -> float:
    """How long to wait after the *attempts*-th failure; *draw* in [0, 1) spreads it over the upper half."""
    # The exponent is bounded, since powers beyond are only cut to the maximum.
    full: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 16))
    return full * (0.5 + draw / 2)


@dataclass(frozen=True)
class Verdict:
    """What a report means for its task: `delay_s` is set if the task is deferred by it."""

    event: Event
    attempts: int
    delay_s: float = 0.0


def judge(outcome: str, *, attempts: int, newer: bool, max_attempts: int, draw: float) -> Verdict:
    """The rule for a task that was not done. *newer*: a newer version is wanted than the one that was tried."""
    # Before everything else: the writer is to blame, not the volume, so that no attempt is counted.
    if outcome == CHANGED:
        return Verdict(Event.CHANGED, attempts, CHANGED_BACKOFF_S * (0.5 + draw))
    # What has failed is not wanted any more, so the failure says nothing about what is: it begins anew at once.
    if newer:
        return Verdict(Event.OVERTAKEN, 0)
    if outcome == FAILED or attempts + 1 >= max_attempts:
        return Verdict(Event.GIVE_UP, attempts + 1)
    return Verdict(Event.FAILED, attempts + 1, backoff_s(attempts + 1, draw))


def replica_of(row: InodeRow) -> Replica:
    """The message for a replica row."""
    stamp = None
    if row.stamp_ctime_ns is not None:
        stamp = Stamp(row.stamp_size, row.stamp_mtime_ns, row.stamp_ctime_ns)
    return Replica(row.volume, row.version, stamp, row.checksum)


def find_task(connection: Connection, task: int) -> InodeRow | None:
    """A task's row, or None."""
    return _BY_ID.one_or_none(connection, {"task": task})


def remove_task(connection: Connection, task: int) -> None:
    """Nothing is to be done any more."""
    _DELETE.run(connection, {"b_task": task})


def step_task(
    tx: Transaction,
    row: InodeRow,
    event: Event,
    *,
    claim: int | None = None,
    attempts: int | None = None,
    error: str | None = None,
) -> str:
    """Brings a task into the state that follows, and returns it."""
    state = next_state(row.state, event)
    values = {
        "b_task": row.task,
        "to_state": state,
        "to_claim": row.claim if claim is None else claim,
        "to_attempts": row.attempts if attempts is None else attempts,
        "to_error": row.error if error is None else error,
    }
    _UPDATE.run(tx.connection, values)
    return state


# ------------------------------------------------------------------------------------------------------ reports


@dataclass(frozen=True)
class Ended:
    """A task no longer claimed. `delay_s`: its back-off, None if it is not deferred; `copy_wanted_ns`: when a copy that was made
    was queued, else 0."""

    task: int
    delay_s: float | None = None
    copy_wanted_ns: int = 0


def report_tasks(
    tx: Transaction,
    state: State,
    server: str,
    reports: Sequence[TaskReport],
    tried: Callable[[TaskReport], int],
    max_attempts: int,
) -> list[Ended]:
    """Ends attempts, but those whose claims are not in force. *tried* says what a claim was for (0: not known)."""
    for report in reports:
        check_number(report.task, "task")
        check_number(report.version, "version")
    rows = {row.task: row for row in _BY_IDS.all(tx.connection, {report.task for report in reports})}
    in_force = {
        report.task: report
        for report in reports
        if (row := rows.get(report.task)) is not None and _is_in_force(row, server, report)
    }
    inodes = find_inodes(tx.connection, {rows[task].ino for task in in_force})
    plain, others = _sorted_out([(rows[task], report) for task, report in in_force.items()], inodes)
    ended = _end_copies(tx, state, plain, inodes)
    for report in others:
        end = _report_task(tx, state, server, report, tried_version=tried(report), max_attempts=max_attempts)
        if end is not None:
            ended.append(end)
    return ended


def _is_in_force(row: InodeRow, server: str, report: TaskReport) -> bool:
    # Else a repeat, or the report of an attempt that was taken for lost: whoever has the task now reports for it.
    return bool(row.state == TaskState.CLAIMED and row.claim == report.claim and row.server == server)


def _sorted_out(
    reported: Iterable[tuple[InodeRow, TaskReport]], inodes: Mapping[int, InodeRow]
) -> tuple[list[tuple[InodeRow, TaskReport]], list[TaskReport]]:
    """The copies that have simply been made, of one file each, and all other reports."""
    plain: dict[int, tuple[InodeRow, TaskReport]] = {}
    others: list[TaskReport] = []
    for row, report in reported:
        inode = inodes.get(row.ino)
        is_plain = row.operation == TaskOperation.COPY and report.outcome == DONE and not report.source_error
        if is_plain and inode is not None and row.ino not in plain and _is_possible(inode, report):
            plain[row.ino] = row, report
        else:
            others.append(report)
    return list(plain.values()), others


def _report_task(
    tx: Transaction, state: State, server: str, report: TaskReport, *, tried_version: int, max_attempts: int
) -> Ended | None:
    """Ends an attempt by itself; None if its claim is not in force: an earlier report may have changed that."""
    row = _BY_ID.one_or_none(tx.connection, {"task": report.task})
    if row is None or not _is_in_force(row, server, report):
        return None
    inode = find_inode(tx.connection, row.ino)
    if report.source_error:
        _note_fault(tx, row.ino, report.source_volume, tried_version or row.version, report.source_error)
        # Not here: the home can be left only while nobody can be writing the file (`manager.workers.damage`).
        if inode is not None and inode.home_volume == report.source_volume:
            tx.after(lambda: state.damaged_home(row.ino))
    if row.operation == TaskOperation.DELETE:
        return _end_delete(tx, state, row, inode, report, max_attempts)
    # The file went while it was copied: whatever the agent has left on the volume is deleted.
    if inode is None:
        restart_task(tx, state, row.task, row.volume, TaskOperation.DELETE, 0)
        return Ended(row.task)
    if report.outcome != DONE:
        # After a change of office nobody knows what was tried: then the attempt counts.
        newer = bool(tried_version) and row.version > tried_version
        return _end_failed(tx, state, row, report, newer=newer, max_attempts=max_attempts)
    return _end_copy(tx, state, row, inode, report)


def _note_fault(tx: Transaction, ino: int, volume: int, version: int, error: str) -> None:
    tx.execute(
        update(replicas)
        .where(replicas.c.ino == ino, replicas.c.volume == volume, replicas.c.version == version)
        .values(fault=clean_text(error, ERROR_MAX))
    )


def _end_failed(tx: Transaction, state: State, row: InodeRow, report: TaskReport, *, newer: bool, max_attempts: int) -> Ended:
    verdict = judge(
        report.outcome,
        attempts=row.attempts,
        newer=newer,
        max_attempts=max_attempts,
        draw=random.random(),  # noqa: S311
    )
    following = step_task(tx, row, verdict.event, attempts=verdict.attempts, error=clean_text(report.error, ERROR_MAX))
    if following == TaskState.DEAD:
        task_dead(tx, state, row.ino, row.operation, row.volume, report.error)
    if following == TaskState.WAITING:
        tx.after(lambda: state.ring(row.server))
    return Ended(row.task, verdict.delay_s if following == TaskState.DEFERRED else None)


def _is_possible(inode: InodeRow, report: TaskReport) -> bool:
    """Whether a correct agent can say that it has made this copy."""
    return bool(report.version <= inode.version and report.stamp is not None)


def _end_copy(tx: Transaction, state: State, row: InodeRow, inode: InodeRow, report: TaskReport) -> Ended:
    # It is given up at once: trying again would bring the same.
    if not _is_possible(inode, report):
        return _end_failed(
            tx, state, row, TaskReport(row.task, row.claim, FAILED, "impossible report"), newer=False, max_attempts=1
        )
    (ended,) = _end_copies(tx, state, [(row, report)], {row.ino: inode})
    return ended


def _end_copies(
    tx: Transaction, state: State, copied: Sequence[tuple[InodeRow, TaskReport]], inodes: Mapping[int, InodeRow]
) -> list[Ended]:
    """Ends the tasks of copies that were made, of one file each: what is read of these, and what is written, goes together."""
    inos = [row.ino for row, _ in copied]
    held, queued = replicas_of_all(tx.connection, inos), tasks_of_all(tx.connection, inos)
    _store_copies(tx, copied, inodes, held)
    _DELETE.run_many(tx.connection, [{"b_task": row.task} for row, _ in copied])
    for row, _ in copied:
        inode = inodes[row.ino]
        # Before `align`, which then sees these moves as active ones.
        copy_arrived(tx, state, row.ino)
        if inode.nlink:
            # Also if the copy is of a version that is not the newest any more: the newer one is queued then.
            left = [other for other in queued[row.ino] if other.task != row.task]
            align(tx, state, inode, rows=Rows(held[row.ino], left))
    tx.after(partial(_ring_for, state, inos))
    return [Ended(row.task, copy_wanted_ns=row.queued_ns) for row, _ in copied]


def _ring_for(state: State, inos: Iterable[int]) -> None:
    for ino in inos:
        state.bells.ring(ino)


def _store_copies(
    tx: Transaction,
    copied: Sequence[tuple[InodeRow, TaskReport]],
    inodes: Mapping[int, InodeRow],
    held: dict[int, list[InodeRow]],
) -> None:
    """Writes the replicas; *held*, which was read before, is the files' replicas as they are then."""
    updated: list[dict[str, Any]] = []
    added: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []
    for row, report in copied:
        stamp, home = report.stamp, inodes[row.ino].home_volume
        assert stamp is not None, "`_is_possible`"
        values = {
            "version": report.version,
            "stamp_size": stamp.size,
            "stamp_mtime_ns": stamp.mtime_ns,
            "stamp_ctime_ns": stamp.ctime_ns,
            "checksum": report.checksum,
        }
        present = held.setdefault(row.ino, [])
        if any(replica.volume == row.volume for replica in present):
            updated.append({"b_ino": row.ino, "b_volume": row.volume} | {f"to_{name}": value for name, value in values.items()})
        else:
            added.append({"ino": row.ino, "volume": row.volume} | values)
        at_home = next((replica for replica in present if replica.volume == home), None)
        if report.checksum and at_home is not None and at_home.version == report.version and not at_home.checksum:
            # The home's object still has that version.
            learned.append({"b_ino": row.ino, "b_volume": home, "to_checksum": report.checksum})
        made = replica_row(row.ino, row.volume, report.version, stamp, report.checksum)
        held[row.ino] = [made, *(replica for replica in present if replica.volume != row.volume)]
    _UPDATE_REPLICA.run_many(tx.connection, updated)
    _ADD_REPLICA.run_many(tx.connection, added)
    _LEARN_CHECKSUM.run_many(tx.connection, learned)


def _end_delete(
    tx: Transaction, state: State, row: InodeRow, inode: InodeRow | None, report: TaskReport, max_attempts: int
) -> Ended:
    if report.outcome != DONE:
        return _end_failed(tx, state, row, report, newer=False, max_attempts=max_attempts)
    # The row goes when the object is gone, not before: a crash in between leaves no object that the catalog does not know.
    tx.execute(delete(replicas).where(replicas.c.ino == row.ino, replicas.c.volume == row.volume))
    _DELETE.run(tx.connection, {"b_task": row.task})
    # The move ends before `align` looks, which else would take it for still under way.
    object_deleted(tx, state, row.ino, row.volume)
    if inode is not None and inode.nlink:
        align(tx, state, inode)
    return Ended(row.task)


# ------------------------------------------------------------------------------------------- claims and back-offs


def release_claims(tx: Transaction, state: State, claims: dict[int, int]) -> None:
    """Makes tasks wait again whose claim has run out or whose agent is gone; *claims* are claim numbers by task."""
    for task, claim in claims.items():
        row = _BY_ID.one_or_none(tx.connection, {"task": task})
        # Looked at again: the report may have come while this waited for its transaction.
        if row is not None and row.state == TaskState.CLAIMED and row.claim == claim:
            step_task(tx, row, Event.LOST, error="the agent did not report")
            server = row.server
            tx.after(lambda server=server: state.ring(server))  # type: ignore[misc]


def wake_tasks(tx: Transaction, state: State, due: Iterable[int]) -> None:
    """Makes deferred tasks wait whose back-off is over."""
    for task in due:
        row = _BY_ID.one_or_none(tx.connection, {"task": task})
        # It may have been retried or replaced meanwhile.
        if row is not None and row.state == TaskState.DEFERRED:
            step_task(tx, row, Event.DUE)
            server = row.server
            tx.after(lambda server=server: state.ring(server))  # type: ignore[misc]


def retry_tasks(tx: Transaction, state: State, task: int) -> int:
    """Makes a dead or deferred task (0: all of them) wait with no attempts counted. Returns how many."""
    chosen: ColumnElement[bool] = tasks.c.state.in_(states_after(Event.RETRY))
    if task:
        chosen = chosen & (tasks.c.task == task)
    # Before the update, after which nothing is *chosen* any more.
    servers = list(tx.execute(select(tasks.c.server).where(chosen).distinct()).scalars())
    count = tx.execute(update(tasks).where(chosen).values(state=TaskState.WAITING, attempts=0, error="")).rowcount
    for server in servers:
        tx.after(lambda server=server: state.ring(server))  # type: ignore[misc]
    return count


def begin_queue(tx: Transaction) -> list[tuple[int, int, str, int]]:
    """Makes deferred tasks wait, at the start of a term. Returns the claims in force as (task, claim, server, version 0)."""
    # Their back-offs were in the memory of the manager before.
    for state, following in states_after(Event.NEW_MANAGER).items():
        tx.execute(update(tasks).where(tasks.c.state == state).values(state=following))
    rows = tx.execute(select(tasks.c.task, tasks.c.claim, tasks.c.server).where(tasks.c.state == TaskState.CLAIMED))
    return [(row.task, row.claim, row.server, 0) for row in rows]


_OLDEST = select(tasks.c.server, tasks.c.state, tasks.c.queued_ns).where(
    tasks.c.task.in_(select(func.min(tasks.c.task)).group_by(tasks.c.server, tasks.c.state))
)


def ages_of_tasks(connection: Connection, now_ns: int) -> dict[str, float]:
    """How many seconds ago the oldest task of each server was queued: of those that come first."""
    ages: dict[str, float] = {}
    for (server, _state), age_s in ages_by_state(connection, now_ns).items():
        ages[server] = max(ages.get(server, 0.0), age_s)
    return ages


def ages_by_state(connection: Connection, now_ns: int) -> dict[tuple[str, str], float]:
    """As `ages_of_tasks`, by server and state. Another manager's clock may have queued it: one from the future is new."""
    return {(server, state): max(0.0, (now_ns - queued_ns) / 1e9) for server, state, queued_ns in connection.execute(_OLDEST)}


def count_tasks(connection: Connection) -> dict[tuple[str, str], int]:
    """How many tasks each server has in each state."""
    rows = connection.execute(select(tasks.c.server, tasks.c.state, func.count()).group_by(tasks.c.server, tasks.c.state))
    return {(server, state): count for server, state, count in rows}
