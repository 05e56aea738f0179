"""Which inodes this mount holds open, and what it knows of them.

An inode is *registered* at the manager from before its first open here until after its last close and the commit that
follows (`fusefs.content.settling`). `OpenInode.lock` orders opening, settling and registration of one inode; reads and writes do
not take it.
"""

import errno
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import trio

from cluster.errors import refused
from cluster.messages import Node, Replica
from cluster.messages import OpenInode as Registration
from fusefs.caching.tokens import Use
from fusefs.objects import LocalObject, Object

log = logging.getLogger(__name__)


class Way(Enum):
    """How the kernel reads and writes through a handle."""

    CACHED = "through its page cache, which asks the mount"
    DIRECT = "by asking the mount each time"
    PASSED = "on the home's object, past the mount"


@dataclass(eq=False)
class OpenInode:
    """One inode that is open on this mount.

    `node` is the newest answer of the manager. `home` is the object through which it is written, under `home_epoch`; while
    the inode is open for writing here, its home does not move. `replica` is a current copy on this server's disk, valid for
    `replica_version`. `sync_copies` is the policy's, None until it is known. `changed`: written since the last commit that
    was begun (as far as the mount saw it, see `has_changed`). `commit_due`: to be committed soon. `unsettled`: committed
    since it was opened for writing, which the last commit has to make good. `synced`: what `Files.fsync` knew of the catalog when
    it was last made durable. `doubted`: `node` is not what the manager would say now, so it has to be asked before `node` is
    relied on. `way`: of `way_handles` handles, while there are any that are not `DIRECT`; with `PASSED`, `backing_id` is the
    kernel's number for the object `backing` (device and inode).
    """

    node: Node
    home: Object | None = None
    home_epoch: int = 0
    replica: LocalObject | None = None
    replica_version: int = -1
    replicas: list[Replica] = field(default_factory=list)
    located_version: int = -1
    readers: int = 0
    writers: int = 0
    registered: bool = False
    registered_write: bool = False
    changed: bool = False
    unsettled: bool = False
    commit_due: bool = False
    caps: bool = True
    sync_copies: int | None = None
    synced: tuple[int, int | None] | None = None
    lost: bool = False
    doubted: bool = False
    settle_failures: int = 0
    way: Way | None = None
    way_handles: int = 0
    backing_id: int = 0
    backing: tuple[int, int] = (0, 0)
    lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def ino(self) -> int:
        return self.node.ino

    def saw(self, node: Node) -> None:
        """Takes the manager's answer, unless it may be older than what is known already.

        Answers may overtake one another. Believing too long that a file is dirty only costs speed.
        """
        known = self.node
        if node.home_epoch > known.home_epoch:
            self.moved(node)
        elif node.home_epoch == known.home_epoch and (node.version, node.dirty) >= (known.version, known.dirty):
            self.node = node

    def moved(self, node: Node) -> None:
        """The inode has another home: the object at the old one is not written any more."""
        self.node = node
        self.located_version = -1
        if self.home is not None:
            self.home.close()
            self.home = None

    def node_to_end_with(self) -> Node:
        """What the last commit compares the object with: nothing that was committed meanwhile counts as known."""
        return msgspec.structs.replace(self.node, object_ctime_ns=0) if self.unsettled else self.node

    @property
    def is_written_past(self) -> bool:
        """Whether it may be written without this mount seeing it."""
        return self.way is Way.PASSED and self.registered_write

    def has_changed(self) -> bool:
        """Whether there is something to commit."""
        if self.changed or not self.is_written_past or not isinstance(self.home, LocalObject):
            return self.changed
        return self.home.stamp().ctime_ns != self.node.object_ctime_ns

    def check(self) -> None:
        """Raises `Refused` if the inode went away while this mount was cut off."""
        if self.lost:
            raise refused(errno.ESTALE, f"inode {self.ino} was removed while this mount was cut off")

    def drop_objects(self) -> None:
        """Closes the descriptors."""
        for held in (self.home, self.replica):
            if held is not None:
                held.close()
        self.home = self.replica = None


@dataclass(eq=False)
class Handle:
    """One open file description of the kernel. `way` is None for what the kernel does not know."""

    inode: OpenInode
    write: bool
    append: bool
    way: Way | None = None


class OpenFiles:
    """All open inodes and handles of the mount. `settle` is told of every inode that something is to be settled of."""

    def __init__(self, settle: Callable[[int], None]) -> None:
        self._settle = settle
        self._inodes: dict[int, OpenInode] = {}
        self._handles: dict[int, Handle] = {}
        self._handle_numbers = itertools.count(1)
        self._sequences = itertools.count(1)

    # ------------------------------------------------------------------ state

    def get(self, ino: int) -> OpenInode | None:
        return self._inodes.get(ino)

    def is_open(self, ino: int) -> bool:
        return ino in self._inodes

    def stale(self, ino: int) -> None:
        """Its lease to cache has ended: what is known of it may change from now on."""
        if (state := self._inodes.get(ino)) is not None:
            state.doubted = True

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
        """What a new manager must be told."""
        return [Registration(s.ino, s.registered_write) for s in self._inodes.values() if s.registered]

    def use_of(self, ino: int) -> Use:
        """What the inode is used for, as far as its lease is concerned."""
        state = self._inodes.get(ino)
        if state is None:
            return Use(is_open=False, is_dirty=False)
        return Use(is_open=state.readers + state.writers > 0, is_dirty=state.changed or state.registered_write)

    def mark_lost(self, inodes: list[int]) -> None:
        """The manager does not know these inodes any more."""
        for ino in inodes:
            if state := self._inodes.get(ino):
                log.error("inode %d was removed while this mount was cut off: its open files fail from now on", ino)
                state.lost = True

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

    def leave(self, state: OpenInode) -> None:
        """Forgets an inode that has no handle any more."""
        del self._inodes[state.ino]
        state.drop_objects()

    def open_handle(self, state: OpenInode, *, write: bool, append: bool) -> int:
        """A new handle; the inode is registered already."""
        if write:
            state.writers += 1
        else:
            state.readers += 1
        number = next(self._handle_numbers)
        self._handles[number] = Handle(state, write, append)
        return number

    def open_registered(self, node: Node) -> int:
        """A new handle for reading of something that the manager is being told of."""
        state = self.enter(node)
        state.registered = True
        return self.open_handle(state, write=False, append=False)

    def handle(self, number: int) -> Handle:
        return self._handles[number]

    def release_all(self) -> None:
        """Ends every handle, for an orderly stop."""
        for number in list(self._handles):
            self.release_handle(number)

    def release_handle(self, number: int) -> Handle:
        """Ends a handle, which it returns; what it wrote is committed in the background."""
        handle = self._handles.pop(number)
        state = handle.inode
        if handle.write:
            state.writers -= 1
        else:
            state.readers -= 1
        self.settle_soon(state)
        return handle

    def settle_soon(self, state: OpenInode) -> None:
        """Brings registration and catalog in line with the handles that are left, in the background."""
        if state.readers + state.writers == 0 or (state.registered_write and state.writers == 0):
            self._settle(state.ino)
