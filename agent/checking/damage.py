"""Finds, examines and reports objects that differ from the catalog, so that nobody reads them or builds on them.

The catalog knows each committed object by its stamp. What shows another one is examined here. It may be in order all the same:
it is being written, or somebody has only touched it (its mode, a link, a restored backup), as its digest shows where that is
known; then its new stamp is made known. What is missing is brought back if it was set aside (`agent/checking/repair.py`). Else
the object is damaged, as after a loss of power before its content had reached the disk. The manager makes another current
replica the home then, and what the damaged object has of its own is kept beside the file (`agent/workers/conflicts.py`).
"""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

import trio

from agent.checking.repair import Mender
from agent.keyed_locks import KeyedLocks
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey
from agent.objects.reading import Altered, verify_object
from cluster.errors import Corrupt, Fenced, GodwitError, Unavailable, error_text
from cluster.faults import faults
from cluster.leases import LeaseToken
from cluster.messages import MISSING, GetAttr, HeldObject, ListHeld, ReportDamage, Restamp, Stamp
from cluster.rpc.session import ManagerSession
from cluster.volume.content import stamp_of
from cluster.volume.layout import ObjectRecord, read_record
from cluster.volume.regular import open_regular

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

MANAGER_TIMEOUT_S = 10.0
WAIT_S = 10.0  # for an examination, which may have to read a large object
PENDING_S = 1.0  # until it is looked whether another replica has taken over, or whoever works on the object has ended
LOCK_S = 1.0  # for who works on the object; a copy from it to another volume of this server waits for us with the lock
KNOWN_MAX = 8192  # objects in each memory; what falls out of it is examined once more


def lacking(held: HeldObject, found: Stamp | None) -> str:
    """What is wrong with an object by its stamp; empty if its content has to be looked at, or nothing is."""
    if found is None:
        return MISSING
    if found.size != held.stamp.size:
        return f"its object has {found.size} bytes instead of {held.stamp.size}"
    if not held.checksum and found != held.stamp:
        return "its object was changed by somebody else than Godwit, and its digest is not known"
    return ""


class Examined(NamedTuple):
    """`good`: the stamp of an object that is in order; None if nobody can say, since it may be being written or is no replica."""

    home_volume: int
    good: Stamp | None


