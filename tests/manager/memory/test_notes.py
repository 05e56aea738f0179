"""What a new manager knows of caches: from the notes in the catalog, and from the mounts that have presented themselves."""

from collections.abc import Awaitable, Callable

import trio
from sqlalchemy import Connection, select

from cluster.clock import monotonic_s
from cluster.messages import ROOT_INO, Close, Closing, Link, Node, Open, Rename, Rmdir, SetAttr, Unlink
from manager.catalog.schema import caching
from manager.requests.connection import Connection as Served
from manager.workers.housekeeping import tick_loop
from tests.manager.caching import CachingMount, caching_mount, granted, quiet
from tests.manager.office import NOW, Office, Peer, in_office, small_network, until
from tests.support.clocks import hurried, skip
from tests.support.trust import peer as peer_of

ACCESS_S = 20.0


async def noted(office: Office) -> set[tuple[str, int]]:
    def ask(connection: Connection) -> set[tuple[str, int]]:
        return {(row.server, row.directory) for row in connection.execute(select(caching))}

    return await office.store.read(ask)


async def follow(peer: Peer, office: Office, caching_now: list[int] | None = None) -> None:
    """The peer finds the new manager."""
    peer.connection = Served(office, "test", peer_of(peer.server, peer.role))
    await peer.hello(caching=caching_now)


async def takes_s(peer: Peer, ino: int) -> float:
    began = monotonic_s()
    await peer.one(SetAttr(ino, NOW, mode=0o700))
    return monotonic_s() - began


async def waits_for_the_missing(work: Callable[[], Awaitable[object]]) -> None:
    """What *work* asks of a new manager is not done as long as a missing mount may believe in its leases."""
    with trio.fail_after(10 * ACCESS_S):
        async with trio.open_nursery() as nursery:
            done: list[object] = []

            async def run() -> None:
                done.append(await work())

            nursery.start_soon(run)
            await trio.sleep(0.05)
            await skip(0.5 * ACCESS_S)
            assert not done
            await skip(ACCESS_S)


async def test_only_where_a_missing_mount_may_be_looking_a_change_waits_for_a_new_manager(url: str) -> None:
    async with small_network(url, access_s=ACCESS_S) as (office, writer):
        seen, inside, other = await writer.mkdir(b"seen"), await writer.mkdir(b"inside"), await writer.mkdir(b"other")
        below, beside = await writer.mkdir(b"below", inside.ino), await writer.mkdir(b"beside", inside.ino)
        await quiet()
        async with caching_mount(office, "s2") as mount:
            await mount.caches(seen.ino)
            await mount.lookup(b"below", inside.ino)
            assert await noted(office) == {("s2", seen.ino), ("s2", inside.ino), ("s2", below.ino)}
    async with in_office(url, "s2", access_s=ACCESS_S) as office:
        await follow(writer, office)
        assert office.state.absent == {"s2"}
        assert await takes_s(writer, other.ino) < 1
        assert await takes_s(writer, beside.ino) < 1, "its parent was looked at, not it"
        await waits_for_the_missing(lambda: takes_s(writer, below.ino))
        assert await takes_s(writer, seen.ino) < 1, "that time is over"


async def test_a_mount_that_presents_itself_is_called_back_as_usual(url: str) -> None:
    async with small_network(url) as (office, writer):
        cached, dropped = await writer.mkdir(b"cached"), await writer.mkdir(b"dropped")
        await quiet()
        async with caching_mount(office, "s2") as mount:
            for node in (cached, dropped):
                await mount.caches(node.ino)
    async with in_office(url, "s2") as office:
        await follow(writer, office)
        done: list[float] = []

        async def change(ino: int) -> None:
            done.append(await takes_s(writer, ino))

        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change, cached.ino)
                nursery.start_soon(change, dropped.ino)
                await trio.sleep(0.2)
                assert not done
                await follow(mount.peer, office, [cached.ino])
                again = CachingMount(mount.peer)
                async with trio.open_nursery() as watching:
                    watching.start_soon(again.watch)
                    while len(done) < 2:
                        await trio.sleep(0.01)
                    watching.cancel_scope.cancel()
        assert [recall.inodes for recall in again.recalls] == [[cached.ino]]


