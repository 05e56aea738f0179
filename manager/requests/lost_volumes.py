"""`godwit volumes lost` and `remove`: gives up a volume whose disk will not come back, and at last forgets it.

As for a lost server (`manager.requests.lost_servers`), but its server and the other volumes there go on. The catalog drives it:
what stands as lost is scanned, and each file falls back to what others have.
"""

import errno
from functools import partial

from sqlalchemy import delete, select

from cluster.errors import Refused, refused
from cluster.events import EventKind
from cluster.membership import VolumeStanding
from cluster.messages import Count, LosePlan, LoseVolume, RemoveVolume, Volume
from manager.catalog.events import note
from manager.catalog.schema import tasks, volume_scans, volumes
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode
from manager.changes.holdings import forget_some, holds_anything
from manager.changes.standing import change_volume
from manager.memory.members import Members
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.requests.lost_servers import plan_loss
from manager.term import Term

BATCH = 256


async def lose_volume(term: Term, _session: Session, request: LoseVolume) -> LosePlan:
    """Declares the volume lost, unless it is a dry run; what that means for its files, as they were before."""
    members, number = term.state.members, request.volume
    volume = _require_out(members, number)
    name = f"volume {number} of {volume.server}"
    plan = await term.store.read_slowly(lambda connection: plan_loss(connection, members, name, [number]))
    if not request.dry_run and volume.standing != VolumeStanding.LOST:
        work = partial(change_volume, state=term.state, volume=number, standing=VolumeStanding.LOST)
        await term.store.write_uncancelled(work, durable=True)
    return plan


def _require_out(members: Members, number: int) -> Volume:
    volume = members.get(number)
    if volume is None:
        known = ", ".join(str(volume.volume) for volume in members.volumes())
        raise Refused(f"there is no volume {number}; there are: {known or 'none'}", errno.ENOENT)
    if volume.standing == VolumeStanding.IN:
        raise refused(
            errno.EBUSY,
            f"volume {number} ({volume.path} of {volume.server}) is in use: only one whose disk was away or bad for so long "
            f"that it does not count can be given up (see godwit servers show {volume.server})",
        )
    return volume


async def remove_volume(term: Term, _session: Session, request: RemoveVolume) -> Count:
    """Forgets a volume that no file needs; each transaction looks again."""
    number = request.volume
    volume = _require_out(term.state.members, number)
    forgotten = 0
    # A batch at a time, replicas before tasks, and the volume last: a crash in between leaves less of it, and a repeat goes on.
    while count := await term.store.write_uncancelled(partial(_forget_some, term=term, volume=number)):
        forgotten += count
    while await term.store.write_uncancelled(partial(_forget_tasks, state=term.state, volume=number)):
        pass
    await term.store.write_uncancelled(partial(_forget, state=term.state, volume=volume), durable=True)
    return Count(forgotten)


def _forget_some(tx: Transaction, term: Term, volume: int) -> int:
    members = term.state.members
    _require_out(members, volume)
    safe = [other.volume for other in members.volumes() if other.volume != volume and members.volume_counts(other.volume)]
    count, needed = forget_some(tx, volume, safe)
    if needed and not count:
        raise refused(
            errno.EBUSY,
            f"files need volume {volume}: they have their home there, or no other current replica. Bring it back, wait until "
            f"healing has moved them, or give it up: godwit volumes lost {volume}",
        )
    return count


def _forget_tasks(tx: Transaction, state: State, volume: int) -> bool:
    """Removes some of its tasks, and finds other places for the copies; False when there are none."""
    chosen = select(tasks.c.task, tasks.c.ino).where(tasks.c.volume == volume).order_by(tasks.c.task).limit(BATCH)
    page = tx.execute(chosen).all()
    tx.execute(delete(tasks).where(tasks.c.task.in_([row.task for row in page])))
    for ino in dict.fromkeys(row.ino for row in page):
        align_inode(tx, state, ino)
    return bool(page)


def _forget(tx: Transaction, state: State, volume: Volume) -> None:
    _require_out(state.members, volume.volume)
    # Since the last batch it may have come back and got copies.
    if holds_anything(tx.connection, [volume.volume]):
        raise refused(errno.EBUSY, f"volume {volume.volume} holds files again")
    tx.execute(delete(volume_scans).where(volume_scans.c.volume == volume.volume))
    tx.execute(delete(volumes).where(volumes.c.volume == volume.volume))
    note(tx.connection, EventKind.VOLUME_REMOVED, server=volume.server, volume=volume.volume, path=volume.path)
    tx.after(lambda: state.members.forget_volume(volume.volume))
