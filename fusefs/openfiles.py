"""Which inodes this mount holds open, what it knows of them, and the promise that what was written gets committed.

An inode is *registered* at the manager from before its first open here until after its last close and the commit that
follows. `OpenInode.lock` orders opening, settling and registration of one inode; reads and writes do not take it.
"""

import errno
import itertools
import logging
from dataclasses import dataclass, field

import trio

from cluster.errors import Fenced, GodwitError, Refused, Unavailable, refused
from cluster.messages import Close, Closing, Node, Replica
from cluster.messages import OpenInode as Registration
from cluster.session import ManagerSession
from fusefs.objects import LocalObject, Object
from fusefs.paths import LastKnownPaths

log = logging.getLogger(__name__)

SETTLE_AT_ONCE = 32
SETTLE_RETRY_S = 1.0
CLOSE_GATHER_S = 0.005


@dataclass(eq=False)
class OpenInode:
    """One inode that is open on this mount.

    `node` is the newest answer of the manager. `home` is the object through which it is written; `replica` a current
    copy on this server's disk, valid for `replica_version`. `sync_copies` is the policy's, None
    until it is known. `changed`: written since the last commit that was begun.
    """

    node: Node
    home: Object | None = None
    replica: LocalObject | None = None
    replica_version: int = -1
    replicas: list[Replica] = field(default_factory=list)
    located_version: int = -1
    readers: int = 0
    writers: int = 0
    registered: bool = False
    registered_write: bool = False
    changed: bool = False
    caps: bool = True
    sync_copies: int | None = None
    lost: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def ino(self) -> int:
        return self.node.ino

    def saw(self, node: Node) -> None:
        """Takes the manager's answer, unless it may be older than what is known already.

        Answers may overtake one another. Believing too long that a file is dirty only costs speed.
        """
        known = self.node
        if node.version < known.version or (node.version == known.version and known.dirty and not node.dirty):
            return
        self.node = node

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
    """One open file description of the kernel."""

    inode: OpenInode
    write: bool
    append: bool


