"""The agents' queues: claims, reports, back-offs, dead tasks.

The state of a task is in the catalog, the deadline of a claim or a back-off in memory on the monotonic clock. A report is
heeded only while its claim is in force.
"""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, delete, func, insert, select, update

from cluster.messages import Replica, Stamp, Task, TaskOperation, TaskReport, TaskState
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, find_inode, path_of
from manager.catalog.schema import replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align, replicas_of, restart_task
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

# The index (server, state, task) gives them in this order, so that nothing is sorted however long the queue is.
_WAITING = Hot(
    select(tasks)
    .where(tasks.c.server == bindparam("server"), tasks.c.state == TaskState.WAITING)
    .order_by(tasks.c.task)
    .limit(bindparam("n"))
)
_OLDEST_WAITING = Hot(
    select(tasks.c.queued_ns)
    .where(tasks.c.server == bindparam("server"), tasks.c.state == TaskState.WAITING)
    .order_by(tasks.c.task)
    .limit(1)
)
_BY_ID = Hot(select(tasks).where(tasks.c.task == bindparam("task")))
_SET: dict[str, BindParameter[Any]] = {name: bindparam(f"to_{name}") for name in ("state", "claim", "attempts", "error")}
_UPDATE = Hot(update(tasks).where(tasks.c.task == bindparam("b_task")).values(_SET))
_DELETE = Hot(delete(tasks).where(tasks.c.task == bindparam("b_task")))
_STORE_COPY = {
    "version": bindparam("to_version"),
    "stamp_size": bindparam("to_size"),
    "stamp_mtime_ns": bindparam("to_mtime"),
    "stamp_ctime_ns": bindparam("to_ctime"),
    "checksum": bindparam("to_checksum"),
    "fault": "",
}
# An update first: nearly every copy is of a newer version of what is there already.
_UPDATE_REPLICA = Hot(
    update(replicas).where(replicas.c.ino == bindparam("b_ino"), replicas.c.volume == bindparam("b_volume")).values(_STORE_COPY)
)
_ADD_REPLICA = Hot(insert(replicas).values(_STORE_COPY | {"ino": bindparam("b_ino"), "volume": bindparam("b_volume")}))
# Whoever copied a version has read all of it, which a commit does not take. Only while the home's object still has that
# version.
_LEARN_CHECKSUM = Hot(
    update(replicas)
    .where(
        replicas.c.ino == bindparam("b_ino"),
        replicas.c.volume == bindparam("b_volume"),
        replicas.c.version == bindparam("b_version"),
        replicas.c.checksum == b"",
    )
    .values(checksum=bindparam("to_checksum"))
)


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


def waiting_since(connection: Connection, server: str, missing: Collection[int] = ()) -> int | None:
    """When the oldest of the waiting tasks was queued, in nanoseconds of that manager's clock; None if there is none.

    Tasks on *missing* volumes wait until these are back.
    """
    if missing:
        found = _waiting_but(connection, server, missing, 1)
        return int(found[0].queued_ns) if found else None
    row = _OLDEST_WAITING.one_or_none(connection, {"server": server})
    return None if row is None else int(row.queued_ns)


def _waiting_but(connection: Connection, server: str, missing: Collection[int], limit: int) -> list[InodeRow]:
    """The oldest waiting tasks, but for those on some volumes. Reads past these, so it is for when there are any."""
    chosen = select(tasks).where(tasks.c.server == server, tasks.c.state == TaskState.WAITING, tasks.c.volume.not_in(missing))
    return list(connection.execute(chosen.order_by(tasks.c.task).limit(limit)).all())


@dataclass(frozen=True)
class Claimed:
    """What a claim did: the tasks for the agent, with the versions they are for, and those that must wait for a source."""

    tasks: list[Task]
    postponed: list[int]


