"""Commits and closes, with a manager in memory and real objects: what is owed stays owed until the catalog has it."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from cluster.config import MountConfig
from cluster.errors import Refused, Unavailable
from cluster.messages import Close, Closing, Commit, Grant, Node, Opened, Operation, Request
from cluster.rpc.session import ManagerSession
from cluster.volume.content import object_lock
from cluster.volume.layout import RECORD_XATTR
from fusefs.caching.cache import Caching
from fusefs.content.delegations import Ended
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.lingering import Lingering
from fusefs.content.local_object import LocalObject
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import IoMode, OpenInode, Stage
from fusefs.content.passthrough import Passthrough
from fusefs.content.settling import TOGETHER_MAX, DueInodes, Settler
from fusefs.kernel.stream import Channel, OpenFlag
from tests.fusefs.delegating import Model, delegations
from tests.fusefs.holding import held_on

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)
TIMEOUT_S = 5.0
CONFIG = MountConfig("/mnt", request_timeout_s=TIMEOUT_S, commit_s=5.0)


class Manager:
    """What it was told; it fails as often as *failures* says, and is silent while *is_silent*."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.closings: list[Closing] = []
        self.failures = 0
        self.refused: set[int] = set()  # inodes whose commits are
        self.asked: list[int] = []  # how many commits each time
        self.is_silent = False

    async def _arrive(self) -> None:
        if self.is_silent:
            await trio.sleep_forever()
        if self.failures:
            self.failures -= 1
            raise Unavailable("no manager answers")

    async def apply(self, operations: Sequence[Operation], *, timeout_s: float) -> list[Node | None]:
        assert timeout_s == TIMEOUT_S
        await self._arrive()
        commits = cast(Sequence[Commit], operations)
        self.asked.append(len(commits))
        if refused := self.refused.intersection(commit.ino for commit in commits):
            raise Refused(f"inodes {refused}", errno.ENOENT)
        self.commits += commits
        return [msgspec.structs.replace(NODE, ino=commit.ino, version=commit.version) for commit in commits]

    def applier(self, timeout_s: float) -> Callable[[Operation], Awaitable[Node | None]]:
        async def apply_one(operation: Operation) -> Node | None:
            (node,) = await self.apply([operation], timeout_s=timeout_s)
            return node

        return apply_one

    async def call(self, request: Request[Any], *, timeout_s: float) -> None:
        assert isinstance(request, Close)
        assert timeout_s == TIMEOUT_S
        await self._arrive()
        self.closings += request.closings


class Mount:
    """A settler, and the inode `NODE` with an object on disk."""

    def __init__(self, folder: Path) -> None:
        self.manager, self.caching = Manager(), Caching()
        self.session = cast(ManagerSession, self.manager)
        due = DueInodes()
        self.delegated = Model()
        delegating = delegations(self.caching, self.delegated)
        self.open_files = OpenFiles(due.add, delegating)
        lingering, paths = Lingering(self.caching, delegating, due.add), LastKnownPaths()
        self.settler = Settler(self.session, held_on(self.caching), self.open_files, due, paths, lingering, CONFIG)
        self.path = folder / "7"
        self.path.touch()

    def open(self, *, write: bool) -> tuple[OpenInode, int]:
        state = self.open_files.enter(NODE)
        state.registered(Opened(NODE, [], False, 1, 1), to_write=write or state.is_registered_to_write)
        if state.home is None:
            descriptor = os.open(self.path, os.O_RDWR)
            state.reach_begins()
            state.reached(LocalObject(str(self.path), descriptor, self.session, TIMEOUT_S))
        return state, self.open_files.open_handle(state, write=write)

    def write(self) -> tuple[OpenInode, int]:
        state, handle = self.open(write=True)
        state.write_begins()
        self.path.write_bytes(b"written")
        return state, handle

    def write_several(self, count: int) -> list[tuple[OpenInode, int]]:
        """New files, each with a handle by which it was written."""
        made = []
        for ino in range(1000, 1000 + count):
            path = self.path.with_name(str(ino))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            os.write(descriptor, b"written")
            state = self.open_files.enter(msgspec.structs.replace(NODE, ino=ino, version=0, object_ctime_ns=0, dirty=True))
            state.created(LocalObject(str(path), descriptor, self.session, TIMEOUT_S))
            made.append((state, self.open_files.open_handle(state, write=True)))
        return made

    def may_cache(self, node: Node = NODE) -> None:
        permit = self.caching.take(Grant(1, 60.0, [node.ino]), trio.current_time())
        self.caching.keep_node(node, permit)


