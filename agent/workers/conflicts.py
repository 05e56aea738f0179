"""Keeps content that only this server had when it was declared lost, or that a damaged object has, under conflict names.

After the start, after each return and each damage, and now and then, the manager is asked which objects were abandoned on this
server's volumes; until they are resolved, it has nothing else done with them. For each object that holds something new a number
is drawn for a new inode (the manager keeps it), the object is renamed to that number, gets its record, and the manager names
the file. What is there says where an attempt ended:

| there is | then |
|---|---|
| the object under its old number | it is looked at, and renamed if it holds something new |
| the object under its new number | it gets its record (again), and is named |
| neither | there is nothing to keep, and the manager is told |

Nobody has a right to write such an object any more. It is fenced all the same, since a mount may have been stopped while it
wrote.
"""

import errno
import logging
import os
from collections.abc import Callable
from functools import partial

import trio

from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.objects.reading import Altered, verify_object
from agent.objects.staging import make_object_directory
from agent.volumes.volume import LocalVolume
from agent.workers.own_content import Comparer
from cluster.durable import sync_directory
from cluster.errors import Refused, error_text
from cluster.messages import Content, Done, ForgetForsaken, ForsakenObject, KeepForsaken, ListForsaken, NameForsaken, Request
from cluster.rpc.session import ManagerSession
from cluster.volume.content import content_of, object_lock, stamp_of
from cluster.volume.fence import despite_fence, fence, lift
from cluster.volume.layout import ObjectRecord, display_path, write_record

log = logging.getLogger(__name__)

MANAGER_TIMEOUT_S = 30.0
ASK_AGAIN_S = 60.0  # a server is declared lost elsewhere, and nobody tells this agent


class ConflictKeeper:
    """Worker that resolves abandoned objects until there are none, and looks again after each `restart`."""

    name = "abandoned objects"

    def __init__(
        self,
        *,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        locks: KeyedLocks[int],
        objects: OpenObjects,
        comparer: Comparer,
    ) -> None:
        self._works = works
        self._session = session
        self._locks = locks
        self._objects = objects
        self._comparer = comparer
        self._again = trio.Event()  # set at first: the manager is asked at the start
        self._again.set()

    def restart(self) -> None:
        """Has the manager asked once more."""
        self._again.set()

    async def run_once(self) -> Outcome:
        """Asks, and resolves what is named; it asks again until nothing is, whatever fails in between."""
        with trio.move_on_after(ASK_AGAIN_S):
            await self._again.wait()
        self._again = trio.Event()
        found: list[ForsakenObject] | None = None
        try:
            found = (await self._session.call(ListForsaken(), timeout_s=MANAGER_TIMEOUT_S)).objects
            resolved = [await self._resolve(item) for item in found]
        finally:
            if found is None or found:
                self._again.set()
        return Outcome.PROGRESS if all(resolved) else Outcome.IDLE

    async def _resolve(self, item: ForsakenObject) -> bool:
        """Resolves one object; False if its disk failed, which must not hold up the others."""
        work = self._works(item.volume)
        async with self._locks.hold(item.ino):
            # Under the lock: an open descriptor would go on reading what is renamed below.
            self._objects.forget(ObjectKey(item.volume, item.ino))
            try:
                number = await self._under_new_number(work, item)
                if number:
                    await self._name(work, item, number)
                else:
                    await self._tell(ForgetForsaken(item.volume, item.ino))
            except OSError as error:
                log.error(
                    "what this server alone had of inode %d on volume %d is not kept yet: %s",
                    item.ino,
                    item.volume,
                    error_text(error),
                )
                return False
        return True

    async def _under_new_number(self, work: DiskWork, item: ForsakenObject) -> int:
        """The number under which the object is now; 0 if there is nothing to keep."""
        layout = work.volume.layout
        # An attempt before has renamed it and was not told, or died before it was named.
        if item.conflict and os.path.lexists(layout.object_path(item.conflict)):
            return item.conflict
        path = layout.object_path(item.ino)
        try:
            async with object_lock(path) as descriptor:
                is_new = await work.in_thread(_holds_something_new, descriptor, path, item)
                if is_new and item.stamp is not None:  # nothing was committed that the file does not have
                    is_new = await self._comparer.has_own(work, descriptor, item.ino)
                if is_new:
                    # The number before the rename: with a crash in between the manager gives the same number again.
                    reply = await self._session.call(KeepForsaken(item.volume, item.ino), timeout_s=MANAGER_TIMEOUT_S)
                    await work.in_thread(_rename, work.volume, item.ino, reply.first)
                    return reply.first
        except FileNotFoundError:
            await work.in_thread(work.volume.require_there)  # else its disk is away, and it will be there again
            log.warning("inode %d on volume %d was abandoned and is not there: nothing is kept", item.ino, item.volume)
            return 0
        await work.discard.submit(item.ino)
        log.info("inode %d on volume %d was abandoned and holds nothing new: moved to the trash", item.ino, item.volume)
        return 0

    async def _name(self, work: DiskWork, item: ForsakenObject, number: int) -> None:
        content = await work.in_thread(_adopt, work.volume, item, number)
        request = NameForsaken(item.volume, item.ino, content)
        try:
            path = (await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)).path
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise
            return
        log.warning("what this server alone had of inode %d is kept as %s", item.ino, display_path(path))

    async def _tell(self, request: Request[Done]) -> None:
        try:
            await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        except Refused as error:
            if error.errno != errno.ENOENT:  # told already: the reply was lost
                raise


def _holds_something_new(descriptor: int, path: str, item: ForsakenObject) -> bool:
    """Whether nobody else has the object's content. It is fenced first, so that this stays true. Blocks."""
    # Before the fence, which moves the ctime.
    before = stamp_of(os.fstat(descriptor))
    fence(descriptor)
    status = os.fstat(descriptor)
    if item.stamp == before and (status.st_size, status.st_mtime_ns) == (before.size, before.mtime_ns):
        return False
    if not item.kept_checksum or status.st_size != item.kept_size:
        return True
    try:
        return verify_object(path).checksum != item.kept_checksum
    except Altered:
        return True


def _rename(volume: LocalVolume, ino: int, number: int) -> None:
    source, target = volume.layout.object_path(ino), volume.layout.object_path(number)
    make_object_directory(os.path.dirname(target))
    despite_fence(source, partial(os.rename, source, target))
    sync_directory(os.path.dirname(target))
    sync_directory(os.path.dirname(source))


def _adopt(volume: LocalVolume, item: ForsakenObject, number: int) -> Content:
    """Makes the object say that it is the first version of its new inode; its content, durable. Blocks."""
    descriptor = volume.layout.open_object(number, os.O_RDONLY)
    try:
        # setxattr on an immutable file is EPERM.
        lift(descriptor)
        mtime_ns = os.fstat(descriptor).st_mtime_ns
        record = ObjectRecord(number, 1, 1, mode=item.mode, uid=item.uid, gid=item.gid, mtime_ns=mtime_ns)
        write_record(descriptor, record)
        fence(descriptor)
        # Record and flag are durable before the manager names the file.
        os.fsync(descriptor)
        return content_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
