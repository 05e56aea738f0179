"""Objects that are not what the catalog says, as agents report them: see `agent/checking/damage.py`.

What is known to be wrong with a replica stands in `replicas.fault`: it is no copy any more, and nobody is sent to it. If it is
the home, `align` makes a current replica elsewhere the home under the next epoch, as soon as nobody can be writing the file,
and the damaged object is *abandoned* (`manager.changes.fallback`): its agent keeps what it has of its own. Homes of which that
cannot be said yet are looked at again by `manager.workers.damage`. Without a current replica the home stays, and whoever opens
the file is told.
"""

import errno
import logging
from functools import partial

from sqlalchemy import bindparam, delete, select, update

from cluster.errors import refused
from cluster.events import EventKind
from cluster.messages import (
    MISSING,
    AcceptContent,
    Damage,
    Done,
    HeldObject,
    HeldObjects,
    ListHeld,
    Node,
    ReportDamage,
    Restamp,
    Stamp,
    TaskState,
)
from manager.catalog.events import Again, note
from manager.catalog.inodes import UNSETTLED, InodeRow, find_inode, get_inode, node_of
from manager.catalog.schema import inodes, replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode, as_replica, replicas_of
from manager.changes.damage import align_damaged, is_home_leaving
from manager.changes.fallback import fall_back
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.rules.alignment import newest_replica
from manager.rules.limits import ERROR_MAX, check_number, check_size, check_time, clean_text
from manager.term import Term

log = logging.getLogger(__name__)

LIST_MAX = 1000  # replicas in one page, settled or not
_AGAIN = Again(3600.0, but_for=EventKind.DAMAGE_MENDED)  # a disk that fails damages many objects

# Walks the index (volume, ino).
_HELD = (
    select(
        replicas.c.ino,
        replicas.c.version,
        replicas.c.stamp_size,
        replicas.c.stamp_mtime_ns,
        replicas.c.stamp_ctime_ns,
        replicas.c.checksum,
        replicas.c.fault,
        inodes.c.version.label("committed"),
        inodes.c.dirty,
        inodes.c.home_volume,
    )
    .join_from(replicas, inodes, inodes.c.ino == replicas.c.ino)
    .where(replicas.c.volume == bindparam("volume"), replicas.c.ino > bindparam("after"))
    .order_by(replicas.c.ino)
    .limit(bindparam("n"))
)


async def list_held(term: Term, session: Session, request: ListHeld) -> HeldObjects:
    """What objects on a volume of the agent's server have to show."""
    _check_volume(term.state, session, request.volume)
    check_number(max(0, request.after), "inode")
    values = {"volume": request.volume, "after": request.after, "n": max(1, min(request.limit, LIST_MAX))}
    rows = await term.store.read_slowly(lambda connection: connection.execute(_HELD, values).all())
    held = [_held(row) for row in rows if _is_committed(row, request.volume)]
    return HeldObjects(held, rows[-1].ino if len(rows) == values["n"] else 0)


def _is_committed(row: InodeRow, volume: int) -> bool:
    """Whether the object must be what the catalog says; that of a home that is being written may be newer."""
    return row.version == row.committed and row.stamp_ctime_ns is not None and not (row.dirty and row.home_volume == volume)


def _held(row: InodeRow) -> HeldObject:
    return HeldObject(row.ino, row.version, _stamp(row), row.checksum, row.fault)


def _stamp(row: InodeRow) -> Stamp:
    return Stamp(row.stamp_size, row.stamp_mtime_ns, row.stamp_ctime_ns)


def _check_volume(state: State, session: Session, number: int) -> None:
    volume = state.members.get(number)
    if volume is None or volume.server != session.server:
        raise refused(errno.ENOENT, f"volume {number} of {session.server}")


def _check_report(state: State, session: Session, request: ReportDamage | Restamp) -> None:
    _check_volume(state, session, request.volume)
    check_number(request.ino, "inode")
    check_number(request.version, "version")
    _check_stamp(request.stamp)


def _check_stamp(stamp: Stamp) -> None:
    check_size(stamp.size)
    check_time(stamp.mtime_ns)
    check_time(stamp.ctime_ns)


async def report_damage(term: Term, session: Session, request: ReportDamage) -> Damage:
    """The replica is no copy any more; if it is the home, another one takes over as soon as that can be."""
    _check_report(term.state, session, request)
    pending = await term.store.write(
        partial(_note_damage, state=term.state, server=session.server, request=request), durable=True
    )
    return Damage(pending)


