"""Giving way to recalls, with a kernel whose locks the test holds."""

import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from cluster.errors import Unavailable
from cluster.messages import Done, GiveBack, Grant, Node, Recall, RecallDone, Record, Request, SetAttr
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.held import HeldDirectories
from fusefs.caching.recalls import LATER_S, Recalls
from tests.fusefs.holding import HoldingManager, records_of

DIRECTORY, FILE = 10, 11
ACCESS_S = 15.0
SOON_S = 5.0


class Session:
    """Notes what the manager is told."""

    def __init__(self) -> None:
        self.told: list[Request[Done]] = []
        self.came = trio.Event()
        self.answers = True

    async def call(self, request: Request[Done], *, timeout_s: float) -> Done:
        if not self.answers:
            raise Unavailable("cut off")
        self.told.append(request)
        self.came.set()
        self.came = trio.Event()
        return Done()


class Kernel:
    """Knows `inodes`; dropping a name waits for `lock`, as the kernel's does."""

    def __init__(self, *, can_void_names: bool = True, drops_absent_names: bool = True) -> None:
        self.can_void_names = can_void_names
        self.drops_absent_names = drops_absent_names
        self.inodes = {DIRECTORY, FILE}
        self.lock = threading.Lock()
        self.done: list[tuple[Any, ...]] = []

    def drop_inode(self, ino: int) -> bool:
        self.done.append(("inode", ino))
        return ino in self.inodes

    def drop_name(self, parent: int, name: bytes) -> bool:
        with self.lock:
            self.done.append(("name", parent, name))
        return self.drops_absent_names or name != b"absent"

    def void_names(self) -> bool:
        self.done.append(("all names",))
        return self.can_void_names


class Opens:
    def __init__(self) -> None:
        self.open: set[int] = set()
        self.doubted: list[int] = []
        self.let_go_of: list[int] = []
        self.quiet: list[int] = []

    def is_open(self, ino: int) -> bool:
        return ino in self.open

    def stale(self, ino: int) -> None:
        self.doubted.append(ino)

    def present(self, inodes: Any) -> tuple[list[int], int]:
        return [ino for ino in inodes if ino in self.quiet], 7

    async def let_go(self, inodes: Any) -> None:
        self.let_go_of = list(inodes)


class Tokens:
    """What there is to tell of tokens, once."""

    def __init__(self, ended: Iterable[int] = (), outdated: Iterable[int] = ()) -> None:
        self._ended, self._outdated = list(ended), list(outdated)

    def ended(self) -> list[int]:
        told, self._ended = self._ended, []
        return told

    def outdated(self) -> list[int]:
        told, self._outdated = self._outdated, []
        return told


