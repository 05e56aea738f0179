"""Volumes whose files are to be looked at again, since the volume has stopped or begun to count.

`queue_volume_scan` is for whoever finds that out; `manager.workers.volume_scans` aligns the files, which are found by index.
"""

from collections.abc import Iterable

from sqlalchemy import delete, insert, select, update

from manager.catalog.schema import volume_scans
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode, inodes_on
from manager.memory.state import VOLUME_SCAN, State

BATCH = 64


def queue_volume_scan(tx: Transaction, state: State, volume: int) -> None:
    """Has every file with a replica on the volume looked at in the background (again from its beginning)."""
    known = tx.execute(select(volume_scans.c.volume).where(volume_scans.c.volume == volume)).first()
    if known is None:
        tx.execute(insert(volume_scans), {"volume": volume, "after": 0})
    else:
        tx.execute(update(volume_scans).where(volume_scans.c.volume == volume).values(after=0))
    tx.after(lambda: state.bells.ring(VOLUME_SCAN))


def align_some(tx: Transaction, state: State, volume: int, after: int) -> tuple[int, set[int]]:
    """Aligns the next files of a volume: the last of them (0: there is none) and those whose homes are held up."""
    found = inodes_on(tx.connection, volume, after, BATCH)
    last = found[-1] if found else 0
    if last:
        # Not if the scan was begun anew meanwhile.
        mine = (volume_scans.c.volume == volume) & (volume_scans.c.after == after)
        tx.execute(update(volume_scans).where(mine).values(after=last))
    return last, align_all(tx, state, found)


def align_all(tx: Transaction, state: State, numbers: Iterable[int]) -> set[int]:
    """Aligns these files; those whose homes are still held up."""
    return {ino for ino in numbers if not align_inode(tx, state, ino)}


def end_scan(tx: Transaction, volume: int, after: int) -> None:
    """The volume's files have all been looked at, unless the scan was begun anew meanwhile."""
    tx.execute(delete(volume_scans).where(volume_scans.c.volume == volume, volume_scans.c.after == after))
