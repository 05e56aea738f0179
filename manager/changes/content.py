"""Commits of content, and the end of an inode's dirtiness.

`dirty` may be cleared only while nobody but the committer has the inode open for writing. An `Open` for writing registers
before it looks at the flag, and queues behind transactions that may clear it (`State.changing`), so it cannot be overtaken. The
committer's own opens are ignored only if they were registered before the commit arrived.
"""

import errno
import stat
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import bindparam, insert, literal_column, update

from cluster.errors import Fenced, refused
from cluster.messages import Commit, Content, Node, Stamp
from cluster.volume.content import is_as_made, visible_ctime_ns
from manager.catalog.hot import Hot, HotUpdate
from manager.catalog.inodes import UNSETTLED, InodeRow, find_inodes, node_of
from manager.catalog.schema import inodes, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import Rows, align_all, replica_row, replicas_of_all, tasks_of_all
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.rules.limits import check_number, check_size, check_time

# By the primary key alone: version, epoch and flags were read and compared in the same transaction.
_COMMIT = HotUpdate(inodes, ["ino"], ["size", "blocks", "mtime_ns", "ctime_ns", "object_ctime_ns", "version", "dirty", "marks"])
# New content: nobody has read it yet, so its checksum is not known and no fault of the old one holds.
_STAMP = HotUpdate(
    replicas, ["ino", "volume"], ["version", "stamp_size", "stamp_mtime_ns", "stamp_ctime_ns"], checksum=b"", fault=""
)
_ADD_HOME = Hot(insert(replicas).values(ino=bindparam("b_ino"), volume=bindparam("b_volume"), version=0, checksum=b"", fault=""))
_CLEAN = Hot(update(inodes).where(inodes.c.ino == bindparam("b_ino"), inodes.c.dirty == literal_column("1")).values(dirty=0))
_MARK_DIRTY = Hot(update(inodes).where(inodes.c.ino == bindparam("b_ino"), inodes.c.dirty == literal_column("0")).values(dirty=1))


def commit(tx: Transaction, state: State, mutation: Mutation, op: Commit) -> Node:
    """As `commit_all` for one file."""
    return commit_all(tx, state, mutation, [op])[0]


def commit_all(tx: Transaction, state: State, mutation: Mutation, operations: Sequence[Commit]) -> list[Node]:
    """Stores what the homes' objects hold as the content of files, which are different ones: of all, or of none.

    Clears `dirty` where the commit is final and nobody else writes. A commit that is made while somebody may be writing can carry
    the ctime of a write whose bytes follow later, and a write through a mapping changes no ctime. So the commit that clears
    `UNSETTLED` must bring the content, even if the times are equal.
    Raises `Refused`: ENOENT for an unknown inode, ESTALE for a version that the committer must raise; `Fenced` for an old epoch.
    """
    inos = [op.ino for op in operations]
    rows = find_inodes(tx.connection, inos)
    # Whatever may refuse a commit comes before the first write: so a refused one leaves no trace.
    for op in operations:
        _check(rows.get(op.ino), op)
    mutation.recalls = ()
    state.claim_inodes(tx, mutation, [], inos)
    # Asked here, in the transaction: an open that registered before it is seen, a later one queues behind it.
    committed = [_committed(state, mutation.session, rows[op.ino], op) for op in operations]
    ended = [(op.ino, op.begun, state.commit_sequence(op.ino, mutation.session)) for op in operations if op.final]
    tx.after(partial(_end_writing, state, mutation.session, ended))
    _CLEAN.run_many(
        tx.connection, [{"b_ino": new.ino} for new, old, op in committed if op.content is None and old.dirty > new.dirty]
    )
    brought = [(new, op.content) for new, _old, op in committed if op.content is not None]
    if brought:
        align_all(tx, state, _store(tx, brought))
    return [node_of(new) for new, _old, _op in committed]


def _check(row: InodeRow | None, op: Commit) -> None:
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


def _check_content(content: Content) -> None:
    check_size(content.size)
    check_size(content.blocks)
    check_time(content.mtime_ns)
    check_time(content.ctime_ns)


