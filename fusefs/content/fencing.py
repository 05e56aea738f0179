"""Stops programs that write past this mount, when the inode's lease has ended or a lock was lost: the kernel would write on, so
the object is fenced (`cluster.volume.fence`).
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from cluster.errors import GodwitError, Refused
from cluster.tending import Tasks
from cluster.volume.fence import fence
from fusefs.caching.tokens import Leases
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Object
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode

log = logging.getLogger(__name__)

LOOK_S = 0.25  # much less than the margin that the manager waits beyond a lease


class Guard:
    """Fences objects that are passed through, and opens them to writes when the manager answers again."""

    def __init__(
        self,
        open_files: OpenFiles,
        leases: Leases,
        reopen: Callable[[OpenInode, Object | None], Awaitable[Object]],
        tasks: Tasks,
    ) -> None:
        self._open_files = open_files
        self._leases = leases
        self._reopen = reopen
        self._tasks = tasks
        self._reopening: set[int] = set()  # fenced, with a task that waits until they can be written again
        self._cannot_fence = False  # that was said already

    async def run(self) -> None:
        """Looks at the leases of what is written past the mount until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            # Not when a lease ends, but in turns: what has not been renewed in time must be fenced even if no timer says so.
            for state in self._open_files.written_past():
                if state.ino not in self._reopening and not self._may_be_written(state.ino, now):
                    self._stop(state)

    def _may_be_written(self, ino: int, now: float) -> bool:
        try:
            self._leases.check_content(ino)
        except GodwitError:
            return False
        return self._leases.deadline_s(ino) > now

    def _stop(self, state: OpenInode) -> None:
        if not isinstance(state.home, LocalObject):
            return
        log.error("inode %d is open for writing and its lease, or a lock of it, has ended: writes fail for now", state.ino)
        # First of all, and in this step: each write that the kernel begins before it may meet those of another server.
        self._fence(state.home)
        self._reopening.add(state.ino)
        self._tasks.start_soon(self._go_on, state)

    def _fence(self, home: LocalObject) -> None:
        if not fence(home.descriptor) and not self._cannot_fence:
            self._cannot_fence = True
            log.error("leases have ended, and this volume's file system cannot stop programs that write now (no immutable flag)")

    async def _go_on(self, state: OpenInode) -> None:
        """Registers the inode anew as soon as that is possible; where its home is still here, that lifts the fence.

        Until then the fence is set again: an agent lifts it to write for others.
        """
        try:
            while self._open_files.is_entered(state) and state.is_written_past and not state.is_lost:
                try:
                    await self._leases.hold_for_content(state.ino)
                    await self._reopen(state, state.home)
                except Refused as error:
                    log.error("inode %d stays as it was when its lease ended: %s", state.ino, error)
                    return
                except GodwitError as error:
                    log.debug("inode %d cannot be written yet: %s", state.ino, error)
                    await trio.sleep(LOOK_S)
                    if isinstance(state.home, LocalObject) and not self._may_be_written(state.ino, trio.current_time()):
                        self._fence(state.home)
                else:
                    log.info("inode %d can be written again", state.ino)
                    return
        finally:
            self._reopening.discard(state.ino)
