"""Rows of `inodes` and `dentries` as the operations need them: the statements that run for nearly every request."""

import errno
import stat
from collections.abc import Collection
from typing import Any, TypeAlias

from sqlalchemy import Connection, bindparam, select, update

from cluster.errors import refused
from cluster.messages import NAME_MAX, ROOT_INO, Node, XattrKind
from manager.catalog.hot import Hot, HotByKeys
from manager.catalog.schema import dentries, inodes

# What `inodes.marks` says that `xattrs` holds, so that most requests need not look there.
HAS_CAPABILITY = int(XattrKind.CAPABILITY)
HAS_ACCESS_ACL = int(XattrKind.ACCESS_ACL)
HAS_DEFAULT_ACL = int(XattrKind.DEFAULT_ACL)
HAS_OTHER_XATTRS = int(XattrKind.OTHER)  # or has had some: it stays when they are removed
XATTR_MARKS = HAS_CAPABILITY | HAS_ACCESS_ACL | HAS_DEFAULT_ACL | HAS_OTHER_XATTRS
# And that the last commit was made while somebody may have been writing (see `manager.changes.content`).
UNSETTLED = 8
# And that it has never had a name, so that it may get its first one (see `manager.changes.namespace.link`).
UNNAMED = 16

NODE_COLUMNS = (
    inodes.c.ino,
    inodes.c.mode,
    inodes.c.nlink,
    inodes.c.uid,
    inodes.c.gid,
    inodes.c.rdev,
    inodes.c.size,
    inodes.c.blocks,
    inodes.c.atime_ns,
    inodes.c.mtime_ns,
    inodes.c.ctime_ns,
    inodes.c.btime_ns,
    inodes.c.version,
    inodes.c.dirty,
    inodes.c.home_volume,
    inodes.c.home_epoch,
    inodes.c.object_ctime_ns,
    inodes.c.marks,
)
_DIRTY = 13
_NODE_END = 17  # of what is as in the row; the marks follow

_BY_INO = Hot(select(*NODE_COLUMNS).where(inodes.c.ino == bindparam("ino")))
_BY_INOS = HotByKeys(lambda keys: select(*NODE_COLUMNS).where(inodes.c.ino.in_(keys)))
_BY_NAME = Hot(
    select(*NODE_COLUMNS)
    .join_from(dentries, inodes, inodes.c.ino == dentries.c.ino)
    .where(dentries.c.parent == bindparam("parent"), dentries.c.name == bindparam("name"))
)
_TOUCH = Hot(
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values(mtime_ns=bindparam("now"), ctime_ns=bindparam("now"), nlink=inodes.c.nlink + bindparam("links"))
)
RELINK = Hot(
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values(ctime_ns=bindparam("now"), nlink=inodes.c.nlink + bindparam("links"))
)
# By the index (ino) of entries. Ordered, so that a file with several names always gets the policy of the same one.
_PARENT_OF = Hot(select(dentries.c.parent).where(dentries.c.ino == bindparam("ino")).order_by(dentries.c.parent).limit(1))
_NAME_OF = Hot(
    select(dentries.c.parent, dentries.c.name).where(dentries.c.ino == bindparam("ino")).order_by(dentries.c.parent).limit(1)
)
_NAMES_OF = HotByKeys(lambda keys: select(dentries.c.ino, dentries.c.parent, dentries.c.name).where(dentries.c.ino.in_(keys)))
_CHILDREN = Hot(
    select(*NODE_COLUMNS, dentries.c.cookie, dentries.c.name)
    .join_from(dentries, inodes, inodes.c.ino == dentries.c.ino)
    .where(dentries.c.parent == bindparam("ino"), dentries.c.cookie > bindparam("after"))
    .order_by(dentries.c.cookie)
    .limit(bindparam("n"))
)
_HAS_CHILDREN = Hot(select(dentries.c.cookie).where(dentries.c.parent == bindparam("ino")).limit(1))

PATH_DEPTH_MAX = 4096
BLOCK_BYTES = 512  # of `blocks`, as in stat(2)

InodeRow: TypeAlias = Any  # a row with attributes named as the columns


def needed_bytes(row: InodeRow) -> int:
    """About how much room a copy of the content takes: holes take none, and what was allocated beyond the end is not copied."""
    return int(min(row.size, row.blocks * BLOCK_BYTES))


