"""Brings the home, moves and tasks of one inode in line with what is wanted, inside a transaction.

What that is, is decided in `manager.rules.alignment`; here its values are read, and its decision is carried out.
"""

from collections import defaultdict, namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.messages import Stamp, TaskOperation, TaskState
from manager.catalog.homes import switch_home
from manager.catalog.hot import Hot, HotByKeys, HotInsert
from manager.catalog.inodes import BLOCK_BYTES, InodeRow, blocks_before, find_inode, needed_bytes
from manager.catalog.schema import replicas, shortfalls, tasks
from manager.catalog.store import Transaction
from manager.changes.fallback import abandon, abandoned_volumes, fall_back
from manager.changes.moves import active_moves, file_gone, record
from manager.memory.mutations import Held
from manager.memory.policies import Policy
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.rules import alignment as rule

# By the primary key (ino, volume): a handful of rows that lie together.
_REPLICA_COLUMNS = (
    replicas.c.volume,
    replicas.c.version,
    replicas.c.stamp_size,
    replicas.c.stamp_mtime_ns,
    replicas.c.stamp_ctime_ns,
    replicas.c.checksum,
    replicas.c.fault,
)
_REPLICAS = Hot(select(*_REPLICA_COLUMNS).where(replicas.c.ino == bindparam("ino")))
_REPLICAS_OF_ALL = HotByKeys(lambda keys: select(*_REPLICA_COLUMNS, replicas.c.ino).where(replicas.c.ino.in_(keys)))
_make_class: Callable[..., Any] = namedtuple
_Replica = _make_class("_Replica", [*(column.name for column in _REPLICA_COLUMNS), "ino"])
# Walks the index (volume, ino) and goes on after a number: rows that come and go meanwhile shift nothing.
_ON_VOLUME = Hot(
    select(replicas.c.ino)
    .where(replicas.c.volume == bindparam("volume"), replicas.c.ino > bindparam("after"))
    .order_by(replicas.c.ino)
    .limit(bindparam("n"))
)
# By the unique index (ino, volume): at most one task for a volume.
_TASK_COLUMNS = (tasks.c.task, tasks.c.volume, tasks.c.operation, tasks.c.state, tasks.c.version, tasks.c.claim)
_TASKS = Hot(select(*_TASK_COLUMNS).where(tasks.c.ino == bindparam("ino")))
_TASKS_OF_ALL = HotByKeys(lambda keys: select(*_TASK_COLUMNS, tasks.c.ino).where(tasks.c.ino.in_(keys)))
_INSERT = HotInsert(tasks, "server", "operation", "state", "ino", "volume", "version", "queued_ns")
# `claim` stays: a report of an earlier claim is still told apart, and it is remembered that an agent was given the task.
_RESTART = Hot(
    update(tasks)
    .where(tasks.c.task == bindparam("b_task"))
    .values(state=TaskState.WAITING, operation=bindparam("operation"), version=bindparam("version"), attempts=0, error="")
)
_RAISE = Hot(update(tasks).where(tasks.c.task == bindparam("b_task")).values(version=bindparam("version")))
_DELETE = Hot(delete(tasks).where(tasks.c.task == bindparam("b_task")))
# An update, and an insert if it met no row: so `since_ns` stays that of the first time.
_SHORTFALL = Hot(update(shortfalls).where(shortfalls.c.ino == bindparam("b_ino")).values(reason=bindparam("to_reason")))
_ADD_SHORTFALL = Hot(
    insert(shortfalls).values(ino=bindparam("b_ino"), reason=bindparam("to_reason"), since_ns=bindparam("to_since_ns"))
)
_END_SHORTFALL = Hot(delete(shortfalls).where(shortfalls.c.ino == bindparam("b_ino")))


def replicas_of(connection: Connection, ino: int) -> list[InodeRow]:
    """The replica rows of an inode."""
    return _REPLICAS.all(connection, {"ino": ino})


def replicas_of_all(connection: Connection, inos: Collection[int]) -> dict[int, list[InodeRow]]:
    """As `replicas_of`, by inode."""
    return _by_inode(_REPLICAS_OF_ALL.all(connection, inos))


def replica_row(ino: int, volume: int, version: int, stamp: Stamp, checksum: bytes) -> InodeRow:
    """A row as of `replicas_of_all`, of an object with nothing wrong."""
    return _Replica(volume, version, stamp.size, stamp.mtime_ns, stamp.ctime_ns, checksum, "", ino)


