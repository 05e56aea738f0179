"""What people ask through the command line: status, tasks, policies, where a file is. May take milliseconds."""

import errno
import os
import stat
import time
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, true, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.counters import METRICS_MAX, NAME_MAX
from cluster.errors import refused
from cluster.events import EventKind
from cluster.membership import ServerState
from cluster.messages import (
    ROOT_INO,
    Beat,
    Count,
    Done,
    GetPolicy,
    GetSpace,
    GetStatus,
    GetWhere,
    Heartbeat,
    ListPolicies,
    ListTasks,
    PolicyRow,
    PolicyRows,
    ReplicaRow,
    RetryTasks,
    SetPolicy,
    Status,
    StepDown,
    TaskRow,
    TaskRows,
    TaskState,
    Volume,
    Where,
)
from manager.catalog.events import note
from manager.catalog.inodes import get_directory, get_inode, node_of, path_of
from manager.catalog.schema import inodes, policies, servers, shortfalls, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import replicas_of
from manager.changes.damage import count_damaged
from manager.changes.fallback import abandoned_volumes, count_abandoned
from manager.changes.namespace import queue_scan
from manager.changes.policies import policies_changed
from manager.changes.tasks import ages_of_tasks, count_tasks, retry_tasks
from manager.memory.members import Members
from manager.memory.policies import COPIES_MAX, Policy, count_differing, own_policies
from manager.memory.sessions import Session
from manager.requests.conflicts import count_conflicts
from manager.requests.held import call_back_below
from manager.requests.reads import get_space
from manager.requests.servers import server_info
from manager.requests.shortfalls import count_below_policy
from manager.rules.limits import check_number
from manager.term import Term

TASKS_MAX = 10_000

_TASK_ROWS = select(
    tasks.c.task,
    tasks.c.server,
    tasks.c.operation,
    tasks.c.state,
    tasks.c.ino,
    tasks.c.volume,
    tasks.c.version,
    tasks.c.attempts,
    tasks.c.error,
    tasks.c.queued_ns,
    func.coalesce(inodes.c.size, 0).label("size"),
).select_from(tasks.outerjoin(inodes, inodes.c.ino == tasks.c.ino))


async def get_status(term: Term, _session: Session, _request: GetStatus) -> Status:
    return await term.store.read_slowly(partial(status_of, term=term, now=monotonic_s()))


def status_of(connection: Connection, term: Term, now: float) -> Status:
    """The whole network in figures. Takes milliseconds: for a thread."""
    counts, ages = count_tasks(connection), ages_of_tasks(connection, file_time_ns())
    names = list(connection.execute(select(servers.c.server).order_by(servers.c.server)).scalars())
    space = get_space(connection, term, GetSpace())
    policy = term.state.policies.root(connection).names
    age_s = term.backups.age_s(time.time())

    def total(*states: str) -> int:
        return sum(n for (_name, s), n in counts.items() if s in states)

    return Status(
        cluster=term.config.cluster,
        manager=term.config.server,
        term=term.number,
        catalog=term.store.display_url,
        servers=[server_info(term, name, counts, ages, now) for name in names],
        inodes=space.inodes,
        waiting_tasks=total(TaskState.WAITING, TaskState.DEFERRED),
        claimed_tasks=total(TaskState.CLAIMED),
        dead_tasks=total(TaskState.DEAD),
        space=space,
        forsaken=count_abandoned(connection, [volume.volume for volume in term.state.members.volumes()]),
        conflicts=count_conflicts(connection),
        damaged=count_damaged(connection),
        catalog_fault=str(term.store.room.fault or ""),
        below_policy=count_below_policy(connection),
        names=policy,
        names_differing=count_differing(connection, policy),
        holds=term.state.holds.message(),
        backup_problem=term.backups.problem,
        backup_age_s=-1.0 if age_s is None else max(age_s, 0.0),
    )


async def list_tasks(term: Term, _session: Session, request: ListTasks) -> TaskRows:
    limit = max(0, min(request.limit, TASKS_MAX))
    check_number(request.task, "task")
    chosen: ColumnElement[bool] = true()
    if request.server:
        chosen = and_(chosen, tasks.c.server == request.server)
    if request.state:
        chosen = and_(chosen, tasks.c.state == request.state)
    if request.task:
        chosen = and_(chosen, tasks.c.task == request.task)

    def ask(connection: Connection) -> TaskRows:
        total = connection.execute(select(func.count()).select_from(tasks).where(chosen)).scalar_one()
        rows = connection.execute(_TASK_ROWS.where(chosen).order_by(tasks.c.task).limit(limit))
        return TaskRows([_task_row(connection, row) for row in rows.all()], total)

    return await term.store.read_slowly(ask)


def _task_row(connection: Connection, row: Any) -> TaskRow:
    return TaskRow(
        row.task,
        row.server,
        row.operation,
        row.state,
        row.ino,
        path_of(connection, row.ino),
        row.volume,
        row.version,
        row.size,
        row.attempts,
        row.error,
        row.queued_ns,
    )


async def retry(term: Term, _session: Session, request: RetryTasks) -> Count:
    check_number(request.task, "task")
    return Count(await term.store.write(lambda tx: retry_tasks(tx, term.state, request.task)))


def _policy_row(connection: Connection, policy: Policy, servers: int) -> PolicyRow:
    path = path_of(connection, policy.ino)
    names_path = path if policy.names_ino == policy.ino else path_of(connection, policy.names_ino) if policy.names_ino else b""
    return PolicyRow(policy.ino, path, policy.copies, policy.sync_copies, policy.names, names_path, servers)