@pytest.fixture
def unsettled(tmp_path: Path) -> Mount:
    """Whose settler does nothing by itself."""
    return Mount(tmp_path)


@pytest.fixture
@asynccontextmanager
async def mount(unsettled: Mount) -> AsyncIterator[Mount]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unsettled.settler.run)
        yield unsettled
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10.0):
        while not condition():
            await trio.sleep(0.01)


async def test_what_was_written_is_committed_and_closed_after_the_last_close(mount: Mount) -> None:
    state, handle = mount.write()
    mount.open_files.release_handle(handle)
    await until(lambda: bool(mount.manager.closings))
    assert [(commit.version, commit.final) for commit in mount.manager.commits] == [(4, True)]
    assert [closing.still_open for closing in mount.manager.closings] == [False]
    assert state.stage is Stage.LEFT
    assert not mount.open_files.is_open(NODE.ino)


async def test_files_that_are_closed_together_are_settled_together(mount: Mount) -> None:
    written = mount.write_several(2 * TOGETHER_MAX + 1)
    for _, handle in written:
        mount.open_files.release_handle(handle)
    await until(lambda: len(mount.manager.closings) == len(written))
    assert sorted(mount.manager.asked) == [1, TOGETHER_MAX, TOGETHER_MAX]
    assert {commit.ino for commit in mount.manager.commits} == {state.ino for state, _ in written}
    assert all(commit.content is not None and commit.content.size == 7 for commit in mount.manager.commits)
    assert all(b'"version":1,' in os.getxattr(mount.path.with_name(str(state.ino)), RECORD_XATTR) for state, _ in written)
    assert {state.stage for state, _ in written} == {Stage.LEFT}


async def test_a_refused_commit_keeps_no_other_back(mount: Mount) -> None:
    """Whichever it is: the others are committed in a few requests more, and the refused one ends as by itself."""
    written = mount.write_several(TOGETHER_MAX)
    mount.manager.refused = {written[77][0].ino}
    for _, handle in written:
        mount.open_files.release_handle(handle)
    await until(lambda: len(mount.manager.closings) == len(written))
    assert {commit.ino for commit in mount.manager.commits} == {state.ino for state, _ in written} - mount.manager.refused
    # Two for each halving, and that of the refused one alone.
    assert len(mount.manager.asked) <= 2 * TOGETHER_MAX.bit_length() + 2


@pytest.mark.parametrize("busy", ["object", "inode", "another thing there"])
async def test_what_one_file_waits_for_no_other_does(mount: Mount, busy: str) -> None:
    written = mount.write_several(3)
    state = written[1][0]
    path = mount.path.with_name(str(state.ino))
    async with AsyncExitStack() as stack:
        if busy == "object":
            await stack.enter_async_context(object_lock(str(path)))
        elif busy == "inode":
            await stack.enter_async_context(state.lock)
        else:
            path.rename(path.with_name("aside"))
            path.mkdir()
        for _, handle in written:
            mount.open_files.release_handle(handle)
        await until(lambda: len(mount.manager.closings) == 2)
        assert {commit.ino for commit in mount.manager.commits} == {written[0][0].ino, written[2][0].ino}
        assert state.is_registered_to_write
    if busy == "another thing there":
        path.rmdir()
        path.with_name("aside").rename(path)
    await until(lambda: len(mount.manager.closings) == 3)
    assert state.stage is Stage.LEFT


async def test_what_is_opened_again_while_it_is_committed_is_not_closed(mount: Mount) -> None:
    written = mount.write_several(2)
    apply, opened = mount.manager.apply, []

    async def open_then_apply(operations: Sequence[Operation], *, timeout_s: float) -> list[Node | None]:
        opened.append(mount.open_files.open_handle(written[0][0], write=False))
        return await apply(operations, timeout_s=timeout_s)

    mount.manager.apply = open_then_apply  # type: ignore[method-assign]  # somebody has it open before it is closed
    for _, handle in written:
        mount.open_files.release_handle(handle)
    await until(lambda: len(mount.manager.closings) == 2)
    assert {closing.ino: closing.still_open for closing in mount.manager.closings} == {1000: True, 1001: False}
    assert [state.stage for state, _ in written] == [Stage.READING, Stage.LEFT]


