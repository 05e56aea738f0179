"""The mount's side of locks before a table of a manager: requests, interruptions, a manager that is away, lost locks."""

import errno
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from cluster.errors import GodwitError, Refused, Unavailable
from cluster.messages import (
    LOCK_END,
    AskConflict,
    AwaitLocks,
    Done,
    LockAnswer,
    LockConflict,
    LockSpan,
    SetLock,
    Unlock,
    Welcome,
    WokenLocks,
)
from cluster.trust.identity import Role
from fusefs.caching.cache import Caching
from fusefs.kernel.requests import Opcode, Raw
from fusefs.locks import BY_FLOCK, READ, UNLOCK, WRITE, Locks
from manager.memory.locks import Locks as Table
from manager.memory.sessions import Session as ManagersSession

pytestmark = pytest.mark.usefixtures("autojump_clock")

ACCESS_S = 15.0
LASTS_S = 15.75
TIMEOUT_S = 20.0
INO = 7


class Manager:
    """A table of locks, and whether it can be reached."""

    def __init__(self) -> None:
        self.table = Table(1, LASTS_S, lambda: True)
        self.sessions: dict[int, ManagersSession] = {}

    def rows(self) -> list[tuple[int, int, bool]]:
        """Session, owner, and whether it waits."""
        return [(one.owner.session, one.owner.number, one.waiting) for one in self.table.listed()]


class Session:
    """What the mount's session is to its locks; hears of the manager every second while it `answers`, and asks it once it has
    introduced itself.

    `loses`: the next replies are lost on their way.
    """

    def __init__(self, manager: Manager, number: int) -> None:
        self.manager = manager
        self.number = number
        self.answers = trio.Event()
        self.answers.set()
        self.introduced = trio.Event()
        self.loses = 0
        self.last_contact_s = -1e9
        self.asked: list[Any] = []
        self.locks: Locks
        manager.sessions[number] = ManagersSession(number, f"s{number}", Role.MOUNT, 0.0)

    @property
    def session(self) -> ManagersSession:
        return self.manager.sessions[self.number]

    async def run(self) -> None:
        while True:
            await self.answers.wait()
            asked_s = trio.current_time()
            self.session.heard_s = asked_s
            if not self.introduced.is_set():
                unlocked = self.manager.table.introduced(self.session, self.locks.presented(), adopt=False)
                self.last_contact_s = asked_s
                self.locks.welcomed(Welcome(1, "s1", 30.0, [], unlocked=unlocked, locks_s=ACCESS_S))
                self.introduced.set()
            self.last_contact_s = asked_s
            self.manager.table.expire()
            await trio.sleep(1)

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        self.asked.append(request)
        with trio.move_on_after(timeout_s):
            await trio.lowlevel.checkpoint()
            await self.introduced.wait()
            reply = await self._answer(request)
            if not self.loses:
                return reply
            self.loses -= 1
            await trio.sleep_forever()
        raise Unavailable("no manager")

    async def _answer(self, request: Any) -> Any:
        table = self.manager.table
        match request:
            case SetLock():
                return LockAnswer(table.set(self.session, request))
            case Unlock():
                table.unlock(self.session, request)
                return Done()
            case AwaitLocks():
                serial, tickets = table.woken(self.session, request.after)
                with trio.move_on_after(request.wait_s):
                    while not tickets:
                        await table.holder(self.session).bell.wait()
                        serial, tickets = table.woken(self.session, request.after)
                return WokenLocks(serial, tickets)
            case AskConflict():
                found = table.find_conflict(request.ino, (self.number, request.owner), request.span)  # type: ignore[arg-type]
                return LockConflict(found[2], f"s{found[0].session}", found[1].pid) if found else LockConflict(None)
        raise AssertionError(request)


class Kernel:
    """Notes whose pages are dropped."""

    can_void_names = True
    drops_absent_names = True

    def __init__(self) -> None:
        self.dropped: list[int] = []
        self.fails = False

    def drop_inode(self, ino: int) -> bool:
        if self.fails:
            raise OSError(errno.EIO, "broken")
        self.dropped.append(ino)
        return True

    def drop_name(self, parent: int, name: bytes) -> bool:
        raise AssertionError

    def void_names(self) -> bool:
        raise AssertionError