def tasks_of_all(connection: Connection, inos: Collection[int]) -> dict[int, list[InodeRow]]:
    """The rows of all tasks for these inodes, by inode, as `Rows` has them."""
    return _by_inode(_TASKS_OF_ALL.all(connection, inos))


def _by_inode(rows: Iterable[InodeRow]) -> dict[int, list[InodeRow]]:
    found: dict[int, list[InodeRow]] = defaultdict(list)
    for row in rows:
        found[row.ino].append(row)
    return found


def inodes_on(connection: Connection, volume: int, after: int, count: int) -> list[int]:
    """The next inodes with a replica on a volume, by number."""
    return [row.ino for row in _ON_VOLUME.all(connection, {"volume": volume, "after": after, "n": count})]


class Rows(NamedTuple):
    """What the catalog has of one file, when it was read together with that of others."""

    replicas: Sequence[InodeRow]  # as of `replicas_of`
    tasks: Sequence[InodeRow]


def align_all(tx: Transaction, state: State, files: Iterable[tuple[InodeRow, Rows]]) -> None:
    """As `align` for several files, of which all was read in this transaction: the first copies of all are queued together."""
    new: list[NewTask] = []
    for inode, rows in files:
        policy = state.policies.of_inode(tx.connection, inode.ino)
        first = _first_copies(state, inode, policy.copies, rows)
        if first is None:
            align(tx, state, inode, policy, rows)
            continue
        _note_shortfall(tx, state, inode.ino, "")
        new += [NewTask(inode.ino, volume, TaskOperation.COPY, inode.version) for volume in first]
    queue_tasks(tx, state, new)


def align(tx: Transaction, state: State, inode: InodeRow, policy: Policy | None = None, rows: Rows | None = None) -> bool:
    """Queues the copies and deletions that a file's policy and moves want, and takes back tasks that are no longer wanted.

    Moves the home, too, if it should be elsewhere; returns False if only somebody who uses the file prevents that. Does nothing
    to a file without content or without a name. *rows* are the file's, if they were read in this transaction.
    """
    # Not a regular file, never committed, or an orphan: nothing to copy. Objects of orphans go with `discard_objects`.
    if inode.home_volume == 0 or inode.version == 0 or inode.nlink == 0:
        return True
    policy = policy or state.policies.of_inode(tx.connection, inode.ino)
    rows = rows or Rows(replicas_of(tx.connection, inode.ino), _TASKS.all(tx.connection, {"ino": inode.ino}))
    if _is_settled(state, inode, policy.copies, rows):
        _note_shortfall(tx, state, inode.ino, "")
        return True
    replica_rows = {row.volume: row for row in rows.replicas}
    task_rows = {row.volume: row for row in rows.tasks}
    decision = rule.align(_view(tx, state, inode, policy.copies, replica_rows, task_rows))
    # In the order of `rule.Decision`: a home has moved before any task for its volume changes.
    for move, step in decision.steps:
        record(tx, state, inode.ino, move, step)
    for home in decision.homes:
        # A repaired home may move on at once: each switch needs the row that the one before has made.
        inode = _switch_home(tx, state, inode, home.switch, replica_rows[home.volume])
    for change in decision.changes:
        _change_task(tx, state, inode.ino, change, task_rows.get(change.volume))
    _note_shortfall(tx, state, inode.ino, decision.shortfall)
    if decision.ask_back:
        _ask_home_back(tx, state, inode.ino, decision.ask_back)
    return not decision.held_up


def _is_settled(state: State, inode: InodeRow, copies: int, rows: Rows) -> bool:
    return _is_plain(state, rows) and rule.is_settled(
        inode.version, inode.home_volume, copies, rows.replicas, state.members.places()
    )


def _first_copies(state: State, inode: InodeRow, copies: int, rows: Rows) -> Sequence[int] | None:
    """Where `align` queues copies, if it certainly does nothing else."""
    if inode.home_volume == 0 or inode.version == 0 or inode.nlink == 0 or not _is_plain(state, rows):
        return None
    file = rule.File(inode.ino, needed_bytes(inode), inode.version, bool(inode.dirty), inode.home_volume, copies)
    return rule.first_copies(file, rows.replicas, state.members.places())


