"""Reading and seeking: at the home, in a replica on this server, or in whatever current replica can be had."""

import logging
import os

from cluster.errors import GodwitError, Unavailable
from cluster.messages import Node
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases
from fusefs.content.peers import Peers
from fusefs.homes import Homes, check_home
from fusefs.objects import Buffer, LocalObject, check_replica
from fusefs.openfiles import OpenInode

log = logging.getLogger(__name__)


class Reader:
    """Reads the content of open inodes."""

    def __init__(
        self, session: ManagerSession, peers: Peers, leases: Leases, caching: Caching, homes: Homes, timeout_s: float
    ) -> None:
        self._session = session
        self._peers = peers
        self._leases = leases
        self._caching = caching
        self._homes = homes
        self._timeout_s = timeout_s

    async def read(self, state: OpenInode, offset: int, length: int) -> Buffer:
        local = await self.local(state)
        if local is not None:
            return await local.read(offset, length)
        return await self._read_remote(state, offset, length)

    async def seek(self, state: OpenInode, offset: int, whence: int) -> int | None:
        """Where data or a hole begins; None if nothing of the kind follows."""
        local = await self.local(state)
        if local is not None:
            return await local.seek(offset, whence)
        home = self._homes.remote(state.node)
        if state.node.dirty:
            return await home.seek(offset, whence)
        try:
            if await self._is_up_elsewhere(state):
                return await home.seek_once(offset, whence)
        except Unavailable as error:
            log.info("the home of inode %d is away, it counts as one piece of data: %s", state.ino, error)
        return all_data((await self._settled_node(state)).size, offset, whence)

    async def local(self, state: OpenInode) -> LocalObject | None:
        """The object on this server's disks that has the content at this moment: the home's, or a current replica."""
        held = await self._leases.hold_for_content(state.ino)
        if isinstance(state.home, LocalObject):
            check_home(state, held)
            return state.home
        if state.doubted:
            await self._homes.ask_anew(state)
        volume = await self._peers.volume(state.node.home_volume)
        if self._peers.is_local(volume):
            return await self._local_home(state)
        replica = await self._own_replica(state) if self._is_settled(state) else None
        return replica if self._is_settled(state) else None

    def _is_settled(self, state: OpenInode) -> bool:
        """Whether the content is what the catalog says, and the manager would ask for the lease back before that changed."""
        return not state.node.dirty and not state.doubted and self._caching.may_keep(state.ino)

    async def _local_home(self, state: OpenInode) -> LocalObject | None:
        """None if its object is not there, the file not being dirty, or if the home has moved to another server."""
        try:
            home = await self._homes.reach(state)
        except GodwitError:
            if state.node.dirty:
                raise
            return None
        return home if isinstance(home, LocalObject) else None

    async def _read_remote(self, state: OpenInode, offset: int, length: int) -> Buffer:
        home = self._homes.remote(state.node)
        if state.node.dirty:
            return await home.read(offset, length)
        try:
            if await self._is_up_elsewhere(state):
                return await home.read_once(offset, length)
        except Unavailable as error:
            log.info("the home of inode %d is away, reading another replica: %s", state.ino, error)
        return await self._read_any_replica(state, offset, length)

    async def _is_up_elsewhere(self, state: OpenInode) -> bool:
        """Whether the home is at another server, which the manager hears."""
        volume = await self._peers.volume(state.node.home_volume)
        return volume.up and not self._peers.is_local(volume)

    async def _own_replica(self, state: OpenInode) -> LocalObject | None:
        """A current replica on this server's disks, checked at every read against the stamp in the catalog."""
        await self._homes.locate(state)
        for replica in state.replicas:
            volume = await self._peers.volume(replica.volume)
            if replica.version != state.node.version or not self._peers.is_local(volume):
                continue
            try:
                if state.replica is None or state.replica_version != replica.version:
                    if state.replica is not None:
                        state.replica.close()
                        state.replica = None
                    state.replica = LocalObject.open(volume.path, state.ino, os.O_RDONLY, self._session, self._timeout_s)
                    state.replica_version = replica.version
                check_replica(state.replica, replica.stamp, state.ino)
            except GodwitError:
                continue
            return state.replica
        return None

    async def _read_any_replica(self, state: OpenInode, offset: int, length: int) -> Buffer:
        """From whatever current replica can be had, the home being away and the file not dirty."""
        node = await self._settled_node(state)
        if (own := await self._own_replica(state)) is not None:
            return await own.read(offset, length)
        failure: GodwitError = Unavailable(f"no server with a current replica of inode {state.ino} can be reached")
        for replica in state.replicas:
            if replica.volume == node.home_volume or replica.stamp is None:
                continue
            try:
                return await self._homes.remote(node, replica).read(offset, length)
            except GodwitError as error:
                failure = error
        raise failure

    async def _settled_node(self, state: OpenInode) -> Node:
        """The catalog's node, which is the truth, the file not being dirty. Raises `Unavailable` if it is."""
        node = (await self._homes.ask(state.ino)).node
        state.saw(node)
        if node.dirty or node.version != state.node.version:
            raise Unavailable(f"the home of inode {state.ino} is away, and the file is being written there")
        return node


def all_data(size: int, offset: int, whence: int) -> int | None:
    """Where data or a hole begins in a file of which nobody can say where it has holes."""
    if offset >= size:
        return None
    return offset if whence == os.SEEK_DATA else size
