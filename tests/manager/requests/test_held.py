"""Who may be alone in a directory, and that everybody else waits until it was called back."""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from cluster.errors import GodwitError, Refused
from cluster.leases import ALONE
from cluster.messages import (
    ROOT_INO,
    AcceptContent,
    AskLeases,
    AwaitCopies,
    Close,
    Closing,
    CreateUnnamed,
    GetAttr,
    GetParent,
    GetPolicy,
    GetStatus,
    GetWhere,
    GetXattr,
    Hold,
    Link,
    ListLeases,
    ListXattr,
    Locate,
    Lookup,
    ManagerRequest,
    NamesPolicy,
    Open,
    PlanMigration,
    ReadDir,
    ReadLink,
    Rename,
    Rmdir,
    SetAttr,
    SetPolicy,
    StartMigration,
    Unlink,
)
from manager.memory import holds
from manager.memory.holds import CALM_S, FIRST_WAIT_S, SHARED_S, WAIT_MAX_S
from manager.memory.mutations import QUIET_S
from manager.requests import held
from manager.requests.routes import ADMIN, ROUTES
from manager.workers.housekeeping import call_back_held
from tests.manager.caching import caching_mount, granted, quiet
from tests.manager.holding import HoldingMount, alone_with, begun, held_network
from tests.manager.office import NOW
from tests.support.clocks import skip

READERS: dict[type[ManagerRequest[Any]], Callable[[int], ManagerRequest[Any]]] = {
    Lookup: lambda ino: Lookup(ino, b"x"),
    GetAttr: GetAttr,
    GetParent: GetParent,
    ReadDir: lambda ino: ReadDir(ino, 0, 10),
    ReadLink: ReadLink,
    GetXattr: lambda ino: GetXattr(ino, b"user.x"),
    ListXattr: ListXattr,
    Locate: Locate,
    Open: lambda ino: Open(ino, False, 1),
    AwaitCopies: lambda ino: AwaitCopies(ino, 0, 0, 0.0),
    AskLeases: lambda ino: AskLeases([ino]),
    AcceptContent: AcceptContent,
    GetPolicy: GetPolicy,
    SetPolicy: lambda ino: SetPolicy(ino, 2, 1),
    GetWhere: GetWhere,
    StartMigration: lambda ino: StartMigration([ino], [b"/d"], "s1", "s2", 7),
    PlanMigration: lambda ino: PlanMigration([ino], "s1", "s2"),
}
"""Each request that reads an inode, of the inode."""

NAMING = {"ino", "parent", "inodes", "directory"}
READ_NOTHING = {
    "Hold": "it claims the directory, as a change does",
    "SetLock": "locks are the manager's: the holder asks for them, too, after its records",
    "Unlock": "the same",
    "AskConflict": "the same",
    "GiveBack": "it only gives up what the asker caches",
    "ListLeases": "for people: it tells of leases, and calling them back would change what is shown",
    "ListLocks": "for people, as `ListLeases`",
    "BeginCommit": "agents work from what is committed",
    "FindStrays": "the same",
    "ReportDamage": "the same",
    "Restamp": "the same",
    "KeepForsaken": "the same",
    "NameForsaken": "the same",
    "ForgetForsaken": "the same",
}
"""Requests that name inodes, and need not wait for who is alone with them."""