def _is_plain(state: State, rows: Rows) -> bool:
    """Whether the file has no task, no move, no object that is left alone, and no replica with a fault."""
    return not (rows.tasks or state.has_moves or state.has_abandoned or any(row.fault for row in rows.replicas))


def _view(
    tx: Transaction,
    state: State,
    inode: InodeRow,
    copies: int,
    replica_rows: Mapping[int, InodeRow],
    task_rows: Mapping[int, InodeRow],
) -> rule.View:
    is_lost = state.members.is_lost
    return rule.View(
        file=rule.File(inode.ino, needed_bytes(inode), inode.version, bool(inode.dirty), inode.home_volume, copies),
        replicas={volume: as_replica(row, inode) for volume, row in replica_rows.items()},
        queued={
            volume: rule.Queued(volume, row.operation, row.state, row.version, row.claim > 0) for volume, row in task_rows.items()
        },
        moves=active_moves(tx, state, inode.ino),
        places=state.members.places(),
        # The flag saves a question for each file of a network that never lost a home.
        left_alone=abandoned_volumes(tx.connection, inode.ino) if state.has_abandoned else (),
        lost=[volume for volume in {*replica_rows, inode.home_volume} if is_lost(volume)],
        use=_Use(state, inode.ino),
    )


def as_replica(row: InodeRow, inode: InodeRow) -> rule.Replica:
    """A row of `replicas_of` as a value of the rule."""
    # The size is NULL together with the rest of the stamp: the object has no committed content then.
    size = row.stamp_size or 0
    needed = min(size, blocks_before(inode, size) * BLOCK_BYTES)
    return rule.Replica(row.volume, row.version, needed, row.stamp_ctime_ns is not None, bool(row.fault))


class _Use:
    """Who uses the file, as the memory knows it."""

    __slots__ = ("_ino", "_state")

    def __init__(self, state: State, ino: int) -> None:
        self._state = state
        self._ino = ino

    @property
    def may_move_home(self) -> bool:
        return self._state.may_move_home(self._ino)

    def is_open_at(self, volume: int) -> bool:
        home = self._state.members.get(volume)
        return home is not None and self._state.sessions.is_open_at(self._ino, home.server)

    @property
    def cached(self) -> bool:
        return self._state.is_cached(self._ino)


def _ask_home_back(tx: Transaction, state: State, ino: int, volume: int) -> None:
    """Asks the home's mount for what it caches of the file: if it is closed there, the mount says so then."""
    home = state.members.get(volume)
    assert home is not None, "it was there when the decision was made"
    held = [Held(ino, session) for session in state.leases.caching_at(ino, home.server, monotonic_s())]
    # Begun after the commit, and nobody waits for it: the answer says what is open there, which the next look at the file
    # finds.
    tx.after(lambda: state.recalls.ask_back(held))


def _switch_home(tx: Transaction, state: State, inode: InodeRow, switch: rule.Switch, replica: InodeRow) -> InodeRow:
    """The inode's new row."""
    # Both other switches may add a row to `abandoned`: from the commit on it is looked for.
    if switch is not rule.Switch.MOVED:
        tx.after(state.forsook)
    if switch is rule.Switch.FELL_BACK:
        return fall_back(tx, inode, replica)
    if switch is rule.Switch.REPAIRED:
        abandon(tx, inode, replica)
    return switch_home(tx, inode, replica)


def _change_task(tx: Transaction, state: State, ino: int, change: rule.Change, row: InodeRow | None) -> None:
    if change.task is rule.TaskChange.ADD:
        queue_task(tx, state, ino, change.volume, change.operation, change.version)
        return
    assert row is not None, "the rule changes only tasks that it was shown"
    if change.task is rule.TaskChange.RESTART:
        restart_task(tx, state, row.task, change.volume, change.operation, change.version)
    elif change.task is rule.TaskChange.RAISE:
        _RAISE.run(tx.connection, {"b_task": row.task, "version": change.version})
    else:
        _DELETE.run(tx.connection, {"b_task": row.task})


def _note_shortfall(tx: Transaction, state: State, ino: int, reason: str) -> None:
    """Stores why the file has no place for all its copies; an empty *reason* deletes the row."""
    if not reason:
        if state.has_shortfalls:
            _END_SHORTFALL.run(tx.connection, {"b_ino": ino})
        return
    values = {"b_ino": ino, "to_reason": reason}
    if _SHORTFALL.run(tx.connection, values) == 0:
        _ADD_SHORTFALL.run(tx.connection, values | {"to_since_ns": file_time_ns()})
    tx.after(state.fell_short)


