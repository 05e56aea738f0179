"""Tasks of one inode brought in line with what placement wants, inside a transaction.

There is at most one task per (inode, volume). What a claimed task is working on cannot be changed under it: it is put right
when its report arrives.
"""

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.clock import file_time_ns
from cluster.messages import CLAIMED, COPY, DEAD, DELETE, WAITING
from manager.inodes import InodeRow, find_inode
from manager.placement import Copy, Drop, Holding, place
from manager.policies import Policy
from manager.schema import replicas, tasks
from manager.state import State
from manager.statements import Hot
from manager.store import Transaction

_REPLICAS = Hot(
    select(
        replicas.c.volume,
        replicas.c.version,
        replicas.c.stamp_size,
        replicas.c.stamp_mtime_ns,
        replicas.c.stamp_ctime_ns,
        replicas.c.checksum,
        replicas.c.fault,
    ).where(replicas.c.ino == bindparam("ino"))
)
_TASKS = Hot(
    select(tasks.c.task, tasks.c.volume, tasks.c.operation, tasks.c.state, tasks.c.version).where(tasks.c.ino == bindparam("ino"))
)
_NEW = ("server", "operation", "state", "ino", "volume", "version", "queued_ns")
_INSERT = Hot(insert(tasks).values({name: bindparam(name) for name in _NEW}))
_RESTART = Hot(
    update(tasks)
    .where(tasks.c.task == bindparam("b_task"))
    .values(state=WAITING, operation=bindparam("operation"), version=bindparam("version"), attempts=0, error="")
)
_RAISE = Hot(update(tasks).where(tasks.c.task == bindparam("b_task")).values(version=bindparam("version")))
_DELETE = Hot(delete(tasks).where(tasks.c.task == bindparam("b_task")))


def replicas_of(connection: Connection, ino: int) -> list[InodeRow]:
    """The replica rows of an inode."""
    return _REPLICAS.all(connection, {"ino": ino})


def align(tx: Transaction, state: State, inode: InodeRow, policy: Policy | None = None) -> None:
    """Queues what the policy wants for a regular file that has content and a name; takes back what it does not want."""
    if inode.home_volume == 0 or inode.version == 0 or inode.nlink == 0:
        return
    policy = policy or state.policies.of_inode(tx.connection, inode.ino)
    queued = {row.volume: row for row in _TASKS.all(tx.connection, {"ino": inode.ino})}
    held = replicas_of(tx.connection, inode.ino)
    holdings = [Holding(row.volume, row.version == inode.version and not row.fault) for row in held]
    stored = {row.volume for row in held}
    holdings += [
        Holding(row.volume, current=False, stored=False)
        for row in queued.values()
        if row.operation == COPY and row.volume not in stored
    ]
    actions = place(
        ino=inode.ino,
        size=inode.size,
        home=inode.home_volume,
        copies=policy.copies,
        holdings=holdings,
        places=state.members.places(),
    )
    for action in actions:
        _queue(tx, state, inode, action, queued.pop(action.volume, None))
    for row in queued.values():
        if row.state != CLAIMED:
            _DELETE.run(tx.connection, {"b_task": row.task})


def _queue(tx: Transaction, state: State, inode: InodeRow, action: Copy | Drop, row: InodeRow | None) -> None:
    operation = COPY if isinstance(action, Copy) else DELETE
    if row is None:
        queue_task(tx, state, inode.ino, action.volume, operation, inode.version)
    elif row.state == CLAIMED:
        if row.operation == COPY == operation:
            _RAISE.run(tx.connection, {"b_task": row.task, "version": inode.version})
    elif row.operation != operation or row.state == DEAD:
        restart_task(tx, state, row.task, action.volume, operation, inode.version)
    elif row.version != inode.version:
        _RAISE.run(tx.connection, {"b_task": row.task, "version": inode.version})


def queue_task(tx: Transaction, state: State, ino: int, volume: int, operation: str, version: int) -> None:
    """A new task in the queue of the volume's server."""
    place_of_work = state.members.get(volume)
    if place_of_work is None:
        return
    server = place_of_work.server
    _INSERT.run(
        tx.connection,
        {
            "server": server,
            "operation": operation,
            "state": WAITING,
            "ino": ino,
            "volume": volume,
            "version": version,
            "queued_ns": file_time_ns(),
        },
    )
    tx.after(lambda: state.ring(server))


def restart_task(tx: Transaction, state: State, task: int, volume: int, operation: str, version: int) -> None:
    """Makes a task that is not claimed wait as a fresh one, possibly for something else."""
    _RESTART.run(tx.connection, {"b_task": task, "operation": operation, "version": version})
    place_of_work = state.members.get(volume)
    if place_of_work is not None:
        server = place_of_work.server
        tx.after(lambda: state.ring(server))


def align_inode(tx: Transaction, state: State, ino: int) -> None:
    """As `align`, if the inode still exists."""
    inode = find_inode(tx.connection, ino)
    if inode is not None:
        align(tx, state, inode)


def discard_objects(tx: Transaction, state: State, ino: int) -> None:
    """Queues the deletion of every object of an inode that is going. Claimed copies are turned when they report."""
    queued = {row.volume: row for row in _TASKS.all(tx.connection, {"ino": ino})}
    for row in replicas_of(tx.connection, ino):
        task = queued.pop(row.volume, None)
        if task is None:
            queue_task(tx, state, ino, row.volume, DELETE, 0)
        elif task.operation != DELETE and task.state != CLAIMED:
            restart_task(tx, state, task.task, row.volume, DELETE, 0)
    for task in queued.values():
        # A copy that was tried may have left an object although nobody confirmed it.
        if task.operation == COPY and task.state != CLAIMED:
            restart_task(tx, state, task.task, task.volume, DELETE, 0)
