"""What mounts have recorded is applied once and in order; what others have come first with is not undone."""

import errno
import stat
from contextlib import AsyncExitStack

import pytest
import trio
from sqlalchemy import Connection, select

from cluster.errors import ProtocolError, Refused
from cluster.messages import (
    ROOT_INO,
    ApplyRecords,
    Create,
    CreateUnnamed,
    Expected,
    Link,
    ListEvents,
    Lookup,
    Open,
    ReadDir,
    ReadLink,
    Record,
    Rename,
    Rmdir,
    SetAttr,
    Unlink,
)
from manager.catalog.schema import journals, ranges
from manager.memory.holds import SHARED_S
from manager.term import counter
from manager.workers.housekeeping import forget_journals
from tests.manager.caching import quiet
from tests.manager.holding import HoldingMount, alone_with, begun, follow, held_network
from tests.manager.office import NOW, Peer, in_office
from tests.support.clocks import skip

ACCESS_S = 5.0


async def names(peer: Peer, ino: int) -> dict[bytes, int]:
    """The names in a directory, as anybody sees them."""
    return {entry.name: entry.node.ino for entry in (await peer.ask(ReadDir(ino, 0, 1000))).entries}


async def history(holder: HoldingMount, top: int) -> dict[bytes, int]:
    """Records something of each kind in a held directory; the names that there are in the end."""
    sub = await holder.mkdir(b"sub", top)
    file = await holder.create(b"file", sub)
    holder.record(SetAttr(file, NOW, mode=0o600))
    holder.record(Link(file, top, b"link", NOW))
    holder.record(Rename(sub, b"file", top, b"moved", 0, NOW), Expected(file, 0))
    gone = await holder.create(b"gone", top)
    holder.record(Unlink(top, b"gone", NOW), Expected(gone, 0))
    removed = await holder.mkdir(b"removed", top)
    holder.record(Rmdir(top, b"removed", NOW), Expected(removed, 0))
    symlink = await holder.create(b"symlink", sub, stat.S_IFLNK | 0o777, target=b"to")
    temporary = await holder.create(b"temporary", sub)
    holder.record(Rename(sub, b"temporary", sub, b"symlink", 0, NOW), Expected(temporary, 0), Expected(symlink, 0))
    return {b"sub": sub, b"link": file, b"moved": file}