class OpenFiles:
    """All open inodes and handles of the mount, and the background work that ends them."""

    def __init__(self, session: ManagerSession, paths: LastKnownPaths, timeout_s: float, commit_s: float) -> None:
        self._session = session
        self._paths = paths
        self._timeout_s = timeout_s
        self._commit_s = commit_s
        self._inodes: dict[int, OpenInode] = {}
        self._handles: dict[int, Handle] = {}
        self._handle_numbers = itertools.count(1)
        self._sequences = itertools.count(1)
        self._to_settle: set[int] = set()
        self._settling = 0
        self._wake_settler = trio.Event()
        self._closings: list[Closing] = []
        self._wake_closer = trio.Event()
        self._idle = trio.Condition()

    # ------------------------------------------------------------------ state

    def get(self, ino: int) -> OpenInode | None:
        return self._inodes.get(ino)

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

    def mark_lost(self, inodes: list[int]) -> None:
        """The manager does not know these inodes any more."""
        for ino in inodes:
            if state := self._inodes.get(ino):
                log.error("inode %d was removed while this mount was cut off: its open files fail from now on", ino)
                state.lost = True

    def open_handle(self, state: OpenInode, *, write: bool, append: bool) -> int:
        """A new handle; the inode is registered already."""
        if write:
            state.writers += 1
        else:
            state.readers += 1
        number = next(self._handle_numbers)
        self._handles[number] = Handle(state, write, append)
        return number

    def handle(self, number: int) -> Handle:
        return self._handles[number]

    def release_handle(self, number: int) -> None:
        """Ends a handle; what it wrote is committed in the background."""
        handle = self._handles.pop(number)
        state = handle.inode
        if handle.write:
            state.writers -= 1
        else:
            state.readers -= 1
        self.settle_soon(state)

    def settle_soon(self, state: OpenInode) -> None:
        """Brings registration and catalog in line with the handles that are left, in the background."""
        if state.readers + state.writers == 0 or (state.registered_write and state.writers == 0):
            self._to_settle.add(state.ino)
            self._wake_settler.set()

    # ------------------------------------------------------------- committing

    async def commit(self, state: OpenInode, *, final: bool) -> None:
        """Commits what was written. Raises `GodwitError`; the file stays dirty then and nothing is lost."""
        assert state.home is not None
        state.changed = False
        try:
            node = await state.home.commit(state.node, self._paths.path(state.ino), final=final)
        except GodwitError:
            state.changed = True
            raise
        state.node = node

    async def settle_loop(self) -> None:
        """Settles closed inodes, a bounded number at once."""
        limit = trio.Semaphore(SETTLE_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake_settler.wait()
                self._wake_settler = trio.Event()
                batch, self._to_settle = self._to_settle, set()
                for ino in batch:
                    await limit.acquire()
                    self._settling += 1
                    nursery.start_soon(self._settle_one, ino, limit)

    async def _settle_one(self, ino: int, limit: trio.Semaphore) -> None:
        try:
            await self._settle(ino)
        except Unavailable as error:
            log.warning("inode %d is not committed yet, trying again: %s", ino, error)
            await trio.sleep(SETTLE_RETRY_S)
            self._to_settle.add(ino)
            self._wake_settler.set()
        finally:
            limit.release()
            self._settling -= 1
            async with self._idle:
                self._idle.notify_all()

    async def _settle(self, ino: int) -> None:
        state = self._inodes.get(ino)
        if state is None:
            return
        async with state.lock:
            if not self.is_entered(state):
                return
            if state.registered_write and state.writers == 0:
                await self._finish_writing(state)
            if state.readers + state.writers == 0:
                del self._inodes[ino]
                state.drop_objects()
                if state.registered:
                    self._close_soon(Closing(ino, self.next_sequence()))

    async def _finish_writing(self, state: OpenInode) -> None:
        """The last commit. One that another server's agent makes for this mount comes after this mount's registration
        as a writer was taken back, since the catalog cleans the file only when the committer is the last writer."""
        try:
            if state.home is not None and not state.lost:
                if state.home.is_remote:
                    closing = Closing(state.ino, self.next_sequence(), still_open=True)
                    await self._session.call(Close([closing]), timeout_s=self._timeout_s)
                await self.commit(state, final=True)
        except (Refused, Fenced) as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                log.error("the catalog refused the commit of inode %d: %s", state.ino, error)
        state.registered_write = False
        if state.readers:
            self._close_soon(Closing(state.ino, self.next_sequence(), still_open=True))

    async def commit_loop(self) -> None:
        """Commits files that stay open for writing every `commit_s` seconds."""
        while True:
            await trio.sleep(self._commit_s)
            for state in list(self._inodes.values()):
                if not state.changed or state.writers == 0:
                    continue
                try:
                    async with state.lock:
                        if self.is_entered(state) and state.changed and state.home is not None:
                            await self.commit(state, final=False)
                except GodwitError as error:
                    log.warning("inode %d stays dirty: %s", state.ino, error)

    # ---------------------------------------------------------- registrations

    def _close_soon(self, closing: Closing) -> None:
        self._closings.append(closing)
        self._wake_closer.set()

    async def close_loop(self) -> None:
        """Tells the manager in batches what is not open any more."""
        while True:
            await self._wake_closer.wait()
            await trio.sleep(CLOSE_GATHER_S)
            self._wake_closer = trio.Event()
            batch, self._closings = self._closings, []
            try:
                await self._session.call(Close(batch), timeout_s=self._timeout_s)
            except Unavailable as error:
                log.warning("the manager does not know yet what was closed: %s", error)
                self._closings = batch + self._closings
                self._wake_closer.set()
            async with self._idle:
                self._idle.notify_all()

    async def drain(self) -> None:
        """Waits until everything that was closed is committed; for an orderly stop."""
        for handle in list(self._handles):
            self.release_handle(handle)
        async with self._idle:
            while self._to_settle or self._settling or self._closings:
                await self._idle.wait()
