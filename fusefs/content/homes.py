"""Where the content of an inode is at the moment: its home's object, and the replicas that the catalog knows."""

import logging
import os
import stat
from contextlib import suppress

import trio

from cluster.errors import Corrupt, Fenced, GodwitError, Unavailable
from cluster.messages import Locate, Node, Opened, Replica, SetAttr, Volume
from cluster.rpc.session import ManagerSession
from fusefs.caching.tokens import Held, Leases
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Object
from fusefs.content.open_inode import OpenInode
from fusefs.content.peers import Peers
from fusefs.content.remote_object import RemoteObject

log = logging.getLogger(__name__)

TAKE_OVER_S = 0.25  # how often it is asked whether another replica has become the home


class TakingOver(Unavailable):
    """The home's object is damaged, or nobody can say yet whether it is; another replica may become the home in a moment."""


class Homes:
    """Finds and reaches the homes of open inodes."""

    def __init__(self, session: ManagerSession, peers: Peers, leases: Leases, timeout_s: float) -> None:
        self._session = session
        self._peers = peers
        self._leases = leases
        self._timeout_s = timeout_s

    async def reach(self, state: OpenInode, *, patient: bool = True) -> Object:
        """The home's object, if it has the content that the catalog says. Raises `Corrupt` if it has not, and `Unavailable` if
        its server stays away, before the catalog is told of a writer. Not *patient*: the caller can read another replica.
        """
        began_s = trio.current_time()
        takes_over_s = began_s + (self._timeout_s if patient else 0.0)
        while True:
            try:
                # Where `state.node` says that it is; then whether that is true, and what is there is what was committed.
                home = await self._reach_known(state)
                if await self._is_good(state, home):
                    return home
            except TakingOver as error:
                if trio.current_time() + TAKE_OVER_S > takes_over_s:
                    raise
                log.info("inode %d: %s", state.ino, error)
                await trio.sleep(TAKE_OVER_S)
                await self.ask_anew(state)
            except Unavailable:
                raise  # its server is away, which says nothing about where the home is; `reach` of the remote has waited
            except GodwitError:
                # The home may have moved since `state.node` was asked for: then its old object is gone.
                if not await self.has_moved(state):
                    # The object of a clean file that cannot be opened here is damaged: its agent finds out, and says so.
                    if not state.node.dirty and await self.is_here(state):
                        await self._examine(state)
                    raise
            # Each turn asks the manager or the agent, so this does not spin; but both may say the same again and again.
            if trio.current_time() > began_s + self._timeout_s:
                raise Unavailable(f"the home of inode {state.ino} was not what the catalog says for {self._timeout_s:g} s")

    async def _is_good(self, state: OpenInode, home: Object) -> bool:
        """Whether the object may be used; if not, nothing is known against the home that `state` has now."""
        if not isinstance(home, LocalObject) or home.is_as_committed(state.node):
            return True
        # What is known here may be older than the object: somebody else has committed it.
        await self.ask_anew(state)
        if state.home is not home:
            return False
        if home.is_as_committed(state.node):
            return True
        # It was damaged, or only touched: its agent compares the content, and tells the manager.
        state.leave_home()
        await self._examine(state)
        return False

    async def _examine(self, state: OpenInode) -> None:
        """Has this server's agent look at the home's object; the home may be another one afterwards."""
        epoch = state.node.home_epoch
        try:
            await self.remote(state.node).examine()
        except Unavailable as error:
            # The agent is not up, or cannot say yet. Another replica may be the home by now.
            await self.ask_anew(state)
            if state.node.home_epoch == epoch:
                raise TakingOver(str(error)) from error
        except GodwitError:
            if not await self.has_moved(state):
                raise
        else:
            await self.ask_anew(state)

    async def reach_here(self, state: OpenInode) -> None:
        """Opens the home's object if it is on this server's disk; if that fails, reads say so, or find other replicas."""
        if not stat.S_ISREG(state.node.mode):
            return
        volume = await self._peers.volume(state.node.home_volume)
        if not self._peers.is_local(volume) or not (state.node.dirty or self._peers.is_sound(volume)):
            return  # what the kernel reads by itself it cannot read elsewhere
        try:
            # Now, since the kernel is told with the open whether it reads and writes the object by itself.
            await self.reach(state, patient=False)
        except GodwitError as error:
            log.info("inode %d is opened without its home's object: %s", state.ino, error)

    async def ready_to_write(self, state: OpenInode) -> None:
        """Before the catalog is told of a writer: what would be written has the content that the catalog says. Raises as `reach`.

        That is the home, or a replica on this server's disks, which the manager makes the home if nobody else has a clean file
        open.
        """
        own = [] if state.home is not None or await self.is_here(state) else await self._own_current(state)
        if not own:
            await self.reach(state)
            return
        for replica, volume in own:
            # Reaching the home for the one before may have shown a newer version.
            if replica.version == state.node.version and not await self._has_stamp(volume, replica, state):
                with suppress(Corrupt):  # the manager knows it then, and leaves the home where it is
                    # Its agent may have died just now: it is back in a moment, as the home's would be.
                    await self.remote(state.node, replica).examine(patient=True)
                await self.reach(state)

    async def _own_current(self, state: OpenInode) -> list[tuple[Replica, Volume]]:
        """The current replicas of a clean file on this server's disks."""
        if state.node.dirty or not stat.S_ISREG(state.node.mode):
            return []
        await self.locate(state)
        if state.node.dirty:
            return []
        current = [replica for replica in state.replicas if replica.version == state.node.version]
        found = [(replica, await self._peers.volume(replica.volume)) for replica in current]
        return [(replica, volume) for replica, volume in found if self._peers.is_local(volume)]

    async def _has_stamp(self, volume: Volume, replica: Replica, state: OpenInode) -> bool:
        try:
            opened = await LocalObject.open(volume.path, state.ino, os.O_RDONLY, self._session, self._timeout_s)
        except GodwitError:
            return False
        try:
            return opened.stamp() == replica.stamp
        finally:
            opened.close()

    async def _reach_known(self, state: OpenInode) -> Object:
        node = state.node
        # A fence was set while this mount was away: opening the object to write lifts it, if this server is still the home.
        fenced = state.is_registered_to_write and state.home is not None and state.home.is_fenced
        if state.home is not None and state.home_epoch == node.home_epoch and not fenced:
            return state.home
        state.reach_begins()
        volume = await self._peers.volume(node.home_volume)
        is_local, to_write = self._peers.is_local(volume), state.is_registered_to_write
        home: Object
        if is_local:
            home = await LocalObject.open_home(volume.path, node.ino, self._session, self._timeout_s, to_write=to_write)
        else:
            home = remote = self.remote(node)
            await remote.reach()
        # Without the inode's lock: while the home was reached, a reader may have been faster, and an answer have named another.
        has_changed = state.node.home_epoch != node.home_epoch or (is_local and state.is_registered_to_write != to_write)
        if state.home is not None or has_changed:
            home.close()
            return await self._reach_known(state)
        state.reached(home)
        return home

    def remote(self, node: Node, replica: Replica | None = None) -> RemoteObject:
        """The home's object at another server; with *replica*, which has a stamp, that one."""
        volume, stamp = (node.home_volume, None) if replica is None else (replica.volume, replica.stamp)
        return RemoteObject(self._peers, self._leases, node, volume=volume, stamp=stamp, timeout_s=self._timeout_s)

    async def ask(self, ino: int) -> Opened:
        """Where the manager says that the inode is."""
        return await self._session.call(Locate(ino), timeout_s=self._timeout_s)

    async def has_moved(self, state: OpenInode) -> bool:
        """Whether the manager says that the inode's home is another than we thought."""
        before = state.home_epoch or state.node.home_epoch  # which was tried, also if answers have named another meanwhile
        await self.ask_anew(state)
        return state.node.home_epoch != before

    async def ask_anew(self, state: OpenInode) -> None:
        state.asked_anew()
        state.answered((await self.ask(state.ino)).node)

    async def locate(self, state: OpenInode) -> None:
        if state.located_version == state.node.version:
            return  # whether a copy is still there shows when it is read
        opened = await self.ask(state.ino)
        state.answered(opened.node)
        state.located(opened)

    async def is_here(self, state: OpenInode) -> bool:
        """Whether the home is on this server's disks."""
        return self._peers.is_local(await self._peers.volume(state.node.home_volume))

    async def reach_in_force(self, state: OpenInode) -> Object:
        """As `reach`, for a caller that does not hold the inode's lock. Raises `Fenced` if the home has moved on."""
        async with state.lock:
            home = await self.reach(state)
        check_home(state, await self._leases.hold(state.ino))
        return home

    async def set_times(self, node: Node, change: SetAttr) -> Node:
        """The times of a dirty file that is not open here."""
        volume = await self._peers.volume(node.home_volume)
        if not self._peers.is_local(volume):
            return await self.remote(node).set_times(change)
        home = await LocalObject.open_home(volume.path, node.ino, self._session, self._timeout_s)
        try:
            return await home.set_times(change)
        finally:
            home.close()


def check_home(state: OpenInode, held: Held) -> None:
    """Raises `Fenced` if the home has moved on while this mount was cut off with the file open."""
    if held.token.home_epoch > state.home_epoch:
        raise Fenced(f"the home of inode {state.ino} moved while this mount had it open and was cut off")