class _Committed(NamedTuple):
    new: InodeRow  # that the commit makes of the old one
    old: InodeRow
    op: Commit


def _committed(state: State, session: Session, row: InodeRow, op: Commit) -> _Committed:
    """What the commit makes of an inode. Raises `Refused` (ESTALE) if it must bring the content."""
    clean = op.final and state.may_clean(op.ino, session, op.begun)
    dirty = int(row.dirty and not clean)
    content = op.content
    if content is None:
        # Times may be equal although bytes were written after them: the committer must bring the content.
        if clean and row.marks & UNSETTLED:
            raise refused(errno.ESTALE, f"inode {op.ino} was being written when it was committed last")
        return _Committed(row._replace(dirty=dirty), row, op)
    new = row._replace(
        size=content.size,
        blocks=content.blocks,
        # The object's own time stays in its stamp.
        mtime_ns=row.mtime_ns if is_as_made(row, content) else content.mtime_ns,
        ctime_ns=visible_ctime_ns(row.ctime_ns, content),
        object_ctime_ns=content.ctime_ns,
        version=op.version,
        dirty=dirty,
        # See `commit_all`: content that was committed while somebody may have been writing is to be committed once more.
        marks=row.marks | UNSETTLED if dirty else row.marks & ~UNSETTLED,
    )
    return _Committed(new, row, op)


def _end_writing(state: State, session: Session, ended: Iterable[tuple[int, int, int]]) -> None:
    """Once committed: the committer writes none of these inodes any more, each with `Commit.begun` and the opens that it ends."""
    for ino, begun, until in ended:
        state.sessions.committed(session, ino, until)
        state.sessions.settled(ino, begun)


def _store(tx: Transaction, brought: Sequence[tuple[InodeRow, Content]]) -> list[tuple[InodeRow, Rows]]:
    """Writes what commits have brought; each inode with what the catalog has of the file then."""
    rows = [row for row, _content in brought]
    _COMMIT.run_many(
        tx.connection,
        [
            {
                "b_ino": row.ino,
                "to_size": row.size,
                "to_blocks": row.blocks,
                "to_mtime_ns": row.mtime_ns,
                "to_ctime_ns": row.ctime_ns,
                "to_object_ctime_ns": row.object_ctime_ns,
                "to_version": row.version,
                "to_dirty": row.dirty,
                "to_marks": row.marks,
            }
            for row in rows
        ],
    )
    inos = [row.ino for row in rows]
    held, queued = replicas_of_all(tx.connection, inos), tasks_of_all(tx.connection, inos)
    missing = [row for row in rows if all(replica.volume != row.home_volume for replica in held.get(row.ino, ()))]
    if missing:
        _ADD_HOME.run_many(tx.connection, [{"b_ino": row.ino, "b_volume": row.home_volume} for row in missing])
        held |= replicas_of_all(tx.connection, [row.ino for row in missing])
    _STAMP.run_many(
        tx.connection,
        [
            {
                "b_ino": row.ino,
                "b_volume": row.home_volume,
                "to_version": row.version,
                "to_stamp_size": content.size,
                "to_stamp_mtime_ns": content.mtime_ns,
                "to_stamp_ctime_ns": content.ctime_ns,
            }
            for row, content in brought
        ],
    )
    return [
        (row, Rows([_stamped(replica, row, content) for replica in held[row.ino]], queued.get(row.ino, ())))
        for row, content in brought
    ]


def _stamped(replica: InodeRow, row: InodeRow, content: Content) -> InodeRow:
    """A replica's row, once the file's commit is in the one at the home."""
    if replica.volume != row.home_volume:
        return replica
    return replica_row(row.ino, replica.volume, row.version, Stamp(content.size, content.mtime_ns, content.ctime_ns), b"")


def mark_dirty(tx: Transaction, ino: int) -> None:
    """Marks the file dirty; called before the first write."""
    _MARK_DIRTY.run(tx.connection, {"b_ino": ino})
