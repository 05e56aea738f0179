"""Compares the catalog with the objects of this server's volumes, in both directions: `godwit fsck`.

What looks different is looked at again under the inode's lock, and the catalog asked before and after: what is being written,
copied or deleted meanwhile is no finding.
"""

import errno
import logging
import os
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from agent.checking.comparison import Kind, judge
from agent.checking.inspection import is_suspect, look_at, suspects
from agent.checking.repair import Mender, SetAside, describe
from agent.checking.strays import Arrivals, Grace, StrayScan, are_too_many, object_numbers, take_some
from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.catalog_point import CatalogMemory, CatalogPoint
from cluster.clock import monotonic_s
from cluster.errors import own_error, refused
from cluster.messages import CheckProgress, Finding, FindingOutcome, ListReplicas, ReplicaState
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 500  # replicas in one answer, findings in one message
TOGETHER = 64  # objects set aside at once
TELL_S = 0.5  # between messages while there is much to tell
ALIVE_S = 5.0  # between messages while there is nothing: `godwit fsck` gives up after a silence
MANAGER_TIMEOUT_S = 30.0  # for a page with its paths

Tell = Callable[[CheckProgress], Awaitable[None]]


@dataclass
class _Counts:
    """What has been looked at, on all volumes."""

    replicas: int = 0
    objects: int = 0


class Checker:
    """Checks all volumes, once at a time."""

    name = "check"

    def __init__(
        self,
        *,
        volumes: VolumeTable,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        locks: KeyedLocks[int],
        mender: Mender,
        strays: StrayScan,
        arrivals: Arrivals,
        grace: Grace,
    ) -> None:
        self._volumes = volumes
        self._works = works
        self._session = session
        self._locks = locks
        self._mender = mender
        self._strays = strays
        self._arrivals = arrivals
        self._grace = grace
        self._lock = trio.Lock()  # one check at a time: two would read the disks twice

    async def run(self, tell: Tell, *, repair: bool, deep: bool, wait: bool = False) -> None:
        """Tells of findings as they are made. Refused with EBUSY, or with *wait* later, while another check is under way.

        A volume whose disk fails is told of and ends no check; raises `GodwitError` when the manager cannot be asked.
        """
        if self._lock.locked() and not wait:
            raise refused(errno.EBUSY, "this server is being checked already")
        counts = _Counts()
        try:
            async with self._lock, trio.open_nursery() as nursery:
                nursery.start_soon(_keep_telling, counts, tell)
                await self._check_all(counts, tell, repair=repair, deep=deep)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise own_error(group) or group from None

    async def _check_all(self, counts: _Counts, tell: Tell, *, repair: bool, deep: bool) -> None:
        # A new manager may not know yet what mounts have just made: all of that would be unknown.
        await self._grace.over()
        # Before the first question: what copies bring from now on is no stray.
        self._arrivals.start(self.name)
        try:
            for volume in [volume for volume in self._volumes.volumes if volume.number]:
                check = _VolumeCheck(self, volume, counts, tell, repair=repair, deep=deep)
                try:
                    await check.run()
                except OSError as error:
                    await check.tell_now(f"{volume.layout.root}: {os.strerror(error.errno or 0)}")
        finally:
            self._arrivals.stop(self.name)

    async def page(self, volume: LocalVolume, after: int) -> list[ReplicaState]:
        """The next of what the catalog says of a volume."""
        return (await self._session.call(ListReplicas(volume.number, after, PAGE), timeout_s=MANAGER_TIMEOUT_S)).replicas

    async def conclude(self, volume: LocalVolume, ino: int, aside: SetAside, *, repair: bool, deep: bool) -> Finding | None:
        """The finding on one replica; None if nothing is wrong, or if the catalog changed while it was looked at."""
        path = volume.layout.object_path(ino)
        # With it no task of this agent moves the object between look and repair.
        async with self._locks.hold(ino):
            row = await self._mender.row_of(volume.number, ino)
            observed = await self._works(volume.number).in_thread(partial(look_at, path, deep=deep))
            # The catalog changed while the object was read: nothing can be said, and the next check sees it.
            if row is None or row != await self._mender.row_of(volume.number, ino):
                return None
            kind = judge(row, observed)
            if kind is None:
                return None
            await self._works(volume.number).in_thread(volume.require_there)
            outcome, text = FindingOutcome.FOUND, describe(row, observed, kind)
            if repair:
                outcome, text = await self._mender.mend(volume, row, observed, kind, aside)
            return Finding(volume.number, str(volume.layout.root), ino, kind, outcome, text, row.path)

    async def unknown(self, volume: LocalVolume, inodes: list[int]) -> list[int]:
        """Which of these objects the catalog does not know."""
        return await self._strays.unknown(volume, inodes)

    async def set_aside(self, volume: LocalVolume, inodes: list[int]) -> list[bool]:
        """Moves objects that the catalog does not know into `unknown/`."""
        return await self._strays.set_aside(volume, inodes)

    def has_arrived(self, volume: LocalVolume, ino: int) -> bool:
        """Whether a copy has brought the object a moment ago."""
        return ObjectKey(volume.number, ino) in self._arrivals

    async def in_thread(self, volume: LocalVolume, act: Callable[[], T]) -> T:
        """Runs what blocks, with other bulk work of the volume."""
        return await self._works(volume.number).in_thread(act)


