"""A file whose home is on a server that was declared lost falls back to its newest replica elsewhere; one whose home's object is
damaged, to a current one.

The new home's content becomes a version of its own, above all that were committed: no number ever means two contents. What the
lost home holds may be newer than that, so it is noted as *abandoned*: it is no replica any more, nothing is put over it, and
nobody deletes it, until its server is back and its agent has looked at it (`manager.requests.conflicts`).
"""

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from cluster.clock import file_time_ns
from manager.catalog.homes import switch_home
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, blocks_before, get_inode, name_of
from manager.catalog.schema import abandoned, inodes, replicas
from manager.catalog.store import Transaction
from manager.rules.alignment import abandons

_VOLUMES = Hot(select(abandoned.c.volume).where(abandoned.c.ino == bindparam("ino")))
_ANY = select(abandoned.c.ino).limit(1)  # for a flag of the memory, once a term
_COUNT = select(func.count()).select_from(abandoned).where(abandoned.c.volume.in_(bindparam("volumes", expanding=True)))


def has_abandoned(connection: Connection) -> bool:
    """Whether any object is abandoned."""
    return connection.execute(_ANY).first() is not None


def abandoned_volumes(connection: Connection, ino: int) -> set[int]:
    """The volumes on which an object of the inode must be left alone."""
    return {row.volume for row in _VOLUMES.all(connection, {"ino": ino})}


def count_abandoned(connection: Connection, volumes: Sequence[int]) -> int:
    """How many objects on *volumes* may hold what nobody else has."""
    count: int = connection.execute(_COUNT, {"volumes": list(volumes)}).scalar_one()
    return count


def fall_back(tx: Transaction, inode: InodeRow, replica: InodeRow) -> InodeRow:
    """Makes *replica* the home; the inode's new row. The caller knows that nobody can be writing the inode."""
    if not abandons(inode.version, dirty=bool(inode.dirty), kept_version=replica.version):
        return switch_home(tx, inode, replica)
    # Before the home changes: it notes what the row says of the home until now.
    abandon(tx, inode, replica)
    # Above what the lost home committed: its later report of an old version never looks current.
    version, now_ns = inode.version + 1, file_time_ns()
    # All replicas with the very content that is kept become the new version together: none has to be copied again.
    same = (replicas.c.ino == inode.ino) & (replicas.c.version == replica.version) & (replicas.c.fault == "")
    tx.execute(update(replicas).where(same).values(version=version))
    values = {
        "size": replica.stamp_size,
        "blocks": blocks_before(inode, replica.stamp_size),
        "mtime_ns": replica.stamp_mtime_ns,
        # Strictly later, whatever the clock says: programs see by it that the content has changed.
        "ctime_ns": max(now_ns, inode.ctime_ns + 1),
        "version": version,
        "dirty": 0,
        "home_volume": replica.volume,
        "home_epoch": inode.home_epoch + 1,
        "object_ctime_ns": replica.stamp_ctime_ns,
    }
    tx.execute(update(inodes).where(inodes.c.ino == inode.ino).values(**values))
    return get_inode(tx.connection, inode.ino)


def abandon(tx: Transaction, inode: InodeRow, kept: InodeRow) -> None:
    """Takes the home's object out of `replicas` and notes it in `abandoned`; the caller makes *kept* the home."""
    mine = (replicas.c.ino == inode.ino) & (replicas.c.volume == inode.home_volume)
    home = tx.execute(select(replicas).where(mine)).one()
    parent, name = name_of(tx.connection, inode.ino)
    values = {
        "ino": inode.ino,
        "volume": inode.home_volume,
        "newer": int(inode.version > kept.version),
        "stamp_size": home.stamp_size,
        "stamp_mtime_ns": home.stamp_mtime_ns,
        "stamp_ctime_ns": home.stamp_ctime_ns,
        "kept_size": kept.stamp_size,
        "kept_checksum": kept.checksum,
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "parent": parent,
        "name": name,
    }
    # The object is in exactly one of the two tables: agents keep what either knows.
    tx.execute(delete(replicas).where(mine))
    tx.execute(insert(abandoned), values)
