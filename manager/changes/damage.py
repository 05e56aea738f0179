"""Damaged replicas in the catalog: how many there are, and homes that are to leave them."""

from sqlalchemy import Connection, and_, func, select, text

from manager.catalog.inodes import find_inode
from manager.catalog.schema import inodes, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode, replicas_of
from manager.memory.state import State

_FAULTY = text("replicas.fault <> ''")  # as the index says it
_COUNT = (
    select(func.count())
    .join_from(replicas, inodes, and_(inodes.c.ino == replicas.c.ino, inodes.c.version == replicas.c.version))
    .where(_FAULTY)
)
DAMAGED_HOMES = (
    select(replicas.c.ino)
    .join_from(replicas, inodes, and_(inodes.c.ino == replicas.c.ino, inodes.c.home_volume == replicas.c.volume))
    .where(_FAULTY)
)


def count_damaged(connection: Connection) -> int:
    """How many replicas have something wrong with them that would be current."""
    count: int = connection.execute(_COUNT).scalar_one()
    return count


def align_damaged(tx: Transaction, state: State, ino: int) -> bool:
    """Has the home moved away from a damaged object; whether that is still to come."""
    align_inode(tx, state, ino)
    pending = is_home_leaving(tx.connection, state, ino)
    if pending:
        tx.after(lambda: state.damaged_home(ino))
    return pending


def is_home_leaving(connection: Connection, state: State, ino: int) -> bool:
    """Whether the home is damaged, and there is a current replica that will take over."""
    inode = find_inode(connection, ino)
    held = replicas_of(connection, ino)
    if inode is None or not inode.nlink or not any(row.volume == inode.home_volume and row.fault for row in held):
        return False
    places = state.members.places()
    return any(
        row.version == inode.version
        and row.stamp_ctime_ns is not None
        and not row.fault
        and row.volume in places
        and places[row.volume].counts
        for row in held
    )
