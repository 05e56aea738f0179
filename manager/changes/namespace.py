"""Names: create (also without one), link, unlink, rmdir, rename, with the semantics of a local Linux file system.

Every function checks first and writes then, so that a refused operation leaves no trace. Permissions are checked by the
kernels of the mounts.
"""

import errno
import stat

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from cluster.errors import refused
from cluster.messages import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    SYMLINK_MAX,
    Create,
    CreateUnnamed,
    Link,
    Node,
    Rename,
    Rmdir,
    Unlink,
)
from cluster.new_inodes import LINK_MAX, inherited, new_node
from manager.catalog.gathered import Gathered, add_row
from manager.catalog.hot import Hot, HotInsert
from manager.catalog.inodes import (
    HAS_ACCESS_ACL,
    HAS_DEFAULT_ACL,
    UNNAMED,
    XATTR_MARKS,
    InodeRow,
    check_name,
    find_entry,
    get_directory,
    get_entry,
    get_inode,
    get_live_directory,
    has_children,
    node_of,
    relink,
    touch_directory,
)
from manager.catalog.schema import dentries, inodes, orphans, policies, replicas, scans, symlinks, xattrs
from manager.catalog.store import Transaction
from manager.changes.alignment import align_inode
from manager.changes.attributes import read_acl
from manager.changes.policies import policies_changed
from manager.memory.mutations import Mutation, Part
from manager.memory.notes import note_itself, note_new
from manager.memory.policies import is_below
from manager.memory.state import SCAN, State
from manager.rules import acl
from manager.rules.limits import check_id, check_time

RDEV_MAX = 2**32 - 1  # Linux device numbers have 32 bits

_TYPE_BITS = 0o170000
"""Of a mode, its type; unlike `stat.S_IFMT`, for numbers of any size and sign."""
_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})

_ADD_INODE = HotInsert(inodes, *inodes.c.keys())
_ADD_ENTRY = HotInsert(dentries, "parent", "name", "cookie", "ino")
_ADD_SYMLINK = HotInsert(symlinks, "ino", "target")
# SQLite's default for the checksum would be a text.
_ADD_REPLICA = HotInsert(replicas, "ino", "volume", "version", "checksum")
_ADD_XATTR = HotInsert(xattrs, "ino", "name", "value")
_ADD_ORPHAN = HotInsert(orphans, "ino")
_REMOVE_ORPHAN = delete(orphans).where(orphans.c.ino == bindparam("b_ino"))
_SET_MARKS = update(inodes).where(inodes.c.ino == bindparam("b_ino")).values(marks=bindparam("to_marks"))
# By the primary key (parent, name), as all statements about entries.
_REMOVE_ENTRY = Hot(delete(dentries).where(dentries.c.parent == bindparam("b_parent"), dentries.c.name == bindparam("b_name")))
# The entry gets a new cookie at the end: a listing that has passed its old place meets it again, and none misses it.
_MOVE_ENTRY = Hot(
    update(dentries)
    .where(dentries.c.parent == bindparam("b_parent"), dentries.c.name == bindparam("b_name"))
    .values(parent=bindparam("to_parent"), name=bindparam("to_name"), cookie=bindparam("cookie"))
)
# The name stays where it was in listings: the entry keeps its cookie, only what it means changes.
_POINT_ENTRY = Hot(
    update(dentries)
    .where(dentries.c.parent == bindparam("b_parent"), dentries.c.name == bindparam("b_name"))
    .values(ino=bindparam("ino"))
)


def create(tx: Transaction, state: State, mutation: Mutation, op: Create) -> Node:
    """Makes an inode and its name; a regular file is born dirty and open for writing."""
    parent = _check_create(tx, state, mutation, op)
    state.claim(tx, mutation, {Part.DIRECTORY: op.parent, Part.INODE: op.ino})
    directory = stat.S_ISDIR(op.mode)
    # The inode before its name: foreign keys of the entry ask for it.
    node = _add_inode(tx, state, mutation, parent, op, links=2 if directory else 1)
    gathered = mutation.gathered
    entry = {"parent": op.parent, "name": op.name, "cookie": state.cookie(), "ino": op.ino}
    add_row(tx.connection, gathered, _ADD_ENTRY, entry)
    # A new directory's ".." is a link to its parent.
    _touch(tx, gathered, op.parent, op.now_ns, links=int(directory))
    if op.target:
        add_row(tx.connection, gathered, _ADD_SYMLINK, {"ino": op.ino, "target": op.target})
    alone = _is_born_alone(state, mutation, op)
    if directory and (alone or mutation.session.watches):
        note_new(tx, state.notes, mutation.session.server, op.ino, gathered, held=alone)
    return node


