"""Names and inodes of files that were there before the network: made as they were, with their objects in place.

Each name stands for itself: one that cannot be made keeps no other from being made, and leaves no trace.
"""

import errno
import stat
from collections.abc import Sequence

from cluster.errors import Refused, refused
from cluster.messages import (
    SYMLINK_MAX,
    XATTR_VALUE_MAX,
    ImportedAs,
    ImportedName,
    ImportedXattr,
    ImportNames,
    ImportOutcome,
    XattrKind,
)
from cluster.new_inodes import DIRECTORY_BLOCKS, DIRECTORY_BYTES, LINK_MAX
from manager.catalog.hot import HotInsert, HotUpdate
from manager.catalog.inodes import InodeRow, check_name, find_entry, find_inode, get_live_directory, node_of, relink
from manager.catalog.schema import dentries, inodes, replicas, symlinks, xattrs
from manager.catalog.store import Transaction
from manager.changes.attributes import NAMES_MAX_BYTES, check_xattr_name
from manager.changes.content import mark_dirty
from manager.changes.namespace import RDEV_MAX
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.rules import acl
from manager.rules.limits import check_id, check_size, check_time

_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO})
_LISTS = (acl.ACCESS_XATTR, acl.DEFAULT_XATTR)

_ADD_INODE = HotInsert(inodes, *inodes.c.keys())
_ADD_ENTRY = HotInsert(dentries, "parent", "name", "cookie", "ino")
_ADD_SYMLINK = HotInsert(symlinks, "ino", "target")
_ADD_REPLICA = HotInsert(replicas, "ino", "volume", "version", "checksum")
_ADD_XATTR = HotInsert(xattrs, "ino", "name", "value")
_TOUCH = HotUpdate(inodes, ["ino"], ["mtime_ns", "ctime_ns", "nlink"])


def import_all(tx: Transaction, state: State, mutation: Mutation, request: ImportNames) -> list[ImportedAs]:
    """Makes what can be made. A directory may be made before what is in it, in one request."""
    new = {name.ino for name in request.names if name.mode}
    parents = dict.fromkeys(name.parent for name in request.names if name.parent not in new)
    again = dict.fromkeys(name.ino for name in request.names if not name.mode)
    # Before anything is written: who caches the directories' listings, or these files, is called back first.
    state.claim_inodes(tx, mutation, [*parents, *again], new)
    return [_import(tx, state, mutation.session, name, request.now_ns) for name in request.names]


def _import(tx: Transaction, state: State, session: Session, name: ImportedName, now_ns: int) -> ImportedAs:
    try:
        parent = _check(tx, state, session, name)
        there = find_entry(tx.connection, name.parent, name.name)
        row = None if name.mode else find_inode(tx.connection, name.ino)
        if not name.mode and (row is None or row.nlink == 0 or stat.S_ISDIR(row.mode)):
            return ImportedAs(ImportOutcome.UNKNOWN)
        if there is not None and there.ino != name.ino:
            return ImportedAs(ImportOutcome.TAKEN, node_of(there))
        if there is None and row is not None:
            if row.nlink >= LINK_MAX:
                raise refused(errno.EMLINK)
            relink(tx.connection, name.ino, now_ns, 1)
    except Refused as error:
        return ImportedAs(ImportOutcome.REFUSED, reason=str(error))
    if there is None and name.mode:
        _add_inode(tx, name, now_ns)
    if there is None:
        _ADD_ENTRY.run(tx.connection, {"parent": name.parent, "name": name.name, "cookie": state.cookie(), "ino": name.ino})
        _touch(tx, parent, now_ns, links=int(stat.S_ISDIR(name.mode)))
    made = find_inode(tx.connection, name.ino)
    assert made is not None
    if stat.S_ISREG(made.mode) and made.home_volume == name.home_volume:
        _open(tx, state, session, made)
    return ImportedAs(ImportOutcome.MADE if there is None else ImportOutcome.THERE, node_of(made))


def _open(tx: Transaction, state: State, session: Session, row: InodeRow) -> None:
    """Whoever takes an object's other names away changes its change time, which is committed when all are gone."""
    mark_dirty(tx, row.ino)
    tx.after(lambda: state.register_creator(session, row.ino))


def _check(tx: Transaction, state: State, session: Session, name: ImportedName) -> InodeRow:
    """The directory's row. Raises `Refused` for what no local file system could have, and for numbers of others."""
    check_name(name.name)
    parent = get_live_directory(tx.connection, name.parent)
    if not name.mode:
        return parent
    kind = stat.S_IFMT(name.mode & 0o177777)
    if kind not in _TYPES or name.mode & ~(kind | 0o7777):
        raise refused(errno.EINVAL, f"mode {name.mode:o}")
    # Numbers come from the client: only those of its ranges are known to have never been used.
    if not session.may_use(name.ino):
        raise refused(errno.EINVAL, f"inode number {name.ino}, which this session was not given")
    if not 0 <= name.rdev <= RDEV_MAX:
        raise refused(errno.EINVAL, f"device number {name.rdev}")
    check_id(name.uid)
    check_id(name.gid)
    check_time(name.atime_ns)
    check_time(name.mtime_ns)
    _check_content(state, name, kind)
    _check_xattrs(name, kind)
    return parent