def draw_home(tx: Transaction, state: State, session: Session, ino: int) -> None:
    """Moves the home of a clean file to the server whose *session* opens it for writing, if nobody else uses the file.

    The server must have a current replica, on a volume for which the file has no task and which no move is leaving.
    """
    inode = find_inode(tx.connection, ino)
    home = None if inode is None else state.members.get(inode.home_volume)
    if inode is None or inode.dirty or home is None or home.server == session.server:
        return
    own = set(state.members.of_server(session.server))
    fit = {
        volume
        for volume, place in state.members.places().items()
        if volume in own and place.up and place.counts and place.accepts
    }
    if not fit or not state.may_draw_home(ino, session):
        return
    # An agent that is still copying to it would put an older object over the home.
    fit -= {row.volume for row in _TASKS.all(tx.connection, {"ino": ino})}
    fit -= {move.source for move in active_moves(tx, state, ino)}
    # A home's object is known by its stamp: a replica without one cannot become it.
    current = [
        row
        for row in replicas_of(tx.connection, ino)
        if row.volume in fit and row.version == inode.version and row.stamp_ctime_ns is not None and not row.fault
    ]
    if current:
        switch_home(tx, inode, min(current, key=lambda row: row.volume))


class NewTask(NamedTuple):
    """A task that is to be queued."""

    ino: int
    volume: int  # in the queue of its server
    operation: str  # a `TaskOperation`
    version: int


def queue_task(tx: Transaction, state: State, ino: int, volume: int, operation: str, version: int) -> None:
    """A new task in the queue of the volume's server."""
    queue_tasks(tx, state, [NewTask(ino, volume, operation, version)])


def queue_tasks(tx: Transaction, state: State, new: Collection[NewTask]) -> None:
    """New tasks in the queues of their volumes' servers."""
    now_ns = file_time_ns()
    servers = {
        volume: "" if (home := state.members.get(volume)) is None else home.server for volume in {one.volume for one in new}
    }
    _INSERT.run_many(
        tx.connection,
        [
            {
                "server": servers[one.volume],
                "operation": one.operation,
                "state": TaskState.WAITING,
                "ino": one.ino,
                "volume": one.volume,
                "version": one.version,
                "queued_ns": now_ns,
            }
            for one in new
            if servers[one.volume]
        ],
    )
    for server in {server for server in servers.values() if server}:
        tx.after(partial(state.ring, server))


def restart_task(tx: Transaction, state: State, task: int, volume: int, operation: str, version: int) -> None:
    """Makes a task that is not claimed wait as a fresh one, possibly for something else."""
    _RESTART.run(tx.connection, {"b_task": task, "operation": operation, "version": version})
    place_of_work = state.members.get(volume)
    if place_of_work is not None:
        server = place_of_work.server
        tx.after(lambda: state.ring(server))


def align_inode(tx: Transaction, state: State, ino: int) -> bool:
    """As `align`; ends the moves of an inode that is gone."""
    inode = find_inode(tx.connection, ino)
    if inode is None or inode.nlink == 0:
        file_gone(tx, state, ino)
        return True
    return align(tx, state, inode)


def discard_objects(tx: Transaction, state: State, ino: int) -> None:
    """Queues the deletion of every object of an inode that is removed. A claimed copy is deleted once its agent has reported."""
    queued = {row.volume: row for row in _TASKS.all(tx.connection, {"ino": ino})}
    for row in replicas_of(tx.connection, ino):
        task = queued.pop(row.volume, None)
        if task is None:
            queue_task(tx, state, ino, row.volume, TaskOperation.DELETE, 0)
        elif task.operation != TaskOperation.DELETE and task.state != TaskState.CLAIMED:
            restart_task(tx, state, task.task, row.volume, TaskOperation.DELETE, 0)
    for task in queued.values():
        # A copy that was tried may have left an object although nobody confirmed it.
        if task.operation == TaskOperation.COPY and task.state != TaskState.CLAIMED:
            restart_task(tx, state, task.task, task.volume, TaskOperation.DELETE, 0)
