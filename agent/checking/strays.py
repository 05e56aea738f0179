"""Finds objects that the catalog does not know, after the agent's start and after a return, and moves them to `unknown/`.

They stem from mounts that were killed between creating an object and telling the catalog, and from the time in which this server
was down or had left. Blank ones, which mounts make in advance, are removed. A new manager calls nothing a stray until all mounts
have had the time to present themselves, so it is not asked before.

If many objects of a volume are unknown at once, it is more likely that the catalog is the wrong one. So all of them are counted
before the first is moved, and if there are too many, none is: people are told, and one of them may say that it is right.
"""

import logging
import os
from array import array
from collections.abc import Awaitable, Callable, Iterator

import trio

from agent.batches import side_by_side
from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome
from agent.objects.blank import blank_among, remove_blank
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import monotonic_s
from cluster.errors import error_text
from cluster.messages import FindStrays, Welcome
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import OBJECTS_PER_DIRECTORY

log = logging.getLogger(__name__)

BATCH = 1000  # objects in one question
GRACE_TURN_S = 0.5  # another welcome may prolong it meanwhile
TOGETHER = 64  # set aside in one step
SHARE_MIN = 32  # mounts that were killed leave a few each
SHARE_PART = 100  # a hundredth of the objects
INO_MAX = 2**63 - 1
MANAGER_TIMEOUT_S = 30.0