def _note_damage(tx: Transaction, *, state: State, server: str, request: ReportDamage) -> bool:
    row = _present(tx, request.ino, request.volume, request.version, request.stamp)
    # The object has been written or replaced since the agent looked: what it found was of another content.
    if row is None:
        return False
    fault = clean_text(request.fault, ERROR_MAX) or "damaged"
    # Said once in the log, however often agents come by.
    if row.fault != fault:
        mine = (replicas.c.ino == request.ino) & (replicas.c.volume == request.volume)
        tx.execute(update(replicas).where(mine).values(fault=fault))
        if not row.fault:
            kind, volume = EventKind.DAMAGE_FOUND, request.volume
            note(tx.connection, kind, server=server, volume=volume, again=_AGAIN, ino=request.ino, fault=fault)
        tx.after(lambda: log.error("inode %d is damaged on %s, volume %d: %s", request.ino, server, request.volume, fault))
    return align_damaged(tx, state, request.ino)


def _present(tx: Transaction, ino: int, volume: int, version: int, stamp: Stamp) -> InodeRow | None:
    """The replica, if the catalog still says of it what the agent goes by."""
    inode = find_inode(tx.connection, ino)
    if inode is None or inode.version != version or (inode.dirty and inode.home_volume == volume):
        return None
    for row in replicas_of(tx.connection, ino):
        if row.volume == volume and row.version == version and row.stamp_ctime_ns is not None and _stamp(row) == stamp:
            return row
    return None


async def restamp(term: Term, session: Session, request: Restamp) -> Done:
    """The object has its content, and another stamp."""
    _check_report(term.state, session, request)
    _check_stamp(request.found)
    await term.store.write(partial(_restamp, state=term.state, request=request))
    return Done()


def _restamp(tx: Transaction, *, state: State, request: Restamp) -> None:
    ino, volume, found = request.ino, request.volume, request.found
    if found.size != request.stamp.size or _present(tx, ino, volume, request.version, request.stamp) is None:
        return
    mine = (replicas.c.ino == ino) & (replicas.c.volume == volume)
    stamp = {"stamp_size": found.size, "stamp_mtime_ns": found.mtime_ns, "stamp_ctime_ns": found.ctime_ns}
    tx.execute(update(replicas).where(mine).values(fault="", **stamp))
    home = (inodes.c.ino == ino) & (inodes.c.home_volume == volume)
    # `object_ctime_ns` is of the home's object: for other replicas this changes no row.
    tx.execute(update(inodes).where(home).values(object_ctime_ns=found.ctime_ns))
    align_inode(tx, state, ino)


async def accept_content(term: Term, _session: Session, request: AcceptContent) -> Node:
    """The file goes on with what is left of it, since an operator said so."""
    check_number(request.ino, "inode")
    return await term.store.write(partial(_accept, state=term.state, request=request), durable=True)


def _accept(tx: Transaction, *, state: State, request: AcceptContent) -> Node:
    inode = get_inode(tx.connection, request.ino)
    held = {row.volume: row for row in replicas_of(tx.connection, request.ino)}
    home = held.get(inode.home_volume)
    if home is None or not home.fault or inode.dirty:
        raise refused(errno.EINVAL, f"nothing is known to be wrong with the home of inode {inode.ino}")
    if is_home_leaving(tx.connection, state, inode.ino):
        raise refused(errno.EBUSY, f"a current replica of inode {inode.ino} is about to take over: nothing need be accepted")
    # What is being written is its writer's to commit; nothing may be accepted in its place.
    if not state.may_move_home(inode.ino):
        raise refused(errno.EAGAIN, f"inode {inode.ino} may be being written, or the manager is new: try again in a while")
    if request.older:
        _accept_older(tx, state, inode, held)
    elif home.fault.startswith(MISSING):
        raise refused(errno.ENOENT, f"nothing is left of inode {inode.ino} at its home: see --older, or remove the file")
    else:
        mine = (replicas.c.ino == inode.ino) & (replicas.c.volume == inode.home_volume)
        tx.execute(update(replicas).where(mine).values(fault=""))
        # Dirty without a writer: its agent commits what is there, whatever its times are.
        tx.execute(update(inodes).where(inodes.c.ino == inode.ino).values(dirty=1, marks=inode.marks | UNSETTLED))
    return node_of(get_inode(tx.connection, inode.ino))


def _accept_older(tx: Transaction, state: State, inode: InodeRow, held: dict[int, InodeRow]) -> None:
    others = {volume: as_replica(row, inode) for volume, row in held.items() if volume != inode.home_volume}
    older = newest_replica(others, state.members.places(), ())
    if not older:
        raise refused(errno.ENOENT, f"nobody has an older replica of inode {inode.ino}")
    replica = held[older]
    queued = select(tasks.c.task).where(
        tasks.c.ino == inode.ino, tasks.c.volume == replica.volume, tasks.c.state == TaskState.CLAIMED
    )
    if tx.execute(queued).first() is not None:
        raise refused(errno.EAGAIN, f"an agent is at work on the older replica of inode {inode.ino}: try again in a while")
    # The volume becomes the home: no task may put another object there.
    tx.execute(delete(tasks).where(tasks.c.ino == inode.ino, tasks.c.volume == replica.volume))
    fall_back(tx, inode, replica)
    tx.after(state.forsook)
    align_inode(tx, state, inode.ino)
