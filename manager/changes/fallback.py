"""A file whose home is on a server that was declared lost falls back to its newest replica elsewhere.

The new home's content becomes a version of its own, above all that were committed: no number ever means two contents. What the
lost home holds may be newer than that, so it is noted as *forsaken*: it is no replica any more, nothing is put over it, and
nobody deletes it, until its server is back and its agent has looked at it (`manager.requests.conflicts`).
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from cluster.clock import file_time_ns
from manager.catalog.homes import switch_home
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, get_inode, name_of
from manager.catalog.schema import forsaken, inodes, replicas
from manager.catalog.store import Transaction
from manager.rules.placement import Place

BLOCK_BYTES = 512

_VOLUMES = Hot(select(forsaken.c.volume).where(forsaken.c.ino == bindparam("ino")))
_ANY = select(forsaken.c.ino).limit(1)
_COUNT = select(func.count()).select_from(forsaken).where(forsaken.c.volume.in_(bindparam("volumes", expanding=True)))


def has_forsaken(connection: Connection) -> bool:
    """Whether anything is forsaken."""
    return connection.execute(_ANY).first() is not None


def forsaken_volumes(connection: Connection, ino: int) -> set[int]:
    """The volumes on which an object of the inode must be left alone."""
    return {row.volume for row in _VOLUMES.all(connection, {"ino": ino})}


def count_forsaken(connection: Connection, volumes: Sequence[int]) -> int:
    """How many objects on *volumes* may hold what nobody else has."""
    count: int = connection.execute(_COUNT, {"volumes": list(volumes)}).scalar_one()
    return count


def newest_replica(held: Mapping[int, InodeRow], places: Mapping[int, Place], lost: set[int]) -> InodeRow | None:
    """The replica that the file falls back to: the newest that is whole, best on a server that is there."""
    fit = [
        row
        for volume, row in held.items()
        if volume in places and volume not in lost and row.stamp_ctime_ns is not None and not row.fault
    ]

    def rank(row: InodeRow) -> tuple[int, bool, bool, int]:
        place = places[row.volume]
        return row.version, place.counts, place.up, -row.volume

    return max(fit, key=rank, default=None)


def fall_back(tx: Transaction, inode: InodeRow, replica: InodeRow) -> InodeRow:
    """Makes *replica* the home; the inode's new row. The caller knows that nobody can be writing the inode."""
    if replica.version == inode.version and not inode.dirty:
        return switch_home(tx, inode, replica)
    _forsake(tx, inode, replica)
    version, now_ns = inode.version + 1, file_time_ns()
    same = (replicas.c.ino == inode.ino) & (replicas.c.version == replica.version) & (replicas.c.fault == "")
    tx.execute(update(replicas).where(same).values(version=version))
    values = {
        "size": replica.stamp_size,
        "blocks": -(-replica.stamp_size // BLOCK_BYTES),
        "mtime_ns": replica.stamp_mtime_ns,
        "ctime_ns": max(now_ns, inode.ctime_ns + 1),
        "version": version,
        "dirty": 0,
        "home_volume": replica.volume,
        "home_epoch": inode.home_epoch + 1,
        "object_ctime_ns": replica.stamp_ctime_ns,
    }
    tx.execute(update(inodes).where(inodes.c.ino == inode.ino).values(**values))
    return get_inode(tx.connection, inode.ino)


def _forsake(tx: Transaction, inode: InodeRow, kept: InodeRow) -> None:
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
    tx.execute(delete(replicas).where(mine))
    tx.execute(insert(forsaken), values)