class Examiner:
    """Examines objects of this server, each in one task of *nursery* at a time. `on_damage` is called after a report."""

    def __init__(
        self,
        *,
        works: Callable[[int], DiskWork],
        session: ManagerSession,
        locks: KeyedLocks[int],
        mender: Mender,
        nursery: trio.Nursery,
        on_damage: Callable[[], None],
    ) -> None:
        self._works = works  # a volume's threads, by its number
        self._session = session  # whom the catalog is asked of, and told what is damaged
        self._locks = locks  # with an inode's, nobody else in this agent moves its objects
        self._mender = mender  # brings back what is missing
        self._nursery = nursery  # of the agent: an examination outlives who asked for it
        self._on_damage = on_damage  # has what was lost kept under a conflict name
        self._under_way: dict[ObjectKey, trio.Event] = {}  # by object: set when its examination is over
        self._pending: set[ObjectKey] = set()  # reported, and still the home: another replica is to take over
        self._locked: set[ObjectKey] = set()  # missing while somebody worked on it, and not reported yet
        self._suspected: set[ObjectKey] = set()  # content is read whatever the stamp says, since a read has shown an error
        self._results: OrderedDict[ObjectKey, Examined | GodwitError] = OrderedDict()  # what was found last, for who waits
        # stamp and fault of content that was read: not read again while it has that stamp
        self._damaged: OrderedDict[ObjectKey, tuple[Stamp | None, str]] = OrderedDict()

    async def examine(self, key: ObjectKey) -> Examined:
        """What was found. Raises `Corrupt` if the object is damaged, which the manager knows then; `Unavailable` while that
        cannot be said.
        """
        done = self.suspect(key)
        with trio.move_on_after(WAIT_S):
            await done.wait()
        if not done.is_set():
            raise Unavailable(f"inode {key.ino} on volume {key.volume} is still being examined")
        # Noted before the event was set (`_run`).
        result = self._results[key]
        if isinstance(result, GodwitError):
            # A copy: many may wait for the same examination, and a traceback belongs to one of them.
            raise type(result)(str(result))
        return result

    def suspect(self, key: ObjectKey, *, content: bool = False) -> trio.Event:
        """Has the object examined in the background; the event is set when that is done. *content*: whatever its stamp is."""
        if content:
            self._suspected.add(key)
        if key not in self._under_way:
            self._under_way[key] = trio.Event()
            self._nursery.start_soon(self._run, key)
        return self._under_way[key]

    async def _run(self, key: ObjectKey) -> None:
        result: Examined | GodwitError = Unavailable("this agent is stopping")
        try:
            result = await self._examine(key)
        except GodwitError as error:
            result = error
        except OSError as error:
            result = Unavailable(f"inode {key.ino} on volume {key.volume} cannot be examined: {error_text(error)}")
        except Exception as error:  # whose nursery this is must not end for what an object looks like
            faults.unexpected(log, f"while inode {key.ino} on volume {key.volume} was examined", error)
            result = Unavailable(f"inode {key.ino} on volume {key.volume} cannot be examined, see the log of its agent")
        finally:
            # Also when cancelled: who waits must not wait for ever.
            _note(self._results, key, result)
            self._under_way.pop(key).set()
        if key in self._pending or key in self._locked:
            self._locked.discard(key)
            await trio.sleep(PENDING_S)
            self.suspect(key)

    async def _examine(self, key: ObjectKey) -> Examined:
        work = self._works(key.volume)
        path = work.volume.layout.object_path(key.ino)
        # Before and after the questions: only what stood still all the time can be compared with the answers.
        before = await work.in_thread(_stamp_at, path)
        node = (await self._session.call(GetAttr(key.ino), timeout_s=MANAGER_TIMEOUT_S)).node
        if node.home_volume == key.volume and node.dirty:
            return Examined(node.home_volume, None)
        held = await self._held(key)
        found = await work.in_thread(_stamp_at, path)
        # What has changed while we asked is being written, or that has just been committed.
        if held is None and key in self._pending:
            self._pending.discard(key)
            self._on_damage()
        if held is None or found != before:
            return Examined(node.home_volume, None)
        if found == held.stamp and not held.fault and key not in self._suspected:
            self._pending.discard(key)
            return Examined(node.home_volume, found)
        # With its disk away every object would look missing, and every file would fall back.
        if found is None and not await work.in_thread(work.volume.is_what_was_opened):
            raise Unavailable(f"volume {key.volume} is not there: nothing can be said of its objects")
        if found is not None and await work.in_thread(_version_at, path) > held.version:
            raise Unavailable(f"inode {key.ino} on volume {key.volume} is newer than the catalog: godwit fsck --repair")
        self._suspected.discard(key)
        # The content last: for a large object that is minutes of reading.
        fault = lacking(held, found) or await self._look_at_content(key, work, path, held, found)
        if found is None and not held.fault:
            await self._bring_back_or_report(key, work, held)
            return await self._examine(key)
        if fault:
            await self._report(key, held, fault)
        assert found is not None
        request = Restamp(key.volume, key.ino, held.version, held.stamp, found)
        await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        log.info("inode %d on volume %d was touched by somebody else; its content is in order", key.ino, key.volume)
        return Examined(node.home_volume, found)

    async def _held(self, key: ObjectKey) -> HeldObject | None:
        """What the catalog says that the object must be; None if it must be nothing, or may be being written."""
        listed = await self._session.call(ListHeld(key.volume, key.ino - 1, 1), timeout_s=MANAGER_TIMEOUT_S)
        return next((item for item in listed.objects if item.ino == key.ino), None)

    async def _bring_back_or_report(self, key: ObjectKey, work: DiskWork, held: HeldObject) -> None:
        """Returns if the missing object is there by now, or the catalog means another one; else it raises."""
        with trio.move_on_after(LOCK_S) as waiting:
            async with self._locks.hold(key.ino):
                waiting.deadline = math.inf
                # Whoever had the lock may have brought it back, and told the catalog.
                found = await work.in_thread(_stamp_at, work.volume.layout.object_path(key.ino))
                if found is not None or await self._held(key) != held:
                    return
                # Before the report: then a copy is queued, or the home leaves, and nobody brings it back any more.
                if not await self._mender.bring_back(work.volume, key.ino):
                    await self._report(key, held, MISSING)
                return
        self._locked.add(key)
        raise Unavailable(f"inode {key.ino} on volume {key.volume} is being worked on: {MISSING}")

    async def _look_at_content(self, key: ObjectKey, work: DiskWork, path: str, held: HeldObject, found: Stamp | None) -> str:
        """What is wrong with the content, of which only the digest tells; empty if nothing is known to be."""
        known, fault = self._damaged.get(key, (None, ""))
        if fault and known == found:
            return fault
        try:
            fault = await work.in_thread(_unlike, path, held, found)
        except Altered:
            raise Unavailable(f"inode {key.ino} on volume {key.volume} changes while it is examined") from None
        except OSError as error:
            fault = f"its object cannot be read: {error.strerror}"
        if fault:
            _note(self._damaged, key, (found, fault))
        return fault

    async def _report(self, key: ObjectKey, held: HeldObject, fault: str) -> NoReturn:
        if held.fault != fault:
            log.error("inode %d on volume %d, version %d, is damaged: %s", key.ino, key.volume, held.version, fault)
        request = ReportDamage(key.volume, key.ino, held.version, held.stamp, fault)
        damage = await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        # Pending is looked at again after PENDING_S, by `_run`: nobody else tells that the home has moved.
        (self._pending.add if damage.pending else self._pending.discard)(key)
        self._on_damage()
        what = f"inode {key.ino} on volume {key.volume} is damaged: {fault}"
        raise Unavailable(f"{what}; another replica is about to take over") if damage.pending else Corrupt(what)


