"""Reading and seeking: at the home, in a replica on this server, or in whatever current replica can be had."""

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from cluster.errors import Changed, Fenced, GodwitError, TokenRefused, Unavailable
from cluster.messages import Node, Replica
from cluster.rpc.session import ManagerSession
from cluster.rpc.waiters import check_wanted
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases
from fusefs.content.homes import Homes, check_home
from fusefs.content.local_object import LocalObject, check_replica
from fusefs.content.objects import Buffer
from fusefs.content.open_inode import OpenInode, OwnReplica
from fusefs.content.peers import SOUND, Peers

log = logging.getLogger(__name__)

R = TypeVar("R")

TELL_S = 1.0  # for this server's own agent, which answers at once
RETRY_S = 0.25  # what is passing is over when a writer has closed, or an agent is up


class _Passing(Unavailable):
    """The content cannot be had now, and can in a moment: somebody has begun to write it meanwhile, or an agent is starting."""


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
        return await self._persist(lambda: self._read(state, offset, length))

    async def _persist(self, attempt: Callable[[], Awaitable[R]]) -> R:
        """What *attempt* returns; a failure that is passing is tried again until the deadline."""
        deadline_s = trio.current_time() + self._timeout_s
        while True:
            check_wanted()
            try:
                return await attempt()
            except _Passing:
                if trio.current_time() + RETRY_S > deadline_s:
                    raise
            await trio.sleep(RETRY_S)

    async def _read(self, state: OpenInode, offset: int, length: int) -> Buffer:
        local = await self.local(state)
        if local is None:
            return await self._read_remote(state, offset, length)
        try:
            return await local.read(offset, length)
        except GodwitError as error:
            if state.node.dirty or not is_of_disk(error):
                raise
            failure = error
        # Of a clean file any current replica is as good, and the catalog says which ones are.
        self._note_trouble(state, local, failure)
        return await self._read_any_replica(state, offset, length, failure)

    def _note_trouble(self, state: OpenInode, failed: LocalObject, error: GodwitError) -> None:
        log.warning("inode %d is read elsewhere: %s", state.ino, error)
        if failed is state.home:
            self._peers.avoid(state.node.home_volume)
        elif state.replica is not None and state.replica.object is failed:
            self._peers.avoid(state.replica.volume)
            state.replica_failed()

    async def seek(self, state: OpenInode, offset: int, whence: int) -> int | None:
        """Where data or a hole begins; None if nothing of the kind follows."""
        return await self._persist(lambda: self._seek(state, offset, whence))

    async def _seek(self, state: OpenInode, offset: int, whence: int) -> int | None:
        local = await self.local(state)
        home = self._homes.remote(state.node)
        try:
            if local is not None:
                return await local.seek(offset, whence)
            if state.node.dirty:
                return await home.seek(offset, whence)
            if await self._is_up_elsewhere(state):
                return await home.seek_once(offset, whence)
        except GodwitError as error:
            if state.node.dirty or not is_of_disk(error):
                raise
            log.info("the home of inode %d cannot be asked, it counts as one piece of data: %s", state.ino, error)
        return all_data((await self._settled_node(state)).size, offset, whence)

    async def local(self, state: OpenInode) -> LocalObject | None:
        """The object on this server's disks that has the content at this moment: the home's, or a current replica."""
        held = await self._leases.hold_for_content(state.ino)
        # During the second await the home may be left: then there is none here, and the content is read elsewhere.
        if isinstance(state.home, LocalObject) and await self._is_good_home(state):
            check_home(state, held)
            return state.home
        # Only for what may be read in a replica: at an open home, the epoch of the lease says as much.
        if state.is_stale:
            await self._homes.ask_anew(state)
        volume = await self._peers.volume(state.node.home_volume)
        if self._peers.is_local(volume) and (state.node.dirty or self._peers.is_sound(volume)):
            return await self._local_home(state)
        replica = await self._own_replica(state) if self._is_committed(state) else None
        # Asked again: a recall may have come while the replica was opened, and somebody write the file by now.
        return replica if self._is_committed(state) else None

    async def _is_good_home(self, state: OpenInode) -> bool:
        """Whether the home's object, which is open here, is to be read: a clean file has others if the disk is not sound."""
        if state.node.dirty or state.is_registered_to_write:
            return True
        return self._peers.is_sound(await self._peers.volume(state.node.home_volume))

    def _is_committed(self, state: OpenInode) -> bool:
        """Whether the content is what the catalog says, and the manager would ask for the lease back before that changed."""
        return not state.node.dirty and not state.is_stale and self._caching.may_keep(state.ino)

    async def _local_home(self, state: OpenInode) -> LocalObject | None:
        """None if its object is not there, the file not being dirty, or if the home has moved to another server."""
        try:
            home = await self._homes.reach(state, patient=False)
        except GodwitError:
            if state.node.dirty:
                raise
            return None
        return home if isinstance(home, LocalObject) else None

    async def _read_remote(self, state: OpenInode, offset: int, length: int) -> Buffer:
        home = self._homes.remote(state.node)
        if state.node.dirty:
            return await home.read(offset, length)  # nobody else has it: worth waiting for
        try:
            if await self._is_up_elsewhere(state):
                return await home.read_once(offset, length)
        except GodwitError as error:
            if not is_of_disk(error):
                raise
            log.info("the home of inode %d cannot be read, reading another replica: %s", state.ino, error)
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
            if replica.version != state.node.version or not self._peers.is_local(volume) or not self._peers.is_sound(volume):
                continue
            try:
                if (own := state.replica) is None or own.version != replica.version:
                    state.replica_failed()
                    opened = await LocalObject.open(volume.path, state.ino, os.O_RDONLY, self._session, self._timeout_s)
                    own = OwnReplica(opened, replica.version, replica.volume)
                    state.replica_opened(own)
                check_replica(own.object, replica.stamp, state.ino)
            except Changed:
                await self._doubt(state, replica)
                continue
            except GodwitError:
                continue
            return own.object
        return None

    async def _doubt(self, state: OpenInode, replica: Replica) -> None:
        """Has this server's agent look at a replica of its own that is not what the catalog knows, once for each version."""
        if replica.stamp is None or not state.is_first_doubt(replica.version):
            return
        # It refuses what has another stamp, and examines it afterwards. Not waited for: who reads is served elsewhere.
        with trio.move_on_after(TELL_S), suppress(GodwitError):
            await self._homes.remote(state.node, replica).read_once(0, 1)

    async def _read_any_replica(self, state: OpenInode, offset: int, length: int, failure: GodwitError | None = None) -> Buffer:
        """From whatever current replica can be had, the home being away or its disk bad, and the file not dirty.

        Raises *failure*, if that is why others are asked, or what the last one said, if none can be had; `_Passing` if one is
        expected back in a moment.
        """
        # The catalog is asked, not what is known here: this mount may have no lease by which it would have heard of a writer.
        node = await self._settled_node(state)
        await self._homes.locate(state)
        if (own := await self._own_replica(state)) is not None:
            try:
                return await own.read(offset, length)
            except GodwitError as error:
                self._note_trouble(state, own, error)
                failure = failure or error
        last: GodwitError = Unavailable(f"no server with a current replica of inode {state.ino} can be reached")
        is_expected = False
        for replica in await self._best_first(state):
            # Without a stamp nobody could say that the object is still that version.
            if replica.version != node.version or replica.stamp is None:
                continue
            try:
                return await self._read_replica(state, node, replica, offset, length)
            except GodwitError as error:
                last = error
                is_expected |= isinstance(error, Unavailable) and await self._is_expected(replica)
        if failure is None and is_expected:
            raise _Passing(str(last)) from last
        raise failure or last

    async def _is_expected(self, replica: Replica) -> bool:
        """Whether the agent that has it, which could not be reached, was heard just now: its process has ended, say."""
        volume = await self._peers.volume(replica.volume)
        return volume.up and volume.condition in SOUND and not self._peers.is_local(volume)

    async def _best_first(self, state: OpenInode) -> list[Replica]:
        """The replicas, those at the home last, and before them those on disks that are not sound or not there."""

        async def rank(replica: Replica) -> tuple[bool, bool]:
            volume = await self._peers.volume(replica.volume)
            return replica.volume == state.node.home_volume, not (volume.up and self._peers.is_sound(volume))

        ranked = [(await rank(replica), at, replica) for at, replica in enumerate(state.replicas)]
        return [replica for _rank, _at, replica in sorted(ranked, key=lambda item: item[:2])]

    async def _read_replica(self, state: OpenInode, node: Node, replica: Replica, offset: int, length: int) -> Buffer:
        volume = await self._peers.volume(replica.volume)
        if not self._peers.is_local(volume):
            remote = self._homes.remote(node, None if replica.volume == node.home_volume else replica)
            return await remote.read_once(offset, length)
        here = await LocalObject.open(volume.path, state.ino, os.O_RDONLY, self._session, self._timeout_s)
        try:
            check_replica(here, replica.stamp, state.ino)
            return await here.read(offset, length)
        finally:
            here.close()

    async def _settled_node(self, state: OpenInode) -> Node:
        """The catalog's node, which is the truth, the file not being dirty. Raises `_Passing` if it is, or was written meanwhile:
        *state* knows it then."""
        node = (await self._homes.ask(state.ino)).node
        state.answered(node)
        if node.dirty or node.version != state.node.version:
            raise _Passing(f"the home of inode {state.ino} is away, and the file is being written there")
        return node


def is_of_disk(error: GodwitError) -> bool:
    """Whether it says that the object cannot be had there, rather than that it was asked for wrongly."""
    if isinstance(error, Fenced | TokenRefused):
        return False
    return isinstance(error, Unavailable) or error.errno in (errno.EIO, errno.ENXIO)


def all_data(size: int, offset: int, whence: int) -> int | None:
    """Where data or a hole begins in a file of which nobody can say where it has holes."""
    if offset >= size:
        return None
    return offset if whence == os.SEEK_DATA else size