def _is_born_alone(state: State, mutation: Mutation, op: Create) -> bool:
    """Notes that the session is alone with what it makes in a directory that it holds."""
    born = mutation.born
    if born is None or not (op.parent in born or state.leases.is_alone(op.parent, mutation.session.number, mutation.began_s)):
        return False
    born.add(op.ino)
    return True


def create_unnamed(tx: Transaction, state: State, mutation: Mutation, op: CreateUnnamed) -> Node:
    """Makes a regular file as `create` does, which is born an orphan."""
    if op.mode & _TYPE_BITS != stat.S_IFREG:
        raise refused(errno.EINVAL, f"mode {op.mode:o}")
    new = Create(op.directory, b"", op.ino, op.mode, op.uid, op.gid, 0, op.now_ns, op.home_volume, umask=op.umask)
    new = msgspec.structs.replace(new, object_ctime_ns=op.object_ctime_ns)
    _check_inode(state, mutation, new)
    state.check_known(tx, mutation, op.directory)
    directory = get_live_directory(tx.connection, op.directory)
    state.claim(tx, mutation, {Part.INODE: op.ino})
    node = _add_inode(tx, state, mutation, directory, new, links=0, marks=UNNAMED)
    _ADD_ORPHAN.run(tx.connection, {"ino": op.ino})
    tx.after(lambda: state.lost_name(op.ino))
    return node


def _add_inode(
    tx: Transaction, state: State, mutation: Mutation, parent: InodeRow, op: Create, *, links: int, marks: int = 0
) -> Node:
    """An inode with what it gets from its parent; a regular file with its home."""
    mode, gid = inherited(parent.mode, parent.gid, op.mode, op.gid)
    lists: list[tuple[bytes, bytes]] = []
    default = read_acl(tx.connection, op.parent, acl.DEFAULT_XATTR) if parent.marks & HAS_DEFAULT_ACL else None
    # A default list takes the umask's place; symbolic links have no list of their own.
    if default is None or stat.S_ISLNK(mode):
        mode &= ~op.umask
    else:
        mode, listed, lists = _inherit(default, mode)
        marks |= listed
    node = new_node(op, mode, gid, links=links, xattrs=marks & XATTR_MARKS)
    row = {**msgspec.structs.asdict(node), "dirty": int(node.dirty), "marks": marks}
    del row["xattrs"]
    gathered = mutation.gathered
    if gathered is None:
        _ADD_INODE.run(tx.connection, row)
    else:
        gathered.add_inode(_ADD_INODE, row, op.parent)
    # The store adds these up and writes the counter once for a whole batch.
    tx.inodes_added += 1
    if node.home_volume:
        add_row(tx.connection, gathered, _ADD_REPLICA, {"ino": op.ino, "volume": op.home_volume, "version": 0, "checksum": b""})
        # Once it is committed: of an inode that was never made nobody is registered as a writer.
        tx.after(lambda: state.register_creator(mutation.session, op.ino))
    for name, value in lists:
        add_row(tx.connection, gathered, _ADD_XATTR, {"ino": op.ino, "name": name, "value": value})
    return node


def _check_create(tx: Transaction, state: State, mutation: Mutation, op: Create) -> InodeRow:
    check_name(op.name)
    _check_inode(state, mutation, op)
    gathered = mutation.gathered
    # The name is looked for when all is written: EEXIST for all that is gathered, which is then applied one by one.
    if gathered is not None:
        return _live_directory(tx, gathered, op.parent)
    parent = get_live_directory(tx.connection, op.parent)
    if find_entry(tx.connection, op.parent, op.name) is not None:
        raise refused(errno.EEXIST)
    return parent


def _live_directory(tx: Transaction, gathered: Gathered, ino: int) -> InodeRow:
    """As `get_live_directory`, for one that may be going to be added; one that is in the database is read once."""
    row = gathered.row(ino)
    if row is None:
        gathered.read(row := get_live_directory(tx.connection, ino))
    elif not stat.S_ISDIR(row.mode):
        raise refused(errno.ENOTDIR, f"inode {ino}")
    return row


