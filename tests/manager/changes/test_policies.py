"""Whether names may be held: what directories say of it, and what is in force below them."""

from sqlalchemy import select

from cluster.messages import (
    RENAME_NOREPLACE,
    ROOT_INO,
    GetPolicy,
    GetWhere,
    ListPolicies,
    NamesPolicy,
    Rename,
    SetPolicy,
)
from manager.catalog.schema import scans
from manager.memory.policies import NAMES_DEFAULT
from tests.manager.office import NOW, Office, Peer, small_network

HELD, THROUGH = NamesPolicy.HELD, NamesPolicy.THROUGH


async def said(mount: Peer, ino: int) -> tuple[NamesPolicy, bytes]:
    row = await mount.ask(GetPolicy(ino))
    return row.names, row.names_path


async def may_be_held(office: Office, directory: int) -> bool:
    assert office.term is not None
    return await office.term.store.read(lambda connection: office.state.policies.of_directory(connection, directory).names_held)


async def scanned(office: Office) -> list[int]:
    assert office.term is not None
    return await office.term.store.read(lambda connection: list(connection.execute(select(scans.c.ino)).scalars()))


async def test_the_default_is_in_force_where_no_directory_says_it(url: str) -> None:
    async with small_network(url) as (office, mount):
        directory = await mount.mkdir(b"d")
        assert await said(mount, ROOT_INO) == (NAMES_DEFAULT, b"")
        await mount.ask(SetPolicy(directory.ino, 3, 1))
        assert await said(mount, directory.ino) == (NAMES_DEFAULT, b"")
        assert await may_be_held(office, directory.ino) == (NAMES_DEFAULT is HELD)
        assert (await mount.ask(GetWhere(directory.ino))).policy.names_path == b""


async def test_the_nearest_directory_that_says_it_counts(url: str) -> None:
    async with small_network(url) as (office, mount):
        top = await mount.mkdir(b"top")
        middle = await mount.mkdir(b"middle", top.ino)
        deep = await mount.mkdir(b"deep", middle.ino)
        file = await mount.make(b"f", deep.ino)
        await mount.ask(SetPolicy(ROOT_INO, 2, 0, names=HELD))
        assert await said(mount, file.ino) == (HELD, b"/")
        # A policy for copies alone does not hide what is said above.
        await mount.ask(SetPolicy(middle.ino, 3, 1))
        row = await mount.ask(GetPolicy(file.ino))
        assert (row.path, row.copies, row.names, row.names_path) == (b"/top/middle", 3, HELD, b"/")
        await mount.ask(SetPolicy(top.ino, 2, 0, names=THROUGH))
        assert await said(mount, file.ino) == (THROUGH, b"/top")
        assert [await may_be_held(office, ino) for ino in (ROOT_INO, top.ino, middle.ino, deep.ino)] == [
            True,
            False,
            False,
            False,
        ]
        rows = (await mount.ask(ListPolicies())).policies
        assert [(row.path, row.copies, row.names, row.names_path) for row in rows] == [
            (b"/", 2, HELD, b"/"),
            (b"/top", 2, THROUGH, b"/top"),
            (b"/top/middle", 3, THROUGH, b"/top"),
        ]


async def test_what_is_not_given_stays_as_it_is(url: str) -> None:
    async with small_network(url) as (_office, mount):
        directory = await mount.mkdir(b"d")
        await mount.ask(SetPolicy(directory.ino, 1, 0, names=HELD))
        row = await mount.ask(SetPolicy(directory.ino, 3, 1))
        assert (row.copies, row.sync_copies, row.names, row.names_path) == (3, 1, HELD, b"/d")
        await mount.ask(SetPolicy(directory.ino, clear=True))
        assert await said(mount, directory.ino) == (NAMES_DEFAULT, b"")


async def test_a_directory_that_moves_comes_under_what_is_said_there(url: str) -> None:
    async with small_network(url) as (office, mount):
        quiet = await mount.mkdir(b"quiet")
        moved = await mount.mkdir(b"moved")
        below = await mount.mkdir(b"below", moved.ino)
        await mount.ask(SetPolicy(quiet.ino, 2, 0, names=THROUGH))
        assert await may_be_held(office, below.ino)
        await mount.apply(Rename(ROOT_INO, b"moved", quiet.ino, b"moved", RENAME_NOREPLACE, NOW))
        assert not await may_be_held(office, below.ino)


async def test_only_copies_are_worth_a_scan_of_all_files_below(url: str) -> None:
    async with small_network(url) as (office, mount):
        directory = await mount.mkdir(b"d")

        async def at_rest() -> bool:
            return await scanned(office) == []

        await office.background(at_rest)
        await mount.ask(SetPolicy(directory.ino, 2, 0, names=HELD))
        assert await scanned(office) == []
        await mount.ask(SetPolicy(directory.ino, 3, 0, names=HELD))
        assert await scanned(office) == [directory.ino]