class Mount:
    def __init__(self, nursery: trio.Nursery, kernel: Kernel) -> None:
        self.kernel, self.session, self.opens, self.caching = kernel, Session(), Opens(), Caching()
        session: Any = self.session
        self.holding = HoldingManager()
        self.records = records_of(self.holding)
        self.alone = Alone(self.caching)
        holding: Any = self.holding
        self.held = HeldDirectories(holding, self.caching, self.alone, self.records, 5.0)
        nursery.start_soon(self.records.run)
        self.recalls = Recalls(session, self.held, self.caching, kernel, self.opens, nursery, 5.0)
        self.serial = 0

    def grants(self, *inodes: int) -> None:
        self.serial += 1
        permit = self.caching.take(Grant(self.serial, ACCESS_S, list(inodes)), trio.current_time())
        node = Node(FILE, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        self.caching.entry_reply(node, permit.until_s(FILE), DIRECTORY, b"name", permit.until_s(DIRECTORY))

    def recalls_now(self, *inodes: int) -> None:
        self.serial += 1
        self.recalls.obey(Recall(3, self.serial, list(inodes)))

    async def answered(self) -> RecallDone:
        with trio.fail_after(SOON_S):
            while not any(isinstance(request, RecallDone) for request in self.session.told):
                await self.session.came.wait()
        (done,) = [request for request in self.session.told if isinstance(request, RecallDone)]
        return done


@asynccontextmanager
async def mount_on(kernel: Kernel) -> AsyncIterator[Mount]:
    async with trio.open_nursery() as nursery:
        yield Mount(nursery, kernel)
        nursery.cancel_scope.cancel()


@pytest.fixture
def mount() -> AbstractAsyncContextManager[Mount]:
    return mount_on(Kernel())


async def test_a_recall_is_answered_when_the_kernel_has_forgotten(mount: Mount) -> None:
    mount.grants(DIRECTORY, FILE)
    mount.recalls_now(DIRECTORY, FILE)
    assert mount.opens.doubted == [DIRECTORY, FILE], "at once"
    assert (await mount.answered()).numbers == [3]
    dropped = [("inode", DIRECTORY), ("inode", FILE), ("name", DIRECTORY, b"name"), ("inode", DIRECTORY)]
    assert mount.opens.let_go_of == [DIRECTORY, FILE]
    assert mount.kernel.done == dropped, "the listing again, when who was taking one in has let go of the lock"


async def test_who_only_wants_to_look_is_told_what_was_recorded_and_takes_nothing_from_the_kernel(mount: Mount) -> None:
    mount.grants(DIRECTORY)
    grant = Grant(mount.serial, ACCESS_S, [DIRECTORY], ACCESS_S)
    mount.alone.granted(grant, trio.current_time())
    assert mount.alone.has(DIRECTORY)
    assert mount.records.add(Record(SetAttr(DIRECTORY, 1, mode=0o700)), [DIRECTORY])
    mount.serial += 1
    mount.recalls.obey(Recall(3, mount.serial, [DIRECTORY], to_look=True))
    assert not mount.alone.has(DIRECTORY), "at once"
    assert (await mount.answered()) == RecallDone([3])
    assert [len(batch.records) for batch in mount.holding.batches] == [1]
    assert mount.kernel.done == []
    assert mount.opens.doubted == []
    assert mount.caching.leased() == [DIRECTORY]
    mount.alone.granted(grant, trio.current_time())
    assert not mount.alone.has(DIRECTORY), "it was under way before"
    mount.alone.granted(Grant(mount.serial + 1, ACCESS_S, [DIRECTORY], ACCESS_S), trio.current_time())
    assert mount.alone.has(DIRECTORY)


async def test_it_is_not_answered_before(mount: Mount) -> None:
    mount.grants(DIRECTORY)
    with mount.kernel.lock:
        mount.recalls_now(DIRECTORY)
        with trio.move_on_after(0.2):
            await mount.answered()
        assert mount.session.told == []
        assert mount.caching.leased() == [DIRECTORY]
    await mount.answered()
    assert ("name", DIRECTORY, b"name") in mount.kernel.done


async def test_a_change_of_our_own_that_holds_the_lock_is_not_waited_for(mount: Mount) -> None:
    mount.grants(DIRECTORY)
    with mount.kernel.lock, mount.recalls.changing(DIRECTORY):
        mount.recalls_now(DIRECTORY)
        await mount.answered()
        assert mount.kernel.done[-2:] == [("all names",), ("inode", DIRECTORY)]


async def test_nor_is_one_that_gets_the_lock_while_we_wait_for_it(mount: Mount) -> None:
    mount.grants(DIRECTORY)
    with mount.kernel.lock:
        mount.recalls_now(DIRECTORY)
        await trio.sleep(0.1)
        assert mount.session.told == []
        with mount.recalls.changing(DIRECTORY):
            await mount.answered()


async def test_without_that_of_the_kernel_names_are_waited_out() -> None:
    async with mount_on(Kernel(can_void_names=False)) as mount:
        mount.caching.limit_names(0.5)
        mount.grants(DIRECTORY)
        given_s = trio.current_time()
        with mount.kernel.lock, mount.recalls.changing(DIRECTORY):
            mount.recalls_now(DIRECTORY)
            await mount.answered()
        assert trio.current_time() - given_s >= 0.5 + LATER_S


@pytest.mark.parametrize("drops", [True, False])
async def test_a_kernel_that_does_not_drop_absent_names_voids_all(drops: bool) -> None:
    """As Linux 6.19 to 7.1: it says that it has no such name, and goes on believing that there is none."""
    async with mount_on(Kernel(drops_absent_names=drops)) as mount:
        mount.grants(DIRECTORY)
        mount.caching.entry_reply(None, 0.0, DIRECTORY, b"absent", trio.current_time() + ACCESS_S)
        mount.recalls_now(DIRECTORY)
        await mount.answered()
        assert (("all names",) in mount.kernel.done) is not drops
        mount.grants(DIRECTORY)
        mount.kernel.done.clear()
        mount.recalls_now(DIRECTORY)
        with trio.fail_after(SOON_S):
            while len(mount.session.told) < 2:
                await mount.session.came.wait()
        assert ("all names",) not in mount.kernel.done, "no name is absent"


async def test_attributes_that_are_on_their_way_into_the_kernel_are_dropped_after_they_got_there(mount: Mount) -> None:
    mount.grants(DIRECTORY, FILE)
    mount.kernel.inodes.discard(FILE)
    mount.recalls_now(FILE)
    await mount.answered()
    assert mount.kernel.done == [("inode", FILE), ("name", DIRECTORY, b"."), ("inode", FILE)]


async def test_more_recalls_than_threads_while_changes_hold_the_locks(mount: Mount) -> None:
    with mount.kernel.lock:
        for directory in range(100, 200):
            mount.serial += 1
            permit = mount.caching.take(Grant(mount.serial, ACCESS_S, [directory]), trio.current_time())
            mount.caching.entry_reply(None, 0.0, directory, b"absent", permit.until_s(directory))
            mount.recalls_now(directory)
        with trio.fail_after(SOON_S), mount.recalls.changing(*range(100, 200)):
            while len(mount.session.told) < 100:
                await mount.session.came.wait()


async def test_what_is_open_without_the_managers_knowledge_is_told_with_the_answer(mount: Mount) -> None:
    mount.grants(DIRECTORY)
    mount.opens.quiet = [DIRECTORY]
    mount.recalls_now(DIRECTORY)
    done = await mount.answered()
    assert (done.opens, done.sequence) == ([DIRECTORY], 7)


async def test_pages_of_what_is_open_go_when_its_lease_ends_unrenewed(mount: Mount) -> None:
    mount.opens.open = {FILE}
    mount.session.answers = False
    mount.serial += 1
    mount.caching.take(Grant(mount.serial, 0.3, [FILE, DIRECTORY]), trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.recalls.end_loop, Tokens())
        await trio.sleep(0.2)
        assert mount.kernel.done == []
        with trio.fail_after(SOON_S):
            while not mount.kernel.done:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert mount.kernel.done == [("inode", FILE)]
    assert mount.opens.doubted == [FILE]


async def test_pages_of_what_is_open_go_when_its_token_ends_and_it_may_not_be_cached(mount: Mount) -> None:
    mount.opens.open = {FILE, DIRECTORY}
    mount.serial += 1
    mount.caching.take(Grant(mount.serial, ACCESS_S, [DIRECTORY]), trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.recalls.end_loop, Tokens(ended=[FILE, DIRECTORY, FILE + 1]))
        with trio.fail_after(SOON_S):
            while not mount.kernel.done:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert mount.kernel.done == [("inode", FILE)]


async def test_pages_go_when_others_have_finished_another_version(mount: Mount) -> None:
    mount.serial += 1
    mount.caching.take(Grant(mount.serial, ACCESS_S, [FILE]), trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.recalls.end_loop, Tokens(outdated=[FILE]))
        with trio.fail_after(SOON_S):
            while not mount.kernel.done:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert mount.kernel.done == [("inode", FILE)]


@pytest.mark.parametrize("answers", [True, False])
async def test_everything_is_given_back_at_the_end_or_ends_by_itself(mount: Mount, answers: bool) -> None:
    mount.grants(DIRECTORY, FILE)
    mount.session.answers = answers
    if not answers:
        with pytest.raises(Unavailable):
            await mount.recalls.give_back_all()
        return
    await mount.recalls.give_back_all()
    (told,) = mount.session.told
    assert isinstance(told, GiveBack)
    assert (sorted(told.inodes), told.serial) == ([DIRECTORY, FILE], mount.serial)
