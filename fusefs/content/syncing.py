"""`fsync`: content durable at the home, names in the catalog, and copies on as many servers as the policy says."""

from cluster.errors import Fenced, Unavailable
from cluster.messages import AwaitCopies, Sync
from cluster.rpc.session import ManagerSession
from fusefs.caching.held import HeldDirectories
from fusefs.content.access import Access
from fusefs.content.homes import Homes
from fusefs.content.open_inode import OpenInode
from fusefs.content.opening import Opener
from fusefs.content.settling import Settler


class Syncer:
    """Makes open inodes durable."""

    def __init__(
        self,
        session: ManagerSession,
        held: HeldDirectories,
        settler: Settler,
        homes: Homes,
        access: Access,
        opener: Opener,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._held = held
        self._settler = settler
        self._homes = homes
        self._access = access
        self._opener = opener
        self._timeout_s = timeout_s

    async def sync(self, state: OpenInode, *, data_only: bool) -> None:
        """Returns when it is durable, whoever wrote it, through whatever descriptor. Raises `GodwitError`.

        The catalog need not know the new size and times yet: durably, it knows who does (`home` and `dirty`).
        """
        state.check()
        self._held.check(state.ino)
        if state.is_registered_to_write:
            await self._access.at_home(state, lambda home: home.sync(data_only=data_only))
        else:
            await self._access.reading(state, lambda: self._sync_read(state, data_only=data_only))
        await self._sync_catalog(state)
        # Again, as it goes behind the records: it may be now that they are lost.
        self._held.check(state.ino)
        sync_copies = state.sync_copies
        if sync_copies is None:
            sync_copies = (await self._homes.ask(state.ino)).sync_copies
            state.policy_known(sync_copies)
        if sync_copies > 1:
            request = AwaitCopies(state.ino, await self._committed_version(state), sync_copies, self._timeout_s)
            await self._session.call(request, timeout_s=self._timeout_s + 1)
        elif state.is_registered_to_write:
            self._settler.commit_soon(state)

    async def _sync_read(self, state: OpenInode, *, data_only: bool) -> None:
        """Has the home make durable what others wrote. What is committed and on another server has been made durable there."""
        if await self._homes.is_here(state):
            home = await self._homes.reach_in_force(state)
            await home.sync(data_only=data_only)
            return
        try:
            await self._homes.remote(state.node).sync(data_only=data_only)
        except Unavailable:
            found = await self._homes.ask(state.ino)
            others = (replica.version for replica in found.replicas if replica.volume != found.node.home_volume)
            if found.node.dirty or found.node.version not in others:
                raise

    async def _sync_catalog(self, state: OpenInode) -> None:
        """What anybody changed there of this inode, and this mount of any, is durable: nothing is asked if it was already."""
        known = self._session.changes, self._held.holding(state.ino)
        # Without a lease anybody may have changed it since.
        if known != state.synced or known[1] is None:
            await self._session.call(Sync(), timeout_s=self._timeout_s)
            state.catalog_synced(known)

    async def _committed_version(self, state: OpenInode) -> int:
        """Commits what was written, here or by others; the version of the catalog."""
        if not state.is_registered_to_write:
            node = (await self._homes.ask(state.ino)).node
            if node.dirty:
                # The agent there knows the last known path itself.
                node = await self._homes.remote(node).commit(node, b"", final=False)
            return node.version
        try:
            return await self._settler.commit_changed(state)
        except Fenced:
            await self._opener.reopen(state, state.home)
            return await self._settler.commit_changed(state)
