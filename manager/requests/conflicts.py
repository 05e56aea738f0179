"""Keeps content that only a lost server had beside its file, under a conflict name.

Its agent, when the server is a member again, asks what was abandoned on its volumes and looks at each object. One that is
nothing new is forgotten. For another it draws an inode number, makes the object that inode's, and has it named: a new file, with
its home where the object is. Each step may be repeated, and each is known to be done by what is there: see
`agent/workers/conflicts.py`.
"""

import errno
import stat
from functools import partial

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import refused
from cluster.messages import (
    ROOT_INO,
    Content,
    Done,
    ForgetForsaken,
    ForsakenObject,
    ForsakenObjects,
    InodeRange,
    KeepForsaken,
    ListForsaken,
    NameForsaken,
    NewName,
    Stamp,
)
from manager.catalog.inodes import InodeRow, find_entry, find_inode, get_inode, name_of, path_of, touch_directory
from manager.catalog.schema import abandoned, conflicts, dentries, inodes, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import align, align_inode
from manager.changes.conflict_names import free_name
from manager.memory.members import take_number
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.requests.mutations import mutate
from manager.rules.limits import check_number
from manager.term import Term

LIST_MAX = 256  # objects in one answer to an agent
SHOWN_MAX = 100  # paths that are shown for a server
LOST_AND_FOUND = b"lost+found"
"""A directory of the root that is made for what has no other place any more; only root may look into it."""


def conflict_paths(connection: Connection, server: str) -> list[bytes]:
    """Where files from *server* are under conflict names, as far as anybody wants to read."""
    question = select(conflicts.c.ino).where(conflicts.c.server == server).order_by(conflicts.c.ino).limit(SHOWN_MAX)
    return [path for ino in connection.execute(question).scalars() if (path := path_of(connection, ino))]


def count_conflicts(connection: Connection) -> int:
    """How many files under conflict names nobody has removed."""
    count: int = connection.execute(select(func.count()).select_from(conflicts)).scalar_one()
    return count


async def list_abandoned(term: Term, session: Session, _request: ListForsaken) -> ForsakenObjects:
    """Some of what was abandoned on the volumes of the agent's server."""
    volumes = term.state.members.of_server(session.server)
    question = (
        select(abandoned).where(abandoned.c.volume.in_(volumes)).order_by(abandoned.c.volume, abandoned.c.ino).limit(LIST_MAX)
    )
    rows = await term.store.read(lambda connection: connection.execute(question).all())
    return ForsakenObjects([_message(row) for row in rows])


def _message(row: InodeRow) -> ForsakenObject:
    known = row.stamp_ctime_ns is not None and not row.newer
    stamp = Stamp(row.stamp_size, row.stamp_mtime_ns, row.stamp_ctime_ns) if known else None
    return ForsakenObject(row.volume, row.ino, row.mode, row.uid, row.gid, stamp, row.kept_size, row.kept_checksum, row.conflict)


async def keep_abandoned(term: Term, session: Session, request: KeepForsaken) -> InodeRange:
    """The number of the inode that the object is to become; the same one each time."""

    def work(tx: Transaction) -> int:
        row = _require(tx, term.state, session, request.volume, request.ino)
        # A repeat: the agent may have renamed the object to this number already.
        if row.conflict:
            return int(row.conflict)
        # The number is in the catalog before the agent renames the object: after a crash it goes on with the same.
        number = take_number(tx, "next_ino", 1)
        tx.execute(update(abandoned).where(_this(request.volume, request.ino)).values(conflict=number))
        return number

    return InodeRange(await term.store.write(work, durable=True), 1)


async def forget_abandoned(term: Term, session: Session, request: ForgetForsaken) -> Done:
    """The object was nothing new, or is not there."""

    def work(tx: Transaction) -> None:
        row = _require(tx, term.state, session, request.volume, request.ino)
        tx.execute(delete(abandoned).where(_this(row.volume, row.ino)))
        # The volume may be used for a copy of the file again.
        align_inode(tx, term.state, row.ino)

    await term.store.write(work, durable=True)
    return Done()


async def name_abandoned(term: Term, session: Session, request: NameForsaken) -> NewName:
    """The object is that of its new inode: from now on it is a file."""
    for number in (request.content.size, request.content.blocks, request.content.mtime_ns, request.content.ctime_ns):
        check_number(number, "content")
    mutation = Mutation(session, monotonic_s())
    work = partial(_name, state=term.state, mutation=mutation, request=request)
    try:
        return NewName(await mutate(term, mutation, work, durable=True))
    finally:
        term.state.mutations.release(mutation)


