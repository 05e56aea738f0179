"""Answers to questions about the namespace: quick reads of what is committed, nothing else."""

import errno
import stat

from sqlalchemy import Connection, bindparam, select

from cluster.errors import refused
from cluster.messages import (
    ROOT_INO,
    BeginCommit,
    Begun,
    Blob,
    Described,
    Entry,
    Found,
    GetAttr,
    GetParent,
    GetSpace,
    GetXattr,
    Listing,
    ListVolumes,
    ListXattr,
    Locate,
    Lookup,
    Names,
    Opened,
    Parent,
    ReadDir,
    ReadLink,
    Space,
    Volumes,
)
from manager.catalog.inodes import (
    HAS_CAPABILITY,
    NODE_COLUMNS,
    check_name,
    find_entry,
    get_directory,
    get_inode,
    node_of,
    parent_of,
)
from manager.catalog.schema import dentries, inodes, symlinks
from manager.changes.alignment import replicas_of
from manager.changes.attributes import get_xattr, list_xattrs
from manager.changes.tasks import replica_of
from manager.rules.limits import check_number
from manager.term import Term, counter

LISTING_MAX = 1000  # entries of one page
LISTING_BYTES = 1_000_000  # of names and nodes, so that a page fits well into a frame
_ENTRY_BYTES = 220  # of a node on the wire, and a name of ordinary length

# By the unique index (parent, cookie), in its order.
_LIST = (
    select(*NODE_COLUMNS, dentries.c.name, dentries.c.cookie)
    .join_from(dentries, inodes, inodes.c.ino == dentries.c.ino)
    .where(dentries.c.parent == bindparam("ino"), dentries.c.cookie > bindparam("after"))
    .order_by(dentries.c.cookie)
    .limit(bindparam("n"))
)
_TARGET = select(symlinks.c.target).where(symlinks.c.ino == bindparam("ino"))


def lookup(connection: Connection, _term: Term, request: Lookup) -> Found:
    check_name(request.name)
    row = find_entry(connection, request.parent, request.name)
    if row is None:
        # Only a name that is not there needs the look whether its directory is.
        get_directory(connection, request.parent)
    return Found(None if row is None else node_of(row))


def get_attr(connection: Connection, _term: Term, request: GetAttr) -> Described:
    return Described(node_of(get_inode(connection, request.ino)))


def begin_commit(connection: Connection, term: Term, request: BeginCommit) -> Begun:
    sessions, ino = term.state.sessions, request.ino
    node = node_of(get_inode(connection, ino))
    return Begun(node, sessions.writers_ended, sessions.is_orderly(ino), sessions.is_written(ino))


def get_parent(connection: Connection, _term: Term, request: GetParent) -> Parent:
    get_directory(connection, request.ino)
    if request.ino == ROOT_INO:
        return Parent(ROOT_INO)
    parent = parent_of(connection, request.ino)
    if parent is None:
        raise refused(errno.ENOENT, f"directory {request.ino} has been removed")
    return Parent(parent)


def read_dir(connection: Connection, term: Term, request: ReadDir) -> Listing:
    check_number(request.after, "cookie")
    check_number(request.until, "cookie")
    limit = max(1, min(request.limit, LISTING_MAX, LISTING_BYTES // _ENTRY_BYTES))
    get_directory(connection, request.ino)
    # One more than is wanted tells whether there are any after these.
    rows = connection.execute(_LIST, {"ino": request.ino, "after": request.after, "n": limit + 1}).all()
    # After the question: of what it has found, nothing has a cookie that was given later.
    newest = term.state.newest_cookie
    found = [row for row in rows if not request.until or row.cookie <= request.until]
    entries = [Entry(row.name, row.cookie, node_of(row)) for row in found[:limit]]
    return Listing(entries, end=len(found) <= limit, newest=newest)


def read_link(connection: Connection, _term: Term, request: ReadLink) -> Blob:
    target = connection.execute(_TARGET, {"ino": request.ino}).scalar_one_or_none()
    if target is None:
        row = get_inode(connection, request.ino)
        assert not stat.S_ISLNK(row.mode)
        raise refused(errno.EINVAL, "not a symbolic link")
    return Blob(target)


def get_xattr_value(connection: Connection, _term: Term, request: GetXattr) -> Blob:
    return Blob(get_xattr(connection, request.ino, request.name))


def list_xattr_names(connection: Connection, _term: Term, request: ListXattr) -> Names:
    return Names(list_xattrs(connection, request.ino))


def get_space(connection: Connection, term: Term, _request: GetSpace) -> Space:
    """What `statfs` answers."""
    return term.state.members.space(term.state.policies.root(connection).copies, counter(connection, "inodes"))


def list_volumes(_connection: Connection, term: Term, _request: ListVolumes) -> Volumes:
    return Volumes(term.state.members.volumes())


def locate(connection: Connection, term: Term, request: Locate) -> Opened:
    return describe_open(connection, term, request.ino)


def describe_open(connection: Connection, term: Term, ino: int) -> Opened:
    """What a mount needs for I/O on an inode."""
    row = get_inode(connection, ino)
    current = [
        replica_of(replica)
        for replica in replicas_of(connection, ino)
        if replica.version == row.version and replica.stamp_ctime_ns is not None and not replica.fault
    ]
    policy = term.state.policies.of_inode(connection, ino)
    return Opened(node_of(row), current, bool(row.marks & HAS_CAPABILITY), policy.copies, policy.sync_copies)