async def test_opening_for_writing_waits_for_a_missing_mount_too_and_reading_does_not(url: str) -> None:
    async with small_network(url, access_s=ACCESS_S) as (office, writer):
        made = await writer.make(b"file")
        await writer.commit(made.ino, 1)
        await writer.ask(Close([Closing(made.ino, 1)]))
        await quiet()
        async with caching_mount(office, "s2") as mount:
            await mount.caches(made.ino)
    async with in_office(url, "s2", access_s=ACCESS_S) as office:
        await follow(writer, office)
        began = monotonic_s()
        await writer.ask(Open(made.ino, False, 5))
        assert monotonic_s() - began < 0.5
        await waits_for_the_missing(lambda: writer.ask(Open(made.ino, True, 6)))


async def test_what_a_missing_mount_writes_at_its_home_is_cached_there(url: str) -> None:
    async with small_network(url, access_s=ACCESS_S) as (office, writer):
        made = await writer.make(b"file")
        other = await office.peer("s3")
    async with in_office(url, "s2", access_s=ACCESS_S) as office:
        await follow(other, office)
        await waits_for_the_missing(lambda: takes_s(other, made.ino))


async def test_clean_files_are_granted_while_mounts_are_missing(url: str) -> None:
    async with small_network(url) as (office, writer):
        made = await writer.mkdir(b"d")
    async with in_office(url, "s2") as office, caching_mount(office, "s3") as mount:
        assert office.state.in_grace
        assert granted(await mount.attr(made.ino)) == {made.ino}


async def test_who_takes_a_name_away_is_noted_under_what_it_goes_on_caching(url: str) -> None:
    """One link in each of two directories; the mount that caches the file under one of them takes that name away."""

    async def prepare(mount: CachingMount) -> tuple[Node, Node, Node]:
        one, two = await mount.peer.mkdir(b"one"), await mount.peer.mkdir(b"two")
        file = await mount.peer.make(b"file", one.ino)
        await mount.peer.commit(file.ino, 1)
        await mount.peer.ask(Close([Closing(file.ino, 1)]))
        return one, two, file

    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        one, two, file = await prepare(mount)
        await mount.peer.one(Link(file.ino, two.ino, b"link", NOW))
        assert granted(await mount.lookup(b"file", one.ino)) == {one.ino, file.ino}
        lease = office.state.leases.get(file.ino, mount.peer.number)
        assert lease is not None
        assert lease.directory == one.ino
        await mount.peer.apply(Unlink(one.ino, b"file", NOW))
        assert lease.directory == file.ino
        assert ("s1", file.ino) in await noted(office)
        moved = await mount.peer.mkdir(b"moved", one.ino)
        assert granted(await mount.lookup(b"moved", one.ino)) == {one.ino, moved.ino}
        await mount.peer.apply(Rename(one.ino, b"moved", two.ino, b"moved", 0, NOW))
        directory = office.state.leases.get(moved.ino, mount.peer.number)
        assert directory is not None
        assert directory.directory in (moved.ino, two.ino)


async def test_notes_go_when_nothing_can_be_cached_under_them_any_more_and_with_their_directory(url: str) -> None:
    async with small_network(url, access_s=0.5) as (office, _), caching_mount(office, "s1") as mount:

        async def empty() -> bool:
            return not await noted(office)

        made = await mount.peer.mkdir(b"d")
        await mount.caches(made.ino)
        await mount.lookup(b"absent")
        assert await noted(office) == {("s1", ROOT_INO), ("s1", made.ino)}
        assert office.term is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_loop, office.term)
            with hurried():
                await until(empty)
            nursery.cancel_scope.cancel()
        await mount.caches(made.ino)
        assert await noted(office) == {("s1", made.ino)}, "it is noted again"


async def test_a_removed_directory_takes_its_notes_along(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.mkdir(b"d")
        assert office.state.notes.has("s1", made.ino)
        await mount.peer.apply(Rmdir(ROOT_INO, b"d", NOW))

        async def gone() -> bool:
            return ("s1", made.ino) not in await noted(office) and not office.state.notes.has("s1", made.ino)

        await office.background(gone)