class _VolumeCheck:
    """One volume's check."""

    def __init__(self, checker: Checker, volume: LocalVolume, counts: _Counts, tell: Tell, *, repair: bool, deep: bool) -> None:
        self._checker = checker
        self._counts = counts
        self._volume = volume
        self._tell = tell
        self._repair = repair
        self._deep = deep
        self._aside = SetAside(volume)
        self._findings: list[Finding] = []
        self._reported_s = monotonic_s()

    async def run(self) -> None:
        await self._check_replicas()
        await self._check_objects()
        await self.tell_now()

    async def _check_replicas(self) -> None:
        """Looks for the catalog's replicas on the disk."""
        after = 0
        while rows := await self._checker.page(self._volume, after):
            after = rows[-1].ino
            if self._deep:
                await self._check_deeply(rows)
                continue
            for ino in await self._checker.in_thread(self._volume, partial(suspects, self._volume, rows)):
                await self._conclude(ino)
            self._counts.replicas += len(rows)
            await self._tell_sometimes()

    async def _check_deeply(self, rows: list[ReplicaState]) -> None:
        for row in rows:
            if await self._checker.in_thread(self._volume, partial(is_suspect, self._volume, row)):
                await self._conclude(row.ino)
            self._counts.replicas += 1
            await self._tell_sometimes()

    async def _conclude(self, ino: int) -> None:
        finding = await self._checker.conclude(self._volume, ino, self._aside, repair=self._repair, deep=self._deep)
        if finding is not None:
            self._findings.append(finding)

    async def _check_objects(self) -> None:
        """Looks for the disk's objects in the catalog."""
        numbers = object_numbers(os.fspath(self._volume.layout.objects))
        unknown = array("Q")  # eight bytes a number: a wrong catalog makes all of them unknown
        objects = 0
        while batch := await self._checker.in_thread(self._volume, partial(take_some, numbers)):
            unknown.extend(await self._checker.unknown(self._volume, batch))
            objects += len(batch)
            self._counts.objects += len(batch)
            await self._tell_sometimes()
        # Only when all are counted: before the first one is moved.
        too_many = are_too_many(len(unknown), objects)
        for start in range(0, len(unknown), TOGETHER):
            # Asked again: while the others were counted, some may have become known.
            found = await self._checker.unknown(self._volume, list(unknown[start : start + TOGETHER]))
            await self._conclude_unknown(found, too_many=too_many)
            await self._tell_sometimes()

    async def _conclude_unknown(self, inodes: list[int], *, too_many: bool) -> None:
        inodes = [ino for ino in inodes if not self._checker.has_arrived(self._volume, ino)]
        text, outcome = "the catalog does not know it", FindingOutcome.FOUND
        paths = await trio.to_thread.run_sync(self._last_paths, inodes, limiter=self._volume.bulk_io)
        done = [False] * len(inodes)
        if self._repair and too_many:
            outcome, text = FindingOutcome.LEFT, f"{text}, nor many others: godwit volumes sweep, if it is the right one"
        elif self._repair:
            done = await self._checker.set_aside(self._volume, inodes)
        for ino, moved in zip(inodes, done, strict=True):
            if ino not in paths:
                continue  # it has been deleted meanwhile
            result = (FindingOutcome.MENDED, f"{text}: set aside in {self._volume.layout.unknown}") if moved else (outcome, text)
            self._findings.append(self._finding(ino, *result, paths[ino]))

    def _last_paths(self, inodes: list[int]) -> dict[int, bytes]:
        """The paths that the records of those objects have that are still there. Blocks."""
        found = {ino: look_at(self._volume.layout.object_path(ino)) for ino in inodes}
        return {ino: os.fsencode(item.record.path) if item.record else b"" for ino, item in found.items() if item is not None}

    def _finding(self, ino: int, outcome: str, text: str, path: bytes) -> Finding:
        return Finding(self._volume.number, str(self._volume.layout.root), ino, Kind.UNKNOWN, outcome, text, path)

    async def _tell_sometimes(self) -> None:
        if monotonic_s() - self._reported_s >= TELL_S or len(self._findings) >= PAGE:
            await self.tell_now()

    async def tell_now(self, problem: str = "") -> None:
        """Tells what has come together, and how far this is."""
        self._reported_s = monotonic_s()
        findings, self._findings = self._findings, []
        await self._tell(CheckProgress(self._counts.replicas, self._counts.objects, findings, problem))


