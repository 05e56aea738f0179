"""Commits what mounts left behind: dirty files of this server that nobody has open for writing any more.

A mount that went away with one open may only be stopped, and write once more when it goes on. So the object is fenced then, and
stays so until somebody opens the file for writing.
"""

import errno
import logging
import os

import trio

from agent.loop import Outcome
from agent.volumes.volume import LocalVolume, VolumeTable
from agent.workers.dead_journals import DeadJournals
from cluster.errors import GodwitError, Refused, error_text
from cluster.messages import BeginCommit, Begun, GetAttr, ListUnsettled, Node, Operation
from cluster.rpc.session import ManagerSession
from cluster.volume.content import commit_object, object_lock, set_times
from cluster.volume.fence import fence, is_fenced, lift

log = logging.getLogger(__name__)

LIMIT = 256  # inodes in one pass
AT_ONCE = 8  # commits side by side: each waits for the manager and for a disk
MANAGER_TIMEOUT_S = 15.0


class Settler:
    """Worker: one pass over the unsettled inodes. Each problem is logged once, not at every pass."""

    name = "settler"

    def __init__(self, volumes: VolumeTable, session: ManagerSession, journals: DeadJournals) -> None:
        self._volumes = volumes
        self._session = session
        self._journals = journals
        self._known_problems: dict[int, str] = {}  # by inode, of the last pass
        self._unfenced: set[int] = set()  # volumes whose file system has no fence, which is said once

    async def run_once(self) -> Outcome:
        unsettled = await self._session.call(ListUnsettled(LIMIT), timeout_s=MANAGER_TIMEOUT_S)
        # Changes that their mount had made before come first: a commit makes a version that they do not expect.
        await self._journals.send()
        slots = trio.Semaphore(AT_ONCE)
        problems: dict[int, str] = {}

        async def settle_one(ino: int) -> None:
            async with slots:
                problem = await self._settle(ino)
            if problem:
                problems[ino] = problem
                if self._known_problems.get(ino) != problem:
                    log.error("inode %d stays dirty: %s", ino, problem)

        async with trio.open_nursery() as nursery:
            for ino in unsettled.inodes:
                nursery.start_soon(settle_one, ino)
        self._known_problems = problems
        more = len(unsettled.inodes) >= LIMIT and len(problems) < len(unsettled.inodes) // 2
        return Outcome.PROGRESS if more else Outcome.IDLE

    async def _settle(self, ino: int) -> str:
        """Commits one inode; returns what prevents it, or an empty string."""
        try:
            node = await self._get(ino)
            volume = self._volumes.get(node.home_volume)
            if not node.dirty or volume is None:
                return ""
            async with object_lock(volume.layout.object_path(ino)) as descriptor:
                # A mount may have committed while the lock was waited for.
                begun = await self._session.call(BeginCommit(ino), timeout_s=MANAGER_TIMEOUT_S)
                node = begun.node
                # Somebody may have opened it for writing since it was listed: a fence would stop him.
                if node.dirty and node.home_volume == volume.number and not begun.written:
                    await self._commit(descriptor, volume, begun)
            return ""
        except FileNotFoundError:
            return f"its object is missing on volume {node.home_volume}; nothing is committed in its place"
        except Refused as error:
            return "" if error.errno == errno.ENOENT else str(error)
        except (GodwitError, OSError) as error:
            return error_text(error)

    async def _commit(self, descriptor: int, volume: LocalVolume, begun: Begun) -> None:
        await trio.to_thread.run_sync(_keep_time, descriptor, begun.node)
        # The fence before the commit takes the stamp: it moves the ctime, and ends what a stopped mount could still write.
        # One that closed the file in order may have set it, too, when its lease had ended: then its own commit was refused.
        fenced = is_fenced(descriptor) if begun.orderly else await trio.to_thread.run_sync(fence, descriptor)
        if not begun.orderly and not fenced and volume.number not in self._unfenced:
            self._unfenced.add(volume.number)
            log.warning("%s has no immutable flag: a mount that was stopped while it wrote may write late", volume.layout.root)
        node = await commit_object(descriptor, begun.node, b"", final=True, apply=self._apply, begun=begun.number, fenced=fenced)
        if node.dirty and fenced:
            await trio.to_thread.run_sync(lift, descriptor)  # somebody has opened it for writing in the meantime

    async def _get(self, ino: int) -> Node:
        return (await self._session.call(GetAttr(ino), timeout_s=MANAGER_TIMEOUT_S)).node

    async def _apply(self, operation: Operation) -> Node:
        return await self._session.apply_one(operation, timeout_s=MANAGER_TIMEOUT_S)


def _keep_time(descriptor: int, node: Node) -> None:
    """Gives an object that was not written since its last commit the time that somebody has set for the file since.

    Else the commit, which the fence makes one of new content, would bring the object's own.
    """
    status = os.fstat(descriptor)
    unwritten = node.version and (status.st_size, status.st_ctime_ns) == (node.size, node.object_ctime_ns)
    if unwritten and status.st_mtime_ns != node.mtime_ns:
        set_times(descriptor, None, node.mtime_ns)