def are_too_many(unknown: int, objects: int) -> bool:
    """Whether so many of a volume's objects are unknown that the catalog is doubted rather than the objects."""
    return unknown > max(SHARE_MIN, objects // SHARE_PART)


class Grace:
    """The time after a change of manager for which the new one may not know all sessions."""

    def __init__(self) -> None:
        self._term = 0  # of the manager that this is about
        self._timeout_s = 0.0  # how long a silent session keeps what it has open
        self._ends_s = float("inf")  # before the first welcome it lasts for ever

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

    async def over(self) -> None:
        """Returns when it does not last any more; before the first welcome nobody knows when that will be."""
        while self.lasts:
            await trio.sleep(min(GRACE_TURN_S, max(0.0, self._ends_s - monotonic_s()) + 0.001))


class Arrivals:
    """Objects that copies have brought while somebody looks for strays; the catalog may not know them yet."""

    def __init__(self) -> None:
        self._keys: set[ObjectKey] = set()  # noted only while somebody asks, and so bounded by how long that takes
        self._who: set[str] = set()

    def note(self, key: ObjectKey) -> None:
        if self._who:
            self._keys.add(key)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._keys

    def start(self, who: str) -> None:
        """Somebody asks again, or still: what has been noted stays."""
        self._who.add(who)

    def stop(self, who: str) -> None:
        """That one does not ask any more."""
        self._who.discard(who)
        if not self._who:
            self._keys.clear()


def object_numbers(layout_objects: str) -> Iterator[int]:
    """The inode numbers of all objects below `objects/`; what does not belong there is logged and left. Blocks."""
    for directory in sorted(os.scandir(layout_objects), key=lambda entry: entry.name):
        if not directory.is_dir(follow_symlinks=False):
            log.warning("%s is not a directory of objects and was left where it is", directory.path)
            continue
        with os.scandir(directory.path) as entries:
            for entry in entries:
                ino = object_number(directory.name, entry.name)
                if ino:
                    yield ino
                else:
                    log.warning("%s is not an object and was left where it is", entry.path)


def object_number(directory: str, name: str) -> int:
    """The inode number of the object that is called so below `objects/`; 0 if none would be."""
    if not (name.isascii() and name.isdigit() and len(name) <= len(str(INO_MAX))):
        return 0
    ino = int(name)
    is_one = str(ino) == name and 0 < ino <= INO_MAX and str(ino // OBJECTS_PER_DIRECTORY) == directory
    return ino if is_one else 0


class _Sweep:
    """One look through a volume: first all objects are counted, then those that are unknown are set aside."""

    def __init__(self, volume: LocalVolume, *, consented: bool) -> None:
        self.volume = volume  # one that is closed is left out
        self.consented = consented  # somebody has said that the catalog is right
        self.numbers = object_numbers(os.fspath(volume.layout.objects))  # lazily: the disk is listed as the sweep goes on
        self.is_counted = False  # all were listed; only then is anything moved
        self.objects = 0  # listed so far
        self.unknown = array("Q")  # not known to the catalog, when it was asked
        self.blank = array("Q")  # likewise, and nothing is in them


class StrayScan:
    """Worker that goes through all volumes once, a batch a step, and again after each `restart`.

    `alarms` are sentences on volumes that were left as they are, by their uuid, until a later sweep finds them in order.
    """

    name = "stray scan"

    def __init__(
        self,
        *,
        server: str,
        volumes: VolumeTable,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        locks: KeyedLocks[int],
        objects: OpenObjects,
        arrivals: Arrivals,
        grace: Grace,
        send_journals: Callable[[], Awaitable[int]],
    ) -> None:
        self._server = server
        self._volumes = volumes
        self._works = works
        self._session = session
        self._locks = locks
        self._objects = objects
        self._arrivals = arrivals
        self._grace = grace
        self._send_journals = send_journals  # of dead mounts: of what they made the catalog knows nothing before
        self.alarms: dict[str, str] = {}
        self._consents: set[str] = set()  # uuids of volumes on which somebody has said that the catalog is right
        self._moved = 0  # objects, in this sweep of all volumes
        self._finished = trio.Event()  # of this sweep; the next has another
        self._again = trio.Event()  # all is to be looked at once more
        self._left: list[_Sweep] = []  # the volume that is looked at, and those that come after it
        self._begin()

    def restart(self, why: str = "this server's standing has changed") -> None:
        """Has everything looked at once more; what is under way begins again."""
        log.info("%s: looking for objects that the catalog does not know", why)
        self._grace.begin_again()
        self._again.set()

    async def consent(self) -> int:
        """Sets aside all that is unknown on all volumes, however much, in one more sweep; returns how many objects that were."""
        self._consents = {volume.uuid for volume in self._volumes.volumes}
        # Taken before the await: the next sweep has another event.
        finished = self._finished
        self._again.set()
        await finished.wait()
        return self._moved

    async def run_once(self) -> Outcome:
        if self._again.is_set():
            self._begin()
        if not self._left:
            self._end()
            await self._again.wait()
            return Outcome.PROGRESS
        if self._grace.lasts:
            return Outcome.IDLE
        sweep = self._left[0]
        if sweep.volume not in self._volumes.volumes:
            self._left.remove(sweep)  # it was closed; it is looked at when it is back
            return Outcome.PROGRESS
        try:
            await self._step(sweep)
        except OSError:
            # The others are not to wait for a disk that fails; what a broken listing has not shown was not counted.
            self._left = [*self._left[1:], _Sweep(sweep.volume, consented=sweep.consented)]
            raise
        return Outcome.PROGRESS

    def _begin(self) -> None:
        self._again = trio.Event()
        self._arrivals.start(self.name)
        self._moved = 0
        self._left = [_Sweep(volume, consented=volume.uuid in self._consents) for volume in self._volumes.volumes]

    def _end(self) -> None:
        self._arrivals.stop(self.name)
        self._finished.set()
        self._finished = trio.Event()

    async def _step(self, sweep: _Sweep) -> None:
        if not sweep.is_counted:
            await self._count_some(sweep)
        elif sweep.unknown:
            await self._set_some_aside(sweep)
        elif sweep.blank:
            await self._remove_some(sweep)
        else:
            self._left.remove(sweep)

    async def _count_some(self, sweep: _Sweep) -> None:
        batch = await trio.to_thread.run_sync(take_some, sweep.numbers)
        if batch:
            unknown, blank = await self._unknown(sweep.volume, batch)
            sweep.unknown.extend(unknown)
            sweep.blank.extend(blank)
            sweep.objects += len(batch)
            return
        sweep.is_counted = True
        self._consents.discard(sweep.volume.uuid)
        if are_too_many(len(sweep.unknown), sweep.objects) and not sweep.consented:
            self._raise_alarm(sweep)
            sweep.unknown, sweep.blank = array("Q"), array("Q")
        else:
            self.alarms.pop(sweep.volume.uuid, None)

    def _raise_alarm(self, sweep: _Sweep) -> None:
        count, path = len(sweep.unknown), sweep.volume.layout.root
        text = (
            f"{path}: {count} of {sweep.objects} objects are unknown to the catalog, so none was touched. Is it the right "
            f"catalog? If so: godwit volumes sweep {self._server}"
        )
        if self.alarms.get(sweep.volume.uuid) != text:
            log.error("%s", text)
        self.alarms[sweep.volume.uuid] = text

    async def unknown(self, volume: LocalVolume, inodes: list[int]) -> list[int]:
        """Which of these objects the catalog does not know, but for blank ones; the grace must be over."""
        unknown, _blank = await self._unknown(volume, inodes)
        return unknown

    async def _unknown(self, volume: LocalVolume, inodes: list[int]) -> tuple[list[int], list[int]]:
        """The objects that the catalog does not know: those with something in them, and blank ones."""
        unknown = await self._ask(volume, inodes)
        if not unknown:
            return [], []
        blank = await self._works(volume.number).in_thread(blank_among, volume, unknown)
        return [ino for ino in unknown if ino not in blank], sorted(blank)

    async def _ask(self, volume: LocalVolume, inodes: list[int]) -> list[int]:
        while True:
            strays = await self._session.call(FindStrays(volume.number, inodes), timeout_s=MANAGER_TIMEOUT_S)
            # After the answer: a mount whose numbers it does not cover any more has died before. What is sent is then known.
            if not await self._send_journals():
                return sorted(set(strays.inodes) & set(inodes))

    async def _set_some_aside(self, sweep: _Sweep) -> None:
        """Sets some unknown objects aside; the manager is asked about them again, since counting may have taken long."""
        batch = list(sweep.unknown[-TOGETHER:])
        moved = sum(await self.set_aside(sweep.volume, await self.unknown(sweep.volume, batch)))
        self._moved += moved
        del sweep.unknown[-TOGETHER:]
        if moved:
            await self._session.call(FindStrays(sweep.volume.number, [], moved), timeout_s=MANAGER_TIMEOUT_S)

    async def _remove_some(self, sweep: _Sweep) -> None:
        """Removes some blank objects; the manager is asked about them again, as in `_set_some_aside`."""
        volume, batch = sweep.volume, list(sweep.blank[-TOGETHER:])
        _unknown, blank = await self._unknown(volume, batch)
        removed = await self._works(volume.number).in_thread(remove_blank, volume, blank)
        if removed:
            log.info("%d blank objects were removed from %s", removed, volume.layout.root)
        del sweep.blank[-TOGETHER:]

    async def set_aside(self, volume: LocalVolume, inodes: list[int]) -> list[bool]:
        """Moves objects that are unknown into `unknown/`; whether each was."""

        async def act(ino: int) -> bool:
            return await self._set_aside(volume, ino)

        return await side_by_side(act, inodes)

    async def _set_aside(self, volume: LocalVolume, ino: int) -> bool:
        key = ObjectKey(volume.number, ino)
        async with self._locks.hold(ino):
            # A copy may have come since the manager was asked; under the lock none can come any more.
            if key in self._arrivals:
                return False
            try:
                moved = await self._works(volume.number).quarantine.submit(ino)
            except OSError as error:
                log.error(
                    "inode %d on volume %d is unknown to the catalog and cannot be moved: %s",
                    ino,
                    volume.number,
                    error_text(error),
                )
                return False
            self._objects.forget(key)  # an open descriptor would go on serving what is in `unknown/`
        if moved:
            log.warning("inode %d on volume %d is unknown to the catalog: moved to %s", ino, volume.number, volume.layout.unknown)
        return moved


def take_some(numbers: Iterator[int]) -> list[int]:
    """The next numbers; none at the end. Blocks."""
    batch = []
    for ino in numbers:
        batch.append(ino)
        if len(batch) == BATCH:
            break
    return batch