def _check_inode(state: State, mutation: Mutation, op: Create) -> None:
    kind = op.mode & _TYPE_BITS
    if kind not in _TYPES or op.mode & ~(kind | 0o7777):
        raise refused(errno.EINVAL, f"mode {op.mode:o}")
    if op.umask & ~0o777:
        raise refused(errno.EINVAL, f"umask {op.umask:o}")
    # Numbers come from the client: only those of its ranges are known to have never been used.
    if not mutation.session.may_use(op.ino):
        raise refused(errno.EINVAL, f"inode number {op.ino}, which this session was not given")
    if not 0 <= op.rdev <= RDEV_MAX:
        raise refused(errno.EINVAL, f"device number {op.rdev}")
    check_id(op.uid)
    check_id(op.gid)
    check_time(op.now_ns)
    check_time(op.object_ctime_ns)
    if kind == stat.S_IFREG and not state.members.may_get_content(op.home_volume):
        raise refused(errno.EINVAL, f"volume {op.home_volume}")
    if (kind == stat.S_IFLNK) != bool(op.target):
        raise refused(errno.ENOENT if kind == stat.S_IFLNK else errno.EINVAL, "target of a symbolic link")
    if len(op.target) > SYMLINK_MAX:
        raise refused(errno.ENAMETOOLONG, "target of a symbolic link")
    if b"\0" in op.target:
        raise refused(errno.EINVAL, "target of a symbolic link")


def _inherit(default: acl.Acl, mode: int) -> tuple[int, int, list[tuple[bytes, bytes]]]:
    """The mode, marks and attributes that something created with *mode* gets from its parent's default list."""
    marks, lists = 0, []
    mode, access = acl.inherit(default, mode)
    if access is not None:
        marks |= HAS_ACCESS_ACL
        lists.append((acl.ACCESS_XATTR, acl.pack(access)))
    if stat.S_ISDIR(mode):
        marks |= HAS_DEFAULT_ACL
        lists.append((acl.DEFAULT_XATTR, acl.pack(default)))
    return mode, marks, lists


def link(tx: Transaction, state: State, mutation: Mutation, op: Link) -> Node:
    """Another name for an inode, or the first one for a file that was born without."""
    check_name(op.name)
    check_time(op.now_ns)
    inode = get_inode(tx.connection, op.ino)
    if stat.S_ISDIR(inode.mode):
        raise refused(errno.EPERM, "hard link to a directory")
    unnamed = bool(inode.marks & UNNAMED)
    # One that had a name never gets another; and the reaper may have decided about an unnamed one already.
    if (inode.nlink == 0 and not unnamed) or op.ino in state.reaping:
        raise refused(errno.ENOENT, "the file has been removed")
    if inode.nlink >= LINK_MAX:
        raise refused(errno.EMLINK)
    get_live_directory(tx.connection, op.parent)
    if find_entry(tx.connection, op.parent, op.name) is not None:
        raise refused(errno.EEXIST)
    state.claim(tx, mutation, {Part.DIRECTORY: op.parent, Part.INODE: op.ino})
    _ADD_ENTRY.run(tx.connection, {"parent": op.parent, "name": op.name, "cookie": state.cookie(), "ino": op.ino})
    touch_directory(tx.connection, op.parent, op.now_ns)
    relink(tx.connection, op.ino, op.now_ns, 1)
    if unnamed:
        tx.execute(_SET_MARKS, {"b_ino": op.ino, "to_marks": inode.marks & ~UNNAMED})
        # In the same transaction as the name: after a crash it is either an orphan or has a name.
        tx.execute(_REMOVE_ORPHAN, {"b_ino": op.ino})
        align_inode(tx, state, op.ino)  # to the policy of the directory; there was none of its own before
        tx.after(lambda: state.got_name(op.ino))
    return node_of(get_inode(tx.connection, op.ino))


def unlink(tx: Transaction, state: State, mutation: Mutation, op: Unlink) -> None:
    """Removes a name of something that is not a directory."""
    check_name(op.name)
    check_time(op.now_ns)
    gathered = mutation.gathered
    inode = get_entry(tx.connection, op.parent, op.name) if gathered is None else gathered.entry(op.parent, op.name)
    assert inode is not None, "only what is known is gathered"
    if stat.S_ISDIR(inode.mode):
        raise refused(errno.EISDIR)
    state.claim(tx, mutation, {Part.DIRECTORY: op.parent, Part.INODE: inode.ino})
    if gathered is None:
        _REMOVE_ENTRY.run(tx.connection, {"b_parent": op.parent, "b_name": op.name})
    else:
        gathered.remove(op.parent, op.name)
    _touch(tx, gathered, op.parent, op.now_ns)
    _lose_name(tx, state, mutation, op.parent, inode, op.now_ns)


def _touch(tx: Transaction, gathered: Gathered | None, directory: int, now_ns: int, links: int = 0) -> None:
    if gathered is None:
        touch_directory(tx.connection, directory, now_ns, links=links)
    else:
        gathered.touch(directory, now_ns, links)