def _check_content(state: State, name: ImportedName, kind: int) -> None:
    if (kind == stat.S_IFREG) != (name.content is not None):
        raise refused(errno.EINVAL, "content of what is no file")
    if name.content is not None:
        check_size(name.content.size)
        check_size(name.content.blocks)
        if not state.members.may_get_content(name.home_volume):
            raise refused(errno.EINVAL, f"volume {name.home_volume} takes no new files")
    if (kind == stat.S_IFLNK) != bool(name.target) or len(name.target) > SYMLINK_MAX or b"\0" in name.target:
        raise refused(errno.EINVAL, "target of a symbolic link")


def _check_xattrs(name: ImportedName, kind: int) -> None:
    for xattr in name.xattrs:
        check_xattr_name(xattr.name)
        if len(xattr.value) > XATTR_VALUE_MAX:
            raise refused(errno.E2BIG, "value of an extended attribute")
        if xattr.name in _LISTS:
            acl.parse(xattr.value)
            if kind == stat.S_IFLNK or (xattr.name == acl.DEFAULT_XATTR and kind != stat.S_IFDIR):
                raise refused(errno.EINVAL, "access control list of something that has none")
        elif xattr.name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise refused(errno.EPERM, "user attribute of something that is neither a file nor a directory")
    names = [xattr.name for xattr in name.xattrs]
    if len(set(names)) != len(names) or sum(len(each) + 1 for each in names) > NAMES_MAX_BYTES:
        raise refused(errno.ENOSPC, "too many extended attributes")


def _add_inode(tx: Transaction, name: ImportedName, now_ns: int) -> None:
    directory, content = stat.S_ISDIR(name.mode), name.content
    mode, kept = _stored(name)
    device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    row = {
        "ino": name.ino,
        "mode": mode,
        "nlink": 2 if directory else 1,
        "uid": name.uid,
        "gid": name.gid,
        "rdev": name.rdev if device else 0,
        "size": content.size if content else DIRECTORY_BYTES if directory else len(name.target),
        "blocks": content.blocks if content else DIRECTORY_BLOCKS if directory else 0,
        "atime_ns": name.atime_ns,
        "mtime_ns": name.mtime_ns,
        "ctime_ns": now_ns,
        "btime_ns": now_ns,
        "version": 0,
        "dirty": int(content is not None),
        "home_volume": name.home_volume if content else 0,
        "home_epoch": int(content is not None),
        "object_ctime_ns": 0,
        "marks": sum({int(XattrKind.of(xattr.name)) for xattr in kept}),
    }
    _ADD_INODE.run(tx.connection, row)
    tx.inodes_added += 1
    if content:
        replica = {"ino": name.ino, "volume": name.home_volume, "version": 0, "checksum": b""}
        _ADD_REPLICA.run(tx.connection, replica)
    if name.target:
        _ADD_SYMLINK.run(tx.connection, {"ino": name.ino, "target": name.target})
    for xattr in kept:
        _ADD_XATTR.run(tx.connection, {"ino": name.ino, "name": xattr.name, "value": xattr.value})


def _stored(name: ImportedName) -> tuple[int, Sequence[ImportedXattr]]:
    """The mode that an access list says, and the attributes that are stored: a list that the mode can say is not."""
    mode, kept = name.mode, []
    for xattr in name.xattrs:
        listed = acl.parse(xattr.value) if xattr.name in _LISTS else None
        if xattr.name not in _LISTS:
            kept.append(xattr)
            continue
        if listed is None:
            continue
        if xattr.name == acl.ACCESS_XATTR:
            mode = acl.mode_of(listed, mode)
            if acl.is_mode_only(listed):
                continue
        kept.append(ImportedXattr(xattr.name, acl.pack(listed)))
    return mode, kept


def _touch(tx: Transaction, parent: InodeRow, now_ns: int, *, links: int) -> None:
    """A directory whose time is older than itself was given that, and nobody has changed names in it since: it keeps it."""
    mtime_ns = parent.mtime_ns if parent.mtime_ns < parent.btime_ns else now_ns
    values = {"to_mtime_ns": mtime_ns, "to_ctime_ns": now_ns, "to_nlink": parent.nlink + links}
    _TOUCH.run(tx.connection, {"b_ino": parent.ino, **values})