async def test_what_a_mount_makes_where_it_is_alone_it_is_alone_with(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        sub = await holder.mkdir(b"sub", top)
        below = await holder.mkdir(b"below", sub)
        file = await holder.create(b"file", below)
        reply = await holder.send()
        assert alone_with(reply) == {top, sub, below, file}
        assert (reply.last, len(reply.tokens), reply.lost) == (3, 1, [])
        session = office.state.sessions.get(holder.peer.number)
        assert session is not None
        assert office.state.sessions.is_written(file), "it is open for writing, as by `Create`"
        for ino in (sub, below):
            assert office.state.notes.holds("s1", ino)
        await other.attr(below)
        assert [recall.inodes for recall in holder.recalls] == [[below]], "recalls are not recursive"
        assert alone_with(await holder.send()) == set()


async def test_it_is_alone_also_with_what_has_several_names_at_once(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top, second = [(await holder.peer.mkdir(name)).ino for name in (b"d", b"e")]
        await holder.holds(top)
        await holder.holds(second)
        file = await holder.create(b"file", top)
        sub = await holder.mkdir(b"sub", second)
        for place, name in ((second, b"link"), (sub, b"again")):
            holder.record(Link(file, place, name, NOW))
        assert {top, second, sub, file} <= alone_with(await holder.send())
        assert office.state.leases.is_alone(file, holder.peer.number, trio.current_time())
        await other.attr(top)
        holder.record(SetAttr(file, NOW, mode=0o600))
        assert (await other.peer.attr(file)).mode == stat.S_IFREG | 0o600, "a program was told so"


async def test_it_is_alone_also_with_what_it_may_not_cache(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        file = await holder.create(b"file", top, home_volume=2)
        assert alone_with(await holder.send()) == {top}, "its size is asked for at its home"
        assert office.state.leases.is_alone(file, holder.peer.number, trio.current_time())
        await other.attr(top)
        holder.record(SetAttr(file, NOW, mode=0o600))
        assert (await other.peer.attr(file)).mode == stat.S_IFREG | 0o600


async def test_each_prefix_may_be_repeated_and_all_of_it_too(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        expected = await history(holder, top)
        number, journal = holder.peer.number, holder.journal
        for end in range(1, len(journal) + 1):
            for first in {1, max(1, end - 1), end}:
                reply = await holder.peer.ask(ApplyRecords(number, first, journal[first - 1 : end]))
                assert (reply.last, reply.lost) == (end, [])
        reply = await holder.peer.ask(ApplyRecords(number, 1, journal))
        assert (reply.last, reply.lost) == (len(journal), [])
        assert len(reply.tokens) == 2, "of the two files that are still there"
        holder.sent = len(journal)
        assert await names(other.peer, top) == expected
        assert set(await names(other.peer, expected[b"sub"])) == {b"symlink"}
        node = await other.peer.attr(expected[b"moved"])
        assert (node.nlink, node.mode) == (2, stat.S_IFREG | 0o600)
        assert office.state.leases.counters.numbers()["godwit_records_applied_total"] == len(journal)


async def test_the_whole_journal_at_once_and_in_two_messages_at_a_time(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        expected = await history(holder, top)
        number, journal = holder.peer.number, holder.journal
        async with trio.open_nursery() as nursery:
            for first in (1, 1, 8, 8, 3):
                nursery.start_soon(holder.peer.ask, ApplyRecords(number, first, journal[first - 1 :]))
                await trio.lowlevel.checkpoint()
        holder.sent = len(journal)
        assert await names(other.peer, top) == expected


async def test_what_was_made_is_open_also_when_only_the_repeat_is_answered(url: str) -> None:
    async with held_network(url) as (office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        kept, unlinked = await holder.create(b"kept", top), await holder.create(b"unlinked", top)
        holder.record(Unlink(top, b"unlinked", NOW), Expected(unlinked, 0))
        await holder.peer.ask(holder.unsent())
        # The answer is lost with its connection; so the mount presents nothing that it does not know to be there.
        await holder.peer.hello(unsent=True)
        await holder.send()
        for ino in (kept, unlinked):
            assert office.state.sessions.is_written(ino)
        assert not office.state.reaping


async def test_records_that_are_missing_are_noticed(url: str) -> None:
    async with held_network(url) as (_office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await history(holder, top)
        with pytest.raises(Refused) as refusal:
            await holder.peer.ask(ApplyRecords(holder.peer.number, 2, holder.journal[1:]))
        assert refusal.value.errno == errno.ESTALE
        await holder.send()


@pytest.mark.parametrize("session", [0, 1, 2**62, 2**62 + 1, 2**63 - 1])
async def test_a_journal_has_any_number_that_a_session_can_have(url: str, session: int) -> None:
    async with in_office(url) as office:
        mount = Peer(office, "s1", "mount", session)
        await mount.hello()
        assert (await mount.ask(ApplyRecords(session, 1, []))).last == 0
        agent = await office.peer("s1", "agent")
        assert (await agent.ask(ApplyRecords(session, 1, [], final=True))).last == 0


async def test_a_record_that_can_be_no_record_is_refused(url: str) -> None:
    async with held_network(url) as (_office, holder, _other):
        expected = [Expected(1, 1)] * 3
        with pytest.raises(ProtocolError):
            await holder.peer.ask(ApplyRecords(holder.peer.number, 1, [Record(Unlink(1, b"x", NOW), expected)]))
        with pytest.raises(ProtocolError):
            await holder.peer.ask(ApplyRecords(-1, 1, []))
        with pytest.raises(Refused):
            await holder.peer.ask(ApplyRecords(holder.peer.number, 0, []))


async def test_the_next_manager_knows_how_far_a_journal_has_come(url: str) -> None:
    async with held_network(url) as (_office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        expected = await history(holder, top)
        await holder.peer.ask(ApplyRecords(holder.peer.number, 1, holder.journal[:7]))
    async with in_office(url) as office:
        await office.three_servers()
        await follow(holder.peer, office, unsent=True)
        reply = await holder.send()
        assert (reply.last, reply.lost) == (len(holder.journal), [])
        assert alone_with(reply) == set()
        assert await names(holder.peer, top) == expected


# ------------------------------------------------------------------------------------------------- written together


async def test_what_is_made_and_changed_in_one_message_is_as_if_it_had_been_made_one_by_one(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        sub = await holder.mkdir(b"sub", top)
        holder.record(SetAttr(sub, NOW + 1, mode=0o2770, gid=55))
        below = await holder.mkdir(b"below", sub)
        file = await holder.create(b"file", sub, now_ns=NOW + 2)
        holder.record(SetAttr(file, NOW + 3, mode=0o600, mtime_ns=NOW - 5))
        symlink = await holder.create(b"symlink", sub, stat.S_IFLNK | 0o777, target=b"to")
        before = await office.store.read(lambda connection: counter(connection, "inodes"))
        reply = await holder.send()
        assert alone_with(reply) == {top, sub, below, file, symlink}
        assert await office.store.read(lambda connection: counter(connection, "inodes")) == before + 4
        made = {name: await other.peer.attr(ino) for name, ino in (("sub", sub), ("below", below), ("file", file))}
        assert (made["sub"].mode, made["sub"].gid, made["sub"].nlink) == (stat.S_IFDIR | 0o2770, 55, 3)
        assert (made["below"].mode, made["below"].gid) == (stat.S_IFDIR | 0o2755, 55)
        assert (made["file"].mode, made["file"].gid) == (stat.S_IFREG | 0o600, 55)
        assert (made["file"].mtime_ns, made["file"].ctime_ns, made["file"].btime_ns) == (NOW - 5, NOW + 3, NOW + 2)
        assert made["sub"].mtime_ns == NOW, "the last name came then"
        assert (await other.peer.attr(top)).nlink == 3
        assert (await other.peer.ask(ReadLink(symlink))).value == b"to"


async def test_many_names_are_removed_together(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        files = [await holder.peer.make(b"%d" % number, top) for number in range(6)]
        twice, left = files[4], files[5]
        for file, name in ((twice, b"again"), (left, b"left")):
            await holder.peer.one(Link(file.ino, top, name, NOW))
        await holder.holds(top)
        for number, file in enumerate(files):
            holder.record(Unlink(top, b"%d" % number, NOW + number), file)
        holder.record(Unlink(top, b"again", NOW + 9), twice)
        assert (await holder.send()).lost == []
        assert await names(other.peer, top) == {b"left": left.ino}
        assert [(await holder.peer.attr(file.ino)).nlink for file in files] == [0, 0, 0, 0, 0, 1]
        assert (await holder.peer.attr(top)).mtime_ns == NOW + 9
        assert office.state.unlinked == {file.ino for file in files[:5]}, "they are still open"


async def test_a_name_that_means_something_else_spoils_only_its_own_removal(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        files = [await holder.peer.make(b"%d" % number, top) for number in range(6)]
        await holder.holds(top)
        for number, file in enumerate(files):
            holder.record(Unlink(top, b"%d" % number, NOW), Expected(file.ino + (number == 3), file.version))
        reply = await holder.send()
        assert [(lost.sequence, lost.errno) for lost in reply.lost] == [(4, errno.ESTALE)]
        assert await names(other.peer, top) == {b"3": files[3].ino}


async def test_a_name_that_is_taken_is_found_when_all_is_written(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        there = (await holder.peer.make(b"there", top)).ino
        await holder.holds(top)
        before, again, after = [await holder.create(name, top) for name in (b"before", b"there", b"after")]
        reply = await holder.send()
        (lost,) = reply.lost
        assert (lost.sequence, lost.errno) == (2, errno.EEXIST)
        expected = {b"there": there, b"before": before, lost.kept_as: again, b"after": after}
        assert await names(other.peer, top) == expected


# ------------------------------------------------------------------------------------------------------ a lost lease


async def lose(holder: HoldingMount, other: Peer, ino: int) -> None:
    """The holder does not answer until its lease is over."""
    holder.obedient = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.attr, ino)
        await holder.recalled()
        await skip(1.2 * ACCESS_S)
    holder.unanswered.clear()


async def test_where_nobody_came_first_a_lost_lease_loses_nothing(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        expected = await history(holder, top)
        await lose(holder, other.peer, top)
        reply = await holder.send()
        assert reply.lost == []
        assert alone_with(reply) == set()
        assert await names(other.peer, top) == expected


async def test_what_others_came_first_with_stays_and_nothing_is_lost_silently(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        old, kept, replaced = [await holder.peer.make(name, top) for name in (b"old", b"kept", b"replaced")]
        await holder.holds(top)
        taken = await holder.create(b"taken", top)
        subdirectory = await holder.mkdir(b"directory", top)
        inside = await holder.create(b"inside", subdirectory)
        holder.record(Unlink(top, b"old", NOW), old)
        holder.record(Unlink(top, b"kept", NOW), kept)
        holder.record(Rename(top, b"replaced", top, b"elsewhere", 0, NOW), replaced)
        free = await holder.create(b"free", top)
        await lose(holder, other.peer, top)
        others = await other.peer.make(b"taken", top, home_volume=2)
        directory = await other.peer.mkdir(b"directory", top)
        await other.peer.apply(Rename(top, b"old", top, b"renamed", 0, NOW))
        await holder.peer.commit(kept.ino, 1)  # as an agent does: others have written it
        newer = await other.peer.make(b"elsewhere", top, home_volume=2)
        reply = await holder.send()
        assert [(lost.sequence, lost.errno) for lost in reply.lost] == [
            (1, errno.EEXIST),
            (2, errno.EEXIST),
            (4, errno.ESTALE),
            (5, errno.ESTALE),
            (6, errno.ESTALE),
        ]
        now = await names(other.peer, top)
        for lost, name, ino in zip(reply.lost, (b"taken", b"directory"), (taken, subdirectory), strict=False):
            assert lost.kept_as.startswith(name + b".conflict-s1-")
            assert now.pop(lost.kept_as) == ino
        assert now == {
            b"taken": others.ino,
            b"directory": directory.ino,
            b"renamed": old.ino,
            b"kept": kept.ino,
            b"replaced": replaced.ino,
            b"elsewhere": newer.ino,
            b"free": free,
        }
        assert await names(other.peer, subdirectory) == {b"inside": inside}
        assert office.state.leases.counters.numbers()["godwit_records_lost_total"] == 5
        (told,) = (await office.admin.ask(ListEvents(kind="records"))).events
        assert (told.kind, told.count, told.server, told.fields) == ("records-lost", 5, "s1", {"why": reply.lost[0].reason})
        assert (await holder.peer.ask(ApplyRecords(holder.peer.number, 1, holder.journal))).lost == [], "it was said once"


@pytest.mark.parametrize(
    ("version", "committed", "home_epoch", "is_as_known"),
    [
        pytest.param(1, 0, 0, False, id="others wrote it"),
        pytest.param(7, 0, 0, True, id="the catalog lost a commit"),
        pytest.param(1, 2, 1, True, id="its own commit was under way"),
        pytest.param(0, 1, 1, False, id="others wrote it after its own commit"),
        pytest.param(1, 2, 5, False, id="others wrote it at another home"),
    ],
)
async def test_only_a_version_that_others_have_made_is_a_change_by_others(
    url: str, version: int, committed: int, home_epoch: int, is_as_known: bool
) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        removed, moved, target = [await holder.peer.make(name, top) for name in (b"removed", b"moved", b"target")]
        await holder.holds(top)
        known = [Expected(file.ino, version, committed, home_epoch) for file in (removed, moved, target)]
        holder.record(Unlink(top, b"removed", NOW), known[0])
        holder.record(Rename(top, b"moved", top, b"target", 0, NOW), *known[1:])
        await lose(holder, other.peer, top)
        for file in (removed, moved, target):
            await holder.peer.commit(file.ino, 2)
        reply = await holder.send()
        assert [lost.sequence for lost in reply.lost] == ([] if is_as_known else [1, 2])
        left = {b"target": moved.ino} if is_as_known else {b"removed": removed.ino, b"moved": moved.ino, b"target": target.ino}
        assert await names(other.peer, top) == left


async def test_what_follows_from_something_that_was_lost_is_lost_too(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        file = await holder.create(b"file", top)
        holder.record(SetAttr(file, NOW, mode=0o600))
        await lose(holder, other.peer, top)
        await other.peer.apply(Rmdir(ROOT_INO, b"d", NOW))
        reply = await holder.send()
        assert [(lost.sequence, lost.kept_as) for lost in reply.lost] == [(1, b""), (2, b"")]
        assert reply.tokens == []


async def test_others_who_cache_what_a_late_record_changes_give_way_first(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        file = await holder.create(b"file", top)
        await lose(holder, other.peer, top)
        await quiet()
        await other.caches(top)
        await holder.send()
        assert [recall.inodes for recall in other.recalls] == [[top]]
        assert await names(other.peer, top) == {b"file": file}


async def test_an_inode_is_made_only_under_a_number_that_the_mount_was_given(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        there = await holder.peer.make(b"file", top)
        await holder.holds(top)
        for ino in (10**9, await other.peer.new_ino()):
            holder.record(Create(top, b"%d" % ino, ino, 0o100644, 0, 0, 0, NOW, 1))
        holder.record(Create(top, b"again", there.ino, 0o100644, 0, 0, 0, NOW, 1))
        reply = await holder.send()
        assert [(lost.sequence, lost.errno) for lost in reply.lost] == [
            (1, errno.EINVAL),
            (2, errno.EINVAL),
            (3, errno.EEXIST),
        ]
        assert await names(holder.peer, top) == {b"file": there.ino}


# ------------------------------------------------------------------------------------------ the dead and the missing


@pytest.mark.parametrize("present", ["late", "never"])
async def test_at_the_next_manager_others_wait_for_what_a_holder_has_not_told(url: str, present: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top, beside = (await holder.peer.mkdir(b"d")).ino, (await holder.peer.mkdir(b"beside")).ino
        file = (await holder.peer.make(b"there", top)).ino
        await holder.holds(top)
        made = await holder.create(b"file", top)
    async with in_office(url, access_s=ACCESS_S) as office, AsyncExitStack() as stack:
        await office.three_servers()
        await follow(other.peer, office)
        nursery = await stack.enter_async_context(trio.open_nursery())
        with trio.fail_after(2):
            await other.peer.attr(beside)
        found = await begun(nursery, lambda: other.peer.ask(Lookup(top, b"file")))
        attributes = await begun(nursery, lambda: other.peer.attr(file))
        if present == "late":
            await follow(holder.peer, office, unsent=True)
            await trio.sleep(0.05)
            assert not found
            assert not attributes
            with trio.fail_after(2):
                reply = await holder.send(more=True)
                assert reply.lost == []
                await trio.sleep(0.05)
                assert not found
                await holder.send()
        else:
            assert not found
            assert not attributes
            await skip(2 * ACCESS_S)
        with trio.fail_after(5):
            while not (found and attributes):
                await trio.sleep(0.01)
        node = found[0].node
        assert (None if node is None else node.ino) == (made if present == "late" else None)


async def test_at_the_next_manager_records_of_two_mounts_do_not_wait_for_each_other(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (office, one, other):
        tops = [(await mount.peer.mkdir(mount.peer.server.encode())).ino for mount in (one, other)]
        await quiet()
        for mount, theirs in ((one, tops[1]), (other, tops[0])):
            await mount.caches(theirs)
        for mount, top in ((one, tops[0]), (other, tops[1])):
            await mount.peer.mkdir(b"before", top)
        await skip(SHARED_S)
        for mount, top in ((one, tops[0]), (other, tops[1])):
            await mount.holds(top)
            await mount.create(b"file", top)
        for top in tops:
            assert sorted(office.state.notes.at(top)) == ["s1", "s2"], "both have looked there"
    async with in_office(url, access_s=ACCESS_S) as office:
        await office.three_servers()
        for mount in (one, other):
            await follow(mount.peer, office, unsent=True)
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                for mount in (one, other):
                    nursery.start_soon(mount.send)
            assert office.state.absent == frozenset()
            assert [sorted(await names(one.peer, top)) for top in tops] == [[b"before", b"file"]] * 2


async def test_at_the_next_manager_a_mount_does_not_wait_for_its_own_records(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        file = (await holder.peer.make(b"there", top)).ino
        await holder.holds(top)
        await holder.create(b"file", top)
    async with in_office(url, access_s=ACCESS_S) as office:
        await office.three_servers()
        await follow(holder.peer, office, unsent=True)
        with trio.fail_after(2):
            await holder.peer.ask(Open(file, write=True, sequence=1))


async def test_the_journal_of_a_dead_mount_ends_the_waiting_for_it(url: str) -> None:
    async with held_network(url, access_s=ACCESS_S) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        made = await holder.create(b"file", top)
    async with in_office(url, access_s=ACCESS_S) as office:
        agent, _, _ = await office.three_servers()
        await follow(other.peer, office)
        with trio.fail_after(2):
            assert (await agent.ask(holder.unsent(final=True))).lost == []
            assert await names(other.peer, top) == {b"file": made}


async def test_under_a_new_manager_who_looks_waits_no_longer_than_a_missing_mount_can_be_alone(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
    async with in_office(url) as office:
        await office.three_servers()
        await follow(other.peer, office)
        assert office.term is not None
        assert office.term.holds_until < office.term.caches_until
        ino = await other.peer.new_ino()
        async with trio.open_nursery() as nursery:
            changed = await begun(nursery, lambda: other.peer.mkdir(b"others", top))
            looked = await begun(nursery, lambda: names(other.peer, top))
            unnamed = await begun(nursery, lambda: other.peer.one(CreateUnnamed(top, ino, stat.S_IFREG | 0o600, 0, 0, NOW, 2)))
            assert not looked
            assert not unnamed
            await skip(office.term.holds_until - trio.current_time() + 0.1)
            with trio.fail_after(1):
                while not (looked and unnamed):
                    await trio.sleep(0.01)
            assert not changed
            await skip(office.term.caches_until - trio.current_time() + 0.1)
        assert changed


async def test_numbers_of_a_range_that_nobody_remembers_are_taken_if_they_are_free(url: str) -> None:
    async with held_network(url) as (office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        used = await holder.peer.make(b"used", top)
        made = await holder.create(b"file", top)
        holder.record(Create(top, b"again", used.ino, 0o100644, 0, 0, 0, NOW, 1))
        holder.record(Create(top, b"far away", 10**9, 0o100644, 0, 0, 0, NOW, 1))
        await office.store.write(lambda tx: tx.execute(ranges.delete()))
        await office.peer("s1")
        agent = await office.peer("s1", "agent")
        reply = await agent.ask(holder.unsent(final=True))
        assert [(lost.sequence, lost.errno) for lost in reply.lost] == [(2, errno.EEXIST), (3, errno.EINVAL)]
        assert (await agent.attr(made)).nlink == 1


async def test_ranges_of_a_dead_mount_are_kept_while_its_journal_is_to_come(url: str) -> None:
    def kept(connection: Connection) -> set[int]:
        return set(connection.execute(select(ranges.c.session)).scalars())

    async with held_network(url) as (office, holder, _other):
        await holder.peer.new_ino()
        successor = Peer(office, "s1", "mount", 77)
        await successor.hello(unsent=True)
        assert holder.peer.number in await office.store.read(kept)
        await successor.ask(ApplyRecords(holder.peer.number, 1, [], final=True))
        assert holder.peer.number not in await office.store.read(kept)


async def test_closed_journals_are_forgotten_after_a_day(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(connection: Connection) -> set[int]:
        return set(connection.execute(select(journals.c.session)).scalars())

    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await holder.create(b"file", top)
        await holder.send()
        await other.peer.ask(ApplyRecords(other.peer.number, 1, [], final=True))
        assert office.term is not None
        both = {holder.peer.number, other.peer.number}
        await forget_journals(office.term)
        assert await office.store.read(known) == both
        monkeypatch.setattr("manager.workers.housekeeping.FORGET_JOURNALS_S", -1.0)
        await forget_journals(office.term)
        assert await office.store.read(known) == {holder.peer.number}, "its mount may send more"