class Trust:
    """Decides whether this agent may serve an object as the home's: one whose stamp differs from the token's is examined first.

    An object is *excused* up to a version: what tokens of that version or older say of it is out of date, or it is being written.
    """

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self._excused: OrderedDict[ObjectKey, int] = OrderedDict()  # by object: tokens of up to this version are not believed
        self._good: OrderedDict[ObjectKey, Stamp] = OrderedDict()  # by object: the stamp with which it was found in order

    async def require(self, key: ObjectKey, token: LeaseToken, descriptor: int) -> None:
        """Raises `Corrupt`, `Fenced` or `Unavailable` if it must not be served. Asks nobody while it looks as the token says."""
        if self._excused.get(key, -1) >= (token.version if token.object_ctime_ns else 0):
            return
        stamp = stamp_of(os.fstat(descriptor))
        if self._good.get(key) == stamp:
            return
        if (stamp.size, stamp.ctime_ns) == (token.size, token.object_ctime_ns):
            # Up to the version before: a token of this very version that tells otherwise has it examined again.
            self.made(key, token.version - 1)
            return
        examined = await self._examiner.examine(key)
        if examined.home_volume != key.volume:
            raise Fenced(f"the home of inode {key.ino} is volume {examined.home_volume}, not {key.volume}")
        if examined.good is None:
            self.made(key, token.version)
        else:
            _note(self._good, key, examined.good)
            self.made(key, token.version - 1)

    def made(self, key: ObjectKey, version: int = 0) -> None:
        """The object is in order, whatever tokens of this version or older ones say."""
        _note(self._excused, key, max(version, self._excused.get(key, 0)))


def _note(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > KNOWN_MAX:
        known.popitem(last=False)


def _stamp_at(path: str) -> Stamp | None:
    """The stamp of the object; None if it is not there. Blocks."""
    try:
        return stamp_of(os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _unlike(path: str, held: HeldObject, found: Stamp | None) -> str:
    """What the object's content shows to be wrong. Raises `Altered` or `OSError`. Blocks."""
    verified = verify_object(path)
    if verified.stamp != found:
        raise Altered(f"{path} was changed", 0)
    expected = {held.checksum.hex(), _recorded(path, held.version)} - {""}
    digest = verified.checksum.hex()
    return f"its content has the digest {digest} instead of {min(expected - {digest})}" if expected - {digest} else ""


def _recorded(path: str, version: int) -> str:
    record = _record_at(path)
    return record.checksum if record and record.version == version else ""


def _version_at(path: str) -> int:
    """The version that the object's record has; 0 if that cannot be said. Blocks."""
    try:
        record = _record_at(path)
    except OSError:
        return 0
    return record.version if record else 0


def _record_at(path: str) -> ObjectRecord | None:
    descriptor = open_regular(path, os.O_RDONLY)
    try:
        return read_record(descriptor)
    finally:
        os.close(descriptor)
