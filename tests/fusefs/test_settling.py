"""Commits and closes, with a manager in memory and real objects: what is owed stays owed until the catalog has it."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from cluster.errors import Unavailable
from cluster.messages import Close, Closing, Commit, Grant, Node, Opened, Operation, Request
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.local_object import LocalObject
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode, Stage
from fusefs.content.settling import DueInodes, Settler

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)
TIMEOUT_S, COMMIT_S = 5.0, 5.0


class Manager:
    """What it was told; it fails as often as *failures* says, and is silent while *is_silent*."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.closings: list[Closing] = []
        self.failures = 0
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
        self.commits += commits
        return [msgspec.structs.replace(NODE, version=commit.version) for commit in commits]

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
        self.open_files = OpenFiles(due.add)
        paths = LastKnownPaths()
        self.settler = Settler(self.session, self.caching, self.open_files, due, paths, TIMEOUT_S, COMMIT_S)
        self.path = folder / "7"
        self.path.touch()

    def open(self, *, write: bool) -> tuple[OpenInode, int]:
        state = self.open_files.enter(NODE)
        state.registered(Opened(NODE, [], False, 1, 1), to_write=write or state.is_registered_to_write)
        if state.home is None:
            descriptor = os.open(self.path, os.O_RDWR)
            state.reached(LocalObject(str(self.path), descriptor, self.session, TIMEOUT_S))
        return state, self.open_files.open_handle(state, write=write)

    def write(self) -> tuple[OpenInode, int]:
        state, handle = self.open(write=True)
        state.write_begins()
        self.path.write_bytes(b"written")
        return state, handle

    def may_cache(self) -> None:
        permit = self.caching.take(Grant(1, 60.0, [NODE.ino]), trio.current_time())
        self.caching.keep_node(NODE, permit)


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