class Mount:
    """One mount's locks, and what its kernel asks."""

    def __init__(self, manager: Manager, number: int, nursery: trio.Nursery) -> None:
        self.session = Session(manager, number)
        self.kernel = Kernel()
        self.flushed: set[int] = set()
        session: Any = self.session
        self.locks = Locks(session, f"s{number}", Caching(), self.kernel, nursery, TIMEOUT_S, self._watch)
        self.session.locks = self.locks
        self.handlers = self.locks.handlers()

    def _watch(self, ino: int, wanted: bool) -> None:
        assert (ino in self.flushed) is not wanted
        (self.flushed.add if wanted else self.flushed.discard)(ino)

    async def set(
        self,
        kind: int = WRITE,
        start: int = 0,
        end: int = LOCK_END,
        *,
        owner: int = 1,
        handle: int = 1,
        wait: bool = False,
        flock: bool = False,
    ) -> None:
        opcode = Opcode.SETLKW if wait else Opcode.SETLK
        body = struct.pack("<QQQQIIII", handle, owner, start, end, kind, 42, BY_FLOCK if flock else 0, 0)
        assert await self.handlers[opcode](Raw(opcode, 1, INO, 0, 0, 42, body)) == b""

    async def conflict(self, kind: int = WRITE, start: int = 0, end: int = LOCK_END, *, owner: int = 1) -> tuple[int, ...]:
        body = struct.pack("<QQQQIIII", 1, owner, start, end, kind, 42, 0, 0)
        reply = await self.handlers[Opcode.GETLK](Raw(Opcode.GETLK, 1, INO, 0, 0, 42, body))
        return struct.unpack("<QQII", reply)

    async def flush(self, owner: int = 1) -> None:
        body = struct.pack("<QIIQ", 1, 0, 0, owner)
        assert await self.handlers[Opcode.FLUSH](Raw(Opcode.FLUSH, 1, INO, 0, 0, 42, body)) == b""

    def cut(self) -> None:
        self.session.answers = trio.Event()
        self.session.introduced = trio.Event()

    def mend(self) -> None:
        self.session.answers.set()


Mounts = tuple[Manager, Mount, Mount]


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.fixture
@asynccontextmanager
async def mounts() -> AsyncIterator[Mounts]:
    """Two mounts at one manager."""
    manager = Manager()
    async with trio.open_nursery() as nursery:
        first, second = Mount(manager, 1, nursery), Mount(manager, 2, nursery)
        for mount in (first, second):
            for task in (mount.session.run, mount.locks.expire_loop, mount.locks.wake_loop):
                nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        yield manager, first, second
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.005)


async def refuses(what: Awaitable[None], number: int) -> None:
    with pytest.raises(GodwitError) as caught:
        await what
    assert caught.value.errno == number


async def test_a_lock_excludes_the_other_mount_until_it_is_unlocked(mounts: Mounts) -> None:
    _manager, first, second = mounts
    await first.set(start=10, end=19)
    await refuses(second.set(READ), errno.EAGAIN)
    assert await second.conflict(READ) == (10, 19, WRITE, 0)
    assert await first.conflict(READ, owner=2) == (10, 19, WRITE, 42)
    assert await second.conflict(READ, 0, 9) == (0, 9, UNLOCK, 0)
    await second.set(READ, 0, 9)
    await first.set(UNLOCK, 0, 14)
    await second.set(READ, 10, 14)
    await refuses(second.set(READ, 15, 15), errno.EAGAIN)


async def test_who_waits_gets_it_as_soon_as_it_is_free(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: second.set(wait=True))
        await settled()
        assert manager.rows() == [(1, 1, False), (2, 1, True)]
        began_s = trio.current_time()
        await first.set(UNLOCK)
    assert trio.current_time() - began_s < 1
    assert manager.rows() == [(2, 1, False)]


