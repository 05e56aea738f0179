"""The replicas and homes on a server's volumes, and how they are forgotten when the server leaves for good.

Nothing may be forgotten that is nowhere else: a replica row goes only if it is no home and, while it is current, another one is
current on a server that counts. Each step checks this again in its own transaction.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
)

from cluster.messages import Holdings
from manager.catalog.schema import inodes, replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode
from manager.memory.state import State

FORGET_BATCH = 256  # replicas or tasks of one transaction, for which requests wait

_others = replicas.alias("others")


def _current(replica: FromClause) -> ColumnElement[bool]:
    columns = replica.c
    return and_(columns.version == inodes.c.version, columns.fault == "", columns.stamp_ctime_ns.is_not(None))


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


# Outer: replicas of removed files are there until their objects are deleted, and count as held.
_HELD = replicas.outerjoin(inodes, inodes.c.ino == replicas.c.ino)
_ON_VOLUMES = replicas.c.volume.in_(bindparam("volumes", expanding=True))
_HOME = replicas.c.volume == inodes.c.home_volume
_CURRENT = _current(replicas)
# Current, and no replica on a safe volume is: the only copy that counts.
_SOLE = and_(
    _CURRENT,
    ~exists(
        select(literal_column("1"))
        .where(_others.c.ino == replicas.c.ino, _others.c.volume.in_(bindparam("safe", expanding=True)), _current(_others))
        .correlate(replicas, inodes)
    ),
)

_HOLDINGS = (
    select(
        func.count(),
        _count(_CURRENT),
        func.coalesce(func.sum(replicas.c.stamp_size), 0),
        _count(_HOME),
        _count(and_(_HOME, inodes.c.dirty == 1)),
        _count(_SOLE),
    )
    .select_from(_HELD)
    .where(_ON_VOLUMES)
)
# By the index (volume, ino).
_ANY = select(replicas.c.ino).where(_ON_VOLUMES).limit(1)
_PAGE = (
    select(replicas.c.ino, case((_HOME, 1), (_SOLE, 1), else_=0).label("needed"))
    .select_from(_HELD)
    .where(replicas.c.volume == bindparam("volume"))
    .order_by(replicas.c.ino)
    .limit(FORGET_BATCH)
)
_QUEUED = (
    select(tasks.c.task, tasks.c.ino).where(tasks.c.server == bindparam("server")).order_by(tasks.c.task).limit(FORGET_BATCH)
)


def count_holdings(connection: Connection, volumes: Sequence[int], safe: Sequence[int]) -> Holdings:
    """What *volumes* hold; a replica on one of the volumes *safe* makes up for one here. Looks at every replica."""
    row = connection.execute(_HOLDINGS, {"volumes": list(volumes), "safe": list(safe)}).one()
    return Holdings(*(int(number) for number in row))


def holds_anything(connection: Connection, volumes: Sequence[int]) -> bool:
    return connection.execute(_ANY, {"volumes": list(volumes)}).first() is not None


def forget_some(tx: Transaction, volume: int, safe: Sequence[int]) -> tuple[int, bool]:
    """Forgets some replicas of a volume: how many, and whether all that are left must stay."""
    page: Sequence[Any] = tx.execute(_PAGE, {"volume": volume, "safe": list(safe)}).all()
    # Each call begins at the front: what must stay is met again, and once a page holds nothing else the rest is refused.
    surplus = [row.ino for row in page if not row.needed]
    if surplus:
        tx.execute(delete(replicas).where(replicas.c.volume == volume, replicas.c.ino.in_(surplus)))
    return len(surplus), len(surplus) < len(page)


def forget_tasks(tx: Transaction, state: State, server: str) -> bool:
    """Removes some tasks from a closed server's queue, and finds other places for the copies; False when there are none."""
    page = tx.execute(_QUEUED, {"server": server}).all()
    if not page:
        return False
    # Before `align_inode`, which would leave a task alone that still fits; the closed server gets none again.
    tx.execute(delete(tasks).where(tasks.c.task.in_([row.task for row in page])))
    for ino in dict.fromkeys(row.ino for row in page):
        align_inode(tx, state, ino)
    return True
