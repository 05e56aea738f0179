"""Attributes and extended attributes, with the semantics of ext4.

Access lists: an access list that mode bits can express is stored only as mode bits; `chmod` changes the list. `inodes.marks`
says which special attributes exist; it is kept here and in `manager.changes.namespace.create`.
"""

import errno
import stat

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from cluster.errors import refused
from cluster.messages import NAME_MAX, XATTR_NAMESPACES, XATTR_VALUE_MAX, Node, RemoveXattr, SetAttr, SetXattr, XattrKind
from manager.catalog.hot import Hot
from manager.catalog.inodes import (
    HAS_ACCESS_ACL,
    HAS_OTHER_XATTRS,
    InodeRow,
    get_inode,
    node_of,
)
from manager.catalog.schema import inodes, xattrs
from manager.catalog.store import Transaction
from manager.memory.mutations import Mutation, Part
from manager.memory.state import State
from manager.rules import acl
from manager.rules.limits import check_id, check_time

XATTR_CREATE = 1
XATTR_REPLACE = 2
NAMES_MAX_BYTES = 65536  # what listxattr(2) can return
CAPABILITY_XATTR = b"security.capability"

_MARKS = {name: int(XattrKind.of(name)) for name in (CAPABILITY_XATTR, acl.ACCESS_XATTR, acl.DEFAULT_XATTR)}
"""The marks that go with the attribute; that of all others stays."""

