"""Gives a file another home: a change of the catalog alone, since the new home's bytes are there already.

The new home is a current, fault-free replica, so its object is the committed content; it is known by its stamp. The change
is made only while the file is clean and nobody can be writing it, and never to a volume for which a task exists: an agent
that is still copying would put an older object over the home. From then on, whoever works with the old home's epoch is
refused: commits here (`Fenced`), data at the new home's object as soon as it has been committed under the new epoch.

An `Open` for writing that comes at the same time either registered before this transaction looked, so that the home stays, or
reads the inode after it, behind a transaction of its own that marks the file dirty, and is told the new home.
"""

from sqlalchemy import bindparam, literal_column, update

from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, get_inode
from manager.catalog.schema import inodes
from manager.catalog.store import Transaction

# The conditions repeat what the caller has read in this transaction: a mistake there fails, instead of losing what was written.
_SWITCH = Hot(
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"), inodes.c.dirty == literal_column("0"), inodes.c.home_epoch == bindparam("b_epoch"))
    .values(home_volume=bindparam("volume"), home_epoch=inodes.c.home_epoch + 1, object_ctime_ns=bindparam("object_ctime"))
)


def switch_home(tx: Transaction, inode: InodeRow, replica: InodeRow) -> InodeRow:
    """Makes *replica* the home; the inode's new row. The caller has checked what the module's docstring asks for."""
    assert replica.version == inode.version
    # The stamp becomes `object_ctime_ns`, by which the new home's object is known as the committed content.
    assert replica.stamp_ctime_ns is not None
    assert not replica.fault
    values = {
        "b_ino": inode.ino,
        "b_epoch": inode.home_epoch,
        "volume": replica.volume,
        "object_ctime": replica.stamp_ctime_ns,
    }
    changed = _SWITCH.run(tx.connection, values)
    assert changed == 1, "the inode was clean when it was read in this transaction"
    return get_inode(tx.connection, inode.ino)
