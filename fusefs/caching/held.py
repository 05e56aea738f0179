"""Changes that this mount makes by itself, in directories with which it is alone: docs/held-directories.md.

`HeldDirectories.apply` answers an operation as the manager would, or not at all; then the manager is asked. It never refuses:
what a program must be told went wrong, the manager says. Nothing here waits, but for `prepare`.
"""

import stat
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import msgspec
import trio

from cluster.errors import Refused
from cluster.messages import (
    NAME_MAX,
    RENAME_NOREPLACE,
    XATTRS_UNKNOWN,
    Applied,
    Create,
    HeldDirectory,
    Hold,
    Link,
    Node,
    Operation,
    Recall,
    Record,
    RecordsApplied,
    Rename,
    Rmdir,
    SetAttr,
    Unlink,
    XattrKind,
)
from cluster.new_inodes import LINK_MAX, inherited, new_node
from cluster.rpc.session import ManagerSession
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.grants import Permit
from fusefs.caching.listings import Contents
from fusefs.caching.noted import Noted, Repeats
from fusefs.caching.records import Records

TIMES_NS = range(-(2**63), 2**63)  # since the epoch, that the manager takes
AGAIN_S = 1.0  # two changes in a directory within that time: more are to be expected
HOLD_AGAIN_S = 2.0  # a directory that is held is asked for again if leases of its entries have ended
REFUSED_S = 1.0  # until a directory is asked for again, if the manager does not say how long

Names: TypeAlias = Mapping[tuple[int, bytes], int | None]
"""What becomes of names, by directory and name: an inode, 0 for none, None for what is not known."""

NO_NAMES: Names = MappingProxyType({})


class Done(NamedTuple):
    """A change that was made here: as the manager would have answered, and what became of names."""

    applied: Applied
    names: Names