def claim_tasks(tx: Transaction, state: State, server: str, limit: int) -> Claimed:
    """Hands out waiting tasks of *server*, oldest first."""
    claimed: list[Task] = []
    postponed: list[int] = []
    # Volumes that cannot be read now: their tasks would fail, and be given up in the end.
    missing = state.members.missing(server)
    if missing:
        waiting = _waiting_but(tx.connection, server, missing, limit)
    else:
        waiting = _WAITING.all(tx.connection, {"server": server, "n": limit})
    for row in waiting:
        inode = find_inode(tx.connection, row.ino)
        if row.operation == TaskOperation.DELETE:
            # One that an agent had before may be done already: it cannot be taken back, and its replica is no copy any more.
            if row.claim or inode is None or inode.nlink == 0 or _is_still_wanted(tx, state, row, inode):
                claimed.append(_claim_delete(tx, row))
            continue
        if inode is None or inode.nlink == 0:
            _forget_copy(tx, state, row)
            continue
        task = _claim_copy(tx, state, row, inode)
        if task is None:
            postponed.append(row.task)
        else:
            claimed.append(task)
    return Claimed(claimed, postponed)


def _is_still_wanted(tx: Transaction, state: State, row: InodeRow, inode: InodeRow) -> bool:
    """Looks at the file once more before its replica is given up for good."""
    # Since it was queued a volume may have failed or the policy may have changed: this deletion may be one too many.
    align(tx, state, inode)
    # `align` may have removed the task or turned it into a copy.
    present = _BY_ID.one_or_none(tx.connection, {"task": row.task})
    return present is not None and present.operation == TaskOperation.DELETE


def _forget_copy(tx: Transaction, state: State, row: InodeRow) -> None:
    """Ends a copy of a file that is gone; queues the deletion of what an earlier attempt may have left."""
    # An attempt may have left an object; a task that was never claimed has not.
    if row.claim > 0:
        restart_task(tx, state, row.task, row.volume, TaskOperation.DELETE, 0)
    else:
        _DELETE.run(tx.connection, {"b_task": row.task})


def _claim_delete(tx: Transaction, row: InodeRow) -> Task:
    _step(tx, row, Event.CLAIM, claim=row.claim + 1)
    return Task(row.task, row.claim + 1, TaskOperation.DELETE, row.ino, row.volume, row.version, attempts=row.attempts)


def _claim_copy(tx: Transaction, state: State, row: InodeRow, inode: InodeRow) -> Task | None:
    sources, checksum = _sources(tx, state, inode, row.volume)
    # Deferred, without an attempt counted: the agent could only fail.
    if not any(_is_up(state, source.volume) for source in sources):
        _step(tx, row, Event.NO_SOURCE, error="no server that has a current replica is there")
        return None
    # The newest version is copied, whatever it was queued for: one copy instead of two.
    if row.version != inode.version:
        tx.execute(update(tasks).where(tasks.c.task == row.task).values(version=inode.version))
    _step(tx, row, Event.CLAIM, claim=row.claim + 1)
    return Task(
        task=row.task,
        claim=row.claim + 1,
        operation=TaskOperation.COPY,
        ino=row.ino,
        volume=row.volume,
        version=inode.version,
        size=inode.size,
        checksum=checksum,
        sources=sources,
        home_epoch=inode.home_epoch,
        path=path_of(tx.connection, inode.ino),
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        attempts=row.attempts,
        is_written=bool(inode.dirty),
    )


def _is_up(state: State, volume: int) -> bool:
    return state.members.is_there(volume)


def _sources(tx: Transaction, state: State, inode: InodeRow, target: int) -> tuple[list[Replica], bytes]:
    """The current replicas, those whose servers are up first, the home before others; faulty ones if there is nothing else."""
    current = [
        row
        for row in replicas_of(tx.connection, inode.ino)
        if row.version == inode.version and row.stamp_ctime_ns is not None and row.volume != target
    ]
    sound = [row for row in current if not row.fault] or current
    counts = state.members.volume_counts
    sound.sort(
        key=lambda row: (not _is_up(state, row.volume), not counts(row.volume), row.volume != inode.home_volume, row.volume)
    )
    # All these have the same version, hence the same content: the checksum of any is that of each.
    checksum = next((row.checksum for row in sound if row.checksum), b"")
    return [replica_of(row) for row in sound], checksum