async def _keep_telling(counts: _Counts, tell: Tell) -> None:
    """Tells how far the check is every `ALIVE_S`, also while one large object is read."""
    while True:
        await tell(CheckProgress(counts.replicas, counts.objects))
        await trio.sleep(ALIVE_S)


class SelfCheck:
    """Worker that checks and repairs of its own accord when the catalog is in another generation than the one compared last.

    *compared* remembers that one, so that a comparison that is broken off is made by the next process.
    """

    name = "check by itself"

    def __init__(self, checker: Checker, compared: CatalogMemory) -> None:
        self._checker = checker
        self._compared = compared
        self._wanted: CatalogPoint | None = None  # what the catalog has come to, while that is not compared
        self._again = trio.Event()

    def welcomed(self, point: CatalogPoint | None) -> None:
        """Takes note of how far the manager's catalog has come."""
        if point is None:
            return
        known = self._compared.point
        if known is not None and (known.catalog, known.generation) == (point.catalog, point.generation):
            return
        if known is not None and self._wanted is None:
            log.warning("the catalog was brought back, it is in generation %d: comparing all objects with it", point.generation)
        self._wanted = point
        self._again.set()

    async def run_once(self) -> Outcome:
        await self._again.wait()
        self._again, wanted = trio.Event(), self._wanted
        try:
            if self._compared.point is not None:  # a server that is new has nothing to compare
                await self._checker.run(self._log, repair=True, deep=False, wait=True)
                log.info("the objects of all volumes have been compared with the catalog")
        except BaseException:
            # Also when cancelled or refused: the comparison is still owed.
            self._again.set()
            raise
        # Saved after the comparison: a crash before leaves the old point, and the next process compares again.
        if wanted is not None:
            self._compared.point, self._wanted = wanted, None
            await trio.to_thread.run_sync(self._compared.save, wanted)
        return Outcome.PROGRESS

    async def _log(self, progress: CheckProgress) -> None:
        for item in progress.findings:
            level = logging.WARNING if item.outcome == FindingOutcome.MENDED else logging.ERROR
            log.log(level, "inode %d on volume %d is %s: %s", item.ino, item.volume, item.kind, item.text)
        if progress.problem:
            log.error("a volume could not be compared with the catalog: %s", progress.problem)