def rmdir(tx: Transaction, state: State, mutation: Mutation, op: Rmdir) -> None:
    """Removes an empty directory."""
    check_name(op.name)
    check_time(op.now_ns)
    inode = get_entry(tx.connection, op.parent, op.name)
    if not stat.S_ISDIR(inode.mode):
        raise refused(errno.ENOTDIR)
    _check_empty(tx, state, mutation, inode)
    state.claim(tx, mutation, {Part.DIRECTORY: op.parent, Part.INODE: inode.ino})
    _REMOVE_ENTRY.run(tx.connection, {"b_parent": op.parent, "b_name": op.name})
    touch_directory(tx.connection, op.parent, op.now_ns, links=-1)
    _lose_name(tx, state, mutation, op.parent, inode, op.now_ns)


def _lose_name(tx: Transaction, state: State, mutation: Mutation, parent: int, inode: InodeRow, now_ns: int) -> None:
    """A name of *inode* has been removed from its directory; with the last one it becomes an orphan."""
    directory = stat.S_ISDIR(inode.mode)
    # An empty directory loses all its links at once: its name's and that of its own ".".
    links = inode.nlink if directory else 1
    gathered = mutation.gathered
    if gathered is None:
        relink(tx.connection, inode.ino, now_ns, -links)
    else:
        gathered.relink(inode.ino, now_ns, -links)
    if inode.nlink > links:
        _leave(tx, state, mutation, inode.ino, parent)
        return
    add_row(tx.connection, gathered, _ADD_ORPHAN, {"ino": inode.ino})
    # The inode's row lives on until it is reaped, so that no CASCADE has removed its policy yet.
    if directory and tx.execute(delete(policies).where(policies.c.ino == inode.ino)).rowcount:
        policies_changed(tx, state)
    tx.after(lambda: state.lost_name(inode.ino))


def rename(tx: Transaction, state: State, mutation: Mutation, op: Rename) -> Node | None:
    """rename(2). The node of what was renamed; None if something was replaced."""
    if op.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise refused(errno.EINVAL, f"flags {op.flags}")
    check_name(op.name)
    check_name(op.new_name)
    check_time(op.now_ns)
    if op.parent != op.new_parent:
        get_directory(tx.connection, op.parent)
    get_live_directory(tx.connection, op.new_parent)
    source = get_entry(tx.connection, op.parent, op.name)
    # All reading first; what is claimed and written below depends on all of it.
    target = find_entry(tx.connection, op.new_parent, op.new_name)
    if op.flags == RENAME_EXCHANGE:
        return _exchange(tx, state, mutation, op, source, target)
    if target is not None and op.flags == RENAME_NOREPLACE:
        raise refused(errno.EEXIST)
    # rename(2): two names of one inode stay both, and nothing happens.
    if target is not None and target.ino == source.ino:
        return node_of(source)
    directory = stat.S_ISDIR(source.mode)
    _check_no_cycle(tx, op.parent, op.new_parent, source)
    if target is not None:
        _check_replace(tx, state, mutation, source, target)
    _claim_rename(tx, state, mutation, op, source, target)
    if target is None:
        keys = {"b_parent": op.parent, "b_name": op.name}
        _MOVE_ENTRY.run(tx.connection, {**keys, "to_parent": op.new_parent, "to_name": op.new_name, "cookie": state.cookie()})
    else:
        _REMOVE_ENTRY.run(tx.connection, {"b_parent": op.parent, "b_name": op.name})
        _POINT_ENTRY.run(tx.connection, {"b_parent": op.new_parent, "b_name": op.new_name, "ino": source.ino})
        # Nothing refers to it by this name any more; it may have been the last one.
        _lose_name(tx, state, mutation, op.new_parent, target, op.now_ns)
    moved = directory and op.parent != op.new_parent
    # Directories count the ".." of their subdirectories: a moved one counts at its new parent, a replaced one nowhere.
    replaced = target is not None and directory
    touch_directory(tx.connection, op.parent, op.now_ns, links=-int(moved) - int(replaced and not moved))
    if op.new_parent != op.parent:
        touch_directory(tx.connection, op.new_parent, op.now_ns, links=int(moved) - int(replaced))
    relink(tx.connection, source.ino, op.now_ns, 0)
    if op.new_parent != op.parent:
        _leave(tx, state, mutation, source.ino, op.parent)
    _follow_policy(tx, state, op.parent, op.new_parent, source)
    if target is not None:
        return None
    # Elsewhere its home may have moved for another policy.
    return node_of(get_inode(tx.connection, source.ino) if op.new_parent != op.parent else source._replace(ctime_ns=op.now_ns))