async def test_a_file_that_is_still_read_stays_registered(mount: Mount) -> None:
    mount.open(write=False)
    state, handle = mount.write()
    mount.open_files.release_handle(handle)
    await until(lambda: bool(mount.manager.closings))
    assert [closing.still_open for closing in mount.manager.closings] == [True]
    assert state.stage is Stage.READING


async def test_what_could_not_be_settled_is_written_until_it_is(mount: Mount) -> None:
    mount.manager.failures = 1
    state, handle = mount.write()
    stages = []

    async def apply(operations: Sequence[Operation], *, timeout_s: float) -> list[Node | None]:
        stages.append(state.stage)
        return await Manager.apply(mount.manager, operations, timeout_s=timeout_s)

    mount.manager.apply = apply  # type: ignore[method-assign]  # observes, and changes nothing
    mount.open_files.release_handle(handle)
    await until(lambda: bool(mount.manager.closings))
    assert stages == [Stage.COMMITTING] * 2
    assert len(mount.manager.commits) == 1


@pytest.mark.parametrize("final", [False, True])
async def test_a_commit_that_nobody_waits_for_any_more_covers_nothing(unsettled: Mount, final: bool) -> None:
    """As an `fsync` that is interrupted: the next one has to commit, and not to take the old version for the newest."""
    unsettled.manager.is_silent = True
    state, _handle = unsettled.write()
    with trio.move_on_after(0.2):
        async with state.lock:
            await unsettled.settler.commit(state, final=final)
    assert state.stage is Stage.WRITTEN
    assert state.has_changed()
    unsettled.manager.is_silent = False
    async with state.lock:
        await unsettled.settler.commit(state, final=False)
    assert len(unsettled.manager.commits) == 1
    assert not state.has_changed()


async def test_a_write_during_a_commit_is_committed_by_the_next(unsettled: Mount) -> None:
    state, _handle = unsettled.write()
    apply = unsettled.manager.apply

    async def write_then_apply(operations: Sequence[Operation], *, timeout_s: float) -> list[Node | None]:
        state.write_begins()
        return await apply(operations, timeout_s=timeout_s)

    unsettled.manager.apply = write_then_apply  # type: ignore[method-assign]  # a program writes meanwhile
    async with state.lock:
        await unsettled.settler.commit(state, final=False)
    assert state.stage is Stage.WRITTEN
    assert unsettled.open_files.being_written() == [state]


async def test_a_recall_does_not_close_what_is_still_to_be_committed(mount: Mount) -> None:
    """It lingered, was then opened and written, and has just been closed: its last commit comes before its close."""
    mount.may_cache()
    _, handle = mount.open(write=False)
    mount.open_files.release_handle(handle)
    await until(lambda: NODE.ino in mount.settler.lingering)
    state, handle = mount.write()
    mount.open_files.release_handle(handle)
    await mount.settler.let_go([NODE.ino])
    assert state.stage is Stage.WRITTEN
    assert mount.manager.closings == []
    await until(lambda: bool(mount.manager.closings))
    assert [commit.final for commit in mount.manager.commits] == [True]


async def test_a_recall_closes_what_only_lingers(mount: Mount) -> None:
    mount.may_cache()
    state, handle = mount.open(write=False)
    mount.open_files.release_handle(handle)
    await until(lambda: NODE.ino in mount.settler.lingering)
    await mount.settler.let_go([NODE.ino])
    assert [closing.still_open for closing in mount.manager.closings] == [False]
    assert state.stage is Stage.LEFT


async def test_a_file_that_is_synced_often_is_committed_once(unsettled: Mount) -> None:
    state, _handle = unsettled.write()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unsettled.settler.commit_synced)
        for _ in range(3):
            unsettled.settler.commit_soon(state)
        await until(lambda: bool(unsettled.manager.commits))
        nursery.cancel_scope.cancel()
    assert not state.is_commit_due
    assert [commit.final for commit in unsettled.manager.commits] == [False]
    assert state.was_committed_open


async def lingering(mount: Mount) -> OpenInode:
    """A file that was read, and is closed."""
    mount.may_cache()
    state, handle = mount.open(write=False)
    mount.open_files.release_handle(handle)
    await until(lambda: NODE.ino in mount.settler.lingering)
    return state


def opened_past(mount: Mount) -> int:
    """The handle of an open that the extension answers."""
    opened = mount.delegated.open(NODE.ino)
    assert opened is not None
    return opened[0]


