"""Listings as the kernel is told them: what it may keep, and what keeps it from putting parts of two together."""

import itertools
import os
from collections.abc import Callable, Iterable
from typing import cast

import pytest

from cluster.messages import COOKIE_TERM_BITS, Entry, GetParent, Grant, Listing, Node, Parent, ReadDir, Recall
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.content.attributes import Attributes
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.open_files import OpenFiles
from fusefs.content.opening import Opener
from fusefs.kernel.listings import COOKIE_MAX, MARKS, Marks, cookie_of, position
from fusefs.kernel.stream import OpenFlag
from fusefs.names.directories import TERM_MAX, Directories
from fusefs.names.listings import LISTED_MAX, Listings
from fusefs.names.open_directories import Opens
from tests.fusefs.delegating import delegations
from tests.fusefs.holding import held_on

DIRECTORY, FILE = 10, 11
KEEP = OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE
Told = list[tuple[bytes, int]]


def node(ino: int, mode: int) -> Node:
    return Node(ino, mode, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Manager:
    """Has one directory with `names`."""

    def __init__(self) -> None:
        self.term = 1
        self.serial = 0
        self.names = {b"one": 3, b"two": 4}
        self.page = 512
        self.while_asked: Callable[[], None] = lambda: None

    async def call(self, request: ReadDir | GetParent, *, timeout_s: float) -> Listing | Parent:
        if isinstance(request, GetParent):
            self.while_asked()
            return Parent(1)
        self.serial += 1
        bound = request.until or max(self.names.values())
        rest = [(name, cookie) for name, cookie in self.names.items() if request.after < cookie <= bound]
        entries = [Entry(name, cookie, node(FILE, 0o100644)) for name, cookie in rest[: self.page]]
        grant = Grant(self.serial, 15.0, [DIRECTORY, FILE])
        return Listing(entries, len(rest) <= self.page, grant, max(self.names.values()))


class Mount:
    def __init__(self, listed_max: int = LISTED_MAX) -> None:
        self.manager, self.caching = Manager(), Caching()
        self.dropped: list[int] = []
        self.open_files = OpenFiles(lambda _ino: None, delegations(self.caching))
        session, attributes = cast(ManagerSession, self.manager), cast(Attributes, None)
        paths = LastKnownPaths()
        listings = Listings(session, self.caching, attributes, paths, self.drop_inode, 1.0, listed_max=listed_max)
        self.held = held_on(self.caching)
        opens = Opens(self.open_files, self.let_go)
        self.directories = Directories(session, self.held, cast(Opener, self), opens, self.caching, listings, 1.0)

    def drop_inode(self, ino: int) -> bool:
        """In the place of the kernel."""
        self.dropped.append(ino)
        return True

    async def let_go(self, inodes: Iterable[int]) -> None:
        raise AssertionError(inodes)

    async def open(self, ino: int, flags: int) -> int:
        """In the place of the opener."""
        assert flags == os.O_RDONLY
        return self.open_files.open_registered(node(ino, 0o040755))

    async def opened(self, flags: OpenFlag) -> int:
        number = await self.directories.opendir(DIRECTORY)
        assert self.directories.flags(number) == flags
        return number

    async def page(self, number: int, start: int = 0) -> Told:
        return [(name, end) for name, end, _reply in await self.directories.page(number, start)]

    async def listed(self, number: int) -> Told:
        """All, and the end."""
        told = await self.page(number)
        assert await self.page(number, told[-1][1]) == []
        return told

    def recalls(self) -> None:
        self.manager.serial += 1
        self.caching.recalled(Recall(1, self.manager.serial, [DIRECTORY]))


@pytest.fixture
def mount() -> Mount:
    return Mount()


def names_of(told: Told) -> list[bytes]:
    return [name for name, _ in told]


async def test_a_listing_ends_where_the_directory_ended_when_it_began(mount: Mount) -> None:
    mount.manager.page = 1
    number, cookies = await mount.opened(OpenFlag.CACHE_DIR), itertools.count(5)
    told = page = await mount.page(number)
    while page and len(told) < 50:
        mount.recalls()
        mount.manager.names = {b"renamed": next(cookies), **{n: c for n, c in mount.manager.names.items() if n != b"renamed"}}
        page = await mount.page(number, page[-1][1])
        told += page
    assert names_of(told) == [b".", b"..", b"one", b"two"]
    assert b"renamed" in names_of(await mount.page(number)), "from its beginning it is another listing"


async def test_a_listing_that_is_good_is_kept_by_the_kernel(mount: Mount) -> None:
    first = await mount.listed(await mount.opened(OpenFlag.CACHE_DIR))
    assert names_of(first) == [b".", b"..", b"one", b"two"]
    assert await mount.listed(await mount.opened(KEEP)) == first, "the same positions, whoever tells it"
    assert mount.dropped == []


async def test_two_listings_have_no_position_in_common(mount: Mount) -> None:
    first = await mount.listed(await mount.opened(OpenFlag.CACHE_DIR))
    mount.recalls()
    second = await mount.listed(await mount.opened(OpenFlag.CACHE_DIR))
    assert names_of(first) == names_of(second)
    assert not {end for _, end in first} & {end for _, end in second}


async def test_what_is_asked_for_at_a_position_of_another_listing_follows_there(mount: Mount) -> None:
    *_, one, two = await mount.listed(await mount.opened(OpenFlag.CACHE_DIR))
    mount.recalls()
    again = await mount.opened(OpenFlag.CACHE_DIR)
    assert names_of(await mount.page(again, one[1])) == [b"two"]
    assert await mount.page(again, two[1]) == []


async def test_the_end_of_a_listing_that_was_recalled_meanwhile_is_told_when_the_kernel_has_dropped_it(mount: Mount) -> None:
    number = await mount.opened(OpenFlag.CACHE_DIR)
    told = await mount.page(number)
    mount.recalls()
    assert mount.dropped == []
    assert await mount.page(number, told[-1][1]) == []
    assert mount.dropped == [DIRECTORY]
    await mount.opened(OpenFlag.CACHE_DIR)


async def test_so_is_that_of_one_that_was_recalled_before_it_was_told(mount: Mount) -> None:
    mount.manager.while_asked = mount.recalls
    number = await mount.opened(OpenFlag.CACHE_DIR)
    told = await mount.page(number)
    assert mount.dropped == []
    assert await mount.page(number, told[-1][1]) == []
    assert mount.dropped == [DIRECTORY]


async def test_who_begins_again_with_another_listing_has_the_kernel_drop_the_one_before(mount: Mount) -> None:
    number = await mount.opened(OpenFlag.CACHE_DIR)
    first = await mount.page(number)
    assert await mount.page(number) == first
    assert mount.dropped == []
    mount.recalls()
    assert (await mount.page(number))[0] != first[0]
    assert mount.dropped == [DIRECTORY]


async def test_positions_without_room_for_a_mark_are_not_kept(mount: Mount) -> None:
    mount.manager.term = TERM_MAX + 1
    mount.manager.names = {b"old": 5, b"new": (TERM_MAX + 1) << COOKIE_TERM_BITS}
    number = await mount.opened(OpenFlag(0))
    told = await mount.listed(number)
    assert [cookie_of(end) for _, end in told[2:]] == list(mount.manager.names.values())
    assert names_of(await mount.page(number, told[2][1])) == [b"new"]


def test_positions() -> None:
    for mark in (1, MARKS):
        for cookie in (1, 2, COOKIE_MAX):
            assert cookie_of(position(cookie, mark)) == cookie
            assert 0 < position(cookie, mark) < 1 << 63
    assert cookie_of(position(COOKIE_MAX + 1, 5)) == position(COOKIE_MAX + 1, 5) == COOKIE_MAX + 1


def test_marks_are_not_those_in_use() -> None:
    marks = Marks()
    assert [marks.another({2}) for _ in range(2)] == [1, 3]
    assert marks.another(set(range(1, MARKS + 1)) - {2}) == 2
    assert marks.another(range(MARKS + 1)) == 0


async def test_a_reader_can_go_back_to_any_position_of_a_listing_that_is_too_long_to_be_kept() -> None:
    """telldir(3) and seekdir(3): only the last page is held of such a listing."""
    mount = Mount(listed_max=2)
    mount.manager.page = 2
    mount.manager.names = {f"{cookie}".encode(): cookie for cookie in range(3, 12)}
    number = await mount.opened(OpenFlag.CACHE_DIR)
    told = page = await mount.page(number)
    while page:
        page = await mount.page(number, page[-1][1])
        told += page
    assert names_of(told)[2:] == list(mount.manager.names)
    for (_name, end), following in itertools.pairwise(told[1:]):
        assert (await mount.page(number, end))[0] == following
