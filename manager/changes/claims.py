"""What is claimed: the waiting tasks that an agent gets, each with all that it needs to carry it out."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from cluster.messages import Replica, Task, TaskOperation, TaskState
from manager.catalog.hot import Hot, HotUpdate
from manager.catalog.inodes import InodeRow, find_inode, find_inodes, paths_of
from manager.catalog.schema import tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align, replicas_of_all, restart_task
from manager.changes.tasks import find_task, remove_task, replica_of, step_task
from manager.memory.state import State
from manager.rules.tasks import Event, next_state

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
_CLAIM = HotUpdate(tasks, ["task"], ["state", "claim", "version"])


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
    """What a claim did."""

    tasks: list[Task]  # for the agent, with the versions they are for
    postponed: list[int]  # those that must wait for a source


def claim_tasks(tx: Transaction, state: State, server: str, limit: int) -> Claimed:
    """Hands out waiting tasks of *server*, oldest first."""
    # Volumes that cannot be read now: their tasks would fail, and be given up in the end.
    missing = state.members.missing(server)
    if missing:
        waiting = _waiting_but(tx.connection, server, missing, limit)
    else:
        waiting = _WAITING.all(tx.connection, {"server": server, "n": limit})
    deletions = [row for row in waiting if row.operation == TaskOperation.DELETE]
    claimed = [_claim_delete(tx, row) for row in deletions if _may_delete(tx, state, row)]
    # A look at a file before its deletion may have changed its other tasks: these wait for the next claim.
    looked_at = {row.ino for row in deletions}
    copies = _claim_copies(tx, state, [row for row in waiting if row.ino not in looked_at])
    return Claimed(sorted([*claimed, *copies.tasks], key=lambda task: task.task), copies.postponed)


def _may_delete(tx: Transaction, state: State, row: InodeRow) -> bool:
    # One that an agent had before may be done already: it cannot be taken back, and its replica is no copy any more.
    if row.claim:
        return True
    inode = find_inode(tx.connection, row.ino)
    return inode is None or inode.nlink == 0 or _is_still_wanted(tx, state, row, inode)


def _claim_copies(tx: Transaction, state: State, rows: Sequence[InodeRow]) -> Claimed:
    """All that is needed of their files is read at once, and the claims are written at once."""
    claimed = Claimed([], [])
    inos = {row.ino for row in rows}
    inodes = find_inodes(tx.connection, inos)
    held = replicas_of_all(tx.connection, inos)
    paths = paths_of(tx.connection, inos)
    there = {volume: _is_up(state, volume) for volume in {replica.volume for some in held.values() for replica in some}}
    for row in rows:
        inode = inodes.get(row.ino)
        if inode is None or inode.nlink == 0:
            _forget_copy(tx, state, row)
            continue
        sources, checksum = _sources(state, inode, held.get(row.ino, ()), row.volume)
        if any(there[source.volume] for source in sources):
            claimed.tasks.append(_copy_task(row, inode, sources, checksum, paths[row.ino]))
        else:
            # Deferred, without an attempt counted: the agent could only fail.
            step_task(tx, row, Event.NO_SOURCE, error="no server that has a current replica is there")
            claimed.postponed.append(row.task)
    following = next_state(TaskState.WAITING, Event.CLAIM)
    _CLAIM.run_many(
        tx.connection,
        [
            {"b_task": task.task, "to_state": following, "to_claim": task.claim, "to_version": task.version}
            for task in claimed.tasks
        ],
    )
    return claimed


def _is_still_wanted(tx: Transaction, state: State, row: InodeRow, inode: InodeRow) -> bool:
    """Looks at the file once more before its replica is given up for good."""
    # Since it was queued a volume may have failed or the policy may have changed: this deletion may be one too many.
    align(tx, state, inode)
    # `align` may have removed the task or turned it into a copy.
    present = find_task(tx.connection, row.task)
    return present is not None and present.operation == TaskOperation.DELETE


def _forget_copy(tx: Transaction, state: State, row: InodeRow) -> None:
    """Ends a copy of a file that is gone; queues the deletion of what an earlier attempt may have left."""
    # An attempt may have left an object; a task that was never claimed has not.
    if row.claim > 0:
        restart_task(tx, state, row.task, row.volume, TaskOperation.DELETE, 0)
    else:
        remove_task(tx.connection, row.task)


def _claim_delete(tx: Transaction, row: InodeRow) -> Task:
    step_task(tx, row, Event.CLAIM, claim=row.claim + 1)
    return Task(row.task, row.claim + 1, TaskOperation.DELETE, row.ino, row.volume, row.version, attempts=row.attempts)


def _copy_task(row: InodeRow, inode: InodeRow, sources: list[Replica], checksum: bytes, path: bytes) -> Task:
    return Task(
        task=row.task,
        claim=row.claim + 1,
        operation=TaskOperation.COPY,
        ino=row.ino,
        volume=row.volume,
        # The newest is copied, whatever it was queued for: one copy instead of two.
        version=inode.version,
        size=inode.size,
        checksum=checksum,
        sources=sources,
        home_epoch=inode.home_epoch,
        path=path,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        attempts=row.attempts,
        is_written=bool(inode.dirty),
    )


def _is_up(state: State, volume: int) -> bool:
    return state.members.is_there(volume)


def _sources(state: State, inode: InodeRow, held: Iterable[InodeRow], target: int) -> tuple[list[Replica], bytes]:
    """The current replicas, those whose servers are up first, the home before others; faulty ones if there is nothing else."""
    current = [row for row in held if row.version == inode.version and row.stamp_ctime_ns is not None and row.volume != target]
    sound = [row for row in current if not row.fault] or current
    if len(sound) > 1:
        counts = state.members.volume_counts
        sound.sort(
            key=lambda row: (not _is_up(state, row.volume), not counts(row.volume), row.volume != inode.home_volume, row.volume)
        )
    # All these have the same version, hence the same content: the checksum of any is that of each.
    checksum = next((row.checksum for row in sound if row.checksum), b"")
    return [replica_of(row) for row in sound], checksum