def test_every_request_that_names_an_inode_says_whether_it_reads_it() -> None:
    naming = {kind for kind in ROUTES if NAMING & set(kind.__struct_fields__)}
    reading = {kind for kind, route in ROUTES.items() if route.reads}
    assert {kind.__name__ for kind in naming - reading} == set(READ_NOTHING)
    assert reading == set(READERS)
    for kind in reading:
        assert set(ROUTES[kind].reads) == NAMING & set(kind.__struct_fields__)


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
async def test_what_reads_an_inode_is_answered_when_its_holder_has_given_way(
    sqlite_url: str, kind: type[ManagerRequest[Any]]
) -> None:
    async with held_network(sqlite_url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.obedient = False
        answered = trio.Event()

        async def ask() -> None:
            with suppress(GodwitError):
                await other.peer.ask(READERS[kind](top))
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await holder.recalled()
            assert [recall.inodes for recall in holder.unanswered] == [[top]]
            await trio.testing.wait_all_tasks_blocked()
            assert not answered.is_set()
            await holder.answer()
            with trio.fail_after(5):
                await answered.wait()


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
async def test_the_holder_never_waits_for_itself(sqlite_url: str, kind: type[ManagerRequest[Any]]) -> None:
    if "mount" not in ROUTES[kind].who:
        return
    async with held_network(sqlite_url) as (_office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.obedient = False
        with trio.fail_after(5), suppress(GodwitError):
            await holder.peer.ask(READERS[kind](top))
        assert holder.recalls == []


async def test_agents_work_from_what_is_committed(url: str) -> None:
    async with held_network(url) as (office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        agent = await office.peer("s2", "agent")
        assert (await agent.attr(top)).ino == top
        assert holder.recalls == []


async def test_a_directory_is_held_with_its_names_and_what_nobody_else_uses(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = await holder.peer.mkdir(b"d")
        file, opened, linked = [await holder.peer.make(name, top.ino) for name in (b"file", b"opened", b"linked")]
        sub = await holder.peer.mkdir(b"sub", top.ino)
        await holder.peer.one(Link(linked.ino, ROOT_INO, b"elsewhere", NOW))
        await other.peer.ask(Open(opened.ino, False, 1))
        answer = await holder.holds(top.ino)
        assert alone_with(answer) == {top.ino, file.ino}
        names = [(entry.name, entry.node.ino) for entry in answer.entries]
        assert names == [(b"file", file.ino), (b"opened", opened.ino), (b"linked", linked.ino), (b"sub", sub.ino)]
        assert answer.node == (await holder.attr(top.ino)).node
        rows = (await office.admin.ask(ListLeases(ino=top.ino))).leases
        assert [(row.holder, row.mode) for row in rows] == [("s1", ALONE)]
        assert office.state.leases.counters.numbers()["godwit_held_directories"] == 1


async def test_what_has_all_its_names_in_held_directories_is_held(url: str) -> None:
    async with held_network(url) as (_office, holder, _other):
        one, two = await holder.peer.mkdir(b"one"), await holder.peer.mkdir(b"two")
        file = await holder.peer.make(b"file", one.ino)
        await holder.peer.one(Link(file.ino, two.ino, b"file", NOW))
        assert alone_with(await holder.holds(one.ino)) == {one.ino}
        assert alone_with(await holder.holds(two.ino)) == {two.ino, file.ino}


async def test_others_who_cache_a_directory_give_way_to_who_holds_it(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = await holder.peer.mkdir(b"d")
        file = await holder.peer.make(b"file", top.ino)
        await holder.peer.commit(file.ino, 1)
        await holder.peer.ask(Close([Closing(file.ino, 1)]))
        await quiet()
        await other.caches(top.ino)
        await other.caches(file.ino)
        assert await refused_for(holder, top.ino) == SHARED_S
        assert other.recalls == [], "who looks at it is not disturbed for it"
        await holder.peer.mkdir(b"change", top.ino)
        assert [recall.inodes for recall in other.recalls] == [[top.ino]]
        assert SHARED_S - 0.5 < await refused_for(holder, top.ino) <= SHARED_S
        await skip(SHARED_S)
        assert alone_with(await holder.holds(top.ino)) == {top.ino}, "the file is left to who caches it"


async def test_who_only_has_a_directory_open_is_no_obstacle_and_asks_each_time(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await other.peer.ask(Open(top, False, 1))
        await quiet()
        await holder.holds(top)
        made = await holder.create(b"file", top)
        assert [entry.node.ino for entry in (await other.listing(top)).entries] == [made]


async def test_nothing_is_granted_of_what_somebody_is_alone_with(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await holder.send()
        session = office.state.sessions.get(other.peer.number)
        assert session is not None
        assert office.term is not None
        node = (await holder.attr(top)).node
        await office.term.granting.note(office.store, session, [top])
        now = trio.current_time()
        assert office.term.granting.offer(session, top, [node], now, now, names=True) is None


async def test_what_a_lookup_finds_and_a_listing_brings_is_called_back_too(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        sub = (await holder.peer.mkdir(b"sub", top)).ino
        await holder.holds(sub)
        holder.record(SetAttr(sub, NOW, mode=0o711))
        found = (await other.lookup(b"sub", top)).node
        assert found is not None
        assert found.mode & 0o777 == 0o711
        await skip(2 * FIRST_WAIT_S)
        await holder.holds(sub)
        holder.record(SetAttr(sub, NOW, mode=0o700))
        (entry,) = (await other.listing(top)).entries
        assert entry.node.mode & 0o777 == 0o700
        assert [recall.inodes for recall in holder.recalls] == [[sub], [sub]]


# Where the number is the answer to an earlier question, whoever made the file has been called back by that.
OF_PEOPLE = [kind for kind in READERS if ROUTES[kind].who >= ADMIN and kind not in (Lookup, ReadDir, ReadLink)]


@pytest.mark.parametrize("kind", OF_PEOPLE, ids=lambda kind: kind.__name__)
async def test_a_number_that_somebody_gives_is_known_as_soon_as_its_file_is_made(
    url: str, kind: type[ManagerRequest[Any]]
) -> None:
    async with held_network(url) as (office, holder, _other):
        top, another = (await holder.peer.mkdir(b"d")).ino, (await holder.peer.mkdir(b"another")).ino
        await holder.holds(top)
        await holder.holds(another)
        made = await holder.create(b"file", top)
        refusals: list[Refused] = []
        try:
            await office.admin.ask(READERS[kind](made))
        except Refused as refusal:
            refusals.append(refusal)
        assert errno.ESTALE not in [refusal.errno for refusal in refusals]
        assert (await office.admin.ask(GetWhere(made))).path == b"/d/file"
        calls = len(holder.recalls)
        with pytest.raises(Refused, match="there is no inode 9999"):
            await office.admin.ask(GetWhere(9999))
        assert len(holder.recalls) == calls, "nobody can have made it"


async def test_a_change_of_others_calls_back_and_is_made_after_what_was_recorded(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await holder.create(b"name", top)
        with pytest.raises(Refused) as refusal:
            await other.peer.mkdir(b"name", top)
        assert refusal.value.errno == errno.EEXIST


@pytest.mark.parametrize("how", ["rmdir", "replace"])
async def test_a_directory_that_its_holder_has_emptied_is_empty_for_others(url: str, how: str) -> None:
    async with held_network(url) as (_office, holder, other):
        sub = await holder.peer.mkdir(b"sub")
        file = await holder.peer.make(b"file", sub.ino)
        await other.peer.mkdir(b"another")
        await holder.holds(sub.ino)
        holder.record(Unlink(sub.ino, b"file", NOW), file)
        removal = Rmdir(ROOT_INO, b"sub", NOW) if how == "rmdir" else Rename(ROOT_INO, b"another", ROOT_INO, b"sub", 0, NOW)
        await other.peer.apply(removal)
        assert sub.ino in holder.recalls[0].inodes


async def test_a_file_that_is_made_without_a_name_gets_what_its_directory_hands_down_now(url: str) -> None:
    async with held_network(url) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.record(SetAttr(top, NOW, mode=0o2755, gid=77))
        made = await other.peer.one(CreateUnnamed(top, await other.peer.new_ino(), 0o100644, 0, 0, NOW, 2))
        assert made.gid == 77


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def looking_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who look at a directory keep nobody from holding it: they are called back, as if they had come just then."""
    monkeypatch.setattr(held, "SHARED_S", 0.0)
    monkeypatch.setattr(holds, "SHARED_S", 0.0)


async def refused_for(mount: HoldingMount, ino: int) -> float:
    """How long the mount is to wait before it asks again."""
    answer = await mount.hold(ino)
    assert answer.grant is None
    assert answer.node is None
    assert answer.entries == []
    assert answer.wait_s > 0
    return answer.wait_s


async def test_a_directory_that_others_have_just_changed_is_not_held(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await other.peer.mkdir(b"d")).ino
        assert await refused_for(holder, top) <= QUIET_S
        await quiet()
        await holder.holds(top)
        numbers = office.state.leases.counters.numbers()
        assert (numbers["godwit_holds_granted_total"], numbers["godwit_holds_refused_total"]) == (1, 1)


async def test_who_is_called_back_again_and_again_waits_ever_longer(url: str, looking_is_nothing: None) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        expected = FIRST_WAIT_S
        for _ in range(8):
            await holder.holds(top)
            await other.attr(top)
            wait_s = await refused_for(holder, top)
            assert expected - 0.5 < wait_s <= expected
            await skip(wait_s)
            expected = min(expected * 2, WAIT_MAX_S)
        assert expected == WAIT_MAX_S
        await holder.holds(top)
        for _ in range(30):
            await skip(CALM_S / 30)
            holder.record(SetAttr(top, NOW, mode=0o755))
            await holder.send()
        await other.attr(top)
        assert await refused_for(holder, top) <= FIRST_WAIT_S
        assert office.state.leases.counters.numbers()["godwit_holds_recalled_total"] == 9


async def test_for_how_long_directories_were_held_is_counted_when_they_are_no_more(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        first, second = (await holder.peer.mkdir(b"first")).ino, (await holder.peer.mkdir(b"second")).ino
        await office.admin.ask(SetPolicy(second, 2, 1, names=NamesPolicy.HELD))
        await quiet()
        for ino in (first, second):
            await holder.holds(ino)
        await holder.create(b"file", first)
        await skip(3.0)
        await other.attr(first)
        status = await office.admin.ask(GetStatus())
        assert (status.names, status.names_differing) == (NamesPolicy.HELD, 0)
        assert (status.holds.held, status.holds.granted, status.holds.recalled, status.holds.applied) == (1, 2, 1, 1)
        assert 3.0 <= status.holds.held_s < 5.0
        # The other one ends by time: when that is found out does not matter.
        await skip(10 * office.state.leases.lasts_s)
        office.state.leases.expire(trio.current_time())
        last = (await office.admin.ask(GetStatus())).holds
        assert last.held == 0
        lasted_s = last.held_s - status.holds.held_s
        assert abs(lasted_s - office.state.leases.alone_lasts_s) < 1.0
        await office.admin.ask(SetPolicy(second, 2, 1, names=NamesPolicy.THROUGH))
        assert (await office.admin.ask(GetStatus())).names_differing == 1


async def test_what_is_no_directory_or_is_gone_is_refused(url: str) -> None:
    async with held_network(url) as (_office, holder, _other):
        file = await holder.peer.make(b"file")
        gone = await holder.peer.mkdir(b"gone")
        await holder.peer.apply(Rmdir(ROOT_INO, b"gone", NOW))
        for ino, expected in ((file.ino, errno.ENOTDIR), (gone.ino, errno.ENOENT), (999_999, errno.ESTALE)):
            with pytest.raises(Refused) as refusal:
                await holder.hold(ino)
            assert refusal.value.errno == expected


async def test_a_mount_that_cannot_be_told_of_recalls_holds_nothing(url: str) -> None:
    async with held_network(url) as (office, _holder, _other):
        deaf = await office.peer("s3")
        made = await deaf.mkdir(b"d")
        assert (await deaf.ask(Hold(made.ino))).grant is None


async def test_a_directory_with_many_names_is_not_held(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "HOLD_MAX", 5)
    monkeypatch.setattr(held, "_INLINE_MAX", 3)
    async with held_network(url) as (_office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        for number in range(5):
            await holder.peer.mkdir(b"%d" % number, top)
        assert len((await holder.holds(top)).entries) == 5
        await holder.peer.mkdir(b"one more", top)
        await refused_for(holder, top)


async def test_a_policy_decides_and_calls_back(url: str) -> None:
    async with held_network(url) as (office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        sub = (await holder.peer.mkdir(b"sub", top)).ino
        await holder.holds(sub)
        await office.admin.ask(SetPolicy(top, 2, 1, names=NamesPolicy.THROUGH))
        assert [recall.inodes for recall in holder.recalls] == [[sub]]
        await skip(2 * FIRST_WAIT_S)
        await refused_for(holder, sub)


async def test_on_a_full_disk_nothing_is_held_and_what_is_held_is_called_back(sqlite_url: str) -> None:
    async with held_network(sqlite_url) as (office, holder, _other):
        top = (await holder.peer.mkdir(b"d")).ino
        second = (await holder.peer.mkdir(b"second")).ino
        await holder.holds(top)
        made = await holder.create(b"file", top)
        office.store.room.not_synced(OSError(errno.ENOSPC, "no room"))
        with pytest.raises(GodwitError):
            await holder.peer.mkdir(b"not any more")
        await refused_for(holder, second)
        assert office.term is not None
        call_back_held(office.term, trio.current_time())
        await holder.recalled()
        await trio.testing.wait_all_tasks_blocked()
        assert holder.sent == 1, "what was acknowledged is applied all the same"
        assert [lease.ino for lease in office.state.leases.held(trio.current_time())] == [made], "until the next look"
        call_back_held(office.term, trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert office.state.leases.held(trio.current_time()) == []


# --------------------------------------------------------------------------------------------------------------- races


async def test_who_changes_a_directory_meanwhile_is_not_overtaken_by_who_wants_to_hold_it(
    url: str, looking_is_nothing: None
) -> None:
    async with held_network(url) as (_office, holder, other), caching_mount(_office, "s3", obedient=False) as slow:
        top = (await holder.peer.mkdir(b"d")).ino
        await quiet()
        await slow.caches(top)
        answers: list[Any] = []

        async def hold() -> None:
            answers.append(await holder.hold(top))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await slow.recalled()
            nursery.start_soon(other.peer.mkdir, b"others", top)
            await trio.testing.wait_all_tasks_blocked()
            await slow.answer()
        assert answers[0].grant is None


async def test_a_holder_that_is_asked_is_granted_no_more_time(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.obedient = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.attr, top)
            await holder.recalled()
            await holder.create(b"file", top)
            assert top not in alone_with(await holder.send())
            assert (await holder.hold(top)).grant is None
            assert granted(await holder.attr(top)) == set()
            await holder.answer()
        assert not office.state.leases.is_alone(top, holder.peer.number, trio.current_time())


async def test_who_does_not_answer_is_waited_out(url: str) -> None:
    async with held_network(url, access_s=0.6) as (_office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.obedient = False
        began = trio.current_time()
        await other.attr(top)
        assert 0.5 < trio.current_time() - began < 3


async def test_who_only_looks_waits_out_no_more_than_the_time_to_be_alone(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.attr(top)
        await holder.holds(top)
        holder.obedient = False
        leases = office.state.leases
        async with trio.open_nursery() as nursery:
            changed = await begun(nursery, lambda: other.peer.mkdir(b"others", top))
            looked = await begun(nursery, lambda: other.attr(top))
            await skip(leases.alone_lasts_s - 0.5)
            assert not looked
            await skip(0.6)
            with trio.fail_after(1):
                while not looked:
                    await trio.sleep(0.01)
            assert not changed, "its kernel may still believe that there is no such name"
            await skip(leases.lasts_s - leases.alone_lasts_s)
        assert changed


async def test_nobody_looks_while_records_that_came_in_time_are_being_applied(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        made = await holder.create(b"file", top)
        # The lock as if another message took long.
        async with trio.open_nursery() as nursery, office.state.journals.of(holder.peer.number).lock:
            sent = await begun(nursery, holder.send)
            looked = await begun(nursery, lambda: other.lookup(b"file", top))
            await skip(2 * office.state.leases.alone_lasts_s)
            office.state.leases.expire(trio.current_time())
            await trio.sleep(0.1)
            assert not sent
            assert not looked
        assert looked[0].node.ino == made


async def test_who_only_looks_leaves_the_holder_what_it_caches(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await other.attr(top)
        assert [(recall.inodes, recall.to_look) for recall in holder.recalls] == [([top], True)]
        leases, now = office.state.leases, trio.current_time()
        session = office.state.sessions.get(holder.peer.number)
        assert session is not None
        assert leases.may_cache(top, session, now)
        assert not leases.is_alone(top, session.number, now)
        await quiet()
        await other.caches(top)
        await other.peer.mkdir(b"others", top)
        assert [(recall.inodes, recall.to_look) for recall in holder.recalls[1:]] == [([top], False)]
        assert not leases.may_cache(top, session, trio.current_time())


async def test_who_comes_to_change_what_others_wait_to_look_at_is_not_content_with_that(url: str) -> None:
    async with held_network(url) as (office, holder, other), caching_mount(office, "s3") as third:
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        holder.obedient = False
        async with trio.open_nursery() as nursery:
            looked = await begun(nursery, lambda: other.attr(top))
            changed = await begun(nursery, lambda: third.peer.mkdir(b"others", top))
            assert [recall.to_look for recall in holder.recalls] == [True, False]
            first, second = holder.unanswered
            holder.unanswered[:] = [first]
            await holder.answer()
            with trio.fail_after(1):
                while not looked:
                    await trio.sleep(0.01)
            assert not changed
            holder.unanswered[:] = [second]
            await holder.answer()
        assert changed


# ---------------------------------------------------------------------------------------------------- dead and missing


async def test_the_kernel_of_a_dead_mount_goes_on_believing_what_it_was_told(url: str) -> None:
    """Its journal has come: others may look, but change only what it cannot have cached any more."""
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.attr(top)
        await holder.holds(top)
        await holder.create(b"last", top)
        holder.obedient = False
        agent = await office.peer("s1", "agent")
        assert (await agent.ask(holder.unsent(final=True, durable=True))).lost == []
        with trio.fail_after(1):
            await other.attr(top)
        async with trio.open_nursery() as nursery:
            changed = await begun(nursery, lambda: other.peer.mkdir(b"others", top))
            await skip(office.state.leases.alone_lasts_s)
            assert not changed
            await skip(office.state.leases.lasts_s)
        assert changed


@pytest.mark.parametrize("who", ["agent", "mount"])
async def test_what_a_dead_mount_held_stays_so_until_its_journal_has_come(url: str, who: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await holder.create(b"first", top)
        await holder.send()
        last = await holder.create(b"last", top)
        successor = await office.peer("s1", who)
        if who == "agent":
            holder.obedient = False
        async with trio.open_nursery() as nursery:
            found = await begun(nursery, lambda: other.lookup(b"last", top))
            assert not found
            reply = await successor.ask(holder.unsent(final=True, durable=True))
            assert (reply.last, reply.lost, reply.tokens, reply.grant) == (2, [], [], None)
        assert found[0].node.ino == last
        repeated = await successor.ask(holder.unsent(final=True))
        assert repeated.last == 2
        await holder.create(b"after the end", top)
        with pytest.raises(Refused):
            await successor.ask(holder.unsent(final=True))


async def test_what_a_dead_mount_held_is_free_when_its_lease_is_over(url: str) -> None:
    async with held_network(url, access_s=0.6) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await office.peer("s1")
        began = trio.current_time()
        await other.attr(top)
        assert 0.4 < trio.current_time() - began < 3


async def test_a_journal_is_taken_from_its_own_server_only(url: str) -> None:
    async with held_network(url) as (office, holder, other):
        top = (await holder.peer.mkdir(b"d")).ino
        await holder.holds(top)
        await holder.create(b"file", top)
        await holder.send()
        await holder.create(b"another", top)
        for sender in (other.peer, await office.peer("s2", "agent")):
            with pytest.raises(Refused) as refusal:
                await sender.ask(holder.unsent(final=True))
            assert refusal.value.errno == errno.EPERM
