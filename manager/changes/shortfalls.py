"""Looks again at files without a place for their copies, and at tasks that were given up."""

from sqlalchemy import bindparam, delete, select

from cluster.messages import TaskState
from manager.catalog.inodes import find_inode
from manager.catalog.schema import shortfalls, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode
from manager.changes.tasks import retry_tasks
from manager.memory.state import State

PAGE = 64

_SHORT = select(shortfalls.c.ino).where(shortfalls.c.ino > bindparam("after")).order_by(shortfalls.c.ino).limit(PAGE)
_GIVEN_UP = (
    select(tasks.c.task, tasks.c.ino)
    .where(tasks.c.state == TaskState.DEAD, tasks.c.task > bindparam("after"))
    .order_by(tasks.c.task)
    .limit(PAGE)
)


def reexamine(tx: Transaction, state: State, after: int) -> int:
    """Looks at the next files without a place for their copies; the last of them, 0 if there is none."""
    found = list(tx.execute(_SHORT, {"after": after}).scalars())
    for ino in found:
        inode = find_inode(tx.connection, ino)
        if inode is None or not inode.nlink:
            tx.execute(delete(shortfalls).where(shortfalls.c.ino == ino))
        else:
            align_inode(tx, state, ino)
    return found[-1] if found else 0


def try_again(tx: Transaction, state: State, after: int) -> int:
    """Has the next tasks that were given up tried again, where that is wanted still; the last of them, 0 if there is none."""
    found = tx.execute(_GIVEN_UP, {"after": after}).all()
    for row in found:
        align_inode(tx, state, row.ino)
        retry_tasks(tx, state, row.task)
    return found[-1].task if found else 0
