"""Commits of content, and the end of an inode's dirtiness.

`dirty` may be cleared only while nobody but the committer has the inode open for writing. An `Open` for writing registers
before it looks at the flag, and queues behind transactions that may clear it (`State.changing`), so it cannot be overtaken. The
committer's own opens are ignored only if they were registered before the commit arrived.
"""

import errno
import stat

from sqlalchemy import bindparam, insert, literal_column, update

from cluster.errors import Fenced, refused
from cluster.messages import Commit, Content, Node
from cluster.volume.content import visible_ctime_ns
from manager.catalog.hot import Hot
from manager.catalog.inodes import UNSETTLED, InodeRow, find_inode, get_inode, node_of
from manager.catalog.schema import inodes, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import align
from manager.memory.mutations import Mutation, Part
from manager.memory.state import State
from manager.rules.limits import check_number, check_size, check_time

# By the primary key alone: version, epoch and flags were read and compared in the same transaction.
_COMMIT = Hot(
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values(
        {
            name: bindparam(f"to_{name}")
            for name in ("size", "blocks", "mtime_ns", "ctime_ns", "object_ctime_ns", "version", "dirty", "marks")
        }
    )
)
_STAMP = Hot(
    update(replicas)
    .where(replicas.c.ino == bindparam("b_ino"), replicas.c.volume == bindparam("b_volume"))
    .values(
        version=bindparam("to_version"),
        stamp_size=bindparam("to_size"),
        stamp_mtime_ns=bindparam("to_mtime"),
        stamp_ctime_ns=bindparam("to_ctime"),
        # New content: nobody has read it yet, so its checksum is not known and no fault of the old one holds.
        checksum=b"",
        fault="",
    )
)
_CLEAN = Hot(update(inodes).where(inodes.c.ino == bindparam("b_ino"), inodes.c.dirty == literal_column("1")).values(dirty=0))
_MARK_DIRTY = Hot(update(inodes).where(inodes.c.ino == bindparam("b_ino"), inodes.c.dirty == literal_column("0")).values(dirty=1))


def commit(tx: Transaction, state: State, mutation: Mutation, op: Commit) -> Node:
    """Stores what the home's object holds as the file's content; clears `dirty` if the commit is final and nobody else writes.

    A commit that is made while somebody may be writing can carry the ctime of a write whose bytes follow later, and a write
    through a mapping changes no ctime. So the commit that clears `UNSETTLED` must bring the content, even if the times are equal.
    Raises `Refused`: ENOENT for an unknown inode, ESTALE for a version that the committer must raise; `Fenced` for an old epoch.
    """
    # Whatever may refuse the commit comes before the first write: so a refused one leaves no trace.
    row = find_inode(tx.connection, op.ino)
    if row is None:
        raise refused(errno.ENOENT, f"inode {op.ino}")
    if not stat.S_ISREG(row.mode):
        raise refused(errno.EINVAL, "only regular files have content")
    # The committer still took another object for the home: what it wrote there is none of the file's content.
    if op.home_epoch != row.home_epoch:
        raise Fenced(f"the home of inode {op.ino} has epoch {row.home_epoch}, not {op.home_epoch}")
    if op.content is not None:
        _check_content(op.content)
        check_number(op.version, "version")
        if op.version <= row.version:
            raise refused(errno.ESTALE, f"inode {op.ino} has version {row.version} already")
    session = mutation.session
    # Raises `HeldElsewhere` before anything is written; the transaction then runs again.
    state.claim(tx, mutation, {Part.INODE: op.ino})
    # Asked here, in the transaction: an open that registered before it is seen, a later one queues behind it.
    clean = op.final and state.may_clean(op.ino, session, op.begun)
    if op.final:
        until = state.commit_sequence(op.ino, session)
        tx.after(lambda: state.sessions.committed(session, op.ino, until))
        tx.after(lambda: state.sessions.settled(op.ino, op.begun))
    if op.content is not None:
        _store_content(tx, row, op, op.content, dirty=row.dirty and not clean)
    # Times may be equal although bytes were written after them: the committer must bring the content.
    elif clean and row.marks & UNSETTLED:
        raise refused(errno.ESTALE, f"inode {op.ino} was being written when it was committed last")
    elif clean and row.dirty:
        _CLEAN.run(tx.connection, {"b_ino": op.ino})
    # Read again: the reply and `align` need the new version and flags.
    row = get_inode(tx.connection, op.ino)
    if op.content is not None:
        align(tx, state, row)
    return node_of(row)


def _check_content(content: Content) -> None:
    check_size(content.size)
    check_size(content.blocks)
    check_time(content.mtime_ns)
    check_time(content.ctime_ns)


def _store_content(tx: Transaction, row: InodeRow, op: Commit, content: Content, *, dirty: bool) -> None:
    values = {
        "b_ino": op.ino,
        "to_size": content.size,
        "to_blocks": content.blocks,
        "to_mtime_ns": content.mtime_ns,
        "to_ctime_ns": visible_ctime_ns(row.ctime_ns, content),
        "to_object_ctime_ns": content.ctime_ns,
        "to_version": op.version,
        "to_dirty": int(dirty),
        # See `commit`: content that was committed while somebody may have been writing is to be committed once more.
        "to_marks": row.marks | UNSETTLED if dirty else row.marks & ~UNSETTLED,
    }
    _COMMIT.run(tx.connection, values)
    stamp = {
        "b_ino": op.ino,
        "b_volume": row.home_volume,
        "to_version": op.version,
        "to_size": content.size,
        "to_mtime": content.mtime_ns,
        "to_ctime": content.ctime_ns,
    }
    if _STAMP.run(tx.connection, stamp) == 0:
        tx.execute(insert(replicas), {"ino": op.ino, "volume": row.home_volume, "version": 0, "checksum": b""})
        _STAMP.run(tx.connection, stamp)


def mark_dirty(tx: Transaction, ino: int) -> None:
    """Marks the file dirty; called before the first write."""
    _MARK_DIRTY.run(tx.connection, {"b_ino": ino})