_GET = select(xattrs.c.value).where(xattrs.c.ino == bindparam("ino"), xattrs.c.name == bindparam("name"))
_LIST = select(xattrs.c.name).where(xattrs.c.ino == bindparam("ino")).order_by(xattrs.c.name)
_NAMES_BYTES = select(func.coalesce(func.sum(func.length(xattrs.c.name) + 1), 0)).where(xattrs.c.ino == bindparam("ino"))
_INSERT = insert(xattrs)
_UPDATE = (
    update(xattrs)
    .where(xattrs.c.ino == bindparam("b_ino"), xattrs.c.name == bindparam("b_name"))
    .values(value=bindparam("value"))
)
_DELETE = delete(xattrs).where(xattrs.c.ino == bindparam("b_ino"), xattrs.c.name == bindparam("b_name"))
_CHANGE = (
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values(mode=bindparam("mode"), ctime_ns=bindparam("now"), marks=bindparam("marks"))
)
_SET_ATTRS = Hot(
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values({name: bindparam(f"to_{name}") for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns")})
)


def set_attr(tx: Transaction, state: State, mutation: Mutation, op: SetAttr) -> Node:
    """Changes what is not None."""
    _check_set_attr(op)
    gathered = mutation.gathered
    row = None if gathered is None else gathered.inodes.get(op.ino)
    is_new = row is not None
    row = row or get_inode(tx.connection, op.ino)
    state.claim(tx, mutation, {Part.INODE: op.ino})
    mode = row.mode
    if op.mode is not None:
        mode = stat.S_IFMT(row.mode) | op.mode
        if row.marks & HAS_ACCESS_ACL:
            access = read_acl(tx.connection, op.ino, acl.ACCESS_XATTR)
            # The list and the mode say the same of owner, group class and others: chmod changes both.
            if access is not None:
                _put(tx, op.ino, acl.ACCESS_XATTR, acl.pack(acl.chmod(access, mode)), exists=True)
    values = {
        "mode": mode,
        "uid": row.uid if op.uid is None else op.uid,
        "gid": row.gid if op.gid is None else op.gid,
        "atime_ns": row.atime_ns if op.atime_ns is None else op.atime_ns,
        "mtime_ns": row.mtime_ns if op.mtime_ns is None else op.mtime_ns,
        # Always: a change of nothing at all is still one to local file systems.
        "ctime_ns": op.now_ns,
    }
    if gathered is not None and is_new:
        return node_of(gathered.change(op.ino, values))
    _SET_ATTRS.run(tx.connection, {"b_ino": op.ino} | {f"to_{name}": value for name, value in values.items()})
    return node_of(row._replace(**values))


def _check_set_attr(op: SetAttr) -> None:
    if op.mode is not None and op.mode & ~0o7777:
        raise refused(errno.EINVAL, f"mode {op.mode:o}")
    for owner in (op.uid, op.gid):
        if owner is not None:
            check_id(owner)
    for time_ns in (op.now_ns, op.atime_ns, op.mtime_ns):
        if time_ns is not None:
            check_time(time_ns)


def check_xattr_name(name: bytes) -> None:
    """ERANGE, EINVAL or EOPNOTSUPP for an attribute that no inode can have."""
    if not 0 < len(name) <= NAME_MAX:
        raise refused(errno.ERANGE, "name of an extended attribute")
    if b"\0" in name or name in XATTR_NAMESPACES:
        raise refused(errno.EINVAL, "name of an extended attribute")
    if not name.startswith(XATTR_NAMESPACES) and name not in (acl.ACCESS_XATTR, acl.DEFAULT_XATTR):
        raise refused(errno.EOPNOTSUPP, "kind of extended attribute")


def get_xattr(connection: Connection, ino: int, name: bytes) -> bytes:
    """The value; ENODATA, or ESTALE for the inode."""
    check_xattr_name(name)
    value: bytes | None = connection.execute(_GET, {"ino": ino, "name": name}).scalar_one_or_none()
    # Only now is it worth a question whether the inode is there at all.
    if value is None:
        get_inode(connection, ino)
        raise refused(errno.ENODATA)
    return value


def list_xattrs(connection: Connection, ino: int) -> list[bytes]:
    """The names; ESTALE for an unknown inode."""
    names = list(connection.execute(_LIST, {"ino": ino}).scalars())
    if not names:
        get_inode(connection, ino)
    return names


def read_acl(connection: Connection, ino: int, name: bytes) -> acl.Acl | None:
    """The stored list, or None."""
    value = connection.execute(_GET, {"ino": ino, "name": name}).scalar_one_or_none()
    return None if value is None else acl.parse(value)


def set_xattr(tx: Transaction, state: State, mutation: Mutation, op: SetXattr) -> Node:
    """Sets one extended attribute."""
    check_xattr_name(op.name)
    check_time(op.now_ns)
    if op.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise refused(errno.EINVAL, f"flags {op.flags}")
    if len(op.value) > XATTR_VALUE_MAX:
        raise refused(errno.E2BIG, "value of an extended attribute")
    row = get_inode(tx.connection, op.ino)
    if op.name in (acl.ACCESS_XATTR, acl.DEFAULT_XATTR):
        new, mode = _check_acl(row, op.name, acl.parse(op.value))
        # As posix_acl_update_mode does in Linux; only the mount knows whether the caller may keep the bit.
        if op.name == acl.ACCESS_XATTR and not op.keeps_sgid:
            mode &= ~stat.S_ISGID
        state.claim(tx, mutation, {Part.INODE: op.ino})
        return _set_acl(tx, row, op.name, new, mode, op.now_ns)
    _check_user_xattr(row, op.name)
    # A writer that was told at its open that there are none does not take them away before it writes.
    if op.name == CAPABILITY_XATTR and state.sessions.is_written(op.ino, besides=mutation.session):
        raise refused(errno.ETXTBSY)
    exists = tx.execute(_GET, {"ino": op.ino, "name": op.name}).first() is not None
    if exists and op.flags == XATTR_CREATE:
        raise refused(errno.EEXIST)
    if not exists and op.flags == XATTR_REPLACE:
        raise refused(errno.ENODATA)
    # listxattr(2) gives all names in one buffer, of a bounded size.
    if not exists and tx.execute(_NAMES_BYTES, {"ino": op.ino}).scalar_one() + len(op.name) + 1 > NAMES_MAX_BYTES:
        raise refused(errno.ENOSPC, "too many extended attributes")
    state.claim(tx, mutation, {Part.INODE: op.ino})
    _put(tx, op.ino, op.name, op.value, exists=exists)
    return _changed(tx, row, row.mode, row.marks | _MARKS.get(op.name, HAS_OTHER_XATTRS), op.now_ns)


def _check_user_xattr(row: InodeRow, name: bytes) -> None:
    if name.startswith(b"user.") and not (stat.S_ISREG(row.mode) or stat.S_ISDIR(row.mode)):
        raise refused(errno.EPERM, "user attribute of something that is neither a file nor a directory")


def _check_acl(row: InodeRow, name: bytes, new: acl.Acl | None) -> tuple[acl.Acl | None, int]:
    """The list as it is to be stored (None: not at all), and the mode that comes with it."""
    if stat.S_ISLNK(row.mode):
        raise refused(errno.EOPNOTSUPP, "access control list of a symbolic link")
    mode = row.mode
    if name == acl.DEFAULT_XATTR:
        if new is not None and not stat.S_ISDIR(row.mode):
            raise refused(errno.EACCES, "default access control list of something that is not a directory")
    elif new is not None:
        mode = acl.mode_of(new, mode)
        # Not stored, as in local file systems: the mode says it all.
        if acl.is_mode_only(new):
            new = None
    return new, mode


def _set_acl(tx: Transaction, row: InodeRow, name: bytes, new: acl.Acl | None, mode: int, now_ns: int) -> Node:
    exists = bool(row.marks & _MARKS[name])
    if new is None:
        if exists:
            tx.execute(_DELETE, {"b_ino": row.ino, "b_name": name})
        return _changed(tx, row, mode, row.marks & ~_MARKS[name], now_ns)
    _put(tx, row.ino, name, acl.pack(new), exists=exists)
    return _changed(tx, row, mode, row.marks | _MARKS[name], now_ns)


def remove_xattr(tx: Transaction, state: State, mutation: Mutation, op: RemoveXattr) -> Node:
    """Removes one extended attribute; ENODATA if it is not there (removing a list that is not there is fine, as on ext4)."""
    check_xattr_name(op.name)
    check_time(op.now_ns)
    row = get_inode(tx.connection, op.ino)
    if op.name in (acl.ACCESS_XATTR, acl.DEFAULT_XATTR):
        new, mode = _check_acl(row, op.name, None)
        state.claim(tx, mutation, {Part.INODE: op.ino})
        return _set_acl(tx, row, op.name, new, mode, op.now_ns)
    _check_user_xattr(row, op.name)
    state.claim(tx, mutation, {Part.INODE: op.ino})
    if tx.execute(_DELETE, {"b_ino": op.ino, "b_name": op.name}).rowcount == 0:
        raise refused(errno.ENODATA)
    return _changed(tx, row, row.mode, row.marks & ~_MARKS.get(op.name, 0), op.now_ns)


def _put(tx: Transaction, ino: int, name: bytes, value: bytes, *, exists: bool) -> None:
    if exists:
        tx.execute(_UPDATE, {"b_ino": ino, "b_name": name, "value": value})
    else:
        tx.execute(_INSERT, {"ino": ino, "name": name, "value": value})


def _changed(tx: Transaction, row: InodeRow, mode: int, marks: int, now_ns: int) -> Node:
    tx.execute(_CHANGE, {"b_ino": row.ino, "mode": mode, "now": now_ns, "marks": marks})
    return node_of(get_inode(tx.connection, row.ino))
