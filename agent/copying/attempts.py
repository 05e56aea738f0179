"""One attempt at one task: `copy` makes a local object hold a version, `delete` moves one to the trash.

Whatever happens ends in a report: an error that only stands in a log is lost to who waits for the copy.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.checking.strays import Arrivals
from agent.copying.peers import VolumeDirectory
from agent.copying.receiving import Receiver
from agent.objects.disk_batches import DiskWork, Found
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.objects.reading import Altered, Verified, verify_object
from agent.objects.trash import TrashPurger
from agent.volumes.volume import VolumeTable
from cluster.clock import thread_s
from cluster.durable import sync_directory
from cluster.errors import Changed, Corrupt, GodwitError, Unavailable, error_text
from cluster.faults import faults
from cluster.messages import GetAttr, PullObject, Replica, Stamp, Task, TaskOperation, TaskReport
from cluster.rpc.session import ManagerSession
from cluster.volume.probe import DISK_ERRNOS

log = logging.getLogger(__name__)

MANAGER_TIMEOUT_S = 15.0  # one question; the task goes back to the queue after it
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)  # EDQUOT as well: a quota is full before its disk is


class Copied(NamedTuple):
    """What an attempt has made sure of."""

    version: int  # of the source, which may be newer than the task asked for
    checksum: bytes  # BLAKE3 of the whole content
    stamp: Stamp  # size and times of the object here, by which the catalog knows it from now on


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
        self._works = works  # a volume's batchers by its number; raises `Undone` if it is closed
        self._session = session  # to the manager in office
        self._volumes = volumes  # those that are open here, and who counts errors of their disks
        self._directory = directory  # where volumes of others are, and whether they are up
        self._receiver = receiver  # brings bytes into `staging/`
        self._objects = objects  # open descriptors: one of a replaced object would serve the old version
        self._trash = trash  # emptied when a copy has met ENOSPC
        self._arrivals = arrivals  # what copies bring is no stray though the catalog does not know it yet

    async def attempt(self, task: Task) -> TaskReport:
        """The report for *task*; never raises."""
        try:
            if task.operation == TaskOperation.COPY:
                return await self._copy(task)
            if task.operation == TaskOperation.DELETE:
                return await self._delete(task)
            return failed(task, f"unknown operation {task.operation!r}")
        except (GodwitError, OSError) as error:
            # Only this server's disks raise OSError here; a peer's come as GodwitError.
            if isinstance(error, OSError):
                self._volumes.met(task.volume, error)  # counts towards taking the disk for failing
            return retry(task, error_text(error))
        except Exception as error:
            faults.unexpected(log, f"in task {task.task}, {task.operation} of inode {task.ino}", error)
            return retry(task, f"unexpected error: {error!r}")

    async def _delete(self, task: Task) -> TaskReport:
        """Moves the object to the trash. The report says done even if the disk refuses: a drain would wait for ever otherwise."""
        work = self._works(task.volume)
        try:
            await work.discard.submit(task.ino)
        except OSError as error:
            # Anything but the disk's own errors may pass, and is tried again.
            if error.errno not in DISK_ERRNOS:
                raise
            self._volumes.met(task.volume, error)
            # The catalog forgets the object with this report; when the disk is good, the stray scan finds it and sets it aside.
            work.volume.is_unswept = True
            log.warning(
                "inode %d stays on volume %d, unknown to the catalog, until its disk is good: %s",
                task.ino,
                task.volume,
                error_text(error),
            )
        # After the move: who opened the path in between is told apart by the count of `forget`.
        self._objects.forget(ObjectKey(task.volume, task.ino))
        return TaskReport(task.task, task.claim, "done")

    async def _copy(self, task: Task) -> TaskReport:
        work = self._works(task.volume)
        # Between this answer and the rename the inode's lock, which the caller holds, keeps other tasks of this agent out.
        found = await work.inspect.submit(task.ino)
        if found is not None:
            # Asked only if there is an object: a home always has one. Mounts write it without the agent's lock.
            node = (await self._session.call(GetAttr(task.ino), timeout_s=MANAGER_TIMEOUT_S)).node
            if node.home_volume == task.volume:
                return failed(task, f"volume {task.volume} is the home of inode {task.ino}, which no copy may overwrite")
            copied = await self._confirm(task, found, work)
            if copied is not None:
                return done(task, copied)
        return await self._copy_from_any(task, work, stale=found is not None)

    async def _confirm(self, task: Task, found: Found, work: DiskWork) -> Copied | None:
        """The object that is there, if it is what the task wants: an earlier attempt may have died before its report."""
        record = found.record
        if record is None or not record.checksum or record.version < task.version:
            return None
        path = work.volume.layout.object_path(task.ino)

        def verify() -> Verified:
            verified = verify_object(path)
            # The attempt before may have died between rename and sync: a report of ours must not outlive the name.
            sync_directory(path.rpartition("/")[0])
            return verified

        try:
            verified = await work.in_thread(verify)
        except Altered:
            # Somebody writes it, or touched it just now: it is copied anew.
            return None
        # The catalog's digest counts before the object's own record, but only for the very version.
        expected = task.checksum.hex() if task.checksum and task.version == record.version else record.checksum
        if verified.checksum.hex() != record.checksum or record.checksum != expected:
            log.error("inode %d on volume %d does not have its checksum: it is copied again", task.ino, task.volume)
            return None
        # Before the report: until the manager has it, the stray scan would find an object unknown to the catalog.
        self._arrivals.note(ObjectKey(task.volume, task.ino))
        return Copied(record.version, verified.checksum, verified.stamp)

    async def _copy_from_any(self, task: Task, work: DiskWork, *, stale: bool) -> TaskReport:
        problems: list[str] = []
        blamed, blame = 0, ""
        for source in await self._in_order(task.sources):
            try:
                copied = await self._copy_making_room(task, source, work, stale=stale)
            except Changed as error:
                # The catalog moves on: the manager plans anew, so other sources of the old version are not tried.
                return TaskReport(task.task, task.claim, "changed", str(error), source_volume=blamed, source_error=blame)
            except Corrupt as error:
                problems.append(str(error))
                if not blame:  # one fits into a report
                    blamed, blame = source.volume, str(error)
            except GodwitError as error:
                problems.append(f"volume {source.volume}: {error}")
            except OSError as error:
                self._volumes.met(task.volume, error)
                problems.append(f"volume {task.volume}: {error_text(error)}")
                # The disk of the target: another source changes nothing.
                break
            else:
                return done(task, copied, blamed, blame)
        return retry(task, "; ".join(problems) or "there is no source for this copy", blamed, blame)

    async def _in_order(self, sources: Sequence[Replica]) -> list[Replica]:
        """Sources best first, but those of this server before all, and those on servers that the manager does not hear last."""
        # Awaits one by one; what went down meanwhile costs an attempt, no more.
        up = {source.volume: await self._directory.is_up(source.volume) for source in sources}
        # sorted is stable: within each class the manager's order remains.
        return sorted(sources, key=lambda source: (not up[source.volume], not self._is_here(source.volume)))

    def _is_here(self, volume: int) -> bool:
        return self._volumes.get(volume) is not None

    async def _copy_making_room(self, task: Task, source: Replica, work: DiskWork, *, stale: bool) -> Copied:
        began_s = thread_s()
        try:
            return await self._copy_from(task, source, work, stale=stale)
        except OSError as error:
            # Once only: after the trash is empty another attempt would fail the same way.
            if error.errno not in OUT_OF_SPACE or not await self._trash.make_room(work.volume, began_s):
                raise
        return await self._copy_from(task, source, work, stale=stale)

    async def _copy_from(self, task: Task, source: Replica, work: DiskWork, *, stale: bool) -> Copied:
        """Raises what the source answers, and `OSError` for the disks of this server only."""
        peer = None if self._is_here(source.volume) else await self._directory.find(source.volume)
        request = request_of(task, source)
        publication = await self._receiver.receive(task, request, peer, work, stale=stale)
        checksum = bytes.fromhex(publication.record.checksum)
        stamp = await work.publish.submit(publication)
        key = ObjectKey(task.volume, task.ino)
        # Before the report: from then on nobody may be served the old object.
        self._objects.forget(key)
        self._arrivals.note(key)
        return Copied(source.version, checksum, stamp)


def request_of(task: Task, source: Replica) -> PullObject:
    """What the source of a copy is asked for."""
    if source.stamp is None:
        # Without a stamp the source could not tell whether it sends the version that is meant.
        raise Unavailable("the catalog does not know its stamp")
    # Another source's agent does not take the pass for the first: it refuses the request, and a pass for it is asked for.
    token = task.token if source.volume == task.sources[0].volume else b""
    return PullObject(task.ino, source.volume, source.version, source.stamp, token, is_written=task.is_written)


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