def _name(tx: Transaction, state: State, mutation: Mutation, request: NameForsaken) -> bytes:
    session = mutation.session
    row = _require(tx, state, session, request.volume, request.ino)
    if not row.conflict:
        raise refused(errno.EINVAL, f"inode {request.ino} has no conflict inode")
    parent, name = _place(tx, row)
    # Before anything is written: who caches the directory's listing is called back first.
    state.claim_inodes(tx, mutation, [parent or ROOT_INO])
    tx.after(lambda: state.mutations.done(mutation, monotonic_s()))
    now_ns = file_time_ns()
    parent = parent or _make_lost_and_found(tx, state, now_ns)
    name = free_name(tx.connection, parent, name, session.server, request.content.mtime_ns)
    _add_file(tx, row, request.content, now_ns)
    _add_entry(tx, state, parent, name, row.conflict, now_ns)
    # All in one transaction: the object is either abandoned or a file with a name.
    tx.execute(insert(conflicts), {"ino": row.conflict, "server": session.server})
    tx.execute(delete(abandoned).where(_this(row.volume, row.ino)))
    align(tx, state, get_inode(tx.connection, row.conflict))
    align_inode(tx, state, row.ino)
    return path_of(tx.connection, row.conflict)


def _require(tx: Transaction, state: State, session: Session, volume: int, ino: int) -> InodeRow:
    row = tx.execute(select(abandoned).where(_this(volume, ino))).one_or_none()
    if row is None or volume not in state.members.of_server(session.server):
        raise refused(errno.ENOENT, f"nothing was abandoned of inode {ino} on volume {volume} of {session.server}")
    return row


def _this(volume: int, ino: int) -> ColumnElement[bool]:
    return (abandoned.c.ino == ino) & (abandoned.c.volume == volume)


# ------------------------------------------------------------------------------------------------------- the new file


def _place(tx: Transaction, row: InodeRow) -> tuple[int, bytes]:
    """Beside the file where it is now; if it was removed, where it was; else in `/lost+found` (0: which is not there yet)."""
    parent, name = name_of(tx.connection, row.ino)
    if not parent:
        parent, name = row.parent, row.name or b"inode-%d" % row.ino
    directory = find_inode(tx.connection, parent) if parent else None
    if directory is not None and stat.S_ISDIR(directory.mode) and directory.nlink:
        return parent, name
    found = find_entry(tx.connection, ROOT_INO, LOST_AND_FOUND)
    if found is None:
        return 0, name
    return (int(found.ino) if stat.S_ISDIR(found.mode) else ROOT_INO), name


def _make_lost_and_found(tx: Transaction, state: State, now_ns: int) -> int:
    ino = take_number(tx, "next_ino", 1)
    times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"), now_ns)
    tx.execute(insert(inodes), {"ino": ino, "mode": stat.S_IFDIR | 0o700, "nlink": 2, "size": 4096, "blocks": 8, **times})
    tx.inodes_added += 1
    _add_entry(tx, state, ROOT_INO, LOST_AND_FOUND, ino, now_ns, links=1)
    return ino


def _add_file(tx: Transaction, row: InodeRow, content: Content, now_ns: int) -> None:
    values = {
        "ino": row.conflict,
        "mode": row.mode,
        "nlink": 1,
        "uid": row.uid,
        "gid": row.gid,
        "size": content.size,
        "blocks": content.blocks,
        "atime_ns": content.mtime_ns,
        "mtime_ns": content.mtime_ns,
        "ctime_ns": now_ns,
        "btime_ns": now_ns,
        "version": 1,
        "home_volume": row.volume,
        "home_epoch": 1,
        "object_ctime_ns": content.ctime_ns,
    }
    tx.execute(insert(inodes), values)
    tx.inodes_added += 1
    stamp = {"stamp_size": content.size, "stamp_mtime_ns": content.mtime_ns, "stamp_ctime_ns": content.ctime_ns}
    # SQLite's default for the checksum would be a text.
    tx.execute(insert(replicas), {"ino": row.conflict, "volume": row.volume, "version": 1, "checksum": b"", **stamp})


def _add_entry(tx: Transaction, state: State, parent: int, name: bytes, ino: int, now_ns: int, links: int = 0) -> None:
    tx.execute(insert(dentries), {"parent": parent, "name": name, "cookie": state.cookie(), "ino": ino})
    touch_directory(tx.connection, parent, now_ns, links=links)
