"""Questions about names and attributes: answered from what may be kept here, else by the manager."""

import errno

import trio

from cluster.errors import refused
from cluster.messages import NAME_MAX, GetAttr, GetParent, GetSpace, Lookup, Node, ReadLink, Space
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.grants import NOTHING, Permit
from fusefs.content.attributes import Attributes
from fusefs.content.last_paths import LastKnownPaths
from fusefs.names.whole_directories import WholeDirectories

DOTS = (b".", b"..")  # asked for when the kernel has a file handle and no inode (FUSE_EXPORT_SUPPORT), by any inode's number


class Lookups:
    """Answers questions. All methods raise `GodwitError`."""

    def __init__(
        self,
        session: ManagerSession,
        caching: Caching,
        whole_directories: WholeDirectories,
        attributes: Attributes,
        paths: LastKnownPaths,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._caching = caching
        self._whole_directories = whole_directories
        self._attributes = attributes
        self._paths = paths
        self._timeout_s = timeout_s

    # ------------------------------------------------------------------------------------------------------- names

    async def lookup(self, parent: int, name: bytes) -> EntryReply:
        """What *name* is in *parent*; a node of None if there is no such name."""
        if name in DOTS:
            return await self._by_number(parent, name)
        known = self._listed(parent, name)
        if known is None and await self._whole_directories.missed(parent):
            known = self._listed(parent, name)
        if known is not None:
            node, permit, names = known
            present, permit = (None, permit) if node is None else await self.glance(node, permit)
            return self._found(present, permit, parent, name, names)
        asked_s = trio.current_time()
        found = await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)
        permit = self._caching.take(found.grant, asked_s)
        if found.node is None:
            return self._caching.entry_reply(None, 0.0, parent, name, permit.until_s(parent))
        self._paths.note(found.node.ino, parent, name)
        self._caching.keep_node(found.node, permit)
        # A recall may come while the home is asked: `until_s` comes after it, in the step in which the kernel is answered.
        node, attr_permit = await self.glance(found.node, permit)
        return self._caching.entry_reply(node, attr_permit.until_s(node.ino), parent, name, permit.until_s(parent))

    def lookup_known(self, parent: int, name: bytes) -> EntryReply | None:
        """As `lookup`, without a task (saves 30 to 50 µs); None if somebody has to be asked."""
        known = None if name in DOTS else self._listed(parent, name)
        if known is None:
            return None
        node, permit, names = known
        present = None if node is None else self._attributes.at_once(node)
        return None if present is None and node is not None else self._found(present, permit, parent, name, names)

    async def _by_number(self, ino: int, name: bytes) -> EntryReply:
        """The inode itself, or the directory in which it is now; ESTALE if it has been removed. The kernel keeps neither name."""
        if name == b"..":
            ino = (await self._session.call(GetParent(ino), timeout_s=self._timeout_s)).ino
        reply = await self.getattr(ino)
        if reply.node is not None and not reply.node.nlink:
            raise refused(errno.ESTALE, f"inode {ino} has been removed")
        return reply

    def _found(self, node: Node | None, permit: Permit, parent: int, name: bytes, names: Permit) -> EntryReply:
        attr_until_s = 0.0 if node is None else permit.until_s(node.ino)
        return self._caching.entry_reply(node, attr_until_s, parent, name, names.until_s(parent))

    def _listed(self, parent: int, name: bytes) -> tuple[Node | None, Permit, Permit] | None:
        """What the kept listing of *parent* says of a name, with the permits of the node and of the name; None if that is not
        enough to answer."""
        contents = self._caching.contents(parent)
        ino = None if contents is None or len(name) > NAME_MAX else contents.ino_of(name)
        if contents is None or ino is None:
            return None
        if ino == 0:
            return None, NOTHING, contents.permit
        kept = self._caching.node(ino)
        return None if kept is None else (*kept, contents.permit)

    async def existing(self, parent: int, name: bytes) -> Node | None:
        """The node of a name, as the manager says at this moment; None if there is none."""
        return (await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)).node

    async def ino_in_kernel(self, parent: int, name: bytes) -> int:
        """The inode of a name that the kernel is about to take away, 0 if there is none: the kernel may hold its lock."""
        known = self.ino_in_kernel_known(parent, name)
        if known is not None:
            return known
        node = await self.existing(parent, name)
        return 0 if node is None else node.ino

    def ino_in_kernel_known(self, parent: int, name: bytes) -> int | None:
        """As `ino_in_kernel`; None if the manager has to be asked."""
        known = self._caching.given_ino(parent, name)
        if known is None and (contents := self._caching.contents(parent)) is not None:
            known = contents.ino_of(name)
        return known

    # -------------------------------------------------------------------------------------------------- attributes

    async def getattr(self, ino: int) -> EntryReply:
        node, permit = await self.node(ino)
        present = await self._attributes.live(node)
        return self._caching.entry_reply(present, permit.until_s(ino))

    def getattr_known(self, ino: int) -> EntryReply | None:
        """As `getattr`, without a task; None if somebody has to be asked."""
        kept = self._caching.node(ino)
        present = None if kept is None else self._attributes.at_once(kept[0])
        return None if kept is None or present is None else self._caching.entry_reply(present, kept[1].until_s(ino))

    async def glance(self, node: Node, permit: Permit) -> tuple[Node, Permit]:
        """The node as it is, with its permit; with none if its home is away: the kernel asks before it tells a program."""
        present, current = await self._attributes.glance(node)
        return present, permit if current else NOTHING

    def at_once(self, node: Node) -> Node | None:
        """As `glance`, without a task; None if somebody has to be asked."""
        return self._attributes.at_once(node)

    async def node(self, ino: int) -> tuple[Node, Permit]:
        """The catalog's node, and whether it may be kept."""
        kept = self._caching.node(ino)
        if kept is not None:
            return kept
        asked_s = trio.current_time()
        described = await self._session.call(GetAttr(ino), timeout_s=self._timeout_s)
        permit = self._caching.take(described.grant, asked_s)
        self._caching.keep_node(described.node, permit)
        return described.node, permit

    async def readlink(self, ino: int) -> bytes:
        return (await self._session.call(ReadLink(ino), timeout_s=self._timeout_s)).value

    async def space(self) -> Space:
        return await self._session.call(GetSpace(), timeout_s=self._timeout_s)