def blocks_before(row: InodeRow, size: int) -> int:
    """About how many blocks an older content of *size* bytes has, of which only the stamp is known; the next commit says it.

    One as long as the present content is taken to have holes where that has some; never 0, which programs take for a single hole.
    """
    allocated = -(-size // BLOCK_BYTES)
    return int(min(allocated, max(row.blocks, 1)) if size == row.size else allocated)


def node_of(row: InodeRow) -> Node:
    """The message for a row that begins with `NODE_COLUMNS`."""
    values: list[Any] = list(row[:_NODE_END])
    values[_DIRTY] = values[_DIRTY] != 0
    values.append(row[_NODE_END] & XATTR_MARKS)
    return Node(*values)


def find_inode(connection: Connection, ino: int) -> InodeRow | None:
    """The inode's row, or None."""
    return _BY_INO.one_or_none(connection, {"ino": ino})


def find_inodes(connection: Connection, inos: Collection[int]) -> dict[int, InodeRow]:
    """The rows of those inodes that there are, by number."""
    return {row.ino: row for row in _BY_INOS.all(connection, inos)}


def get_inode(connection: Connection, ino: int) -> InodeRow:
    """The inode's row; ESTALE if there is none."""
    row = _BY_INO.one_or_none(connection, {"ino": ino})
    if row is None:
        raise refused(errno.ESTALE, f"there is no inode {ino}")
    return row


def get_directory(connection: Connection, ino: int) -> InodeRow:
    """The row of a directory; ESTALE or ENOTDIR."""
    row = get_inode(connection, ino)
    if not stat.S_ISDIR(row.mode):
        raise refused(errno.ENOTDIR, f"inode {ino}")
    return row


def get_live_directory(connection: Connection, ino: int) -> InodeRow:
    """The row of a directory in which something can be made: ENOENT if it has been removed."""
    row = get_directory(connection, ino)
    if row.nlink == 0:
        raise refused(errno.ENOENT, f"directory {ino} has been removed")
    return row


def find_entry(connection: Connection, parent: int, name: bytes) -> InodeRow | None:
    """The inode that has this name, or None."""
    return _BY_NAME.one_or_none(connection, {"parent": parent, "name": name})


def get_entry(connection: Connection, parent: int, name: bytes) -> InodeRow:
    """The inode that has this name; ENOENT, or ESTALE or ENOTDIR for the parent."""
    row = _BY_NAME.one_or_none(connection, {"parent": parent, "name": name})
    if row is None:
        get_directory(connection, parent)
        raise refused(errno.ENOENT)
    return row


def check_name(name: bytes) -> None:
    """ENAMETOOLONG or EINVAL for what cannot be a name."""
    if len(name) > NAME_MAX:
        raise refused(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise refused(errno.EINVAL, f"not a name: {name!r}")


def children(connection: Connection, directory: int, after: int, count: int) -> list[InodeRow]:
    """The next inodes in a directory behind the cookie *after*, with the cookies and names of their entries."""
    return _CHILDREN.all(connection, {"ino": directory, "after": after, "n": count})


def has_children(connection: Connection, ino: int) -> bool:
    return _HAS_CHILDREN.one_or_none(connection, {"ino": ino}) is not None


def touch_directory(connection: Connection, ino: int, now_ns: int, links: int = 0) -> None:
    """The directory's entries changed, and *links* subdirectories came (or went)."""
    _TOUCH.run(connection, {"b_ino": ino, "now": now_ns, "links": links})


def relink(connection: Connection, ino: int, now_ns: int, links: int) -> None:
    """The inode got (or lost) *links* names, which changes its ctime."""
    RELINK.run(connection, {"b_ino": ino, "now": now_ns, "links": links})


def parent_of(connection: Connection, ino: int) -> int | None:
    """A directory that has a name for the inode (the same one as long as names do not change), or None."""
    row = _PARENT_OF.one_or_none(connection, {"ino": ino})
    return None if row is None else int(row.parent)


def name_of(connection: Connection, ino: int) -> tuple[int, bytes]:
    """A directory and the inode's name in it; zero and empty if it has no name any more."""
    row = _NAME_OF.one_or_none(connection, {"ino": ino})
    return (0, b"") if row is None else (row.parent, row.name)


def paths_of(connection: Connection, inos: Collection[int]) -> dict[int, bytes]:
    """As `path_of`, by inode: what many have in common is looked up once."""
    names: dict[int, InodeRow] = {}
    for row in _NAMES_OF.all(connection, inos):
        # Of several names the same one as `name_of` gives.
        if row.ino not in names or row.parent < names[row.ino].parent:
            names[row.ino] = row
    directories: dict[int, bytes] = {ROOT_INO: b"/"}
    paths = {ino: directories.get(ino, b"") for ino in inos}
    for ino, row in names.items():
        if row.parent not in directories:
            directories[row.parent] = path_of(connection, row.parent)
        above = directories[row.parent]
        paths[ino] = above.rstrip(b"/") + b"/" + row.name if above else b""
    return paths


def path_of(connection: Connection, ino: int) -> bytes:
    """One path of the inode from the root of the mount; empty if it has no name any more."""
    parts: list[bytes] = []
    while ino != ROOT_INO:
        row = _NAME_OF.one_or_none(connection, {"ino": ino})
        # Names may be changed between two questions of one that is asked outside of a transaction: no endless walk.
        if row is None or len(parts) >= PATH_DEPTH_MAX:
            return b""
        parts.append(row.name)
        ino = row.parent
    return b"/" + b"/".join(reversed(parts))
