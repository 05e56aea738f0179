"""Objects that the catalog does not know: looked for after the agent's start and after a return, and moved to the trash.

They stem from mounts that were killed between creating an object and telling the catalog, and from the time in which this server
was down or had left. A new manager calls nothing a
stray until all mounts have had the time to present themselves, so it is not asked before.
"""

import logging
import os
from collections.abc import Callable, Iterator

import trio

from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.volumes import LocalVolume, VolumeTable
from cluster.clock import monotonic_s
from cluster.messages import FindStrays, Welcome
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import OBJECTS_PER_DIRECTORY

log = logging.getLogger(__name__)

BATCH = 1000
MANAGER_TIMEOUT_S = 30.0


class Grace:
    """The time after a change of manager for which the new one may not know all sessions."""

    def __init__(self) -> None:
        self._term = 0
        self._timeout_s = 0.0
        self._ends_s = float("inf")

    def welcomed(self, welcome: Welcome) -> None:
        """Takes note of the manager's answer to `Hello`."""
        if welcome.term != self._term:
            self._term = welcome.term
            self._timeout_s = welcome.session_timeout_s
            self._ends_s = monotonic_s() + self._timeout_s

    def begin_again(self) -> None:
        """This server's mount may have been cut off as this process was: it, too, gets the time to present itself."""
        self._ends_s = monotonic_s() + self._timeout_s

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

    def start(self) -> None:
        """Somebody asks again, or still: what has been noted stays."""
        if self._keys is None:
            self._keys = set()

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
    """Worker that goes through all volumes once, a batch a step, and again after each `restart`."""

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
        self._left = self._everything()
        self._batch: list[int] = []
        self._again = trio.Event()

    def restart(self) -> None:
        """Has everything looked at once more; what is under way begins again."""
        log.info("this server's standing has changed: looking for objects that the catalog does not know")
        self._arrivals.start()
        self._grace.begin_again()
        self._again.set()

    async def run_once(self) -> Outcome:
        if self._again.is_set():
            self._again = trio.Event()
            self._left, self._batch = self._everything(), []
        if not self._left:
            self._arrivals.stop()
            await self._again.wait()
            return Outcome.PROGRESS
        if self._grace.lasts:
            return Outcome.IDLE
        left = self._left
        volume, numbers = left[0]
        if not self._batch:
            self._batch = await trio.to_thread.run_sync(_take, numbers)
        if not self._batch:
            del left[0]
            return Outcome.PROGRESS
        strays = await self._session.call(FindStrays(volume.number, self._batch), timeout_s=MANAGER_TIMEOUT_S)
        for ino in set(strays.inodes) & set(self._batch):
            await self._discard(volume, ino)
        self._batch = []
        return Outcome.PROGRESS

    def _everything(self) -> list[tuple[LocalVolume, Iterator[int]]]:
        return [(volume, object_numbers(os.fspath(volume.layout.objects))) for volume in self._volumes.volumes]

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
