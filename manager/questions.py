"""Answers to questions about the namespace: quick reads, nothing else."""

import errno
import stat

from sqlalchemy import Connection, bindparam, select

from cluster.errors import refused
from cluster.messages import (
    ROOT_INO,
    Blob,
    Entry,
    GetAttr,
    GetParent,
    GetSpace,
    GetXattr,
    Listing,
    ListVolumes,
    ListXattr,
    Lookup,
    Names,
    Node,
    Parent,
    ReadDir,
    ReadLink,
    Space,
    Volumes,
)
from manager.attributes import get_xattr, list_xattrs
from manager.inodes import NODE_COLUMNS, check_name, get_directory, get_entry, get_inode, node_of, parent_of
from manager.limits import check_number
from manager.schema import dentries, inodes, symlinks
from manager.sessions import Session
from manager.term import Term, counter

LISTING_MAX = 1000
LISTING_BYTES = 1_000_000  # of names and nodes, so that a page fits well into a frame
_ENTRY_BYTES = 220

_LIST = (
    select(*NODE_COLUMNS, dentries.c.name, dentries.c.cookie)
    .join_from(dentries, inodes, inodes.c.ino == dentries.c.ino)
    .where(dentries.c.parent == bindparam("ino"), dentries.c.cookie > bindparam("after"))
    .order_by(dentries.c.cookie)
    .limit(bindparam("n"))
)
_TARGET = select(symlinks.c.target).where(symlinks.c.ino == bindparam("ino"))


async def lookup(term: Term, _session: Session, request: Lookup) -> Node:
    check_name(request.name)
    return await term.store.read(lambda connection: node_of(get_entry(connection, request.parent, request.name)))


async def get_attr(term: Term, _session: Session, request: GetAttr) -> Node:
    return await term.store.read(lambda connection: node_of(get_inode(connection, request.ino)))


async def get_parent(term: Term, _session: Session, request: GetParent) -> Parent:
    def ask(connection: Connection) -> Parent:
        get_directory(connection, request.ino)
        if request.ino == ROOT_INO:
            return Parent(ROOT_INO)
        parent = parent_of(connection, request.ino)
        if parent is None:
            raise refused(errno.ENOENT, f"directory {request.ino} has been removed")
        return Parent(parent)

    return await term.store.read(ask)


async def read_dir(term: Term, _session: Session, request: ReadDir) -> Listing:
    check_number(request.after, "cookie")
    limit = max(1, min(request.limit, LISTING_MAX, LISTING_BYTES // _ENTRY_BYTES))

    def ask(connection: Connection) -> Listing:
        get_directory(connection, request.ino)
        rows = connection.execute(_LIST, {"ino": request.ino, "after": request.after, "n": limit + 1}).all()
        return Listing([Entry(row.name, row.cookie, node_of(row)) for row in rows[:limit]], end=len(rows) <= limit)

    return await term.store.read(ask)


async def read_link(term: Term, _session: Session, request: ReadLink) -> Blob:
    def ask(connection: Connection) -> Blob:
        target = connection.execute(_TARGET, {"ino": request.ino}).scalar_one_or_none()
        if target is None:
            row = get_inode(connection, request.ino)
            assert not stat.S_ISLNK(row.mode)
            raise refused(errno.EINVAL, "not a symbolic link")
        return Blob(target)

    return await term.store.read(ask)


async def get_xattr_value(term: Term, _session: Session, request: GetXattr) -> Blob:
    return await term.store.read(lambda connection: Blob(get_xattr(connection, request.ino, request.name)))


async def list_xattr_names(term: Term, _session: Session, request: ListXattr) -> Names:
    return await term.store.read(lambda connection: Names(list_xattrs(connection, request.ino)))


async def get_space(term: Term, _session: Session, _request: GetSpace) -> Space:
    return await term.store.read(lambda connection: space_of(term, connection))


def space_of(term: Term, connection: Connection) -> Space:
    """What `statfs` answers."""
    return term.state.members.space(term.state.policies.root(connection).copies, counter(connection, "inodes"))


async def list_volumes(term: Term, _session: Session, _request: ListVolumes) -> Volumes:
    return Volumes(term.state.members.volumes())
