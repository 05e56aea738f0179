"""Migrations by hand: agents that do what the queues say, one step after the other."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from sqlalchemy import update

from cluster.errors import Fenced, Refused
from cluster.messages import (
    COPY,
    DELETE,
    ROOT_INO,
    ChangeMigration,
    Close,
    Closing,
    Commit,
    Content,
    DrainServer,
    Link,
    ListMigrations,
    ListMoves,
    ListTasks,
    ListVolumes,
    Locate,
    MigrationRow,
    MoveRow,
    Node,
    Open,
    PlanMigration,
    ReportTasks,
    RetryTasks,
    SetPolicy,
    StartMigration,
    Task,
    TaskReport,
    Unlink,
)
from manager import migrating
from manager.catalog.schema import replicas
from manager.changes.tasks import release_claims
from manager.workers.volume_scans import queue_volume_scan
from tests.manager.office import GIB, NOW, Office, Peer, in_office, small_network
from tests.manager.test_copies import agents_of, where

Agents = dict[str, Peer]
tokens = iter(range(1, 10_000))


async def start(peer: Peer, *inodes: int, source: str = "s1", target: str = "s3", token: int = 0) -> MigrationRow:
    paths = [b"/%d" % ino for ino in inodes]
    return await peer.ask(StartMigration(list(inodes), paths, source, target, token or next(tokens)))


async def show(peer: Peer, number: int) -> MigrationRow:
    (row,) = (await peer.ask(ListMigrations(number))).migrations
    return row


async def moves(peer: Peer, number: int) -> list[MoveRow]:
    return (await peer.ask(ListMoves(number))).moves


async def states(peer: Peer, number: int) -> dict[str, int]:
    return {count.state: count.files for count in (await show(peer, number)).counts}


async def make_clean(mount: Peer, name: bytes, *, size: int = 10) -> Node:
    """A file with its home on s1, committed and closed."""
    node = await mount.make(name)
    node = await mount.commit(node.ino, 1, size=size)
    await mount.ask(Close([Closing(node.ino, 9)]))
    return node


async def work(agents: Agents, *, only: str = "", servers: str = "s1 s2 s3") -> list[Task]:
    """Lets the agents do all that they can claim (of one kind), and returns it."""
    did = []
    for server in servers.split():
        for task in await agents[server].claim(64):
            if only and task.operation != only:
                raise AssertionError(f"{server} was to do {task}")
            await agents[server].done(task)
            did.append(task)
    return did


async def settle(agents: Agents) -> None:
    while await work(agents):
        pass


async def volumes_of(peer: Peer, ino: int) -> list[int]:
    return sorted(row.volume for row in (await where(peer, ino)).replicas)


async def working(office: Office, agents: Agents, condition: Callable[[], Awaitable[bool]]) -> None:
    """Lets the manager and the agents work until *condition* holds."""

    async def step() -> bool:
        await settle(agents)
        return await condition()

    await office.background(step)


def in_state(peer: Peer, number: int, state: str) -> Callable[[], Awaitable[bool]]:
    async def is_in_state() -> bool:
        return (await show(peer, number)).state == state

    return is_in_state


async def files_with_copies(mount: Peer, agents: Agents, count: int, on: int) -> list[Node]:
    """Clean files on s1 whose copy is on volume *on*."""
    found: list[Node] = []
    while len(found) < count:
        node = await make_clean(mount, b"file%d" % next(tokens))
        await settle(agents)
        if await volumes_of(mount, node.ino) == [1, on]:
            found.append(node)
    return found


def test_a_home_moves_by_copy_check_and_delete(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino)
            assert (order.kind, order.source, order.target, order.paths) == ("move", "s1", "s3", [b"/%d" % node.ino])

            async def copying() -> bool:
                return await states(mount, order.migration) == {"copying": 1}

            await office.background(copying)
            (pending,) = (await where(mount, node.ino)).pending
            assert (pending.operation, pending.server) == (COPY, "s3")
            assert await work(agents, servers="s1 s2") == []
            (task,) = await work(agents, servers="s3")
            assert task.home_epoch == 1
            # In the transaction of that report: the home is on s3, and s1 is to delete.
            moved = await mount.attr(node.ino)
            assert (moved.home_volume, moved.home_epoch, moved.object_ctime_ns, moved.version) == (3, 2, 1, 1)
            (pending,) = (await where(mount, node.ino)).pending
            assert (pending.operation, pending.server) == (DELETE, "s1")
            assert await states(mount, order.migration) == {"deleting": 1}
            await work(agents, only=DELETE)
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert await states(mount, order.migration) == {"done": 1}
            await office.background(in_state(mount, order.migration, "done"))
            assert (await show(mount, order.migration)).ended_ns > 0
            with pytest.raises(Fenced):
                await mount.one(Commit(node.ino, 1, 5, Content(1, 1, 1, 1), True))
            opened = await mount.ask(Open(node.ino, True, 10))
            assert (opened.node.home_volume, opened.node.home_epoch) == (3, 2)
            await mount.one(Commit(node.ino, 2, 2, Content(11, 8, NOW, NOW), True))
            await settle(agents)
            assert await volumes_of(mount, node.ino) == [2, 3]

    trio.run(main)


def test_a_copy_that_is_there_already_moves_nothing_but_restores_the_policy_first(url: str) -> None:
    """Home on s1, copy on s3: s3 becomes the home, but s1 stays until s2 has a copy."""

    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=3)
            order = await start(mount, node.ino)

            async def queued() -> bool:
                return bool((await where(mount, node.ino)).pending)

            await office.background(queued)
            (pending,) = (await where(mount, node.ino)).pending
            assert (pending.operation, pending.server) == (COPY, "s2")
            assert (await mount.attr(node.ino)).home_volume == 1
            await settle(agents)
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert (await mount.attr(node.ino)).home_volume == 3
            await office.background(in_state(mount, order.migration, "done"))

    trio.run(main)


def test_a_replica_that_is_not_the_home_moves_too(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino, source="s2")
            await working(office, agents, in_state(mount, order.migration, "done"))
            assert await volumes_of(mount, node.ino) == [1, 3]
            assert (await mount.attr(node.ino)).home_epoch == 1

    trio.run(main)


def test_a_file_that_is_open_for_writing_waits_and_arrives_in_its_newest_version(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            await mount.ask(Open(node.ino, True, 20))
            order = await start(mount, node.ino)

            async def waits() -> bool:
                return await states(mount, order.migration) == {"waiting": 1}

            await working(office, agents, waits)
            assert "open for writing" in (await show(mount, order.migration)).problem
            assert await volumes_of(mount, node.ino) == [1, 2, 3]
            await mount.commit(node.ino, 2, final=False, size=10)
            assert await states(mount, order.migration) == {"copying": 1}
            await settle(agents)
            assert await states(mount, order.migration) == {"waiting": 1}
            assert (await mount.attr(node.ino)).home_volume == 1
            await mount.commit(node.ino, 3)
            await mount.ask(Close([Closing(node.ino, 30)]))
            await working(office, agents, in_state(mount, order.migration, "done"))
            held = (await where(mount, node.ino)).replicas
            assert {(row.volume, row.version, row.current) for row in held} == {(2, 3, True), (3, 3, True)}

    trio.run(main)


def test_a_deletion_that_nobody_has_claimed_is_taken_back_when_the_file_is_written(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino)

            async def deleting() -> bool:
                await work(agents, servers="s2 s3")
                return await states(mount, order.migration) == {"deleting": 1}

            await office.background(deleting)
            await mount.ask(Open(node.ino, True, 20))
            await mount.one(Commit(node.ino, 2, 2, Content(10, 8, NOW, NOW), True))
            assert await states(mount, order.migration) == {"copying": 1}
            assert [(task.operation, task.server) for task in (await where(mount, node.ino)).pending] == [(COPY, "s2")]
            await mount.ask(Close([Closing(node.ino, 30)]))
            await working(office, agents, in_state(mount, order.migration, "done"))
            assert await volumes_of(mount, node.ino) == [2, 3]

    trio.run(main)


def test_a_deletion_that_is_claimed_goes_through_and_the_copies_are_made_after_it(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino)

            async def deleting() -> bool:
                await work(agents, servers="s2 s3")
                return await states(mount, order.migration) == {"deleting": 1}

            await office.background(deleting)
            (claimed,) = await agents["s1"].claim()
            await mount.ask(Open(node.ino, True, 20))
            await mount.one(Commit(node.ino, 2, 2, Content(10, 8, NOW, NOW), True))
            assert await states(mount, order.migration) == {"deleting": 1}
            assert (await mount.ask(ChangeMigration(order.migration, "cancel"))).state == "cancelled"
            await agents["s1"].done(claimed)
            assert await states(mount, order.migration) == {"done": 1}
            await settle(agents)
            assert await volumes_of(mount, node.ino) == [2, 3]

    trio.run(main)


def test_a_deletion_whose_claim_ran_out_is_not_taken_back(url: str) -> None:
    """The agent may still carry it out, at any later time: the replica counts for nothing."""

    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino)

            async def deleting() -> bool:
                await work(agents, servers="s2 s3")
                return await states(mount, order.migration) == {"deleting": 1}

            await office.background(deleting)
            (claimed,) = await agents["s1"].claim()
            await office.store.write(lambda tx: release_claims(tx, office.state, {claimed.task: claimed.claim}))
            await mount.ask(Open(node.ino, True, 20))
            await mount.one(Commit(node.ino, 2, 2, Content(10, 8, NOW, NOW), True))
            await mount.ask(ChangeMigration(order.migration, "pause"))
            pending = {(task.operation, task.server) for task in (await where(mount, node.ino)).pending}
            assert pending == {(DELETE, "s1"), (COPY, "s2")}
            assert await states(mount, order.migration) == {"deleting": 1}
            await settle(agents)
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert await states(mount, order.migration) == {"done": 1}

    trio.run(main)


def test_a_deletion_is_looked_at_once_more_when_it_is_handed_out(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            agents = await agents_of(office)
            (node,) = await files_with_copies(mount, agents, 1, on=2)
            order = await start(mount, node.ino)

            async def deleting() -> bool:
                await work(agents, servers="s2 s3")
                return await states(mount, order.migration) == {"deleting": 1}

            await office.background(deleting)
            on_two = (replicas.c.ino == node.ino) & (replicas.c.volume == 2)
            await office.store.write(lambda tx: tx.execute(update(replicas).where(on_two).values(fault="rotten")))
            assert await agents["s1"].claim() == []
            assert await states(mount, order.migration) == {"copying": 1}
            await working(office, agents, in_state(mount, order.migration, "done"))
            assert await volumes_of(mount, node.ino) == [2, 3]
            assert all(row.current for row in (await where(mount, node.ino)).replicas)

    trio.run(main)


def test_a_directory_is_walked_and_hard_links_move_once(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_the_window_bounds_what_is_in_the_queues(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(migrating, "WINDOW", 4)
        async with small_network(sqlite_url) as (office, mount):
            agents = await agents_of(office)
            nodes = await files_with_copies(mount, agents, 10, on=2)
            order = await start(mount, *[node.ino for node in nodes])

            async def full() -> bool:
                return (await states(mount, order.migration)).get("copying", 0) == 4

            await office.background(full)
            assert await states(mount, order.migration) == {"planned": 6, "copying": 4}
            assert (await mount.ask(ListTasks())).total == 4
            await working(office, agents, in_state(mount, order.migration, "done"))

    trio.run(main)


def test_pause_resume_and_cancel(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_dead_copy_fails_its_move_until_it_is_retried_or_resumed(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_migration_whose_only_failed_file_is_removed_is_done(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_files_that_vanish_and_files_that_others_move_are_skipped(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_orders_that_make_no_sense_are_refused(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_target_without_room_fails_that_file_only(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_policy_that_the_source_is_needed_for_keeps_the_source(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_drain_empties_the_server_and_takes_nothing_new(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(migrating, "DRAIN_LEAST_S", 0.2)
        monkeypatch.setattr(migrating, "PASS_S", 0.1)
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

    trio.run(main)


def test_a_cancelled_drain_makes_the_server_ordinary_again(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            drain = await mount.ask(DrainServer("s2"))
            assert not office.state.members.accepts("s2")
            await mount.ask(ChangeMigration(drain.migration, "cancel"))
            assert office.state.members.accepts("s2")
            with pytest.raises(Refused, match="cancelled"):
                await mount.ask(ChangeMigration(drain.migration, "pause"))
            assert (await mount.ask(DrainServer("s2"))).migration != drain.migration

    trio.run(main)


def test_the_next_manager_goes_on_with_a_migration(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)


def test_the_home_of_a_server_that_is_down_for_long_moves_unless_the_file_is_dirty(url: str) -> None:
    async def main() -> None:
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

    trio.run(main)
