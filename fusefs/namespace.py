"""Names and attributes: answered from what may be kept here, else by the manager, which makes every change."""

import errno
import os
import stat
from collections.abc import Callable, Collection

import msgspec
import trio

from cluster.clock import file_time_ns
from cluster.errors import Refused
from cluster.messages import (
    NAME_MAX,
    RENAME_EXCHANGE,
    Create,
    GetAttr,
    GetSpace,
    GetXattr,
    Link,
    ListXattr,
    Lookup,
    Node,
    Operation,
    ReadLink,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Space,
    Unlink,
)
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import NOTHING, Allowance, Caching, Seen
from fusefs.caching.changes import Changes, Names
from fusefs.content.attributes import Attributes, with_content_of
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.files import SECURITY_CAPABILITY, Files
from fusefs.kernel.stream import Channel, InitFlag
from fusefs.names.listings import Directories
from fusefs.openfiles import OpenFiles
from fusefs.privileges import ACCESS_LIST, has_set_id, without_set_id


class Namespace:
    """The operations of the overlay that are not about the bytes of a file. All raise `GodwitError`."""

    def __init__(
        self,
        session: ManagerSession,
        caching: Caching,
        changes: Changes,
        attributes: Attributes,
        open_files: OpenFiles,
        files: Files,
        directories: Directories,
        numbers: InodeNumbers,
        channel: Channel,
        paths: LastKnownPaths,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._caching = caching
        self._changes = changes
        self._attributes = attributes
        self._open_files = open_files
        self._files = files
        self._directories = directories
        self._numbers = numbers
        self._channel = channel
        self._paths = paths
        self._timeout_s = timeout_s

    # ------------------------------------------------------------------------------------------------- questions

    async def lookup(self, parent: int, name: bytes) -> Seen:
        """What *name* is in *parent*; a node of None if there is no such name."""
        known = self._listed(parent, name)
        if known is not None:
            node, allowed, names = known
            present = None if node is None else await self._attributes.live(node)
            return self._found(present, allowed, parent, name, names)
        asked_s = trio.current_time()
        found = await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)
        allowed = self._caching.take(found.grant, asked_s)
        if found.node is None:
            return self._caching.seen(None, 0.0, parent, name, allowed.until_s(parent))
        self._paths.saw(found.node.ino, parent, name)
        self._caching.keep_node(found.node, allowed)
        node = await self._attributes.live(found.node)
        return self._caching.seen(node, allowed.until_s(node.ino), parent, name, allowed.until_s(parent))

    def lookup_known(self, parent: int, name: bytes) -> Seen | None:
        """As `lookup`; None if somebody has to be asked."""
        known = self._listed(parent, name)
        if known is None:
            return None
        node, allowed, names = known
        present = None if node is None else self._attributes.at_once(node)
        return None if present is None and node is not None else self._found(present, allowed, parent, name, names)

    def _found(self, node: Node | None, allowed: Allowance, parent: int, name: bytes, names: Allowance) -> Seen:
        attr_until_s = 0.0 if node is None else allowed.until_s(node.ino)
        return self._caching.seen(node, attr_until_s, parent, name, names.until_s(parent))

    def _listed(self, parent: int, name: bytes) -> tuple[Node | None, Allowance, Allowance] | None:
        """What is known of all names in the directory says of one, with the allowances of the node and the name; None if that is
        not enough."""
        contents = self._caching.contents(parent)
        ino = None if contents is None or len(name) > NAME_MAX else contents.ino_of(name)
        if contents is None or ino is None:
            return None
        if ino == 0:
            return None, NOTHING, contents.allowed
        kept = self._caching.node(ino)
        return None if kept is None else (*kept, contents.allowed)

    async def getattr(self, ino: int) -> Seen:
        node, allowed = await self._node(ino)
        present = await self._attributes.live(node)
        return self._caching.seen(present, allowed.until_s(ino))

    def getattr_known(self, ino: int) -> Seen | None:
        """As `getattr`; None if somebody has to be asked."""
        kept = self._caching.node(ino)
        present = None if kept is None else self._attributes.at_once(kept[0])
        return None if kept is None or present is None else self._caching.seen(present, kept[1].until_s(ino))

    async def _node(self, ino: int) -> tuple[Node, Allowance]:
        kept = self._caching.node(ino)
        if kept is not None:
            return kept
        asked_s = trio.current_time()
        described = await self._session.call(GetAttr(ino), timeout_s=self._timeout_s)
        allowed = self._caching.take(described.grant, asked_s)
        self._caching.keep_node(described.node, allowed)
        return described.node, allowed

    async def readlink(self, ino: int) -> bytes:
        return (await self._session.call(ReadLink(ino), timeout_s=self._timeout_s)).value

    async def space(self) -> Space:
        return await self._session.call(GetSpace(), timeout_s=self._timeout_s)

    # --------------------------------------------------------------------------------------------------- changes

    async def setattr(self, change: SetAttr, size: int | None, uid: int) -> Seen:
        """Changes attributes for *uid* and, if *size* is given, the length of the file, which goes first."""
        if self._drops_set_id():
            change = await self._without_set_id(change, size, uid)
        if size is not None:
            await self._files.truncate(change.ino, size)
        if change.mode is change.uid is change.gid is change.atime_ns is change.mtime_ns is None:
            return self._doubted(await self.getattr(change.ino))
        node, allowed = await self._set_attributes(change)
        present = await self._attributes.live(node)
        return self._doubted(self._caching.seen(present, allowed.until_s(change.ino)))

    async def _set_attributes(self, change: SetAttr) -> tuple[Node, Allowance]:
        """While the file is dirty, the object has its times: who has it at hand changes both at once."""
        allowed = NOTHING

        async def apply(operation: Operation) -> Node:
            nonlocal allowed
            changed = await self._changes.apply(operation, change.ino)
            allowed = changed.allowed
            return changed.made

        home = self._files.written_here(change.ino) if change.mtime_ns is not None else None
        node = await (apply(change) if home is None else home.set_times(change, apply))
        if home is None and node.dirty and change.mtime_ns is not None:
            node = await self._files.set_times(node, change)
        return node, allowed

    @staticmethod
    def _doubted(seen: Seen) -> Seen:
        """The kernel takes the time of this answer over without looking at its pages: what another server wrote just before would
        go unnoticed. Where it may not keep the attributes it is told another time, and finds the right one when it asks."""
        if seen.attr_s or seen.node is None or not stat.S_ISREG(seen.node.mode):
            return seen
        return seen._replace(node=msgspec.structs.replace(seen.node, mtime_ns=seen.node.mtime_ns - 1))

    def _drops_set_id(self) -> bool:
        return InitFlag.HANDLE_KILLPRIV_V2 in self._channel.granted

    async def _without_set_id(self, change: SetAttr, size: int | None, uid: int) -> SetAttr:
        """The change with what Linux does besides: another owner, or a truncation that is not root's, takes the set-id bits."""
        owner = change.uid is not None or change.gid is not None
        if change.mode is not None or not (owner or (size is not None and uid != 0)):
            return change
        mode = (await self._node(change.ino))[0].mode
        drops = not stat.S_ISDIR(mode) and has_set_id(mode)
        return msgspec.structs.replace(change, mode=without_set_id(mode)) if drops else change

    async def _drop_set_id(self, ino: int) -> None:
        mode = (await self._node(ino))[0].mode
        if has_set_id(mode):
            await self._changes.apply(SetAttr(ino, file_time_ns(), mode=without_set_id(mode)), ino)

    async def make(self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b"") -> Seen:
        """Makes anything but a regular file: a directory, a symbolic link, a device, a pipe or a socket."""
        ino = await self._numbers.take()
        now_ns = file_time_ns()
        create = Create(parent, name, ino, mode, uid, gid, rdev, now_ns, target=target)
        made = await self._changes.make(create)
        self._paths.saw(made.made.ino, parent, name)
        return self._changes.seen(made, parent, name)

    async def link(self, ino: int, parent: int, name: bytes) -> Seen:
        # The home is asked before: from the manager's answer on others may act on the name, which the kernel does not know yet.
        before = await self._attributes.live((await self._node(ino))[0])
        linked = await self._changes.apply(Link(ino, parent, name, file_time_ns()), parent, names={(parent, name): ino})
        self._paths.saw(ino, parent, name)
        if (state := self._open_files.get(ino)) is not None:
            state.sync_copies = None  # it may have had no name, and so no policy
        node = self._attributes.at_once(linked.made) or with_content_of(before, linked.made)
        allowed = linked.allowed
        return self._caching.seen(node, allowed.until_s(ino), parent, name, allowed.until_s(parent))

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._changes.apply(Unlink(parent, name, file_time_ns()), parent, names={(parent, name): 0})
        self._caching.removed_name(parent, name)

    async def rmdir(self, parent: int, name: bytes) -> None:
        victim = await self._named(parent, name)
        with self._changes.under_way(parent, victim):
            await self._directories.register(victim)
            await self._changes.apply(Rmdir(parent, name, file_time_ns()), names={(parent, name): 0})
            self._caching.removed_name(parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        held = {directory: self._caching.holding(directory) for directory in (parent, new_parent)}
        source, target = await self._named(parent, name), await self._named(new_parent, new_name)
        with self._changes.under_way(parent, new_parent, source, target):
            await self._directories.register(target)
            exchange = bool(flags & RENAME_EXCHANGE)
            names: Names = {(parent, name): None, (new_parent, new_name): None}
            if all(self._caching.is_held_since(directory, holding) for directory, holding in held.items()):
                # Nothing happens to two names of one inode.
                names = {} if source == target else {(parent, name): target if exchange else 0, (new_parent, new_name): source}
            await self._changes.apply(Rename(parent, name, new_parent, new_name, flags, file_time_ns()), names=names)
            until_s = self._caching.moved_name((parent, name), (new_parent, new_name), exchange=exchange)
            await self._changes.outlive(until_s)

    async def _named(self, parent: int, name: bytes) -> int:
        """The inode of a name that the kernel is about to take away, 0 if there is none: the kernel may hold its lock."""
        known = self._caching.given_ino(parent, name)
        if known is not None:
            return known
        node = (await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)).node
        return 0 if node is None else node.ino

    async def before_write(self, ino: int) -> None:
        """Takes the set-id bits if the write that follows does. Where nothing of the inode may be cached here, those are seen
        that it had when it was opened, or has got on this mount since."""
        if self._channel.kills_set_id(ino) and (state := self._open_files.get(ino)) is not None:
            kept = self._caching.node(ino)
            mode = (kept[0] if kept else state.node).mode
            if has_set_id(mode):
                changed = await self._changes.apply(SetAttr(ino, file_time_ns(), mode=without_set_id(mode)), ino)
                state.saw(changed.made)

    # ----------------------------------------------------------------------------------------- extended attributes

    async def getxattr(self, ino: int, name: bytes, uid: int) -> bytes:
        """An attribute's value for *uid*; raises `Refused` with ENODATA if there is none.

        The kernel asks for the capabilities before a `write`: before every one while there are set-id bits, which a write takes
        away (unless it is root's), also one that the mount does not see otherwise. Who has the file open for writing knows
        that there are no capabilities: the manager does not let another mount set them meanwhile. After the last close nobody can
        write, although it is open for writing to the manager until it is committed.
        """
        if name == SECURITY_CAPABILITY:
            state = self._open_files.get(ino)
            if state is not None and state.registered_write:
                if self._drops_set_id() and uid != 0 and state.writers:
                    await self._drop_set_id(ino)
                if not state.caps:
                    raise Refused(os.strerror(errno.ENODATA), errno.ENODATA)
        return (await self._session.call(GetXattr(ino, name), timeout_s=self._timeout_s)).value

    def has_no_xattr(self, ino: int, name: bytes) -> bool:
        """Whether it is known here that `getxattr` would do nothing and find nothing."""
        state = self._open_files.get(ino)
        if name != SECURITY_CAPABILITY or state is None or not state.registered_write or state.caps:
            return False
        kept = self._caching.node(ino)
        return not self._drops_set_id() or (kept is not None and not has_set_id(kept[0].mode))

    async def setxattr(self, ino: int, name: bytes, value: bytes, uid: int, groups: Callable[[], Collection[int]]) -> None:
        """Sets an attribute for *uid*, who is in *groups*."""
        if name == SECURITY_CAPABILITY and (state := self._open_files.get(ino)) is not None:
            state.caps = True
        keeps_sgid = name != ACCESS_LIST or uid == 0 or (await self._node(ino))[0].gid in groups()
        await self._changes.apply(SetXattr(ino, name, value, 0, file_time_ns(), keeps_sgid), ino)

    async def listxattr(self, ino: int, uid: int) -> list[bytes]:
        """The names that *uid* may see: `trusted.*` is for root alone."""
        names = (await self._session.call(ListXattr(ino), timeout_s=self._timeout_s)).names
        return names if uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    async def removexattr(self, ino: int, name: bytes) -> None:
        await self._changes.apply(RemoveXattr(ino, name, file_time_ns()), ino)
