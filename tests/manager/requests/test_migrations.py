"""What becomes of a migration as a whole: the walk, pauses, failures, refusals, drains, and the next manager."""

import errno

import pytest

from cluster.errors import Refused
from cluster.messages import (
    ROOT_INO,
    ChangeMigration,
    Close,
    Closing,
    Commit,
    Content,
    DrainServer,
    Link,
    ListTasks,
    ListVolumes,
    Locate,
    MigrationKind,
    Open,
    PlanMigration,
    ReportTasks,
    RetryTasks,
    SetPolicy,
    StartMigration,
    TaskReport,
    Unlink,
)
from manager.changes.selectors import SELECTORS, Drain
from manager.changes.volume_scans import queue_volume_scan
from manager.memory.bounds import Bounds
from tests.manager.changes.test_copies import agents_of, where
from tests.manager.migrating import (
    files_with_copies,
    in_state,
    make_clean,
    moves,
    settle,
    show,
    start,
    states,
    volumes_of,
    work,
    working,
)
from tests.manager.office import GIB, NOW, in_office, small_network


async def test_a_directory_is_walked_and_hard_links_move_once(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        top = await mount.mkdir(b"top")
        inner = await mount.mkdir(b"inner", top.ino)
        inside = []
        for number in range(150):
            node = await mount.make(b"f%d" % number, inner.ino if number % 2 else top.ino)
            await mount.commit(node.ino, 1)
            inside.append(node.ino)
        await mount.ask(Close([Closing(ino, 9) for ino in inside]))
        await mount.apply(Link(inside[0], inner.ino, b"again", NOW))
        outside = await make_clean(mount, b"outside")
        await settle(agents)
        plan = await mount.ask(PlanMigration([top.ino], "s1", "s3"))
        assert (plan.files, plan.size, plan.problem_files, plan.truncated) == (150, 1500, 0, False)
        order = await start(mount, top.ino)
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await states(mount, order.migration) == {"done": 150}
        assert not [ino for ino in inside if 1 in await volumes_of(mount, ino)]
        assert 1 in await volumes_of(mount, outside.ino)
        row = await show(mount, order.migration)
        assert [(count.files, count.size) for count in row.counts] == [(150, 1500)]


async def test_the_window_bounds_what_is_in_the_queues(sqlite_url: str) -> None:
    async with small_network(sqlite_url, bounds=Bounds(moves_max=4)) as (office, mount):
        agents = await agents_of(office)
        nodes = await files_with_copies(mount, agents, 10, on=2)
        order = await start(mount, *[node.ino for node in nodes])

        async def full() -> bool:
            return (await states(mount, order.migration)).get("copying", 0) == 4

        await office.background(full)
        assert await states(mount, order.migration) == {"planned": 6, "copying": 4}
        assert (await mount.ask(ListTasks())).total == 4
        await working(office, agents, in_state(mount, order.migration, "done"))


async def test_pause_resume_and_cancel(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        nodes = await files_with_copies(mount, agents, 3, on=2)
        order = await start(mount, *[node.ino for node in nodes])
        number = order.migration

        async def copying() -> bool:
            return await states(mount, number) == {"copying": 3}

        await office.background(copying)
        (claimed,) = await agents["s3"].claim(1)
        for _ in range(2):
            assert (await mount.ask(ChangeMigration(number, "pause"))).state == "paused"

        async def withdrawn() -> bool:
            return (await mount.ask(ListTasks())).total == 1

        await office.background(withdrawn)
        await agents["s3"].done(claimed)
        assert (await mount.ask(ListTasks())).total == 0
        assert await volumes_of(mount, claimed.ino) == [1, 2, 3], "what was made stays while it is paused"
        assert (await mount.attr(claimed.ino)).home_volume == 1
        for _ in range(2):
            assert (await mount.ask(ChangeMigration(number, "resume"))).state == "running"

        async def one_deleting() -> bool:
            return await states(mount, number) == {"copying": 2, "deleting": 1}

        await office.background(one_deleting)
        for _ in range(2):
            assert (await mount.ask(ChangeMigration(number, "cancel"))).state == "cancelled"

        async def over() -> bool:
            return (await show(mount, number)).ended_ns > 0

        await working(office, agents, over)
        assert await states(mount, number) == {"done": 1, "cancelled": 2}
        for node in nodes:
            held = await volumes_of(mount, node.ino)
            assert held == ([2, 3] if node.ino == claimed.ino else [1, 2])
        with pytest.raises(Refused):
            await mount.ask(ChangeMigration(number, "resume"))
        with pytest.raises(Refused):
            await mount.ask(ChangeMigration(99, "pause"))


async def test_a_dead_copy_fails_its_move_until_it_is_retried_or_resumed(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        (node,) = await files_with_copies(mount, agents, 1, on=2)
        order = await start(mount, node.ino)

        async def copying() -> bool:
            return await states(mount, order.migration) == {"copying": 1}

        await office.background(copying)
        (task,) = await agents["s3"].claim()
        await agents["s3"].ask(ReportTasks([TaskReport(task.task, task.claim, "failed", "no luck")]))
        await office.background(in_state(mount, order.migration, "failed"))
        row = await show(mount, order.migration)
        assert ("no luck" in row.problem, row.ended_ns) == (True, 0)
        assert (await mount.ask(RetryTasks(task.task))).count == 1
        await settle(agents)
        await office.background(in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, node.ino) == [2, 3]
        (other,) = await files_with_copies(mount, agents, 1, on=2)
        order = await start(mount, other.ino)
        await office.background(copying)
        (task,) = await agents["s3"].claim()
        await agents["s3"].ask(ReportTasks([TaskReport(task.task, task.claim, "failed", "no luck")]))
        await office.background(in_state(mount, order.migration, "failed"))
        assert (await mount.ask(ChangeMigration(order.migration, "resume"))).state == "running"
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, other.ino) == [2, 3]


async def test_a_migration_whose_only_failed_file_is_removed_is_done(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        (node,) = await files_with_copies(mount, agents, 1, on=2)
        order = await start(mount, node.ino)

        async def copying() -> bool:
            return await states(mount, order.migration) == {"copying": 1}

        await office.background(copying)
        (task,) = await agents["s3"].claim()
        await agents["s3"].ask(ReportTasks([TaskReport(task.task, task.claim, "failed", "no luck")]))
        await office.background(in_state(mount, order.migration, "failed"))
        await mount.apply(Unlink(ROOT_INO, (await where(mount, node.ino)).path[1:], NOW))
        await working(office, agents, in_state(mount, order.migration, "done"))


async def test_files_that_vanish_and_files_that_others_move_are_skipped(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        kept, removed = await files_with_copies(mount, agents, 2, on=2)
        first = await start(mount, kept.ino, removed.ino)
        second = await start(mount, kept.ino, source="s2")
        assert await states(mount, second.migration) == {"skipped": 1}
        assert "migration 1 moves" in (await moves(mount, second.migration))[0].error
        await mount.apply(Unlink(ROOT_INO, (await where(mount, removed.ino)).path[1:], NOW))
        await working(office, agents, in_state(mount, first.migration, "done"))
        assert await states(mount, first.migration) == {"done": 1, "skipped": 1}
        await office.background(in_state(mount, second.migration, "done"))
        assert await volumes_of(mount, kept.ino) == [2, 3]


async def test_orders_that_make_no_sense_are_refused(url: str) -> None:
    async with small_network(url) as (office, mount):
        node = await make_clean(mount, b"f")
        with pytest.raises(Refused, match="s1, s2, s3") as unknown:
            await start(mount, node.ino, target="s9")
        assert unknown.value.errno == errno.ENOENT
        for bad in (
            StartMigration([node.ino], [b"/f"], "s1", "s1", 1),
            StartMigration([], [], "s1", "s2", 1),
            StartMigration([node.ino], [b"/f"], "s1", "s2", 0),
            StartMigration([node.ino], [], "s1", "s2", 1),
            StartMigration([999_999], [b"/x"], "s1", "s2", 1),
            DrainServer("s9"),
            ChangeMigration(1, "stop"),
        ):
            with pytest.raises(Refused):
                await mount.ask(bad)
        again = [await start(mount, node.ino, token=77) for _ in range(2)]
        assert again[0].migration == again[1].migration
        nothing = await start(mount, node.ino, source="s3", target="s2", token=78)
        await office.background(in_state(mount, nothing.migration, "done"))
        assert await states(mount, nothing.migration) == {}


async def test_a_target_without_room_fails_that_file_only(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        await agents["s3"].volume("u3", free=GIB)
        large = await make_clean(mount, b"large", size=2 * GIB)
        small = await make_clean(mount, b"small")
        await settle(agents)
        plan = await mount.ask(PlanMigration([large.ino, small.ino], "s1", "s3"))
        assert (plan.files, plan.problem_files) == (1, 1)
        assert plan.problems[0][0] == b"/large"
        assert "no room" in plan.problems[0][1]
        order = await start(mount, large.ino, small.ino)
        await working(office, agents, in_state(mount, order.migration, "failed"))
        assert await states(mount, order.migration) == {"done": 1, "failed": 1}
        assert await volumes_of(mount, large.ino) == [1, 2]
        await agents["s3"].volume("u3", free=99 * GIB)
        await mount.ask(ChangeMigration(order.migration, "resume"))
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, large.ino) == [2, 3]


async def test_a_policy_that_the_source_is_needed_for_keeps_the_source(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        await mount.ask(SetPolicy(ROOT_INO, 3, 0))
        node = await make_clean(mount, b"f")
        await settle(agents)
        assert (await mount.ask(PlanMigration([node.ino], "s1", "s3"))).problem_files == 1
        order = await start(mount, node.ino)

        async def stuck() -> bool:
            return "wants 3 copies" in (await show(mount, order.migration)).problem

        await working(office, agents, stuck)
        assert await volumes_of(mount, node.ino) == [1, 2, 3]
        await mount.ask(SetPolicy(ROOT_INO, 2, 0))
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, node.ino) == [2, 3]


async def test_a_drain_empties_the_server_and_takes_nothing_new(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, MigrationKind.DRAIN, Drain(least_s=0.2, pass_s=0.1))
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        nodes = [await make_clean(mount, b"f%d" % number) for number in range(100)]
        await settle(agents)
        other = await start(mount, nodes[0].ino, target="s2")
        await mount.ask(ChangeMigration(other.migration, "pause"))
        drain = await mount.ask(DrainServer("s1"))
        assert (await mount.ask(DrainServer("s1"))).migration == drain.migration
        assert [v.accepts for v in (await mount.ask(ListVolumes())).volumes] == [False, True, True]
        late = await make_clean(mount, b"late")

        async def all_but_one() -> bool:
            return (await states(mount, drain.migration)).get("done") == 100

        await working(office, agents, all_but_one)
        assert 1 not in await volumes_of(mount, late.ino)
        assert 1 in await volumes_of(mount, nodes[0].ino), "another migration has it"
        await mount.ask(ChangeMigration(other.migration, "cancel"))
        await working(office, agents, in_state(mount, drain.migration, "done"))
        for node in nodes:
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert (await mount.attr(node.ino)).home_volume in (2, 3)
        with pytest.raises(Refused, match="drained"):
            await start(mount, nodes[0].ino, source="s2", target="s1")
    async with in_office(url, "s2") as office:
        assert not office.state.members.accepts("s1")


async def test_a_cancelled_drain_makes_the_server_ordinary_again(url: str) -> None:
    async with small_network(url) as (office, mount):
        drain = await mount.ask(DrainServer("s2"))
        assert not office.state.members.accepts("s2")
        await mount.ask(ChangeMigration(drain.migration, "cancel"))
        assert office.state.members.accepts("s2")
        with pytest.raises(Refused, match="cancelled"):
            await mount.ask(ChangeMigration(drain.migration, "pause"))
        assert (await mount.ask(DrainServer("s2"))).migration != drain.migration


async def test_the_next_manager_goes_on_with_a_migration(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        nodes = await files_with_copies(mount, agents, 6, on=2)
        order = await start(mount, *[node.ino for node in nodes])

        async def under_way() -> bool:
            await work(agents, servers="s3")
            return (await states(mount, order.migration)).get("deleting", 0) > 2

        await office.background(under_way)
        await agents["s1"].claim(2)
    async with in_office(url, "s2") as office:
        agents = dict(zip(("s1", "s2", "s3"), await office.three_servers(), strict=True))
        mount = await office.peer()
        await office.term.end_grace()  # type: ignore[union-attr]
        await working(office, agents, in_state(mount, order.migration, "done"))
        for node in nodes:
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert (await mount.attr(node.ino)).home_epoch == 2


async def test_the_home_of_a_server_that_is_down_for_long_moves_unless_the_file_is_dirty(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        clean, dirty = await files_with_copies(mount, agents, 2, on=2)
        await mount.ask(Open(dirty.ino, True, 50))
        other = await office.peer("s2")
        await mount.ask(Open(clean.ino, False, 51))  # else the home would move to s2 with its writer
        await other.ask(Open(clean.ino, True, 1))
        await mount.commit(clean.ino, 2)
        await mount.ask(Close([Closing(clean.ino, 52)]))
        await settle(agents)
        members = office.state.members
        lost = {number: place for number, place in members.places().items() if number == 1}
        assert lost
        real = members.places

        def without_s1() -> dict[int, object]:
            return {
                number: place if number != 1 else type(place)(**{**vars(place), "counts": False, "up": False})
                for number, place in real().items()
            }

        members.places = without_s1  # type: ignore[assignment, method-assign]
        await office.store.write(lambda tx: queue_volume_scan(tx, office.state, 1))
        await other.one(Commit(clean.ino, 1, 3, Content(10, 8, NOW, NOW), True))
        await other.ask(Close([Closing(clean.ino, 2)]))

        async def moved() -> bool:
            await work(agents, servers="s2 s3")
            return (await mount.attr(clean.ino)).home_volume == 2

        await office.background(moved)
        assert (await mount.attr(dirty.ino)).home_volume == 1
        assert (await mount.ask(Locate(dirty.ino))).node.dirty

        async def healed() -> bool:
            await work(agents, servers="s2 s3")
            return await volumes_of(mount, clean.ino) == [1, 2, 3]

        await office.background(healed)
        members.places = real  # type: ignore[method-assign]
        await office.store.write(lambda tx: queue_volume_scan(tx, office.state, 1))

        async def back() -> bool:
            await settle(agents)
            return len(await volumes_of(mount, clean.ino)) == 2

        await office.background(back)
        assert (await mount.attr(clean.ino)).home_volume == 2
        assert await volumes_of(mount, dirty.ino) == [1, 2]
