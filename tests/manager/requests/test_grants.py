"""Which answers let a mount cache what, and when not."""

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, select

from cluster.clock import monotonic_s
from cluster.counters import METRICS_MAX
from cluster.errors import Refused
from cluster.leases import READ, WRITE, LeaseKeys
from cluster.messages import (
    ROOT_INO,
    AskLeases,
    Close,
    Closing,
    Create,
    Described,
    GetAttr,
    GetServer,
    Heartbeat,
    ListLeases,
    MountCounts,
    Open,
    Rename,
    SetAttr,
)
from manager.catalog.schema import caching
from manager.changes.operations import as_markdown
from manager.memory.bounds import Bounds
from manager.memory.leases import Leases
from manager.memory.mutations import Mutation, Mutations
from manager.memory.sessions import Session
from manager.requests import leases as leasing
from manager.requests.connection import Connection as Served
from manager.requests.routes import ROUTES
from tests.manager.caching import CachingMount, caching_mount, granted, quiet
from tests.manager.office import NOW, SECRET, Office, small_network

DOCUMENT = Path(__file__, "../../../../docs/leases.md").resolve()

FILE = 0o100644


async def test_a_lookup_grants_the_directory_and_what_it_found(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.mkdir(b"d")
        found = await mount.lookup(b"d")
        assert granted(found) == {ROOT_INO, made.ino}
        assert found.grant is not None
        assert found.grant.serial >> 40 == office.number
        assert granted(await mount.lookup(b"absent")) == {ROOT_INO}
        assert granted(await mount.attr(made.ino)) == {made.ino}


async def test_a_listing_grants_all_that_is_in_it(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = {(await mount.peer.mkdir(b"%d" % n)).ino for n in range(20)}
        assert granted(await mount.listing()) == made | {ROOT_INO}


async def test_who_does_not_watch_recalls_is_granted_nothing(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.mkdir(b"d")
        assert granted(await mount.ask(GetAttr(made.ino))) == set()
        async with caching_mount(office, "s2") as other:
            await quiet()
            await other.caches(made.ino)
        assert granted(await other.attr(made.ino)) == set()


async def test_what_others_changed_just_now_is_granted_a_little_later_and_what_it_changed_itself_at_once(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount, caching_mount(office, "s2") as other:
        made = await mount.peer.mkdir(b"d")
        assert granted(await other.attr(made.ino)) == set()
        assert granted(await mount.attr(made.ino)) == {made.ino}
        await quiet()
        assert granted(await other.attr(made.ino)) == {made.ino}


async def test_a_dirty_file_is_granted_to_its_only_writer_at_the_home(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount, caching_mount(office, "s2") as other:
        made = await mount.peer.make(b"file")
        await quiet()
        assert granted(await mount.attr(made.ino)) == {made.ino}
        assert granted(await other.attr(made.ino)) == set(), "somebody writes it"
        elsewhere = await other.peer.make(b"elsewhere")
        assert granted(await other.attr(elsewhere.ino)) == set(), "its home is on s1"
        await mount.peer.commit(made.ino, 1)
        await mount.peer.ask(Close([Closing(made.ino, 1)]))
        await quiet()
        assert granted(await other.attr(made.ino)) == {made.ino}


async def test_a_file_that_a_vanished_mount_may_be_writing_is_granted_to_nobody(url: str) -> None:
    async with small_network(url) as (office, mount), caching_mount(office, "s2") as other:
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        session = office.state.sessions.get(mount.number)
        assert session is not None
        assert office.term is not None
        office.term.end_session(session)
        await quiet()
        assert granted(await other.attr(made.ino)) == set()
        leases_of(office).expire(monotonic_s() + 100)
        assert granted(await other.attr(made.ino)) == {made.ino}


def leases_of(office: Office) -> Leases:
    return office.state.leases


async def test_who_creates_may_cache_what_it_made_and_where(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        await mount.lookup(b"file")  # as the kernel does before it creates: the directory is noted
        ino = await mount.peer.new_ino()
        reply = await mount.peer.applied(Create(ROOT_INO, b"file", ino, FILE, 0, 0, 0, NOW, 1))
        assert granted(reply) == {ROOT_INO, ino}
        assert reply.touched == [ROOT_INO, ino]
        (lease,) = leases_of(office).ending_first(ino=ino)
        assert lease.mode(monotonic_s()) == WRITE


async def test_changes_grant_what_they_bring_and_the_directories_that_they_change(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        source, target = await mount.peer.mkdir(b"source"), await mount.peer.mkdir(b"target")
        made = await mount.peer.mkdir(b"d", source.ino)
        await mount.lookup(b"d", source.ino)
        reply = await mount.peer.applied(Rename(source.ino, b"d", target.ino, b"d", 0, NOW))
        assert granted(reply) == {source.ino, target.ino, made.ino}
        assert granted(await mount.peer.applied(SetAttr(made.ino, NOW, mode=0o700))) == {made.ino}


async def test_an_open_grants_the_inode_and_a_renewal_only_what_is_still_granted(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.make(b"file")
        await mount.peer.commit(made.ino, 1)
        await mount.peer.ask(Close([Closing(made.ino, 1)]))
        assert granted(await mount.peer.ask(AskLeases([made.ino]))) == set()
        assert granted(await mount.peer.ask(Open(made.ino, False, 2))) == {made.ino}
        reply = await mount.peer.ask(AskLeases([made.ino]))
        assert granted(reply) == {made.ino}
        assert len(reply.tokens) == 1


async def test_a_full_table_grants_nothing_to_cache(url: str) -> None:
    bounds = Bounds(leases_max=3, cached_max=2)
    async with small_network(url, bounds=bounds) as (office, _), caching_mount(office, "s1") as mount:
        made = [await mount.peer.mkdir(b"%d" % n) for n in range(4)]
        assert [len(granted(await mount.attr(node.ino))) for node in made] == [1, 1, 0, 0]
        async with caching_mount(office, "s2") as other:
            await quiet()
            assert len(granted(await other.attr(made[3].ino))) == 1, "the limit is for each session"
            assert len(granted(await other.attr(made[2].ino))) == 0, "the table is full"


async def test_an_answer_that_was_read_before_a_change_is_not_granted_after_it(postgres_url: str) -> None:
    """The reading is held up in its thread while somebody else changes the inode, and is through with it."""
    may_go, has_read = threading.Event(), threading.Event()

    def slow(connection: Connection, term: Any, request: GetAttr) -> Described:
        reply: Described = ROUTES[GetAttr].handler(connection, term, request)
        has_read.set()
        assert may_go.wait(10)
        return reply

    async with small_network(postgres_url) as (office, writer), caching_mount(office, "s2") as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        await mount.caches(made.ino)
        assert office.term is not None
        session = office.state.sessions.get(mount.peer.number)
        assert session is not None
        answers: list[Any] = []

        async def ask(session: Session) -> None:
            assert office.term is not None
            answers.append(await leasing.answer(office.term, session, GetAttr(made.ino), slow))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, session)
            await trio.to_thread.run_sync(has_read.wait)
            await writer.one(SetAttr(made.ino, NOW, mode=0o700))
            await quiet()
            may_go.set()
        assert answers[0].node.mode & 0o777 == 0o755, "it was read before"
        assert granted(answers[0]) == set()
        await mount.caches(made.ino)


def test_fences_remember_changes_as_long_as_a_reading_may_take() -> None:
    mutations = Mutations(Leases(1, 15.0, LeaseKeys(SECRET), None, lambda: 0.0))  # type: ignore[arg-type]
    one, other = Session(1, "s1", "mount", 0.0), Session(2, "s2", "mount", 0.0)
    change = Mutation(one, 100.0)
    mutations.claim(change, [7])
    assert not mutations.is_at_rest(7, one, 200.0, 200.0), "it is under way"
    mutations.done(change, 101.0)
    mutations.release(change)
    assert mutations.is_at_rest(7, one, 101.5, 101.5)
    assert not mutations.is_at_rest(7, one, 101.0, 101.5), "read before"
    assert mutations.is_at_rest(7, one, 100.0, 101.5, own=change)
    assert not mutations.is_at_rest(7, other, 101.2, 101.4), "not quiet yet"
    assert mutations.is_at_rest(7, other, 101.2, 101.6)
    later = Mutation(other, 200.0)
    mutations.claim(later, [8])
    mutations.done(later, 200.0)
    mutations.release(later)
    assert not mutations.is_at_rest(7, one, 101.0, 200.5), "what is forgotten was after all that was read so early"
    assert not mutations.is_at_rest(7, one, 100.0, 200.5, own=change)


async def test_a_directory_is_noted_before_anything_there_is_granted(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s2") as mount:
        assert await noted(office) == set()
        await mount.lookup(b"absent")
        assert await noted(office) == {("s2", ROOT_INO)}
        made = await mount.peer.mkdir(b"d")
        assert await noted(office) == {("s2", ROOT_INO), ("s2", made.ino)}


async def noted(office: Office) -> set[tuple[str, int]]:
    def ask(connection: Connection) -> set[tuple[str, int]]:
        return {(row.server, row.directory) for row in connection.execute(select(caching))}

    return await office.store.read(ask)


async def test_a_question_that_needs_a_note_is_not_answered_at_once(sqlite_url: str) -> None:
    async with small_network(sqlite_url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.make(b"file")
        served: Served = mount.peer.connection
        assert served.at_once(GetAttr(made.ino)) is None
        await mount.attr(made.ino)
        at_once = served.at_once(GetAttr(made.ino))
        assert granted(at_once) == {made.ino}


async def test_the_list_shows_what_is_cached_without_a_token_and_servers_say_what_their_mounts_do(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.make(b"file")
        await mount.peer.commit(made.ino, 3)
        await quiet()
        async with caching_mount(office, "s2") as other:
            await mount.peer.ask(Close([Closing(made.ino, 1)]))
            await other.caches(made.ino)
            listed = await mount.peer.ask(ListLeases("s2", made.ino))
            (row,) = listed.leases
            assert (row.mode, row.version, row.home, row.home_epoch) == (READ, 3, "s1", 1)
            assert listed.counts.requests > 0
            counts = MountCounts(5, 4, 3, 2)
            await other.peer.ask(Heartbeat(counts, {"godwit_kernel_requests_total": 5.0}))
            session = office.state.sessions.get(other.peer.number)
            assert session is not None
            assert session.counts == counts
            shown = (await mount.peer.ask(GetServer("s2"))).metrics
            assert shown["mount"] == {"godwit_kernel_requests_total": 5.0}
            assert (await mount.peer.ask(GetServer("s1"))).metrics["manager"]["godwit_mount_requests_total"] > 0
            with pytest.raises(Refused, match="metrics"):
                await other.peer.ask(Heartbeat(counts, {str(number): 1.0 for number in range(METRICS_MAX + 1)}))


async def test_a_watcher_that_reconnects_ends_the_older_stream(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        again = CachingMount(mount.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.watch)
            with trio.fail_after(5):
                await mount.stopped.wait()
            await mount.caches((await mount.peer.mkdir(b"d")).ino)
            nursery.cancel_scope.cancel()


def test_the_table_of_recalls_names_every_operation() -> None:
    table = as_markdown()
    for name in ("Create", "Link", "Unlink", "Rmdir", "Rename", "SetAttr", "SetXattr", "RemoveXattr", "Open", "Commit"):
        assert f"| `{name}`" in table
    assert table in DOCUMENT.read_text(), "docs/leases.md quotes it"