def _claim_rename(
    tx: Transaction, state: State, mutation: Mutation, op: Rename, source: InodeRow, target: InodeRow | None
) -> None:
    parts = {Part.DIRECTORY: op.parent, Part.NEW_DIRECTORY: op.new_parent, Part.INODE: source.ino}
    if target is not None:
        parts[Part.REPLACED] = target.ino
    state.claim(tx, mutation, parts)


def _leave(tx: Transaction, state: State, mutation: Mutation, ino: int, directory: int) -> None:
    """Notes that the session may go on caching an inode whose name it has taken out of *directory*."""
    note_itself(tx, state.notes, mutation.session, state.leases.get(ino, mutation.session.number), directory)


def _check_no_cycle(tx: Transaction, old_parent: int, new_parent: int, source: InodeRow) -> None:
    """EINVAL if *source* would end up inside of itself."""
    if stat.S_ISDIR(source.mode) and old_parent != new_parent and is_below(tx.connection, new_parent, source.ino):
        raise refused(errno.EINVAL, "a directory cannot be moved into itself")


def _check_empty(tx: Transaction, state: State, mutation: Mutation, directory: InodeRow) -> None:
    # Who is alone in it may have emptied it, and not told yet.
    state.check_known(tx, mutation, directory.ino)
    if has_children(tx.connection, directory.ino):
        raise refused(errno.ENOTEMPTY)


def _check_replace(tx: Transaction, state: State, mutation: Mutation, source: InodeRow, target: InodeRow) -> None:
    if stat.S_ISDIR(target.mode):
        if not stat.S_ISDIR(source.mode):
            raise refused(errno.EISDIR)
        _check_empty(tx, state, mutation, target)
    elif stat.S_ISDIR(source.mode):
        raise refused(errno.ENOTDIR)


def _exchange(tx: Transaction, state: State, mutation: Mutation, op: Rename, source: InodeRow, target: InodeRow | None) -> Node:
    if target is None:
        raise refused(errno.ENOENT)
    if target.ino == source.ino:
        return node_of(source)
    _check_no_cycle(tx, op.parent, op.new_parent, source)
    # Both move: neither may end up inside of itself.
    _check_no_cycle(tx, op.new_parent, op.parent, target)
    _claim_rename(tx, state, mutation, op, source, target)
    _POINT_ENTRY.run(tx.connection, {"b_parent": op.parent, "b_name": op.name, "ino": target.ino})
    _POINT_ENTRY.run(tx.connection, {"b_parent": op.new_parent, "b_name": op.new_name, "ino": source.ino})
    # Links of the new parent: a directory came for a file, or a file for a directory.
    gained = 0
    if op.parent != op.new_parent:
        gained = int(stat.S_ISDIR(source.mode)) - int(stat.S_ISDIR(target.mode))
        touch_directory(tx.connection, op.new_parent, op.now_ns, links=gained)
        _leave(tx, state, mutation, source.ino, op.parent)
        _leave(tx, state, mutation, target.ino, op.new_parent)
    touch_directory(tx.connection, op.parent, op.now_ns, links=-gained)
    relink(tx.connection, source.ino, op.now_ns, 0)
    relink(tx.connection, target.ino, op.now_ns, 0)
    _follow_policy(tx, state, op.parent, op.new_parent, source)
    _follow_policy(tx, state, op.new_parent, op.parent, target)
    return node_of(get_inode(tx.connection, source.ino))


def _follow_policy(tx: Transaction, state: State, old_parent: int, new_parent: int, moved: InodeRow) -> None:
    """Applies the policy of the new place: to a file at once, to a directory's files in the background."""
    if old_parent == new_parent:
        return
    # By the parents, which have not moved: the cache is still right for them.
    before = state.policies.of_directory(tx.connection, old_parent)
    after = state.policies.of_directory(tx.connection, new_parent)
    if stat.S_ISDIR(moved.mode):
        policies_changed(tx, state)
        if before != after:
            queue_scan(tx, state, moved.ino)
    elif before != after:
        align_inode(tx, state, moved.ino)


def queue_scan(tx: Transaction, state: State, directory: int) -> None:
    """Has the files below a directory brought to their policies in the background (again from its beginning)."""
    # A scan under way begins again: entries that it has passed may be under the new policy, too.
    known = tx.execute(select(scans.c.ino).where(scans.c.ino == directory)).first()
    if known is None:
        tx.execute(insert(scans), {"ino": directory, "after": 0})
    else:
        tx.execute(update(scans).where(scans.c.ino == directory).values(after=0))
    tx.after(lambda: state.bells.ring(SCAN))