async def test_an_interrupted_wait_leaves_nothing(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set(READ)
    await second.set(READ)
    with trio.move_on_after(3) as waiting:
        await second.set(wait=True)
    assert waiting.cancelled_caught
    assert manager.rows() == [(1, 1, False), (2, 1, False)]
    await first.set(UNLOCK)
    await first.set(READ)
    assert second.locks.presented()[0].spans == [LockSpan(0, LOCK_END, False)]


async def test_an_interruption_whose_grant_was_on_its_way_restores_what_was_there(mounts: Mounts) -> None:
    manager, first, second = mounts
    await second.set(READ)
    second.session.loses = 1
    with trio.move_on_after(3):
        await second.set()
    await first.set(READ)
    assert manager.rows() == [(2, 1, False), (1, 1, False)]


async def test_while_the_manager_is_away_an_interruption_is_answered_soon_and_what_was_asked_is_taken_back_later(
    mounts: Mounts,
) -> None:
    manager, _first, second = mounts
    second.session.loses = 1
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: second.set(wait=True))
            await settled()
            second.cut()
    assert trio.current_time() < 5
    assert manager.rows() == [(2, 1, False)]
    second.mend()
    await settled()
    assert manager.rows() == []
    await second.set()
    await trio.sleep(100)
    assert manager.rows() == [(2, 1, False)]


async def test_closing_a_file_ends_all_record_locks_of_the_process(mounts: Mounts) -> None:
    manager, first, _second = mounts
    await first.set(start=0, end=9)
    await first.set(READ, start=20, end=29, handle=2)
    await first.set(start=40, end=49, owner=2)
    await first.set(READ, flock=True, owner=9)
    assert first.flushed == {INO}
    await first.flush()
    assert manager.rows() == [(1, 2, False), (1, 9, False)]
    await first.flush(owner=2)
    assert first.flushed == set()
    asked = len(first.session.asked)
    await first.flush(owner=2)
    assert len(first.session.asked) == asked


