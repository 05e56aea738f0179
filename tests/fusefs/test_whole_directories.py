"""A directory in which several unknown names are looked up is read as a whole, as far as that pays."""

from typing import Any, cast

import pytest
import trio

from cluster.messages import Entry, Grant, Listing, Node, ReadDir, Recall
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.content.last_paths import LastKnownPaths
from fusefs.names.whole_directories import AGAIN_S, ENTRIES_PER_S, NAMES_MAX, PAGE_ENTRIES, TOO_LARGE_S, WholeDirectories

DIRECTORY, FIRST = 10, 100
ACCESS_S = 1000.0


def node(ino: int) -> Node:
    return Node(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Manager:
    """A directory with so many names. It lets the mount cache what it answers, unless others are there."""

    def __init__(self, names: int) -> None:
        self.names = names
        self.asked: list[int] = []  # behind which cookie
        self.grants = True
        self.recalls_after = 0  # pages, after which somebody else changes a name

    async def call(self, request: Any, *, timeout_s: float) -> Listing:
        assert isinstance(request, ReadDir)
        await trio.lowlevel.checkpoint()
        self.asked.append(request.after)
        first = max(request.after - 2, 0)
        numbers = range(first, min(first + request.limit, self.names))
        entries = [Entry(b"%d" % number, number + 3, node(FIRST + number)) for number in numbers]
        grant = Grant(1, ACCESS_S, [request.ino, *(entry.node.ino for entry in entries)])
        return Listing(entries, numbers.stop == self.names, grant if self.grants else None)


class Scene:
    def __init__(self, names: int) -> None:
        self.manager = Manager(names)
        self.caching = Caching()
        self.paths = LastKnownPaths()
        self.whole = WholeDirectories(cast(ManagerSession, self.manager), self.caching, self.paths, 1.0)

    async def misses(self, times: int = 2) -> bool:
        """Whether the last of so many lookups of unknown names may be answered from here."""
        return [await self.whole.missed(DIRECTORY) for _ in range(times)][-1]

    def known(self, name: bytes) -> int | None:
        contents = self.caching.contents(DIRECTORY)
        return None if contents is None else contents.ino_of(name)


@pytest.mark.usefixtures("autojump_clock")
async def test_at_the_second_unknown_name_all_are_asked_for() -> None:
    scene = Scene(1000)
    assert not await scene.whole.missed(DIRECTORY)
    assert scene.manager.asked == []
    assert await scene.whole.missed(DIRECTORY)
    assert scene.manager.asked == [2, 2 + PAGE_ENTRIES]
    assert (scene.known(b"0"), scene.known(b"999"), scene.known(b"1000")) == (FIRST, FIRST + 999, 0)
    kept = scene.caching.node(FIRST + 999)
    assert kept is not None
    assert kept[0] == node(FIRST + 999)


@pytest.mark.usefixtures("autojump_clock")
async def test_names_that_are_looked_up_now_and_then_are_asked_for_alone() -> None:
    scene = Scene(3)
    for _ in range(5):
        assert not await scene.misses(1)
        await trio.sleep(AGAIN_S * 1.01)
    assert scene.manager.asked == []


@pytest.mark.usefixtures("autojump_clock")
async def test_what_others_change_again_and_again_is_not_read_again_and_again() -> None:
    scene = Scene(1000)
    assert await scene.misses()
    asked = len(scene.manager.asked)
    scene.caching.recalled(Recall(1, 5, [DIRECTORY]))
    assert scene.known(b"0") is None
    assert not await scene.misses(10)
    await trio.sleep(1000 / ENTRIES_PER_S * 1.01)
    scene.caching.recalled(Recall(2, 0, []))
    assert not await scene.misses(), "the manager's answer is from before the recall"
    assert len(scene.manager.asked) == 2 * asked


@pytest.mark.usefixtures("autojump_clock")
async def test_a_directory_with_too_many_names_is_left_for_a_minute() -> None:
    scene = Scene(NAMES_MAX + 1)
    assert not await scene.misses(10)
    assert len(scene.manager.asked) == NAMES_MAX // PAGE_ENTRIES
    assert scene.known(b"0") is None
    assert scene.caching.node(FIRST) is not None
    await trio.sleep(TOO_LARGE_S * 1.01)
    scene.manager.names = 5
    assert await scene.misses()
    assert scene.known(b"5") == 0


@pytest.mark.usefixtures("autojump_clock")
async def test_without_a_lease_nothing_is_known() -> None:
    scene = Scene(5)
    scene.manager.grants = False
    assert not await scene.misses()
    assert scene.known(b"0") is None
    assert scene.caching.node(FIRST) is None


@pytest.mark.usefixtures("autojump_clock")
async def test_a_recall_while_pages_are_read_makes_all_of_them_void() -> None:
    scene = Scene(NAMES_MAX - 1)
    results: list[bool] = []

    async def look() -> None:
        results.append(await scene.misses())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        while len(scene.manager.asked) < 2:
            await trio.lowlevel.checkpoint()
        scene.caching.recalled(Recall(1, 1, [DIRECTORY]))
    assert results == [False]
    assert scene.known(b"0") is None


@pytest.mark.usefixtures("autojump_clock")
async def test_a_directory_is_read_once_at_a_time() -> None:
    scene = Scene(1000)
    assert not await scene.misses(1)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(scene.misses, 1)
    assert scene.manager.asked == [2, 2 + PAGE_ENTRIES]
