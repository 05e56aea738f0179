"""What agents ask when they compare objects with the catalog; what they report then is in `manager.requests.damage`."""

import errno
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from cluster.errors import refused
from cluster.messages import ListReplicas, ReplicaState, ReplicaStates, Stamp
from manager.catalog.inodes import path_of
from manager.catalog.schema import inodes, replicas, tasks
from manager.memory.sessions import Session
from manager.rules.limits import check_number
from manager.term import Term

PAGE_MAX = 2000  # replicas in one answer

_others = replicas.alias("others")
_OTHERS = (
    select(func.count())
    .select_from(_others)
    .where(
        _others.c.ino == replicas.c.ino,
        _others.c.volume != replicas.c.volume,
        _others.c.volume.in_(bindparam("counting", expanding=True)),
        _others.c.version == inodes.c.version,
        _others.c.stamp_ctime_ns.is_not(None),
        _others.c.fault == "",
    )
    .correlate(replicas, inodes)
    .scalar_subquery()
)
# Walks the index (volume, ino); tasks are found by their unique index (ino, volume).
_ON_VOLUME = (
    select(
        *replicas.c,
        inodes.c.version.label("wanted"),
        inodes.c.nlink,
        inodes.c.dirty,
        inodes.c.home_volume,
        inodes.c.home_epoch,
        tasks.c.operation,
        _OTHERS.label("others"),
    )
    .select_from(
        replicas.outerjoin(inodes, inodes.c.ino == replicas.c.ino).outerjoin(
            tasks, (tasks.c.ino == replicas.c.ino) & (tasks.c.volume == replicas.c.volume)
        )
    )
    .where(replicas.c.volume == bindparam("volume"), replicas.c.ino > bindparam("after"))
    .order_by(replicas.c.ino)
    .limit(bindparam("n"))
)
_TASKS = select(tasks.c.volume).where(tasks.c.ino == bindparam("ino"))


async def list_replicas(term: Term, session: Session, request: ListReplicas) -> ReplicaStates:
    """A page of what a volume of the sender's server is to hold."""
    check_number(request.after, "inode")
    _require_own(term, session, request.volume)
    members = term.state.members
    counting = [volume.volume for volume in members.volumes() if members.volume_counts(volume.volume)]
    limit = max(1, min(request.limit, PAGE_MAX))
    values = {"volume": request.volume, "after": request.after, "n": limit, "counting": counting}

    def ask(connection: Connection) -> ReplicaStates:
        rows = connection.execute(_ON_VOLUME, values).all()
        return ReplicaStates([_message(connection, row, with_path=request.with_paths) for row in rows])

    return await term.store.read_slowly(ask)


def _message(connection: Connection, row: Any, *, with_path: bool) -> ReplicaState:
    is_there = row.wanted is not None and row.nlink > 0
    return ReplicaState(
        ino=row.ino,
        version=row.version,
        wanted=row.wanted if is_there else -1,
        stamp=_stamp(row),
        checksum=row.checksum,
        fault=row.fault,
        is_home=row.home_volume == row.volume,
        dirty=bool(row.dirty),
        home_epoch=row.home_epoch or 0,
        others=row.others,
        task=row.operation or "",
        path=path_of(connection, row.ino) if with_path and is_there else b"",
    )


def _stamp(row: Any) -> Stamp | None:
    return None if row.stamp_ctime_ns is None else Stamp(row.stamp_size, row.stamp_mtime_ns, row.stamp_ctime_ns)


def _require_own(term: Term, session: Session, number: int) -> None:
    volume = term.state.members.get(number)
    if volume is None or volume.server != session.server:
        raise refused(errno.ENOENT, f"volume {number} of {session.server}")
