"""Objects that the catalog does not know: looked for once after the agent's start, and moved to the trash.

They stem from mounts that were killed between creating an object and telling the catalog. A new manager calls nothing a
stray until all mounts have had the time to present themselves, so it is not asked before.
"""

import logging
import os
from collections.abc import Callable, Iterator

import trio

from agent.diskwork import DiskWork
from agent.locks import KeyedLocks
from agent.objects import ObjectKey, OpenObjects
from agent.volumes import LocalVolume, VolumeTable
from agent.workers import Outcome
from cluster.clock import monotonic_s
from cluster.messages import FindStrays, Welcome
from cluster.session import ManagerSession
from cluster.volume import OBJECTS_PER_DIRECTORY

log = logging.getLogger(__name__)

BATCH = 1000
MANAGER_TIMEOUT_S = 30.0


class Grace:
    """The time after a change of manager for which the new one may not know all sessions."""

    def __init__(self) -> None:
        self._term = 0
        self._ends_s = float("inf")

    def welcomed(self, welcome: Welcome) -> None:
        """Takes note of the manager's answer to `Hello`."""
        if welcome.term != self._term:
            self._term = welcome.term
            self._ends_s = monotonic_s() + welcome.session_timeout_s

    @property
    def lasts(self) -> bool:
        return monotonic_s() <= self._ends_s


class Arrivals:
    """Objects that copies have brought while strays are looked for; the catalog may not know them yet."""

    def __init__(self) -> None:
        self._keys: set[ObjectKey] | None = set()

    def note(self, key: ObjectKey) -> None:
        if self._keys is not None:
            self._keys.add(key)

    def __contains__(self, key: ObjectKey) -> bool:
        return self._keys is not None and key in self._keys

    def stop(self) -> None:
        """Nobody asks any more."""
        self._keys = None


def object_numbers(layout_objects: str) -> Iterator[int]:
    """The inode numbers of all objects below `objects/`; what does not belong there is logged and left. Blocks."""
    for directory in sorted(os.scandir(layout_objects), key=lambda entry: entry.name):
        with os.scandir(directory.path) as entries:
            for entry in entries:
                name = entry.name
                if name.isascii() and name.isdigit() and str(int(name) // OBJECTS_PER_DIRECTORY) == directory.name:
                    yield int(name)
                else:
                    log.warning("%s is not an object and was left where it is", entry.path)


class StrayScan:
    """Worker that goes through all volumes once, a batch a step."""

    name = "stray scan"

    def __init__(
        self,
        *,
        volumes: VolumeTable,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        locks: KeyedLocks[int],
        objects: OpenObjects,
        arrivals: Arrivals,
        grace: Grace,
    ) -> None:
        self._volumes = volumes
        self._works = works
        self._session = session
        self._locks = locks
        self._objects = objects
        self._arrivals = arrivals
        self._grace = grace
        self._left = [(volume, object_numbers(os.fspath(volume.layout.objects))) for volume in volumes.volumes]
        self._batch: list[int] = []

    async def run_once(self) -> Outcome:
        if not self._left:
            self._arrivals.stop()
            return Outcome.FINISHED
        if self._grace.lasts:
            return Outcome.IDLE
        volume, numbers = self._left[0]
        if not self._batch:
            self._batch = await trio.to_thread.run_sync(_take, numbers)
        if not self._batch:
            del self._left[0]
            return Outcome.PROGRESS
        strays = await self._session.call(FindStrays(volume.number, self._batch), timeout_s=MANAGER_TIMEOUT_S)
        for ino in set(strays.inodes) & set(self._batch):
            await self._discard(volume, ino)
        self._batch = []
        return Outcome.PROGRESS

    async def _discard(self, volume: LocalVolume, ino: int) -> None:
        key = ObjectKey(volume.number, ino)
        async with self._locks.hold(ino):
            if key in self._arrivals:
                return
            if await self._works(volume.number).discard.submit(ino):
                log.warning("inode %d on volume %d is unknown to the catalog: moved to the trash", ino, volume.number)
            self._objects.forget(key)


def _take(numbers: Iterator[int]) -> list[int]:
    batch = []
    for ino in numbers:
        batch.append(ino)
        if len(batch) == BATCH:
            break
    return batch
