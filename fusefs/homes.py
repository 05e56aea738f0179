"""Where the content of an inode is at the moment: its home's object, and the replicas that the catalog knows."""

import logging
import stat

from cluster.errors import Fenced, GodwitError, Unavailable
from cluster.messages import Locate, Node, Opened, Replica
from cluster.rpc.session import ManagerSession
from fusefs.caching.tokens import Held, Leases
from fusefs.content.peers import Peers
from fusefs.objects import LocalObject, Object, RemoteObject
from fusefs.openfiles import OpenInode

log = logging.getLogger(__name__)


class Homes:
    """Finds and reaches the homes of open inodes."""

    def __init__(self, session: ManagerSession, peers: Peers, leases: Leases, timeout_s: float) -> None:
        self._session = session
        self._peers = peers
        self._leases = leases
        self._timeout_s = timeout_s

    async def reach(self, state: OpenInode) -> Object:
        """The home's object. Raises `Unavailable` if its server stays away, before the catalog is told of a writer."""
        while True:
            try:
                return await self._reach_known(state)
            except Unavailable:
                raise
            except GodwitError:
                # The home may have moved since we were told where it is: then its old object is gone.
                if not await self.has_moved(state):
                    raise

    async def reach_here(self, state: OpenInode) -> None:
        """Opens the home's object if it is on this server's disk; if that fails, reads say so, or find other replicas."""
        if not stat.S_ISREG(state.node.mode) or not self._peers.is_local(await self._peers.volume(state.node.home_volume)):
            return
        try:
            await self.reach(state)
        except GodwitError as error:
            log.info("inode %d is opened without its home's object: %s", state.ino, error)

    async def _reach_known(self, state: OpenInode) -> Object:
        node = state.node
        fenced = state.registered_write and state.home is not None and state.home.is_fenced
        if state.home is not None and state.home_epoch == node.home_epoch and not fenced:
            return state.home
        if state.home is not None:
            state.home.close()
            state.home = None
        state.home_epoch = node.home_epoch
        volume = await self._peers.volume(node.home_volume)
        if self._peers.is_local(volume):
            to_write = state.registered_write
            state.home = LocalObject.open_home(volume.path, node.ino, self._session, self._timeout_s, to_write=to_write)
        else:
            home = self.remote(node)
            await home.reach()
            state.home = home
        return state.home

    def remote(self, node: Node, replica: Replica | None = None) -> RemoteObject:
        """The home's object at another server; with *replica*, which has a stamp, that one."""
        volume, stamp = (node.home_volume, None) if replica is None else (replica.volume, replica.stamp)
        return RemoteObject(self._peers, self._leases, node, volume=volume, stamp=stamp, timeout_s=self._timeout_s)

    async def ask(self, ino: int) -> Opened:
        """Where the manager says that the inode is."""
        return await self._session.call(Locate(ino), timeout_s=self._timeout_s)

    async def has_moved(self, state: OpenInode) -> bool:
        """Whether the manager says that the inode's home is another than we thought."""
        before = state.home_epoch or state.node.home_epoch
        await self.ask_anew(state)
        return state.node.home_epoch != before

    async def ask_anew(self, state: OpenInode) -> None:
        state.doubted = False  # before the question: who recalls the inode meanwhile doubts the answer
        state.saw((await self.ask(state.ino)).node)

    async def locate(self, state: OpenInode) -> None:
        if state.located_version == state.node.version:
            return
        opened = await self.ask(state.ino)
        state.saw(opened.node)
        state.replicas = opened.replicas
        state.located_version = opened.node.version

    async def may_be_here(self, state: OpenInode) -> bool:
        """Whether the manager can make this server the home of the clean file: it has a current replica."""
        if state.home is not None or not stat.S_ISREG(state.node.mode):
            return False
        await self.locate(state)
        if state.node.dirty:
            return False
        current = [replica.volume for replica in state.replicas if replica.version == state.node.version]
        return any([self._peers.is_local(await self._peers.volume(volume)) for volume in current])


def check_home(state: OpenInode, held: Held) -> None:
    """Raises `Fenced` if the home has moved on while this mount was cut off with the file open."""
    if held.token.home_epoch > state.home_epoch:
        raise Fenced(f"the home of inode {state.ino} moved while this mount had it open and was cut off")