class HeldDirectories:
    """What this mount changes by itself, and which directories it asks to be alone in."""

    def __init__(
        self,
        session: ManagerSession,
        caching: Caching,
        alone: Alone,
        records: Records,
        timeout_s: float,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._session = session
        self._caching = caching
        self._alone = alone
        self._records = records
        self._timeout_s = timeout_s
        self._now = now
        self._changes = Repeats(AGAIN_S)  # directories in which the manager makes changes
        self._held_s = Noted()  # when the manager has let this mount hold a directory last
        self._nowhere_until_s = 0.0  # no directory is to be had until then

    # ------------------------------------------------------------------------------------------------------- asking

    async def prepare(self, directories: tuple[int, ...]) -> bool:
        """A change there, or of something with a name there, is about to be made by the manager: asks to be alone where it is the
        second one in short time. Whether that was granted anywhere."""
        granted = False
        for directory in dict.fromkeys(directories):
            if self._is_worth_it(directory):
                granted = await self._hold(directory) or granted
        return granted

    def _is_worth_it(self, directory: int) -> bool:
        now = self._now()
        if now < self._nowhere_until_s:
            return False
        if not self._changes.again(directory, now):
            return False
        is_held = self._alone.has(directory) and self._caching.contents(directory) is not None
        return not is_held or self._held_s.get(directory) < now - HOLD_AGAIN_S

    async def _hold(self, directory: int) -> bool:
        """The kernel holds the directory's lock: no name there is changed by this mount meanwhile."""
        asked_s = trio.current_time()
        try:
            held = await self._session.call(Hold(directory), timeout_s=self._timeout_s)
        except Refused:
            return False  # the change itself is told what is wrong
        if held.node is None or held.grant is None:
            self._refused(directory, held)
            return False
        permit = self._caching.take(held.grant, asked_s)
        self._alone.granted(held.grant, asked_s)
        self._caching.keep_node(held.node, permit)
        for entry in held.entries:
            self._caching.keep_node(entry.node, permit)
        names: dict[bytes, int | None] = {entry.name: entry.node.ino for entry in held.entries}
        self._caching.keep_contents(directory, Contents(None, names, permit))
        self._held_s.note(directory, self._now())
        return True

    def _refused(self, directory: int, reply: HeldDirectory) -> None:
        until_s = self._now() + (reply.wait_s or REFUSED_S)
        if reply.everywhere:
            self._nowhere_until_s = until_s
        self._changes.wait(directory, until_s)

    def applied(self, reply: RecordsApplied, asked_s: float) -> None:
        """The manager has applied records: the leases of what they name last longer."""
        if reply.grant is not None:
            self._caching.prolonged(reply.grant, asked_s)
            self._alone.granted(reply.grant, asked_s)

    def shown(self, recall: Recall) -> None:
        """Others may look at these from now on: this mount is alone with them no more."""
        self._alone.shown(recall)

    async def tell_all(self, timeout_s: float) -> None:
        """Returns when the manager has all that was changed here until now. Raises as `Records.flush`."""
        await self._records.flush(timeout_s)

    def committed(self, node: Node, asked_s: float) -> None:
        """The manager has committed a file's content, which it was asked to at *asked_s*: its node is this, unless it was changed
        here since."""
        self._caching.drop_node(node.ino)
        grant = self._alone.grant_for((node.ino,))
        if grant is not None:
            until_s = self._now() + grant.access_s
            self._caching.keep_node(node, Permit(self._caching, grant.serial, frozenset(grant.inodes), asked_s, until_s))

    def holding(self, ino: int) -> int | None:
        """As `Caching.holding`."""
        return self._caching.holding(ino)

    def is_alone(self, ino: int) -> bool:
        """Whether this mount may change the inode by itself at this moment."""
        return self._alone.has(ino)

    def check(self, ino: int) -> None:
        """Raises `Refused` (EIO), once, if a change of the inode that a program was told of was lost."""
        self._records.check(ino)

    # ------------------------------------------------------------------------------------------------------ applying

    def apply(self, operation: Operation) -> Done | None:
        """What became of the operation, which is in the journal now; None, and nothing has changed, if the manager has to be
        asked. To be applied to what is cached without an await."""
        rule = _RULES.get(type(operation))
        if rule is None:
            return None
        return rule(self, operation)

    def _contents(self, directory: int, name: bytes) -> Contents | None:
        """All names of a directory in which *name* may be changed."""
        return self._caching.contents(directory) if 0 < len(name) <= NAME_MAX else None

    def _node(self, ino: int | None) -> Node | None:
        kept = self._caching.node(ino) if ino else None
        return None if kept is None else kept[0]

    def _entry(self, directory: int, name: bytes) -> Node | None:
        """The node of a name that there is; None if that is not known, or it is not there."""
        contents = self._contents(directory, name)
        return None if contents is None else self._node(contents.ino_of(name))

    def _is_free(self, directory: int, name: bytes) -> bool:
        contents = self._contents(directory, name)
        return contents is not None and contents.ino_of(name) == 0

    def _record(
        self, record: Record, inodes: tuple[int, ...], nodes: list[Node | None], names: Names, born: int = 0
    ) -> Done | None:
        """Writes it down, and answers for it. *inodes*: all that it changes, with which this mount must be alone; *nodes*: as
        they are afterwards, the one that the operation is answered with first, or None."""
        grant = self._alone.grant_for(inodes, born)
        if grant is None or not self._records.add(record, grant.inodes, born):
            return None
        others = [node for node in nodes[1:] if node is not None]
        return Done(Applied([nodes[0]], grant=grant, touched=grant.inodes, directories=others), names)

    def _create(self, op: Create) -> Done | None:
        parent = self._node(op.parent)
        if parent is None or not _takes_new(parent) or not self._is_free(op.parent, op.name):
            return None
        mode, gid = inherited(parent.mode, parent.gid, op.mode & ~op.umask, op.gid)
        directory = stat.S_ISDIR(mode)
        node = new_node(op, mode, gid, links=2 if directory else 1)
        changed = _touched(parent, op.now_ns, links=int(directory))
        return self._record(Record(op), (op.parent,), [node, changed], {(op.parent, op.name): op.ino}, op.ino)

    def _link(self, op: Link) -> Done | None:
        parent, node = self._node(op.parent), self._node(op.ino)
        if parent is None or node is None or not parent.nlink or not self._is_free(op.parent, op.name):
            return None
        if stat.S_ISDIR(node.mode) or not 0 < node.nlink < LINK_MAX:
            return None
        changed: list[Node | None] = [_relinked(node, op.now_ns, 1), _touched(parent, op.now_ns)]
        return self._record(Record(op), (op.parent, op.ino), changed, {(op.parent, op.name): op.ino})

    def _unlink(self, op: Unlink) -> Done | None:
        parent, node = self._node(op.parent), self._entry(op.parent, op.name)
        if parent is None or node is None or stat.S_ISDIR(node.mode):
            return None
        return self._remove(op, parent, node, links=0)

    def _rmdir(self, op: Rmdir) -> Done | None:
        parent, node = self._node(op.parent), self._entry(op.parent, op.name)
        if parent is None or node is None or not stat.S_ISDIR(node.mode):
            return None
        contents = self._caching.contents(node.ino)
        if contents is None or not contents.is_empty():
            return None
        return self._remove(op, parent, node, links=-1)

    def _remove(self, op: Unlink | Rmdir, parent: Node, node: Node, *, links: int) -> Done | None:
        """*links*: what the parent gains."""
        changed: list[Node | None] = [None, _touched(parent, op.now_ns, links=links), *_left_of(node, op.now_ns)]
        inodes = (op.parent, node.ino)
        return self._record(Record(op, [self._records.expected(node)]), inodes, changed, {(op.parent, op.name): 0})

    def _rename(self, op: Rename) -> Done | None:
        if op.flags & ~RENAME_NOREPLACE:
            return None
        parent, new_parent = self._node(op.parent), self._node(op.new_parent)
        source, contents = self._entry(op.parent, op.name), self._contents(op.new_parent, op.new_name)
        if parent is None or new_parent is None or source is None or contents is None or not new_parent.nlink:
            return None
        # Only the manager sees whether a directory would come to be within itself.
        if stat.S_ISDIR(source.mode) and op.parent != op.new_parent:
            return None
        target_ino = contents.ino_of(op.new_name)
        target = self._node(target_ino)
        if target_ino != 0 and (target is None or not _may_replace(op, source, target)):
            return None
        return self._move(op, parent, new_parent, source, target)

    def _move(self, op: Rename, parent: Node, new_parent: Node, source: Node, target: Node | None) -> Done | None:
        moved = _relinked(source, op.now_ns, 0)
        changed: list[Node | None] = [None if target else moved, _touched(parent, op.now_ns)]
        if op.new_parent != op.parent:
            changed.append(_touched(new_parent, op.now_ns))
        expected, inodes = [self._records.expected(source)], [op.parent, op.new_parent, source.ino]
        if target is not None:
            expected.append(self._records.expected(target))
            inodes.append(target.ino)
            changed += [moved, *_left_of(target, op.now_ns)]
        names = {(op.parent, op.name): 0, (op.new_parent, op.new_name): source.ino}
        return self._record(Record(op, expected), tuple(dict.fromkeys(inodes)), changed, names)

    def _set_attr(self, op: SetAttr) -> Done | None:
        node = self._node(op.ino)
        if node is None or not node.nlink or node.xattrs == XATTRS_UNKNOWN:
            return None
        # With an access list chmod is no matter of the mode alone.
        if op.mode is not None and node.xattrs & XattrKind.ACCESS_ACL:
            return None
        if any(time_ns is not None and time_ns not in TIMES_NS for time_ns in (op.atime_ns, op.mtime_ns)):
            return None
        changed = msgspec.structs.replace(
            node,
            mode=node.mode if op.mode is None else stat.S_IFMT(node.mode) | op.mode,
            uid=node.uid if op.uid is None else op.uid,
            gid=node.gid if op.gid is None else op.gid,
            atime_ns=node.atime_ns if op.atime_ns is None else op.atime_ns,
            mtime_ns=node.mtime_ns if op.mtime_ns is None else op.mtime_ns,
            ctime_ns=op.now_ns,
        )
        return self._record(Record(op), (op.ino,), [changed], NO_NAMES)


def _takes_new(parent: Node) -> bool:
    """Whether what is made in a directory is like its parent says alone, without an access list."""
    return bool(parent.nlink) and parent.xattrs != XATTRS_UNKNOWN and not parent.xattrs & XattrKind.DEFAULT_ACL


def _may_replace(op: Rename, source: Node, target: Node) -> bool:
    """Whether nothing but the names decides; two names of one inode both stay, which is left to the manager."""
    both = stat.S_ISDIR(source.mode) or stat.S_ISDIR(target.mode)
    return not op.flags & RENAME_NOREPLACE and not both and source.ino != target.ino


def _touched(directory: Node, now_ns: int, links: int = 0) -> Node:
    nlink = directory.nlink + links
    return msgspec.structs.replace(directory, mtime_ns=now_ns, ctime_ns=now_ns, nlink=nlink)


def _relinked(node: Node, now_ns: int, links: int) -> Node:
    return msgspec.structs.replace(node, ctime_ns=now_ns, nlink=node.nlink + links)


def _left_of(node: Node, now_ns: int) -> list[Node]:
    """The node of what has lost a name, if it has others."""
    return [] if stat.S_ISDIR(node.mode) or node.nlink == 1 else [_relinked(node, now_ns, -1)]


_Rule: TypeAlias = Callable[[HeldDirectories, Any], Done | None]
_RULES: Mapping[type[Operation], _Rule] = {
    Create: HeldDirectories._create,
    Link: HeldDirectories._link,
    Unlink: HeldDirectories._unlink,
    Rmdir: HeldDirectories._rmdir,
    Rename: HeldDirectories._rename,
    SetAttr: HeldDirectories._set_attr,
}
