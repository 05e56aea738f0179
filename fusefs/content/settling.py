"""Commits: after a close the last one, with the end of the registration at the manager; others while a file is open for writing.

Neither close nor fsync waits for this. Files that were closed within a moment are settled together, in one request and one
transaction. What cannot be committed now stays dirty and is tried again; if this mount dies first, the home's agent does it.
"""

import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack

import trio

from cluster.errors import Fenced, GodwitError, Refused
from cluster.messages import Close, Closing, Commit
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.lingering import Lingering
from fusefs.objects import LocalObject
from fusefs.openfiles import OpenFiles, OpenInode

log = logging.getLogger(__name__)

GATHER_S = 0.05
GATHER_MAX = 128
TOGETHER_MAX = 16  # in one transaction, which others wait for
ONE_BY_ONE_MAX = 32
SYNCED_S = 0.5  # from an fsync to the commit: who syncs each record makes no version of each
RETRY_S = 1.0
RETRY_MAX_S = 60.0


class Settler:
    """Background tasks of the mount: `run` settles what was closed, `commit_loop` commits what stays open, `commit_synced` what
    was synced."""

    def __init__(
        self, session: ManagerSession, caching: Caching, paths: LastKnownPaths, timeout_s: float, commit_s: float
    ) -> None:
        self._session = session
        self._caching = caching
        self._paths = paths
        self._timeout_s = timeout_s
        self._commit_s = commit_s
        self._due: dict[int, None] = {}
        self._wake = trio.Event()
        self._synced: list[OpenInode] = []
        self._wake_synced = trio.Event()
        self._at_work = 0
        self._progress = trio.Condition()
        self._limit = trio.Semaphore(ONE_BY_ONE_MAX)
        self._open_files = OpenFiles(self.soon)
        self.lingering = Lingering(caching, self.soon)

    @property
    def open_files(self) -> OpenFiles:
        """The open files that this settles."""
        return self._open_files

    def soon(self, ino: int) -> None:
        """Brings registration and catalog in line with the handles that are left, in the background."""
        self._due[ino] = None
        self._wake.set()

    async def run(self) -> None:
        """Settles closed inodes until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                await trio.sleep(GATHER_S)
                gathered = list(self._due)[:GATHER_MAX]
                for ino in gathered:
                    del self._due[ino]
                if not self._due:
                    self._wake = trio.Event()
                self._at_work += len(gathered)
                for start in range(0, len(gathered), TOGETHER_MAX):
                    nursery.start_soon(self._settle, gathered[start : start + TOGETHER_MAX], nursery)

    async def drain(self) -> None:
        """Ends all handles and returns when all is settled; for an orderly stop."""
        self._open_files.release_all()
        self.lingering.stop()
        async with self._progress:
            while self._due or self._at_work:
                await self._progress.wait()

    async def _settle(self, batch: list[int], nursery: trio.Nursery) -> None:
        try:
            left = await self._settle_together([state for ino in batch if (state := self._open_files.get(ino))])
        except GodwitError as error:
            log.info("settling one by one, since together failed: %s", error)
            left = batch
        self._at_work += len(left)
        for ino in left:
            nursery.start_soon(self._settle_alone, ino)
        await self._done(len(batch))

    async def _done(self, count: int) -> None:
        self._at_work -= count
        async with self._progress:
            self._progress.notify_all()

    async def _settle_together(self, states: list[OpenInode]) -> list[int]:
        """Settles what needs only the manager; returns what needs another server. The locks are held until the answer."""
        left = []
        commits: list[tuple[OpenInode, Commit]] = []
        closings: list[Closing] = []
        async with AsyncExitStack() as stack:
            for state in states:
                await stack.enter_async_context(state.lock)
                if self._open_files.get(state.ino) is not state:
                    continue
                if self._must_commit(state):
                    if not isinstance(state.home, LocalObject):
                        left.append(state.ino)
                        continue
                    path = self._paths.path(state.ino)
                    state.changed = False
                    commits.append((state, await stack.enter_async_context(state.home.prepared(state.node_to_end_with(), path))))
            if commits:
                nodes = await self._session.apply([commit for _, commit in commits], timeout_s=self._timeout_s)
                for (state, _), node in zip(commits, nodes, strict=True):
                    assert node is not None
                    state.node = node
                    state.unsettled = False
                    self._caching.drop_node(state.ino)
            for state in states:
                if state.ino not in left and self._open_files.get(state.ino) is state:
                    closings += self._closed(state)
        await self._close(closings)
        return left

    async def _settle_alone(self, ino: int) -> None:
        """Settles one inode; when that fails, again after a while, however often: what was written must not stay uncommitted."""
        try:
            async with self._limit:
                await self._settle_one(ino)
        except GodwitError as error:
            log.warning("inode %d is not committed yet, trying again: %s", ino, error)
            if (state := self._open_files.get(ino)) is not None:
                state.settle_failures += 1
                await trio.sleep(min(RETRY_S * 2 ** (state.settle_failures - 1), RETRY_MAX_S))
                self.soon(ino)
        finally:
            await self._done(1)

    async def _settle_one(self, ino: int) -> None:
        state = self._open_files.get(ino)
        if state is None:
            return
        async with state.lock:
            if self._open_files.get(ino) is not state:
                return
            if self._must_commit(state):
                await self._last_commit(state)
            closings = self._closed(state)
        await self._close(closings)

    def _must_commit(self, state: OpenInode) -> bool:
        return state.registered_write and state.writers == 0 and state.home is not None and not state.lost

    async def _last_commit(self, state: OpenInode) -> None:
        """One that another server's agent makes for this mount comes after this mount's registration as a writer was taken
        back, since the catalog cleans the file only when the committer is the last writer."""
        assert state.home is not None
        if state.home.is_remote:
            await self._close([Closing(state.ino, self._open_files.next_sequence(), still_open=True)])
        try:
            await self.commit(state, final=True)
        except (Refused, Fenced) as error:
            log.error("the commit of inode %d was refused, its object stays as it is: %s", state.ino, error)

    def _closed(self, state: OpenInode) -> list[Closing]:
        """Notes what is not open any more, and returns what the manager is to be told."""
        ends_writing = state.registered_write and state.writers == 0
        state.registered_write = state.registered_write and not ends_writing
        if state.readers + state.writers == 0:
            if state.registered and not ends_writing and self.lingering.keeps(state):
                return []
            self._open_files.leave(state)
            return [Closing(state.ino, self._open_files.next_sequence())] if state.registered else []
        return [Closing(state.ino, self._open_files.next_sequence(), still_open=True)] if ends_writing else []

    async def let_go(self, inodes: Iterable[int]) -> None:
        """Ends the registrations that only linger; what is being opened again stays. Raises `GodwitError`."""
        lingered = [state for ino in inodes if self.lingering.give_up(ino) and (state := self._open_files.get(ino))]
        await self._close([closing for state in lingered if not state.lock.locked() for closing in self._closed(state)])

    async def _close(self, closings: list[Closing]) -> None:
        if closings:
            await self._session.call(Close(closings), timeout_s=self._timeout_s)

    async def commit(self, state: OpenInode, *, final: bool) -> None:
        """Commits what was written; the caller holds the inode's lock. Raises `GodwitError`; the file stays dirty then."""
        assert state.home is not None
        state.changed = False
        try:
            node = state.node_to_end_with() if final else state.node
            state.node = await state.home.commit(node, self._paths.path(state.ino), final=final)
            state.unsettled = not final
            self._caching.drop_node(state.ino)
        except GodwitError:
            state.changed = True
            raise

    async def commit_loop(self) -> None:
        """Commits files that stay open for writing every `commit_s` seconds."""
        while True:
            await trio.sleep(self._commit_s)
            for state in self._open_files.being_written():
                await self._commit_open(state)

    def commit_soon(self, state: OpenInode) -> None:
        """Commits what was written and synced, in the background."""
        if not state.commit_due:
            state.commit_due = True
            self._synced.append(state)
            self._wake_synced.set()

    async def commit_synced(self) -> None:
        """Commits files that were synced, until cancelled."""
        while True:
            await self._wake_synced.wait()
            await trio.sleep(SYNCED_S)
            synced, self._synced, self._wake_synced = self._synced, [], trio.Event()
            for state in synced:
                state.commit_due = False
                await self._commit_open(state)

    async def _commit_open(self, state: OpenInode) -> None:
        try:
            async with state.lock:
                if self._open_files.get(state.ino) is state and state.writers and state.home is not None and state.has_changed():
                    await self.commit(state, final=False)
        except GodwitError as error:
            log.warning("inode %d stays dirty: %s", state.ino, error)