def _policy_of(term: Term, connection: Connection, ino: int) -> PolicyRow:
    row = get_inode(connection, ino)
    cache = term.state.policies
    if stat.S_ISDIR(row.mode):
        return _policy_row(connection, cache.of_directory(connection, ino), term.state.members.count_storing())
    return _policy_row(connection, cache.of_inode(connection, ino), term.state.members.count_storing())


async def get_policy(term: Term, _session: Session, request: GetPolicy) -> PolicyRow:
    return await term.store.read(lambda connection: _policy_of(term, connection, request.ino))


async def set_policy(term: Term, _session: Session, request: SetPolicy) -> PolicyRow:
    """Changes a directory's policy; the files below follow in the background."""
    _check_policy(request)

    def work(tx: Transaction) -> PolicyRow:
        directory = get_directory(tx.connection, request.ino)
        if directory.nlink == 0:
            raise refused(errno.ENOENT, "the directory has been removed")
        before = term.state.policies.of_directory(tx.connection, request.ino)
        mine = policies.c.ino == request.ino
        if request.clear:
            tx.execute(delete(policies).where(mine))
        else:
            values: dict[str, Any] = {"copies": request.copies, "sync_copies": request.sync_copies}
            if request.names is not None:
                values["names"] = request.names.value
            if tx.execute(update(policies).where(mine).values(**values)).rowcount == 0:
                tx.execute(insert(policies), {"ino": request.ino, **values})
        policies_changed(tx, term.state)
        after = term.state.policies.of_directory(tx.connection, request.ino)
        # How names are changed concerns no copies. Anything else is looked at even if it says the same: people mean it.
        if after.copies != before.copies or request.names is None:
            queue_scan(tx, term.state, request.ino)
        row = _policy_of(term, tx.connection, request.ino)
        path = os.fsdecode(path_of(tx.connection, request.ino))
        copies, synced = row.copies, row.sync_copies
        note(tx.connection, EventKind.POLICY_CHANGED, path=path, copies=copies, sync_copies=synced, names=str(row.names))
        return row

    row = await term.store.write(work, durable=True, grows=not request.clear)
    await call_back_below(term)
    return row


def _check_policy(request: SetPolicy) -> None:
    if not request.clear and not (1 <= request.copies <= COPIES_MAX and 0 <= request.sync_copies <= request.copies):
        raise refused(errno.EINVAL, f"copies 1 to {COPIES_MAX}, sync_copies 0 to copies")
    if request.clear and request.ino == ROOT_INO:
        raise refused(errno.EINVAL, "the root must have a policy")


async def list_policies(term: Term, _session: Session, _request: ListPolicies) -> PolicyRows:
    servers = term.state.members.count_storing()

    def ask(connection: Connection) -> PolicyRows:
        return PolicyRows([_policy_row(connection, policy, servers) for policy in own_policies(connection)])

    return await term.store.read_slowly(ask)


async def get_where(term: Term, _session: Session, request: GetWhere) -> Where:
    """Everything about where a file's content is and why."""
    members = term.state.members
    writers = term.state.sessions.writers(request.ino)

    def ask(connection: Connection) -> Where:
        inode = get_inode(connection, request.ino)
        held = []
        for row in replicas_of(connection, request.ino):
            volume = members.get(row.volume)
            held.append(
                ReplicaRow(
                    row.volume,
                    volume.server if volume else "",
                    volume.path if volume else "",
                    row.version,
                    row.version == inode.version and not row.fault,
                    row.volume == inode.home_volume,
                    row.checksum,
                    volume is not None and members.is_there(row.volume),
                    row.fault,
                    _state_of(members, volume),
                )
            )
        pending = connection.execute(_TASK_ROWS.where(tasks.c.ino == request.ino).order_by(tasks.c.task)).all()
        return Where(
            node_of(inode),
            path_of(connection, request.ino),
            sorted(held, key=lambda replica: (not replica.home, replica.volume)),
            _policy_of(term, connection, request.ino),
            [_task_row(connection, row) for row in pending],
            writers,
            [volume.server for number in abandoned_volumes(connection, inode.ino) if (volume := members.get(number))],
            connection.execute(select(shortfalls.c.reason).where(shortfalls.c.ino == inode.ino)).scalar_one_or_none() or "",
        )

    return await term.store.read_slowly(ask)


def _state_of(members: Members, volume: Volume | None) -> str:
    member = None if volume is None else members.member(volume.server)
    return str(ServerState.LEFT if member is None else member.state)


async def step_down(term: Term, _session: Session, request: StepDown) -> Done:
    """The term ends in order once this is answered."""
    if request.term == term.number:
        term.leave()
    return Done()


async def heartbeat(term: Term, session: Session, request: Heartbeat) -> Beat:
    """A process is there, and says what it has counted."""
    if len(request.metrics) > METRICS_MAX or any(len(key) > NAME_MAX for key in request.metrics):
        raise refused(errno.E2BIG, "too many metrics")
    session.counts, session.metrics = request.counts, request.metrics
    revoked = None if session.told == term.revocations else term.revoked
    believed = b"" if session.told_revision == term.believed.revision else term.believed.text
    session.told, session.told_revision = term.revocations, term.believed.revision
    return Beat(term.number, monotonic_s(), revoked, believed)
