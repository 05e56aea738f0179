"""Objects that are made in advance: where files go, no longer than files are made, and never left behind."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio

from cluster.clock import file_time_ns
from cluster.messages import Volume
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import VolumeLayout
from fusefs.content import prepared
from fusefs.content.disk_threads import IN_USE_S, threads_of
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.peers import Peers
from fusefs.content.prepared import READY_MAX, READY_MIN, NewObject, PreparedObjects

TIMEOUT_S = 10.0


class Numbers:
    """Inode numbers from 1."""

    def __init__(self) -> None:
        self.given = 0

    async def take(self) -> int:
        await trio.lowlevel.checkpoint()
        self.given += 1
        return self.given


class Volumes:
    """The volumes of one server; the first one that takes files is the best."""

    def __init__(self, *roots: Path) -> None:
        self.roots = list(roots)
        self.closed: set[int] = set()
        self.remote = False
        self.best = 1

    def takes_new_files(self, number: int) -> bool:
        return number not in self.closed

    def is_local(self, _volume: Volume) -> bool:
        return not self.remote

    async def homes_for_new_file(self) -> list[Volume]:
        await trio.lowlevel.checkpoint()
        return [
            Volume(number, "s1", os.fspath(root), "", 1, 1, "")
            for number, root in sorted(enumerate(self.roots, 1), key=lambda volume: volume[0] != self.best)
            if number not in self.closed
        ]


def volume_in(folder: Path) -> Path:
    (folder / "objects").mkdir(parents=True)
    return folder


def objects_in(root: Path) -> list[int]:
    return sorted(int(path.name) for path in (root / "objects").glob("*/*"))


async def until(objects: PreparedObjects, *, count: int) -> None:
    with trio.fail_after(TIMEOUT_S):
        while len(objects) != count:
            await trio.sleep(0.005)


@asynccontextmanager
async def running(volumes: Volumes) -> AsyncIterator[PreparedObjects]:
    """Its own loop runs while inside; what is left at the end is closed."""
    session = cast(ManagerSession, None)  # asked only when an object is committed
    objects = PreparedObjects(session, cast(Peers, volumes), cast(InodeNumbers, Numbers()), TIMEOUT_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(objects.run)
        yield objects
        await objects.end()
        nursery.cancel_scope.cancel()


def taken(objects: PreparedObjects) -> NewObject:
    new = objects.take()
    assert new is not None
    return new


async def test_the_first_file_has_none_and_those_after_it_do(tmp_path: Path) -> None:
    volumes = Volumes(volume_in(tmp_path / "one"))
    async with running(volumes) as objects:
        assert objects.take() is None
        await until(objects, count=READY_MAX)
        before_ns = file_time_ns()
        new = taken(objects)
        assert (new.ino, new.volume) == (1, 1)
        assert before_ns <= new.born_ns <= file_time_ns()
        status = Path(VolumeLayout(volumes.roots[0]).object_path(1)).stat()
        assert new.object_ctime_ns == status.st_ctime_ns == status.st_mtime_ns <= new.born_ns
        assert status.st_size == 0
        objects.put_back(new)
        assert taken(objects).ino == 1
        for number in range(2, READY_MAX - READY_MIN + 1):
            assert taken(objects).ino == number
        # That one is the last of those that may go before more are made.
        assert len(objects) == READY_MIN
        taken(objects)
        await until(objects, count=READY_MAX)
    # What became a file stays.
    assert objects_in(volumes.roots[0]) == list(range(1, READY_MAX - READY_MIN + 2))


@pytest.mark.parametrize("instead", ["nothing", "another disk"])
async def test_none_is_taken_from_a_disk_that_is_away(tmp_path: Path, instead: str) -> None:
    root = volume_in(tmp_path / "one")
    volumes = Volumes(root)
    async with running(volumes) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        there = root.rename(tmp_path / "away")
        if instead == "another disk":
            VolumeLayout(volume_in(root)).create_object(1)
        assert objects.take() is None
        await until(objects, count=READY_MAX if instead == "another disk" else 0)
        assert len(objects_in(there)) == READY_MAX, "nothing is removed where it is not"


async def test_whether_the_disk_answers_is_asked_while_files_are_made(tmp_path: Path) -> None:
    """Nothing else tells: the kernel writes them itself, in its page cache."""
    root = volume_in(tmp_path / "one")
    async with running(Volumes(root)) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        await trio.sleep(0.1)
        until_s = trio.current_time() + IN_USE_S - 0.05
        assert not threads_of(str(root)).is_in_use(until_s)
        taken(objects)
        assert threads_of(str(root)).is_in_use(until_s)


async def test_they_go_when_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "IDLE_S", 0.1)
    monkeypatch.setattr(prepared, "LOOK_S", 0.02)
    volumes = Volumes(volume_in(tmp_path / "one"))
    async with running(volumes) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        await until(objects, count=0)
        with trio.fail_after(TIMEOUT_S):
            while objects_in(volumes.roots[0]):
                await trio.sleep(0.01)
        assert objects.take() is None
        await until(objects, count=READY_MAX)


async def test_a_volume_that_takes_no_files_any_more_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LOOK_S", 0.02)
    volumes = Volumes(volume_in(tmp_path / "one"), volume_in(tmp_path / "two"))
    async with running(volumes) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        volumes.closed.add(1)
        assert objects.take() is None
        with trio.fail_after(TIMEOUT_S):
            while objects_in(volumes.roots[0]) or not objects:
                await trio.sleep(0.01)
        assert taken(objects).volume == 2


async def test_they_follow_the_best_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LOOK_S", 0.02)
    monkeypatch.setattr(prepared, "STAY_S", 0.2)
    volumes = Volumes(volume_in(tmp_path / "one"), volume_in(tmp_path / "two"))
    async with running(volumes) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        volumes.best = 2
        assert taken(objects).volume == 1, "at once would be too often"
        with trio.fail_after(TIMEOUT_S):
            while (new := objects.take()) is None or new.volume == 1:
                await trio.sleep(0.05)


async def test_none_are_made_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LOOK_S", 0.01)
    volumes = Volumes(volume_in(tmp_path / "one"))
    volumes.remote = True
    async with running(volumes) as objects:
        objects.take()
        await trio.sleep(0.1)
        assert objects.take() is None
    assert objects_in(volumes.roots[0]) == []


async def test_all_or_none_of_a_turn_are_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "RETRY_S", 0.01)
    caplog.set_level(logging.INFO)
    root = volume_in(tmp_path / "one")
    os.close(VolumeLayout(root).create_object(100))  # which one of them would be
    async with running(Volumes(root)) as objects:
        assert objects.take() is None
        with trio.fail_after(TIMEOUT_S):
            while "no objects are made in advance" not in caplog.text:
                await trio.sleep(0.01)
        assert objects_in(root) == [100]
        # The numbers that were used up are not used again.
        assert objects.take() is None
        await until(objects, count=READY_MAX)
        assert taken(objects).ino == READY_MAX + 1


async def test_an_orderly_stop_leaves_none_and_makes_none(tmp_path: Path) -> None:
    volumes = Volumes(volume_in(tmp_path / "one"))
    async with running(volumes) as objects:
        objects.take()
        await until(objects, count=READY_MAX)
        await objects.end()
        assert objects_in(volumes.roots[0]) == []
        assert objects.take() is None
        await trio.sleep(0.05)
        assert objects_in(volumes.roots[0]) == []
