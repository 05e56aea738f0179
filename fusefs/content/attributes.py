"""The present attributes of an inode: the catalog's, with what the home's object says laid over while the file is dirty."""

import os
import stat

import msgspec

from cluster.errors import Fenced, Refused, Unavailable
from cluster.messages import Content, GetAttr, Node
from cluster.rpc.session import ManagerSession
from cluster.volume.content import content_of, overlay
from cluster.volume.layout import VolumeLayout
from fusefs.caching.tokens import Leases
from fusefs.content.peers import Peers
from fusefs.objects import LocalObject, RemoteObject
from fusefs.openfiles import OpenFiles, OpenInode


def with_content_of(present: Node, node: Node) -> Node:
    """*node* with the size and times of *present*, which is the same file as it was a moment before."""
    return msgspec.structs.replace(
        node,
        size=present.size,
        blocks=present.blocks,
        mtime_ns=present.mtime_ns,
        ctime_ns=max(node.ctime_ns, present.ctime_ns),
    )


class Attributes:
    """Answers `stat` questions about nodes that the manager has just sent."""

    def __init__(self, session: ManagerSession, peers: Peers, leases: Leases, files: OpenFiles, timeout_s: float) -> None:
        self._session = session
        self._peers = peers
        self._leases = leases
        self._files = files
        self._timeout_s = timeout_s

    async def live(self, node: Node) -> Node:
        """*node* as it is at this moment; with its last committed size and times if its home cannot be reached."""
        try:
            return await self._present(node)
        except Fenced:
            newer = (await self._session.call(GetAttr(node.ino), timeout_s=self._timeout_s)).node
        try:
            return await self._present(newer)
        except Fenced:
            return newer

    def at_once(self, node: Node) -> Node | None:
        """*node* as it is at this moment, unless somebody has to be asked for that."""
        state = self._files.get(node.ino)
        if state is not None:
            state.saw(node)
        if not node.dirty or not stat.S_ISREG(node.mode):
            return node
        home = None if state is None else state.home
        return overlay(node, home.content()) if isinstance(home, LocalObject) else None

    async def _present(self, node: Node) -> Node:
        present = self.at_once(node)
        if present is not None:
            return present
        state = self._files.get(node.ino)
        try:
            return overlay(node, await self._content(state, node))
        except (Unavailable, Refused, FileNotFoundError):
            return node

    async def _content(self, state: OpenInode | None, node: Node) -> Content:
        if state is not None and state.home is not None:
            return await state.home.stat()
        volume = await self._peers.volume(node.home_volume)
        if self._peers.is_local(volume):
            return content_of(os.stat(VolumeLayout.at(volume.path).object_path(node.ino)))
        return await RemoteObject(self._peers, self._leases, node, volume=volume.volume, timeout_s=self._timeout_s).stat()
