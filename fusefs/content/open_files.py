"""Which inodes this mount holds open, and by which handles.

An inode is *registered* at the manager from before its first open here until after its last close and the commit that
follows (`fusefs.content.settling`): `fusefs.content.open_inode`.
"""

import itertools
import logging
import os
from collections.abc import Callable

from cluster.messages import Node
from cluster.messages import OpenInode as Registration
from fusefs.caching.tokens import Use
from fusefs.content.delegations import Delegations
from fusefs.content.open_inode import Handle, OpenInode

log = logging.getLogger(__name__)


class OpenFiles:
    """All open inodes and handles of the mount. *settle* is called with every inode that something is to be settled of."""

    def __init__(self, settle: Callable[[int], None], delegations: Delegations) -> None:
        self._settle = settle
        self._delegations = delegations  # what else the kernel has open, by handles that are not here
        self._inodes: dict[int, OpenInode] = {}  # by number: the states in force, entered and not left
        self._handles: dict[int, Handle] = {}
        self._handle_numbers = itertools.count(1)  # the kernel's for an open file; never used twice
        self._sequences = itertools.count(1)  # of opens and closes: the manager puts in order what overtakes one another

    # ------------------------------------------------------------------ state

    def get(self, ino: int) -> OpenInode | None:
        return self._inodes.get(ino)

    def is_open(self, ino: int) -> bool:
        return ino in self._inodes

    def stale(self, ino: int) -> None:
        """Its lease to cache has ended: what is known of it may change from now on."""
        if (state := self._inodes.get(ino)) is not None:
            self.take_back(ino)
            state.lease_ended()

    def enter(self, node: Node) -> OpenInode:
        """The state of an inode, made if there is none."""
        state = self._inodes.get(node.ino)
        if state is None:
            state = self._inodes[node.ino] = OpenInode(node)
        return state

    def is_entered(self, state: OpenInode) -> bool:
        """Whether *state* is still the one in force (it may have been settled while somebody waited for its lock)."""
        return self._inodes.get(state.ino) is state

    def next_sequence(self) -> int:
        return next(self._sequences)

    def registrations(self) -> list[Registration]:
        """All registrations, to be presented to a new manager."""
        return [Registration(s.ino, s.is_registered_to_write) for s in self._inodes.values() if s.is_registered]

    def use_of(self, ino: int) -> Use:
        """What the inode is used for, as far as its lease is concerned."""
        state = self._inodes.get(ino)
        if state is None:
            return Use(is_open=False, is_dirty=False)
        return Use(is_open=state.handles > 0, is_dirty=state.is_registered_to_write)

    def mark_lost(self, inodes: list[int]) -> None:
        """The manager does not know these inodes any more."""
        for ino in inodes:
            if state := self._inodes.get(ino):
                log.error("inode %d was removed while this mount was cut off: its open files fail from now on", ino)
                self.take_back(ino)
                state.lost()

    def being_written(self) -> list[OpenInode]:
        """The inodes that are open for writing and have changed since their last commit."""
        return [state for state in self._inodes.values() if state.writers and state.has_changed()]

    def written_past(self) -> list[OpenInode]:
        """The inodes that may be written without this mount seeing it."""
        return [state for state in self._inodes.values() if state.is_written_past]

    def is_written_past(self, ino: int) -> bool:
        """Whether the inode may be written without this mount seeing it."""
        state = self._inodes.get(ino)
        return state is not None and state.is_written_past

    def at_home_on(self, volume: int) -> list[int]:
        """The inodes whose home is there."""
        return [state.ino for state in self._inodes.values() if state.node.home_volume == volume]

    def leave(self, state: OpenInode) -> None:
        """Forgets an inode that has no handle any more."""
        # Whoever opens the inode from now on enters a new state.
        del self._inodes[state.ino]
        state.left()

    def open_handle(self, state: OpenInode, *, write: bool, flags: int = 0) -> int:
        """A new handle; the inode is registered already."""
        state.handle_opened(write=write)
        number = next(self._handle_numbers)
        self._handles[number] = Handle(state, write, bool(flags & os.O_APPEND), bool(write and flags & os.O_DSYNC))
        return number

    def open_registered(self, node: Node) -> int:
        """A new handle to read, of an inode that is being presented to the manager."""
        state = self.enter(node)
        state.presented()
        return self.open_handle(state, write=False)

    def handle(self, number: int) -> Handle:
        known = self._handles.get(number)
        if known is None:
            self.take_back(self._delegations.inode_of(number))
            known = self._handles[number]
        return known

    def reader(self, number: int) -> OpenInode:
        """What is read by a handle, which may be one of the extension, and stay that."""
        known = self._handles.get(number)
        return known.inode if known is not None else self._inodes[self._delegations.inode_of(number)]

    def take_back(self, ino: int) -> None:
        """The extension opens the inode no more by itself; what is open becomes handles."""
        ended = self._delegations.end(ino)
        if ended is None:
            return
        state = self._inodes[ino]
        for number in ended.handles:
            handle = self._handles[number] = Handle(state, write=False, append=False)
            state.handle_opened(write=False)
            handle.given_to_kernel(ended.mode, ended.backing)
        if not ended.handles:
            self._delegations.give_up(ended.backing)

    def release_all(self) -> None:
        """Ends every handle, for an orderly stop."""
        for ino in self._delegations.inodes():
            self.take_back(ino)
        for number in list(self._handles):
            self.release_handle(number)

    def release_handle(self, number: int) -> Handle:
        """Ends a handle, which it returns; what it wrote is committed in the background."""
        handle = self.handle(number)
        del self._handles[number]
        handle.inode.handle_released(write=handle.write)
        self.settle_soon(handle.inode)
        return handle

    def settle_soon(self, state: OpenInode) -> None:
        """Brings registration and catalog in line with the handles that are left, in the background."""
        if state.handles == 0 or (state.is_registered_to_write and state.writers == 0):
            self._settle(state.ino)
