"""The present attributes of an inode: the catalog's, with what the home's object says laid over while the file is dirty."""

import stat
from contextlib import suppress

import msgspec
import trio

from cluster.errors import Fenced, Refused, Unavailable
from cluster.messages import Content, GetAttr, Node
from cluster.rpc.session import ManagerSession
from cluster.volume.content import overlay
from fusefs.caching.tokens import Leases
from fusefs.content.local_object import LocalObject, content_at
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode
from fusefs.content.peers import Peers
from fusefs.content.remote_object import RemoteObject

RETRY_S = 0.25
GLANCE_S = 1.0  # as long as a lookup or a listing waits for a home: names have to go on working while one is away
_AWAY = (Unavailable, Refused, Fenced, FileNotFoundError)  # it cannot say now, or is not there: the home may have moved


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
        """*node* as it is at this moment. Raises `Unavailable` if its home cannot be reached in time.

        The last committed size and times may be older than what somebody has seen: they are never given instead.
        """
        reason: Exception | str = "it does not answer"
        with trio.move_on_after(self._timeout_s):
            while True:
                try:
                    return await self._present(node)
                except _AWAY as error:
                    reason = error
                    if not isinstance(error, Fenced):  # which says that the home has moved: asking at once helps
                        await trio.sleep(RETRY_S)
                # Meanwhile its home may have moved, or the file have been committed.
                node = (await self._session.call(GetAttr(node.ino), timeout_s=self._timeout_s)).node
        raise Unavailable(f"the home of inode {node.ino} cannot say how large the file is: {reason}")

    async def glance(self, node: Node) -> tuple[Node, bool]:
        """*node* with its present size and times, and whether they are: of a home that is away or silent, the committed ones.

        The kernel may be given those with a name, so that the name can be used and taken away, but not to keep: it asks again,
        which `live` answers, before any program gets size or times.
        """
        with trio.move_on_after(GLANCE_S), suppress(*_AWAY):
            return await self._present(node), True
        return node, False

    def at_once(self, node: Node) -> Node | None:
        """*node* as it is at this moment, unless somebody has to be asked for that."""
        state = self._files.get(node.ino)
        if state is not None:
            state.answered(node)  # which may be news for those who have it open, too
        if not node.dirty or not stat.S_ISREG(node.mode):
            return node
        # `fstat` of an open descriptor is answered by the kernel; only without one has somebody to be asked.
        home = None if state is None else state.home
        return overlay(node, home.content()) if isinstance(home, LocalObject) else None

    async def _present(self, node: Node) -> Node:
        present = self.at_once(node)
        if present is not None:
            return present
        state = self._files.get(node.ino)
        return overlay(node, await self._content(state, node))

    async def _content(self, state: OpenInode | None, node: Node) -> Content:
        if state is not None and state.home is not None:
            return await state.home.stat()
        volume = await self._peers.volume(node.home_volume)
        if self._peers.is_local(volume):
            return await content_at(volume.path, node.ino, self._timeout_s)
        return await RemoteObject(self._peers, self._leases, node, volume=volume.volume, timeout_s=self._timeout_s).stat()