async def test_what_lingers_is_delegated_until_it_is_closed(mount: Mount) -> None:
    state = await lingering(mount)
    assert mount.delegated.release(opened_past(mount))
    await mount.settler.let_go([NODE.ino])
    assert mount.delegated.open(NODE.ino) is None
    assert state.stage is Stage.LEFT
    assert len(mount.delegated.closed_backings) == 1


async def test_what_the_extension_has_opened_stays_registered_when_it_is_recalled(mount: Mount) -> None:
    state = await lingering(mount)
    handles = [opened_past(mount), opened_past(mount)]
    mount.open_files.stale(NODE.ino)
    assert mount.delegated.open(NODE.ino) is None
    assert state.io.mode is IoMode.PASSED
    await mount.settler.let_go([NODE.ino])
    assert (state.handles, mount.manager.closings) == (2, [])
    ways = Passthrough(cast(Channel, mount.delegated))
    for handle in handles:
        assert mount.delegated.closed_backings == []
        ways.released(mount.open_files.release_handle(handle))
    await until(lambda: bool(mount.manager.closings))
    assert state.stage is Stage.LEFT
    assert len(mount.delegated.closed_backings) == 1


async def test_a_request_by_a_handle_of_the_extension_makes_it_one_of_python(mount: Mount) -> None:
    state = await lingering(mount)
    handle = opened_past(mount)
    assert mount.open_files.handle(handle).inode is state
    assert not mount.delegated.release(handle), "it is released here from now on"
    with pytest.raises(KeyError):
        mount.open_files.handle(handle + 1)


async def test_at_the_end_nothing_is_delegated(mount: Mount) -> None:
    state = await lingering(mount)
    handle = opened_past(mount)
    await mount.settler.drain()
    assert state.stage is Stage.LEFT
    with pytest.raises(KeyError):
        mount.open_files.handle(handle)


async def test_what_is_removed_while_the_mount_is_cut_off_is_opened_no_more(mount: Mount) -> None:
    await lingering(mount)
    mount.open_files.mark_lost([NODE.ino])
    assert mount.delegated.open(NODE.ino) is None


@pytest.mark.parametrize("case", ["not passed through", "dirty", "new", "another home", "not sound"])
async def test_what_may_differ_from_one_open_to_the_next_is_not_delegated(unsettled: Mount, case: str) -> None:
    unsettled.delegated.passes = case != "not passed through"
    odd: dict[str, dict[str, Any]] = {"dirty": {"dirty": True}, "new": {"version": 0}, "another home": {"home_epoch": 2}}
    unsettled.may_cache(msgspec.structs.replace(NODE, **odd.get(case, {})))
    state, handle = unsettled.open(write=False)
    unsettled.open_files.release_handle(handle)
    delegating = delegations(unsettled.caching, unsettled.delegated, is_sound=lambda: case != "not sound")
    delegating.begin(state)
    assert unsettled.delegated.open(NODE.ino) is None
    assert delegating.inodes() == []


async def test_a_disk_that_fails_is_noticed_before_the_next_open(unsettled: Mount) -> None:
    unsettled.may_cache()
    state, handle = unsettled.open(write=False)
    unsettled.open_files.release_handle(handle)
    sound = [True]
    delegating = delegations(unsettled.caching, unsettled.delegated, is_sound=lambda: sound[0])
    delegating.begin(state)
    assert unsettled.delegated.release(opened_past(unsettled))
    sound[0] = False
    assert delegating.used() == [NODE.ino]
    assert unsettled.delegated.open(NODE.ino) is None


async def test_what_the_kernel_has_pages_of_is_delegated_without_passthrough(unsettled: Mount) -> None:
    unsettled.delegated.passes = False
    unsettled.may_cache()
    state, handle = unsettled.open(write=False)
    unsettled.open_files.release_handle(handle)
    delegating = delegations(unsettled.caching, unsettled.delegated, has_pages=lambda node: node == NODE)
    delegating.begin(state)
    opened = unsettled.delegated.open(NODE.ino)
    assert opened is not None
    assert opened[1:] == (OpenFlag.KEEP_CACHE, 0)
    ended = delegating.end(NODE.ino)
    assert ended == Ended(IoMode.CACHED, None, [opened[0]])


async def test_reading_by_a_handle_of_the_extension_leaves_it_there(mount: Mount) -> None:
    state = await lingering(mount)
    handle = opened_past(mount)
    assert mount.open_files.reader(handle) is state
    assert mount.delegated.release(handle)
    with pytest.raises(KeyError):
        mount.open_files.reader(handle)