async def test_locks_by_flock_end_when_the_open_file_is_released(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set(flock=True, handle=5)
    assert first.flushed == set()
    await refuses(second.set(flock=True), errno.EAGAIN)
    first.locks.released(4)
    await settled()
    assert manager.rows() == [(1, 1, False)]
    first.locks.released(5)
    await first.set(flock=True, owner=2, handle=6)
    first.locks.released(5)
    await settled()
    assert manager.rows() == [(1, 2, False)]


async def test_a_release_while_the_manager_is_away_is_heard_later(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set(flock=True, handle=5)
    second.cut()
    first.cut()
    first.locks.released(5)
    await settled()
    first.mend()
    second.mend()
    await second.set(flock=True, wait=True)
    assert manager.rows() == [(2, 1, False)]


async def test_closing_does_not_wait_for_a_manager_for_longer_than_the_locks_last(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set()
    first.cut()
    began_s = trio.current_time()
    await first.flush()
    assert trio.current_time() - began_s < ACCESS_S + 1
    first.mend()
    await second.set(wait=True)
    assert manager.rows() == [(2, 1, False)]


async def test_open_file_locks_end_with_the_file_although_no_close_names_their_owner(mounts: Mounts) -> None:
    """Their owner is the open file, which no `FLUSH` has for its owner."""

    manager, first, _second = mounts
    await first.set(owner=77, handle=5)
    await first.flush(owner=1)
    assert manager.rows() == [(1, 77, False)]
    first.locks.released(5)
    await settled()
    assert manager.rows() == []
    assert first.flushed == set()


async def test_a_failed_change_of_a_flock_loses_it_as_on_one_machine(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set(READ, flock=True)
    await second.set(READ, flock=True)
    await refuses(second.set(flock=True), errno.EAGAIN)
    assert manager.rows() == [(1, 1, False)]
    assert second.locks.presented() == []


async def test_a_deadlock_is_refused(mounts: Mounts) -> None:
    _manager, first, second = mounts
    await first.set(start=0, end=0)
    await second.set(start=1, end=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: first.set(start=1, end=1, wait=True))
        await settled()
        await refuses(second.set(start=0, end=0, wait=True), errno.EDEADLK)
        await second.set(UNLOCK)


async def test_pages_are_dropped_with_each_lock(mounts: Mounts) -> None:
    manager, first, _second = mounts
    await first.set(READ)
    await first.set(UNLOCK)
    assert first.kernel.dropped == [INO]
    first.kernel.fails = True
    await refuses(first.set(READ), errno.EIO)
    await settled()
    assert manager.rows() == []


async def test_a_mount_that_is_cut_off_loses_its_locks_before_anybody_gets_them(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set(handle=5)
    first.cut()
    cut_s = trio.current_time()
    await trio.sleep(ACCESS_S - 2)
    first.locks.check(INO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: second.set(wait=True))
        await trio.sleep_until(cut_s + ACCESS_S)
        with pytest.raises(Unavailable):
            first.locks.check(INO)
        first.locks.check(INO + 1)
        assert manager.rows() == [(1, 1, False), (2, 1, True)]
    assert trio.current_time() - cut_s < LASTS_S + 3
    assert manager.rows() == [(2, 1, False)]
    first.mend()
    await settled()
    assert first.locks.presented() == []
    await refuses(first.set(handle=5), errno.EIO)
    with pytest.raises(Unavailable):
        first.locks.check(INO)
    first.locks.released(5)
    first.locks.check(INO)
    await refuses(first.set(handle=6), errno.EAGAIN)


async def test_locks_are_kept_over_an_interruption_that_is_shorter(mounts: Mounts) -> None:
    manager, first, second = mounts
    await first.set()
    first.cut()
    await trio.sleep(ACCESS_S - 2)
    first.mend()
    await trio.sleep(3 * ACCESS_S)
    first.locks.check(INO)
    await refuses(second.set(), errno.EAGAIN)
    assert manager.rows() == [(1, 1, False)]


async def test_what_the_manager_does_not_keep_is_lost(mounts: Mounts) -> None:
    manager, first, _second = mounts
    await first.set(flock=True, handle=5)
    manager.table.end_session(1)
    first.cut()
    await trio.sleep(1.5)
    first.mend()
    await settled()
    with pytest.raises(Unavailable):
        first.locks.check(INO)
    first.locks.released(5)
    first.locks.check(INO)


async def test_a_try_fails_when_nobody_answers_and_a_wait_goes_on(mounts: Mounts) -> None:
    manager, first, second = mounts
    first.cut()
    second.cut()
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: second.set(owner=2, wait=True))
        await refuses(first.set(), errno.EIO)
        assert TIMEOUT_S <= trio.current_time() - began_s < TIMEOUT_S + 5
        await trio.sleep(3 * TIMEOUT_S)
        second.mend()
    first.mend()
    await trio.sleep(5)
    assert manager.rows() == [(2, 2, False)]


async def test_what_cannot_be_locked_is_refused(mounts: Mounts) -> None:
    _manager, first, _second = mounts
    for body in ((1, 1, 5, 4, WRITE), (1, 1, 0, 2**63, WRITE), (1, 1, 0, 9, 3)):
        request = Raw(Opcode.SETLK, 1, INO, 0, 0, 42, struct.pack("<QQQQIIII", *body, 42, 0, 0))
        with pytest.raises(Refused):
            await first.handlers[Opcode.SETLK](request)
    assert first.flushed == set()


async def test_threads_of_a_process_that_lock_and_unlock_end_as_the_manager_has_it(mounts: Mounts) -> None:
    manager, first, second = mounts

    async def thread(number: int) -> None:
        for turn in range(20):
            with suppress(Refused):
                await first.set((READ, WRITE, UNLOCK)[(number + turn) % 3], 10 * number, 10 * number + 15, wait=turn % 2 == 0)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(thread, number)
    ours = [span for held in first.locks.presented() for span in held.spans]
    assert ours == [one.span for one in manager.table.listed()]
    await first.flush()
    await second.set()
