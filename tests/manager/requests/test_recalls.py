"""What others cache is called back before it is changed; who does not answer is waited out."""

from typing import Any

import pytest
import trio

from cluster.errors import NotManager, Refused
from cluster.messages import (
    ROOT_INO,
    Applied,
    Apply,
    AskLeases,
    Close,
    Closing,
    Create,
    GetAttr,
    GiveBack,
    Link,
    Lookup,
    Node,
    Open,
    OpenInode,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from manager.changes.operations import OPERATIONS
from tests.manager.caching import CachingMount, caching_mount, granted, quiet
from tests.manager.office import NOW, Office, Peer, small_network, until

SHORT_S = 0.6
FILE = 0o100644


async def apply_later(peer: Peer, nursery: trio.Nursery, *operations: Operation) -> list[Applied]:
    """Sends a mutation; its reply comes into the list."""
    replies: list[Applied] = []

    async def ask() -> None:
        replies.append(await peer.applied(*operations))

    nursery.start_soon(ask)
    return replies


async def prepared(office: Office, peer: Peer) -> dict[str, Node]:
    """Directories with something in them, which nobody has changed lately."""
    there = {name: await peer.mkdir(name.encode()) for name in ("a", "b", "empty")}
    for name in ("file", "target"):
        there[name] = await peer.make(name.encode(), there["a"].ino)
        await peer.commit(there[name].ino, 1)
        await peer.ask(Close([Closing(there[name].ino, 1)]))
    await peer.one(SetXattr(there["file"].ino, b"user.x", b"", 0, NOW))
    await quiet()
    return there


def cases(there: dict[str, Node], ino: int) -> dict[str, tuple[Operation, set[str]]]:
    """Operations with what they call back, of all that is there."""
    a, b, file = there["a"].ino, there["b"].ino, there["file"].ino
    return {
        "create": (Create(b, b"new", ino, FILE, 0, 0, 0, NOW, 1), {"b"}),
        "link": (Link(file, b, b"linked", NOW), {"b", "file"}),
        "unlink": (Unlink(a, b"file", NOW), {"a", "file"}),
        "rmdir": (Rmdir(ROOT_INO, b"empty", NOW), {"root", "empty"}),
        "rename": (Rename(a, b"file", b, b"renamed", 0, NOW), {"a", "b", "file"}),
        "replace": (Rename(a, b"file", a, b"target", 0, NOW), {"a", "file", "target"}),
        "exchange": (Rename(a, b"file", a, b"target", 2, NOW), {"a", "file", "target"}),
        "chmod": (SetAttr(file, NOW, mode=0o600), {"file"}),
        "setxattr": (SetXattr(file, b"user.y", b"", 0, NOW), {"file"}),
        "removexattr": (RemoveXattr(file, b"user.x", NOW), {"file"}),
    }


@pytest.mark.parametrize(
    "case", ["create", "link", "unlink", "rmdir", "rename", "replace", "exchange", "chmod", "setxattr", "removexattr"]
)
async def test_an_operation_waits_until_nobody_else_caches_what_it_changes(sqlite_url: str, case: str) -> None:
    async with small_network(sqlite_url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        there = await prepared(office, writer)
        await mount.lookup(b"absent")
        names = {ROOT_INO: "root"} | {node.ino: name for name, node in there.items()}
        for node in there.values():
            await mount.caches(node.ino)
        operation, expected = cases(there, await writer.new_ino())[case]
        assert type(operation) in OPERATIONS
        async with trio.open_nursery() as nursery:
            replies = await apply_later(writer, nursery, operation)
            asked: set[str] = set()
            while asked != expected:
                await mount.recalled()
                asked |= {names[ino] for recall in mount.unanswered for ino in recall.inodes}
                assert not replies
                assert asked <= expected
                await mount.answer()
        assert {names.get(ino, "new") for ino in replies[0].touched} == expected | ({"new"} if case == "create" else set())
        still = {name for ino, name in names.items() if office.state.leases.get(ino, mount.peer.number)}
        assert still == set(names.values()) - expected


async def test_the_one_who_changes_is_not_asked(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.mkdir(b"d")
        await mount.caches(made.ino)
        await mount.peer.one(SetAttr(made.ino, NOW, mode=0o700))
        assert mount.recalls == []


async def test_while_a_recall_is_not_answered_questions_are_and_grant_nothing_of_it(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        there = await prepared(office, writer)
        file = there["file"].ino
        await mount.caches(file)
        async with trio.open_nursery() as nursery:
            replies = await apply_later(writer, nursery, SetAttr(file, NOW, mode=0o600))
            await mount.recalled()
            with trio.fail_after(5):
                assert granted(await mount.attr(file)) == set()
                assert granted(await mount.lookup(b"file", there["a"].ino)) == {there["a"].ino}
                await mount.peer.ask(AskLeases([file]))
                await mount.peer.ask(Close([Closing(file, 3)]))
            assert not replies
            await mount.answer()
        assert (await mount.attr(file)).node.mode & 0o777 == 0o600


async def test_all_holders_are_asked_at_once_and_awaited(url: str) -> None:
    async with (
        small_network(url) as (office, writer),
        caching_mount(office, "s2", obedient=False) as one,
        caching_mount(office, "s3", obedient=False) as two,
    ):
        made = await writer.mkdir(b"d")
        await quiet()
        for mount in (one, two):
            await mount.caches(made.ino)
        async with trio.open_nursery() as nursery:
            replies = await apply_later(writer, nursery, SetAttr(made.ino, NOW, mode=0o700))
            await one.recalled()
            await two.recalled()
            await two.answer()
            assert not replies
            await one.answer()
        assert len(replies) == 1
        assert office.state.leases.counts.recalled.value == 2


async def test_recalls_of_one_moment_travel_together(sqlite_url: str) -> None:
    async with small_network(sqlite_url) as (office, writer), caching_mount(office, "s2") as mount:
        made = [await writer.mkdir(b"%d" % n) for n in range(30)]
        await quiet()
        assert len(granted(await mount.listing())) == 31
        async with trio.open_nursery() as nursery:
            for node in made:
                await apply_later(writer, nursery, SetAttr(node.ino, NOW, mode=0o700))
        assert sorted(ino for recall in mount.recalls for ino in recall.inodes) == [node.ino for node in made]
        assert len(mount.recalls) <= 3


async def test_who_does_not_answer_is_waited_out_and_may_still_have_it_open(url: str) -> None:
    async with (
        small_network(url, access_s=SHORT_S) as (office, writer),
        caching_mount(office, "s2", obedient=False) as mount,
    ):
        there = await prepared(office, writer)
        file = there["file"].ino
        await mount.caches(file)
        began = trio.current_time()
        await writer.apply(Unlink(there["a"].ino, b"file", NOW))
        assert SHORT_S <= trio.current_time() - began < SHORT_S + 2
        assert office.state.leases.counts.waited_out.value == 1
        assert file in office.state.unlinked, "it is not reaped"
        await mount.answer()  # too late, but it says that it does not have it open
        assert file not in office.state.unlinked


async def test_what_a_mount_has_open_without_having_told_lives_on(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        there = await prepared(office, writer)
        empty = there["empty"].ino
        await mount.caches(empty)
        async with trio.open_nursery() as nursery:
            await apply_later(writer, nursery, Rmdir(ROOT_INO, b"empty", NOW))
            await mount.recalled()
            await mount.answer(empty)
        assert office.state.sessions.is_open(empty)
        assert empty in office.state.unlinked
        await mount.peer.ask(Close([Closing(empty, 51)]))
        assert empty not in office.state.unlinked


async def test_a_mount_that_took_over_on_its_server_answers_for_the_dead_one(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        await mount.caches(made.ino)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                replies = await apply_later(writer, nursery, SetAttr(made.ino, NOW, mode=0o700))
                await mount.recalled()
                assert not replies
                await office.peer("s2")
        assert len(replies) == 1
        assert office.state.leases.counts.waited_out.value == 0


async def test_a_recall_comes_again_over_the_next_connection(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        await mount.caches(made.ino)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                replies = await apply_later(writer, nursery, SetAttr(made.ino, NOW, mode=0o700))
                await mount.recalled()
                await mount.peer.hello([OpenInode(made.ino, False)], [made.ino])
                await mount.stopped.wait()
                again = CachingMount(mount.peer)
                nursery.start_soon(again.watch)
                await again.recalled()
                assert again.recalls == mount.recalls
                while not replies:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


async def test_what_is_given_back_is_not_called_back(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        first = (await mount.attr(made.ino)).grant
        second = (await mount.attr(made.ino)).grant
        assert first is not None
        assert second is not None
        await mount.peer.ask(GiveBack([made.ino], first.serial))
        assert office.state.leases.get(made.ino, mount.peer.number) is not None, "there is a newer grant"
        await mount.peer.ask(GiveBack([made.ino], second.serial))
        with trio.fail_after(5):
            await writer.one(SetAttr(made.ino, NOW, mode=0o700))
        assert mount.recalls == []
        assert office.state.leases.counts.given_back.value == 1


async def test_after_a_recall_who_has_it_open_keeps_a_lease_that_lets_it_cache_nothing(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2") as mount:
        there = await prepared(office, writer)
        file = there["file"].ino
        assert granted(await mount.peer.ask(Open(file, False, 1))) == {file}
        assert lease_mode(office, mount, file) == "read"
        await writer.one(SetAttr(file, NOW, mode=0o600))
        assert lease_mode(office, mount, file) == "shared"


def lease_mode(office: Office, mount: CachingMount, ino: int) -> str:
    lease = office.state.leases.get(ino, mount.peer.number)
    assert lease is not None
    return lease.mode(trio.current_time())


async def test_opening_for_writing_calls_back_and_opening_for_reading_does_not(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        file = (await prepared(office, writer))["file"].ino
        await mount.caches(file)
        await writer.ask(Open(file, False, 10))
        opened: list[Any] = []

        async def open_it() -> None:
            opened.append(await writer.ask(Open(file, True, 11)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await mount.recalled()
            assert granted(await mount.attr(file)) == set(), "the writer is registered"
            assert not opened
            await mount.answer()
        assert len(opened) == 1


async def test_agents_call_back_from_every_mount_and_commits_from_nobody(url: str) -> None:
    async with small_network(url) as (office, _), caching_mount(office, "s1") as mount:
        made = await mount.peer.make(b"file")
        await mount.caches(made.ino)
        agent = await office.peer("s1", "agent")
        await agent.commit(made.ino, 1, final=False)
        assert mount.recalls == []
        await agent.one(SetAttr(made.ino, NOW, mtime_ns=NOW))
        assert [recall.inodes for recall in mount.recalls] == [[made.ino]]
        with pytest.raises(Refused, match="SetXattr, which is for: mount"):
            await agent.one(SetXattr(made.ino, b"user.x", b"", 0, NOW))


async def test_a_request_that_is_sent_again_while_the_first_one_waits_is_applied_once(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        await mount.lookup(b"absent")
        ino = await writer.new_ino()
        request = Apply(100, 100, [Create(ROOT_INO, b"x", ino, 0o40755, 0, 0, 0, NOW)])
        replies: list[Applied] = []

        async def ask() -> None:
            replies.append(await writer.ask(request))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await mount.recalled()
            await mount.answer()
        assert replies[0].nodes == replies[1].nodes
        assert replies[0].touched == replies[1].touched == [ROOT_INO, ino]
        assert (await writer.attr(ROOT_INO)).nlink == 3


async def test_a_request_that_waits_is_given_up_when_it_was_acknowledged_or_its_session_is_over(url: str) -> None:
    async def expect(error: type[Exception], peer: Peer, request: Apply) -> None:
        with pytest.raises(error):
            await peer.ask(request)

    async with small_network(url) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        for floor, error in ((201, Refused), (0, NotManager)):
            await mount.caches(made.ino)
            session = office.state.sessions.get(writer.number)
            assert session is not None
            mode = (await writer.attr(made.ino)).mode
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, error, writer, Apply(200 + bool(not floor), 1, [SetAttr(made.ino, NOW, mode=0)]))
                await mount.recalled()
                session.floor = max(session.floor, floor)
                if not floor:
                    session.floor = 0
                    await office.peer("s1")
                await mount.answer()
            assert (await mount.attr(made.ino)).node.mode == mode


async def test_a_listing_is_renewed_after_the_recall(url: str) -> None:
    async with small_network(url) as (office, writer), caching_mount(office, "s2") as mount:
        await mount.lookup(b"x")
        made = await writer.mkdir(b"x")
        assert [recall.inodes for recall in mount.recalls] == [[ROOT_INO]]
        await quiet()
        found = await mount.peer.ask(Lookup(ROOT_INO, b"x"))
        assert found.node == made
        assert found.grant is not None
        assert found.grant.serial > mount.recalls[0].serial


async def test_a_session_that_ends_in_silence_is_waited_out_too(url: str) -> None:
    async with small_network(url, access_s=SHORT_S) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        await mount.caches(made.ino)
        session = office.state.sessions.get(mount.peer.number)
        assert session is not None
        assert office.term is not None
        office.term.end_session(session)
        began = trio.current_time()
        await writer.one(SetAttr(made.ino, NOW, mode=0o700))
        assert trio.current_time() - began >= SHORT_S / 2
        assert len(office.state.recalls) == 0
        office.term.expire_leases(trio.current_time())
        assert (await writer.ask(GetAttr(made.ino))).node.mode & 0o777 == 0o700


async def test_a_recall_for_which_nobody_waits_any_more_ends_by_time(url: str) -> None:
    async with small_network(url, access_s=SHORT_S) as (office, writer), caching_mount(office, "s2", obedient=False) as mount:
        made = await writer.mkdir(b"d")
        await quiet()
        await mount.caches(made.ino)
        async with trio.open_nursery() as nursery:
            await apply_later(writer, nursery, SetAttr(made.ino, NOW, mode=0o700))
            await mount.recalled()
            nursery.cancel_scope.cancel()
        assert len(office.state.recalls) == 1

        async def ended() -> bool:
            assert office.term is not None
            office.term.expire_leases(trio.current_time())
            return len(office.state.recalls) == 0

        await until(ended)
        assert (await writer.attr(made.ino)).mode & 0o777 == 0o755
