"""Commits: after a close the last one, with the end of the registration at the manager; others while a file is open for writing.

Neither close nor fsync waits for this. Files that were closed within a moment are settled together, in one request and one
transaction. What cannot be committed now stays dirty and is tried again; if this mount dies first, the home's agent does it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import trio

from cluster.config import MountConfig
from cluster.errors import Fenced, GodwitError, Refused
from cluster.faults import faults
from cluster.messages import Close, Closing, Node
from cluster.rpc.session import ManagerSession
from fusefs.caching.held import HeldDirectories
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.lingering import Lingering
from fusefs.content.local_object import LocalObject
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode

log = logging.getLogger(__name__)

GATHER_S = 0.05  # how late a close is heard of: an archive that is unpacked closes dozens of files meanwhile
GATHER_MAX = 1024
TOGETHER_MAX = 256  # in one transaction, which others wait for
ONE_BY_ONE_MAX = 32  # at a time: each may wait for another server
SYNCED_S = 0.5  # from an fsync to the commit: who syncs each record makes no version of each
RETRY_S = 1.0  # after the first failure, twice as long after each further one
RETRY_MAX_S = 60.0


class DueInodes:
    """The inodes that something is to be settled of, in the order in which they came."""

    def __init__(self) -> None:
        self._inodes: dict[int, None] = {}
        self._wake = trio.Event()

    def add(self, ino: int) -> None:
        """One whose registration and catalog are to be brought in line with the handles that are left."""
        self._inodes[ino] = None
        self._wake.set()

    def __len__(self) -> int:
        return len(self._inodes)

    async def gather(self) -> list[int]:
        """Takes those that come within a moment, up to `GATHER_MAX`; waits for the first."""
        await self._wake.wait()
        await trio.sleep(GATHER_S)
        # No await from here on: what is added later is either in this batch or wakes the next turn.
        gathered = list(self._inodes)[:GATHER_MAX]
        for ino in gathered:
            del self._inodes[ino]
        if not self._inodes:
            self._wake = trio.Event()
        return gathered


class Settler:
    """Background tasks of the mount: `run` settles what was closed, `commit_loop` commits what stays open, `commit_synced` what
    was synced."""

    def __init__(
        self,
        session: ManagerSession,
        held: HeldDirectories,
        open_files: OpenFiles,
        due: DueInodes,
        paths: LastKnownPaths,
        lingering: Lingering,
        config: MountConfig,
    ) -> None:
        """*lingering* adds to *due* what has lingered for long enough."""
        self._session = session
        self._held = held
        self._open_files = open_files
        self._due = due
        self._paths = paths
        self.lingering = lingering
        self._timeout_s = config.request_timeout_s
        self._commit_s = config.commit_s
        self._synced: list[OpenInode] = []  # to be committed within `SYNCED_S`
        self._wake_synced = trio.Event()
        self._at_work = 0  # inodes that are being settled, or wait to be tried again
        self._progress = trio.Condition()  # notified when there are fewer
        self._limit = trio.Semaphore(ONE_BY_ONE_MAX)

    async def run(self) -> None:
        """Settles closed inodes until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                gathered = await self._due.gather()
                # In the step in which they were taken: `drain` finds each inode either due or at work.
                for start in range(0, len(gathered), TOGETHER_MAX):
                    self._begin(gathered[start : start + TOGETHER_MAX], nursery)

    async def drain(self) -> None:
        """Ends all handles and returns when all is settled; for an orderly stop."""
        self._open_files.release_all()
        self.lingering.stop()
        async with self._progress:
            while self._due or self._at_work:
                await self._progress.wait()

    async def _settle(self, batch: list[int], nursery: trio.Nursery) -> None:
        try:
            # What was opened again, or settled by others, is looked at under the lock.
            left = await self._settle_together([state for ino in batch if (state := self._open_files.get(ino))])
        except (Refused, Fenced) as error:
            log.info("settling %d files in parts, since together they were refused: %s", len(batch), error)
            left = batch if len(batch) == 1 else []
            if not left:
                # One transaction for all: whichever half has none that is refused is through next.
                self._begin(batch[: len(batch) // 2], nursery)
                self._begin(batch[len(batch) // 2 :], nursery)
        except GodwitError as error:
            log.info("settling one by one, since together failed: %s", error)
            left = batch
        except Exception as error:
            faults.unexpected(log, "while files were settled together", error)
            left = batch
        self._at_work += len(left)  # before the batch is taken off, so that `drain` does not return in between
        for ino in left:
            nursery.start_soon(self._settle_alone, ino)
        await self._done(len(batch))

    def _begin(self, batch: list[int], nursery: trio.Nursery) -> None:
        self._at_work += len(batch)
        nursery.start_soon(self._settle, batch, nursery)

    async def _done(self, count: int) -> None:
        self._at_work -= count
        async with self._progress:
            self._progress.notify_all()

    async def _settle_together(self, states: list[OpenInode]) -> list[int]:
        """Settles what needs only the manager; returns what needs more, or would be waited for. The locks are held until the
        answer."""
        locked = [state for state in states if not state.lock.locked()]
        for state in locked:
            state.lock.acquire_nowait()
        try:
            owing = [state for state in locked if state.owes_last_commit]
            left = {state.ino for state in states} - {state.ino for state in locked}
            left.update(state.ino for state in owing if not isinstance(state.home, LocalObject))
            left.update(await self._commit_together([state for state in owing if state.ino not in left]))
            # After all commits: what is not open any more is left by `_closed`, with its object.
            closings = [
                closing
                for state in locked
                if state.ino not in left and self._open_files.get(state.ino) is state
                for closing in self._closed(state)
            ]
        finally:
            for state in locked:
                state.lock.release()
        # Without the locks: what is opened again meanwhile has a higher sequence, so that this does not close it.
        await self._close(closings)
        return list(left)

    async def _commit_together(self, states: list[OpenInode]) -> list[int]:
        """The last commits of files with their homes here, whose locks the caller holds, in one transaction; what is left."""
        if not states:
            return []
        asked_s = trio.current_time()
        homes = [state.home for state in states if isinstance(state.home, LocalObject)]
        known = [(state.node_to_end_with(), self._paths.path(state.ino)) for state in states]
        pending = list(states)
        with _committing(pending):
            async with LocalObject.prepared([(home, *what) for home, what in zip(homes, known, strict=True)]) as prepared:
                pairs = [(state, commit) for state, commit in zip(states, prepared, strict=True) if commit is not None]
                pending[:] = [state for state, _ in pairs]
                left = [state for state, commit in zip(states, prepared, strict=True) if commit is None]
                for state in left:
                    state.commit_failed()
                # The objects' locks are held: no agent commits these files, and overtakes this, until the catalog answers.
                commits = [commit for _, commit in pairs]
                nodes = await self._session.apply(commits, timeout_s=self._timeout_s) if commits else []
        for state, node in zip(pending, map(_node, nodes), strict=True):
            state.committed(node, final=True)
            self._held.committed(node, asked_s)
        return [state.ino for state in left]

    async def _settle_alone(self, ino: int) -> None:
        """Settles one inode; when that fails, again after a while, however often: what was written must not stay uncommitted."""
        try:
            async with self._limit:
                await self._settle_one(ino)
        except Exception as error:
            if isinstance(error, GodwitError):
                log.warning("inode %d is not committed yet, trying again: %s", ino, error)
            else:
                faults.unexpected(log, f"while inode {ino} was settled", error)
            if (state := self._open_files.get(ino)) is not None:
                await trio.sleep(min(RETRY_S * 2 ** (state.settling_failed() - 1), RETRY_MAX_S))
                self._due.add(ino)
        finally:
            await self._done(1)

    async def _settle_one(self, ino: int) -> None:
        state = self._open_files.get(ino)
        if state is None:
            return
        async with state.lock:
            if self._open_files.get(ino) is not state:
                return
            if state.owes_last_commit:
                await self._last_commit(state)
            closings = self._closed(state)
        await self._close(closings)

    async def _last_commit(self, state: OpenInode) -> None:
        """One that another server's agent makes for this mount comes after this mount's registration as a writer was taken
        back, since the catalog cleans the file only when the committer is the last writer."""
        assert state.home is not None
        if state.home.is_remote:
            # If the commit fails, the next attempt begins here again. Whoever opens the file in between registers (`Opener`).
            await self._close([Closing(state.ino, self._open_files.next_sequence(), still_open=True)])
        try:
            await self.commit(state, final=True)
        except (Refused, Fenced) as error:
            # The file is gone, or has another home by now: trying again would change nothing.
            log.error("the commit of inode %d was refused, its object stays as it is: %s", state.ino, error)

    def _closed(self, state: OpenInode) -> list[Closing]:
        """Ends the registration as far as no handle needs it, and returns what the manager is to be told."""
        # Before handles are counted: the extension may have given some to the kernel.
        self._open_files.take_back(state.ino)
        is_known = state.is_registered
        ends_writing = state.is_registered_to_write and state.writers == 0
        if ends_writing:
            state.settled()
        if state.handles == 0:
            # What was written is closed at once: the home may move, and copies be made, only then.
            if is_known and not ends_writing and self.lingering.keeps(state):
                return []
            self._open_files.leave(state)
            return [Closing(state.ino, self._open_files.next_sequence())] if is_known else []
        return [Closing(state.ino, self._open_files.next_sequence(), still_open=True)] if ends_writing else []

    async def let_go(self, inodes: Iterable[int]) -> None:
        """Ends the registrations that only linger; what is being opened again stays. Raises `GodwitError`."""
        lingered = [state for ino in inodes if self.lingering.give_up(ino) and (state := self._open_files.get(ino))]
        for state in lingered:
            self._open_files.take_back(state.ino)
        await self._close([closing for state in lingered if state.is_idle for closing in self._closed(state)])

    async def _close(self, closings: list[Closing]) -> None:
        if closings:
            await self._session.call(Close(closings), timeout_s=self._timeout_s)

    async def commit(self, state: OpenInode, *, final: bool) -> None:
        """Commits what was written; the caller holds the inode's lock. Raises `GodwitError`; the file stays dirty then."""
        assert state.home is not None
        known = state.node_to_end_with() if final else state.node
        asked_s = trio.current_time()
        with _committing([state]):
            node = await state.home.commit(known, self._paths.path(state.ino), final=final)
        state.committed(node, final=final)
        self._held.committed(node, asked_s)

    async def commit_changed(self, state: OpenInode) -> int:
        """Commits what was written, if anything was; the version of the catalog. Raises `GodwitError`."""
        async with state.lock:
            if state.has_changed():
                await self.commit(state, final=False)
            return state.node.version

    async def commit_loop(self) -> None:
        """Commits files that stay open for writing every `commit_s` seconds."""
        while True:
            await trio.sleep(self._commit_s)
            for state in self._open_files.being_written():
                await self._commit_open(state)

    def commit_soon(self, state: OpenInode) -> None:
        """Commits what was written and synced, in the background."""
        if state.commit_soon():
            self._synced.append(state)
            self._wake_synced.set()

    async def commit_synced(self) -> None:
        """Commits files that were synced, until cancelled."""
        while True:
            await self._wake_synced.wait()
            await trio.sleep(SYNCED_S)
            synced, self._synced, self._wake_synced = self._synced, [], trio.Event()
            for state in synced:
                state.commit_comes()  # before the await: who syncs while it is committed comes on the new list
                await self._commit_open(state)

    async def _commit_open(self, state: OpenInode) -> None:
        try:
            async with state.lock:
                if self._open_files.get(state.ino) is state and state.writers and state.home is not None and state.has_changed():
                    await self.commit(state, final=False)
        except GodwitError as error:
            log.warning("inode %d stays dirty: %s", state.ino, error)
        except Exception as error:
            faults.unexpected(log, f"while inode {state.ino} was committed", error)


def _node(answer: Node | None) -> Node:
    """The node of a commit, which always has one."""
    assert answer is not None
    return answer


@contextmanager
def _committing(states: Sequence[OpenInode]) -> Iterator[None]:
    """A commit of all of *states* is under way inside. Also if it is cancelled, nothing of it counts as committed."""
    for state in states:
        state.commit_begins()
    try:
        yield
    except BaseException:
        for state in states:
            state.commit_failed()
        raise