def replica_of(row: InodeRow) -> Replica:
    """The message for a replica row."""
    stamp = None
    if row.stamp_ctime_ns is not None:
        stamp = Stamp(row.stamp_size, row.stamp_mtime_ns, row.stamp_ctime_ns)
    return Replica(row.volume, row.version, stamp, row.checksum)


def _step(
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
    """A task no longer claimed. `delay_s`: its back-off, None if it is not deferred; `settled`: the copied inode, or 0."""

    task: int
    delay_s: float | None = None
    settled: int = 0


def report_task(
    tx: Transaction, state: State, server: str, report: TaskReport, *, tried_version: int, max_attempts: int
) -> Ended | None:
    """Ends an attempt; None if its claim is not in force. *tried_version* is what the claim was for (0: not known)."""
    check_number(report.task, "task")
    check_number(report.version, "version")
    row = _BY_ID.one_or_none(tx.connection, {"task": report.task})
    # A repeat, or the report of an attempt that was taken for lost: whoever has the task now reports for it.
    if row is None or row.state != TaskState.CLAIMED or row.claim != report.claim or row.server != server:
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
    following = _step(tx, row, verdict.event, attempts=verdict.attempts, error=clean_text(report.error, ERROR_MAX))
    if following == TaskState.DEAD:
        task_dead(tx, state, row.ino, row.operation, row.volume, report.error)
    if following == TaskState.WAITING:
        tx.after(lambda: state.ring(row.server))
    return Ended(row.task, verdict.delay_s if following == TaskState.DEFERRED else None)


def _end_copy(tx: Transaction, state: State, row: InodeRow, inode: InodeRow, report: TaskReport) -> Ended:
    # No correct agent says so. It is given up at once: trying again would bring the same.
    if report.version > inode.version or report.stamp is None:
        return _end_failed(
            tx, state, row, TaskReport(row.task, row.claim, FAILED, "impossible report"), newer=False, max_attempts=1
        )
    # Also of a version that is not the newest any more: `align` below then queues the newer one.
    _store_replica(tx, row.ino, row.volume, report.version, report.stamp, report.checksum)
    if report.checksum:
        values = {"b_ino": row.ino, "b_volume": inode.home_volume, "b_version": report.version, "to_checksum": report.checksum}
        _LEARN_CHECKSUM.run(tx.connection, values)
    _DELETE.run(tx.connection, {"b_task": row.task})
    # Before `align`, which then sees these moves as active ones.
    copy_arrived(tx, state, row.ino)
    if inode.nlink:
        align(tx, state, inode)
    tx.after(lambda: state.bells.ring(row.ino))
    return Ended(row.task, settled=row.ino)


def _store_replica(tx: Transaction, ino: int, volume: int, version: int, stamp: Stamp, checksum: bytes) -> None:
    values = {
        "b_ino": ino,
        "b_volume": volume,
        "to_version": version,
        "to_size": stamp.size,
        "to_mtime": stamp.mtime_ns,
        "to_ctime": stamp.ctime_ns,
        "to_checksum": checksum,
    }
    if _UPDATE_REPLICA.run(tx.connection, values) == 0:
        _ADD_REPLICA.run(tx.connection, values)


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
            _step(tx, row, Event.LOST, error="the agent did not report")
            server = row.server
            tx.after(lambda server=server: state.ring(server))  # type: ignore[misc]


def wake_tasks(tx: Transaction, state: State, due: Iterable[int]) -> None:
    """Makes deferred tasks wait whose back-off is over."""
    for task in due:
        row = _BY_ID.one_or_none(tx.connection, {"task": task})
        # It may have been retried or replaced meanwhile.
        if row is not None and row.state == TaskState.DEFERRED:
            _step(tx, row, Event.DUE)
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


def count_tasks(connection: Connection) -> dict[tuple[str, str], int]:
    """How many tasks each server has in each state."""
    rows = connection.execute(select(tasks.c.server, tasks.c.state, func.count()).group_by(tasks.c.server, tasks.c.state))
    return {(server, state): count for server, state, count in rows}
