"""Work on the content of open inodes, at the home that is the right one when it is done.

While a lease is good, nobody else is given the inode's home. When this mount was cut off for longer, it registers anew
(`Opener.reopen`) and goes on, wherever the home is now.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cluster.clock import monotonic_s
from cluster.errors import Fenced, GodwitError, NoSpace, Refused
from cluster.messages import MakeRoom
from cluster.rpc.waiters import check_wanted
from fusefs.caching.tokens import Leases
from fusefs.content.homes import Homes, check_home
from fusefs.content.objects import Object
from fusefs.content.open_inode import OpenInode
from fusefs.content.opening import Opener
from fusefs.content.peers import Peers

log = logging.getLogger(__name__)

R = TypeVar("R")


class Access:
    """Runs what reads or changes content. All methods raise `GodwitError`."""

    def __init__(self, leases: Leases, homes: Homes, opener: Opener, peers: Peers) -> None:
        self._leases = leases
        self._homes = homes
        self._opener = opener
        self._peers = peers

    async def reading(self, state: OpenInode, act: Callable[[], Awaitable[R]]) -> R:
        """What *act*, which uses the reader, returns; once more if the home turns out to have moved."""
        state.check()
        try:
            return await act()
        except (Fenced, Refused):
            if not await self._homes.has_moved(state):
                raise
        if state.is_registered_to_write:
            await self._opener.reopen(state, state.home)
        return await act()

    async def change(self, state: OpenInode, act: Callable[[Object], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *act*, which changes the content, returns: see `at_home`. On a full disk, once more when room was made."""

        async def changing(home: Object) -> R:
            # One step: whoever is interrupted from here on is not answered before *act* is through, so the handle stays open.
            check_wanted()
            state.write_begins()
            return await act(home)

        began_s = monotonic_s()
        try:
            return await self.at_home(state, changing, repeatable=repeatable)
        except NoSpace:
            if not await self._make_room(state, began_s):
                raise
        return await self.at_home(state, changing, repeatable=repeatable)

    async def _make_room(self, state: OpenInode, began_s: float) -> bool:
        """Has the trash of a full volume of this server emptied; whether a write that began then may go better now. Others'
        agents do so by themselves."""
        volume = await self._peers.volume(state.node.home_volume)
        if not self._peers.is_local(volume):
            return False
        try:
            request = MakeRoom(volume.server, volume.volume, monotonic_s() - began_s)
            return (await self._peers.call(volume.volume, request)).count > 0
        except GodwitError as error:
            log.warning("no room was made on %s: %s", volume.path, error)
            return False

    async def at_home(self, state: OpenInode, act: Callable[[Object], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *act* returns at the home; if this mount was away meanwhile, at the home that is the right one now.

        What was done at this server's disk when the lease had ended counts only if the home is still there. What is not
        *repeatable* is not done at two homes, and raises `Fenced` instead.
        """
        state.check()
        home, epoch = state.home, state.home_epoch
        if home is not None:
            try:
                held = await self._leases.hold_for_content(state.ino)
                check_home(state, held)
                # The lease may end while this is done: what counts is that it had not when it was over.
                done = await act(home)
            except Fenced as error:
                log.warning("inode %d: %s", state.ino, error)
            else:
                # A remote home's agent has judged the lease itself.
                if home.is_remote or trio.current_time() < held.deadline_s:
                    return done
                await self._opener.reopen(state, home)
                if state.home_epoch == epoch:
                    return done
                if not repeatable:
                    raise Fenced(f"inode {state.ino} got another home while something was appended at the old one")
        new_home = await self._opener.reopen(state, home)
        check_home(state, await self._leases.hold_for_content(state.ino))
        return await act(new_home)
