"""One attempt at one task: `copy` makes a local object hold a version, `delete` moves one to the trash.

Whatever happens ends in a report: an error that only stands in a log is lost to who waits for the copy.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from agent.copying.peers import VolumeDirectory
from agent.copying.receiving import Receiver
from agent.objects.disk_batches import DiskWork, Found
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.objects.reading import Altered, Verified, verify_object
from agent.strays import Arrivals
from agent.trash import TrashPurger
from agent.volumes import VolumeTable
from cluster.errors import Changed, Corrupt, GodwitError, TokenRefused, Unavailable
from cluster.messages import COPY, DELETE, AskLeases, GetAttr, PullObject, Replica, Stamp, Task, TaskReport
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import sync_directory

log = logging.getLogger(__name__)

MANAGER_TIMEOUT_S = 15.0
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Copied(NamedTuple):
    """What an attempt has made sure of."""

    version: int
    checksum: bytes
    stamp: Stamp


class Attempts:
    """Carries out tasks, one at a time per inode (the caller holds its lock)."""

    def __init__(
        self,
        *,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        volumes: VolumeTable,
        directory: VolumeDirectory,
        receiver: Receiver,
        objects: OpenObjects,
        trash: TrashPurger,
        arrivals: Arrivals,
    ) -> None:
        self._works = works
        self._session = session
        self._volumes = volumes
        self._directory = directory
        self._receiver = receiver
        self._objects = objects
        self._trash = trash
        self._arrivals = arrivals

    async def attempt(self, task: Task) -> TaskReport:
        """The report for *task*; never raises."""
        try:
            if task.operation == COPY:
                return await self._copy(task)
            if task.operation == DELETE:
                return await self._delete(task)
            return failed(task, f"unknown operation {task.operation!r}")
        except (GodwitError, OSError) as error:
            return retry(task, str(error))
        except Exception as error:
            log.exception("unexpected error in task %d, %s of inode %d", task.task, task.operation, task.ino)
            return retry(task, f"unexpected error: {error!r}")

    async def _delete(self, task: Task) -> TaskReport:
        await self._works(task.volume).discard.submit(task.ino)
        self._objects.forget(ObjectKey(task.volume, task.ino))
        return TaskReport(task.task, task.claim, "done")

    async def _copy(self, task: Task) -> TaskReport:
        work = self._works(task.volume)
        found = await work.inspect.submit(task.ino)
        if found is not None:
            node = (await self._session.call(GetAttr(task.ino), timeout_s=MANAGER_TIMEOUT_S)).node
            if node.home_volume == task.volume:
                return failed(task, f"volume {task.volume} is the home of inode {task.ino}, which no copy may overwrite")
            copied = await self._confirm(task, found, work)
            if copied is not None:
                return done(task, copied)
        return await self._copy_from_any(task, work, stale=found is not None)

    async def _confirm(self, task: Task, found: Found, work: DiskWork) -> Copied | None:
        """What is there already, if it is what the task wants: the work of an attempt that died before its report."""
        record = found.record
        if record is None or not record.checksum or record.version < task.version:
            return None
        path = work.volume.layout.object_path(task.ino)

        def verify() -> Verified:
            verified = verify_object(path)
            sync_directory(path.rpartition("/")[0])
            return verified

        try:
            verified = await work.in_thread(verify)
        except Altered:
            return None
        expected = task.checksum.hex() if task.checksum and task.version == record.version else record.checksum
        if verified.checksum.hex() != record.checksum or record.checksum != expected:
            log.error("inode %d on volume %d does not have its checksum: it is copied again", task.ino, task.volume)
            return None
        self._arrivals.note(ObjectKey(task.volume, task.ino))
        return Copied(record.version, verified.checksum, verified.stamp)

    async def _copy_from_any(self, task: Task, work: DiskWork, *, stale: bool) -> TaskReport:
        problems: list[str] = []
        blamed, blame = 0, ""
        for source in await self._in_order(task.sources):
            try:
                copied = await self._copy_making_room(task, source, work, stale=stale)
            except Changed as error:
                return TaskReport(task.task, task.claim, "changed", str(error), source_volume=blamed, source_error=blame)
            except Corrupt as error:
                problems.append(str(error))
                if not blame:
                    blamed, blame = source.volume, str(error)
            except GodwitError as error:
                problems.append(f"volume {source.volume}: {error}")
            except OSError as error:
                problems.append(f"volume {task.volume}: {error}")
                break
            else:
                return done(task, copied, blamed, blame)
        return retry(task, "; ".join(problems) or "there is no source for this copy", blamed, blame)

    async def _in_order(self, sources: Sequence[Replica]) -> list[Replica]:
        """Sources best first, but those of this server before all, and those on servers that the manager does not hear last."""
        up = {source.volume: await self._directory.is_up(source.volume) for source in sources}
        return sorted(sources, key=lambda source: (not up[source.volume], not self._is_here(source.volume)))

    def _is_here(self, volume: int) -> bool:
        return self._volumes.get(volume) is not None

    async def _copy_making_room(self, task: Task, source: Replica, work: DiskWork, *, stale: bool) -> Copied:
        try:
            return await self._copy_from(task, source, work, stale=stale)
        except OSError as error:
            if error.errno not in OUT_OF_SPACE or not await self._trash.make_room(work.volume):
                raise
        return await self._copy_from(task, source, work, stale=stale)

    async def _copy_from(self, task: Task, source: Replica, work: DiskWork, *, stale: bool) -> Copied:
        """Raises what the source answers, and `OSError` for the disks of this server only."""
        if source.stamp is None:
            raise Unavailable("the catalog does not know its stamp")
        peer = None if self._is_here(source.volume) else await self._directory.find(source.volume)
        request = PullObject(task.ino, source.volume, source.version, source.stamp, task.token, is_written=task.is_written)
        receive = partial(self._receiver.receive, task, peer=peer, work=work, stale=stale)
        try:
            publication = await receive(request=request)
        except TokenRefused:
            # The task has waited here for longer than its pass is good, or the manager is a new one.
            publication = await receive(request=await self._with_new_pass(request))
        checksum = bytes.fromhex(publication.record.checksum)
        stamp = await work.publish.submit(publication)
        key = ObjectKey(task.volume, task.ino)
        self._objects.forget(key)
        self._arrivals.note(key)
        return Copied(source.version, checksum, stamp)

    async def _with_new_pass(self, request: PullObject) -> PullObject:
        (token,) = (await self._session.call(AskLeases([request.ino]), timeout_s=MANAGER_TIMEOUT_S)).tokens
        return msgspec.structs.replace(request, token=token)


def done(task: Task, copied: Copied, blamed: int = 0, blame: str = "") -> TaskReport:
    """The report of a copy that is there, durable and verified."""
    return TaskReport(
        task.task,
        task.claim,
        "done",
        version=copied.version,
        checksum=copied.checksum,
        stamp=copied.stamp,
        source_volume=blamed,
        source_error=blame,
    )


def retry(task: Task, error: str, blamed: int = 0, blame: str = "") -> TaskReport:
    """The report of an attempt that may go better later."""
    return TaskReport(task.task, task.claim, "retry", error, source_volume=blamed, source_error=blame)


def failed(task: Task, error: str) -> TaskReport:
    """The report of an attempt that can never succeed."""
    return TaskReport(task.task, task.claim, "failed", error)
