"""How the replicas of a file move: copies, checks and deletions, whoever writes meanwhile."""

import pytest
from sqlalchemy import update

from cluster.errors import Fenced
from cluster.messages import (
    ChangeMigration,
    Close,
    Closing,
    Commit,
    Content,
    Open,
    TaskOperation,
)
from manager.catalog.schema import replicas
from manager.changes.tasks import release_claims
from tests.manager.changes.test_copies import agents_of, where
from tests.manager.migrating import (
    files_with_copies,
    in_state,
    settle,
    show,
    start,
    states,
    volumes_of,
    work,
    working,
)
from tests.manager.office import NOW, small_network


async def test_a_home_moves_by_copy_check_and_delete(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        (node,) = await files_with_copies(mount, agents, 1, on=2)
        order = await start(mount, node.ino)
        assert (order.kind, order.source, order.target, order.paths) == ("move", "s1", "s3", [b"/%d" % node.ino])

        async def copying() -> bool:
            return await states(mount, order.migration) == {"copying": 1}

        await office.background(copying)
        (pending,) = (await where(mount, node.ino)).pending
        assert (pending.operation, pending.server) == (TaskOperation.COPY, "s3")
        assert await work(agents, servers="s1 s2") == []
        (task,) = await work(agents, servers="s3")
        assert task.home_epoch == 1
        # In the transaction of that report: the home is on s3, and s1 is to delete.
        moved = await mount.attr(node.ino)
        assert (moved.home_volume, moved.home_epoch, moved.object_ctime_ns, moved.version) == (3, 2, 1, 1)
        (pending,) = (await where(mount, node.ino)).pending
        assert (pending.operation, pending.server) == (TaskOperation.DELETE, "s1")
        assert await states(mount, order.migration) == {"deleting": 1}
        await work(agents, only=TaskOperation.DELETE)
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


async def test_a_copy_that_is_there_already_moves_nothing_but_restores_the_policy_first(url: str) -> None:
    """Home on s1, copy on s3: s3 becomes the home, but s1 stays until s2 has a copy."""

    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        (node,) = await files_with_copies(mount, agents, 1, on=3)
        order = await start(mount, node.ino)

        async def queued() -> bool:
            return bool((await where(mount, node.ino)).pending)

        await office.background(queued)
        (pending,) = (await where(mount, node.ino)).pending
        assert (pending.operation, pending.server) == (TaskOperation.COPY, "s2")
        assert (await mount.attr(node.ino)).home_volume == 1
        await settle(agents)
        assert await volumes_of(mount, node.ino) == [2, 3]
        assert (await mount.attr(node.ino)).home_volume == 3
        await office.background(in_state(mount, order.migration, "done"))


async def test_a_replica_that_is_not_the_home_moves_too(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        (node,) = await files_with_copies(mount, agents, 1, on=2)
        order = await start(mount, node.ino, source="s2")
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, node.ino) == [1, 3]
        assert (await mount.attr(node.ino)).home_epoch == 1


async def test_a_file_that_is_open_for_writing_waits_and_arrives_in_its_newest_version(url: str) -> None:
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


async def test_a_deletion_that_nobody_has_claimed_is_taken_back_when_the_file_is_written(url: str) -> None:
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
        assert [(task.operation, task.server) for task in (await where(mount, node.ino)).pending] == [(TaskOperation.COPY, "s2")]
        await mount.ask(Close([Closing(node.ino, 30)]))
        await working(office, agents, in_state(mount, order.migration, "done"))
        assert await volumes_of(mount, node.ino) == [2, 3]


async def test_a_deletion_that_is_claimed_goes_through_and_the_copies_are_made_after_it(url: str) -> None:
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


async def test_a_deletion_whose_claim_ran_out_is_not_taken_back(url: str) -> None:
    """The agent may still carry it out, at any later time: the replica counts for nothing."""

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
        assert pending == {(TaskOperation.DELETE, "s1"), (TaskOperation.COPY, "s2")}
        assert await states(mount, order.migration) == {"deleting": 1}
        await settle(agents)
        assert await volumes_of(mount, node.ino) == [2, 3]
        assert await states(mount, order.migration) == {"done": 1}


async def test_a_deletion_is_looked_at_once_more_when_it_is_handed_out(url: str) -> None:
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
