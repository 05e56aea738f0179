"""Opening: from the kernel's question to a handle, and the same again when this mount was away for too long.

The order matters. The home is reached before the manager is told, so that no file is marked as being written that nobody can
write; and once more after it, since the home may move until then: to this server, if it has a current replica and nobody else has
the file open. From then on, if it is to be written, the home stays.
"""

import os

import trio

from cluster.messages import Open
from cluster.rpc.session import ManagerSession
from cluster.rpc.waiters import check_wanted
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases
from fusefs.content.homes import Homes, check_home
from fusefs.content.objects import Object
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode
from fusefs.content.privileges import Privileges


class Opener:
    """Opens inodes, and registers them at the manager."""

    def __init__(
        self,
        session: ManagerSession,
        leases: Leases,
        caching: Caching,
        homes: Homes,
        open_files: OpenFiles,
        privileges: Privileges,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._leases = leases
        self._caching = caching
        self._homes = homes
        self._open_files = open_files
        self._privileges = privileges
        self._timeout_s = timeout_s

    async def open(self, ino: int, flags: int, uid: int = 0) -> int:
        """A handle for *uid*, who may do it. Raises `GodwitError`."""
        write = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        while True:
            state = self._open_files.get(ino) or await self._enter(ino)
            async with state.lock:
                # The kernel takes one backing object for all handles, and what is decided here depends on how many there are.
                self._open_files.take_back(ino)
                # While the lock was waited for, the last handle may have gone, and the inode with it.
                if not self._open_files.is_entered(state):
                    continue
                try:
                    return await self._open_locked(state, flags, uid, write=write)
                finally:
                    # Where no handle came of it, and no other is there, the registration ends again.
                    self._open_files.settle_soon(state)

    async def open_to_write(self, ino: int) -> int:
        """As `open`, for the mount itself."""
        return await self.open(ino, os.O_WRONLY)

    async def _enter(self, ino: int) -> OpenInode:
        """The state of an inode that was not open here when this was called."""
        kept = self._caching.node(ino)
        if kept is not None:
            return self._open_files.enter(kept[0])
        found = await self._homes.ask(ino)
        state = self._open_files.enter(found.node)  # somebody may have entered it while the manager was asked
        state.answered(found.node)
        state.located(found)
        return state

    async def _open_locked(self, state: OpenInode, flags: int, uid: int, *, write: bool) -> int:
        state.check()
        if write:
            await self._homes.ready_to_write(state)
        elif state.node.dirty:
            await self._homes.reach(state)  # what it is, is known only there
        if not self._is_known(state, write=write):
            await self._register(state, write=write)
        if not write:
            await self._homes.reach_here(state)
            return self._open_files.open_handle(state, write=False, flags=flags)
        home = await self._homes.reach(state)
        # Last of all: a lease that `Open` brought, or that was here before, may have ended while the home was waited for.
        held = await self._leases.hold(state.ino)
        if flags & os.O_TRUNC:
            check_home(state, held)
            self._leases.check_content(state.ino)
            check_wanted()
            state.write_begins()
            await home.truncate(0)
            await self._privileges.drop_capabilities(state)
            if uid != 0:
                await self._privileges.drop_set_id(state)
        return self._open_files.open_handle(state, write=True, flags=flags)

    def _is_known(self, state: OpenInode, *, write: bool) -> bool:
        """Whether the manager knows already what this open would tell it, and `state.node` is what it would answer."""
        if not (state.is_registered_to_write if write else state.is_registered):
            return False
        if write and state.writers == 0 and state.home is not None and state.home.is_remote:
            # Its last commit may have begun: then the registration to write has been taken back already (`Settler`).
            return False
        if state.handles:
            return True
        # It lingers: what is kept of it is good for as long as the manager would recall it first.
        kept = self._caching.node(state.ino)
        if kept is None:
            return False
        state.answered(kept[0])
        return True

    async def _register(self, state: OpenInode, *, write: bool) -> None:
        to_write = write or state.is_registered_to_write  # a registration to write is not taken back by opening
        asked_s = trio.current_time()
        opened = await self._session.call(Open(state.ino, to_write, self._open_files.next_sequence()), timeout_s=self._timeout_s)
        self._leases.granted(opened.token, asked_s)
        # Who writes changes the inode from now on, so that what was kept of it before is out of date.
        permit = self._caching.changed([state.ino] if to_write else [], opened.grant, asked_s)
        self._caching.keep_node(opened.node, permit)
        state.registered(opened, to_write=to_write)

    async def reopen(self, state: OpenInode, failed: Object | None) -> Object:
        """The home in the place of *failed*, for an inode that is open for writing here: registered anew, wherever it is now.

        Nothing that was acknowledged is missing there, since a home moves only when all of it is committed.
        """
        async with state.lock:
            state.check()
            # Others of this inode may have met the same failure, and been faster.
            if state.home is None or state.home is failed:
                await self._register(state, write=True)
            return await self._homes.reach(state)
