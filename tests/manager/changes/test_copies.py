"""From a commit to copies: dirty flags, queues, policies, orphans, grace."""

import errno
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from cluster.clock import monotonic_s
from cluster.errors import CatalogFault, Refused, Unavailable
from cluster.membership import ServerState, Standing
from cluster.messages import (
    RENAME_NOREPLACE,
    ROOT_INO,
    ApplyRecords,
    AwaitCopies,
    Close,
    Closing,
    Commit,
    Content,
    ExtendClaims,
    FindStrays,
    GetPolicy,
    GetSpace,
    GetStatus,
    GetWhere,
    GetXattr,
    Link,
    ListPolicies,
    ListTasks,
    ListUnsettled,
    ListVolumes,
    Locate,
    Open,
    OpenInode,
    RemoveXattr,
    Rename,
    ReportTasks,
    RetryTasks,
    SetPolicy,
    SetXattr,
    Stamp,
    TakeInodes,
    Task,
    TaskReport,
    Unlink,
    Where,
)
from manager.memory.bounds import Bounds
from manager.requests.agents import CLAIMS_MAX, REPORTS_TOGETHER
from manager.workers.housekeeping import tick_loop
from tests.manager.office import GIB, NOW, Office, Peer, in_office, small_network, until
from tests.support.clocks import HURRY, hurried


async def where(peer: Peer, ino: int) -> Where:
    return await peer.ask(GetWhere(ino))


def agent_of(office: Office, server: str) -> Peer:
    """The agent that `small_network` introduced, over another connection."""
    session = office.state.sessions.of_server(server, "agent")
    assert session is not None
    return Peer(office, server, "agent", session.number)


async def agents_of(office: Office) -> dict[str, Peer]:
    agents = {f"s{n}": agent_of(office, f"s{n}") for n in (1, 2, 3)}
    for agent in agents.values():
        await agent.hello()
    return agents


async def test_a_commit_makes_the_content_known_and_queues_a_copy(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        node = await mount.make(b"f")
        created = await where(mount, node.ino)
        assert (created.writers, [replica.checksum for replica in created.replicas]) == (["s1"], [b""])
        committed = await mount.commit(node.ino, 3, size=77)
        assert (committed.version, committed.size, committed.dirty) == (3, 77, False)
        assert (committed.mtime_ns, committed.object_ctime_ns) == (NOW + 3, NOW + 3)
        (pending,) = (await where(mount, node.ino)).pending
        assert (pending.operation, pending.state, pending.version, pending.path) == ("copy", "waiting", 3, b"/f")
        (task,) = await agents[pending.server].claim()
        assert (task.version, task.size, task.path, [source.volume for source in task.sources]) == (3, 77, b"/f", [1])
        with trio.move_on_after(0.05) as too_early:
            await mount.ask(AwaitCopies(node.ino, 3, 2, 10.0))
        assert too_early.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.ask, AwaitCopies(node.ino, 3, 2, 10.0))
            await trio.sleep(0.01)
            await agents[pending.server].done(task)
        opened = await mount.ask(Locate(node.ino))
        assert {replica.volume for replica in opened.replicas} == {1, task.volume}
        assert {replica.checksum for replica in opened.replicas} == {b"c" * 32}
        assert (await where(mount, node.ino)).pending == []
        with pytest.raises(Unavailable):
            await mount.ask(AwaitCopies(node.ino, 3, 3, 0.05))


async def test_the_age_of_the_oldest_task_is_that_of_its_server(url: str) -> None:
    async with small_network(url) as (office, mount):
        assert {info.oldest_task_s for info in (await mount.ask(GetStatus())).servers} == {-1.0}
        for name in (b"first", b"second"):
            node = await mount.make(name)
            await mount.commit(node.ino, 1)
        queued = (await mount.ask(ListTasks())).tasks
        await office.store.write(lambda tx: tx.connection.exec_driver_sql("UPDATE tasks SET queued_ns = queued_ns - 60000000000"))
        infos = (await mount.ask(GetStatus())).servers
        assert {info.server for info in infos if info.oldest_task_s >= 60.0} == {task.server for task in queued}
        assert all(info.oldest_task_s == -1.0 or 60.0 <= info.oldest_task_s < 120.0 for info in infos)


async def test_many_tasks_are_claimed_and_reported_at_once(url: str) -> None:
    """As many as need several transactions, with files that went meanwhile, and reports of all kinds among them."""
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        await mount.ask(SetPolicy(ROOT_INO, copies=3))
        folder = await mount.mkdir(b"d")
        nodes = [await mount.make(b"f%d" % number, folder.ino) for number in range(300)]
        await mount.apply(*[Commit(node.ino, 1, 2, Content(10, 8, NOW, NOW), True) for node in nodes])
        # One is written again: the newest version is given out, whatever it was queued for.
        await mount.commit(nodes[9].ino, 5)
        await mount.apply(Unlink(folder.ino, b"f3", NOW))
        tasks = await agents["s2"].claim(limit=1000)
        assert len(tasks) == CLAIMS_MAX - 1, "one was of the file that is gone"
        tasks += await agents["s2"].claim(limit=1000)
        assert [task.task for task in tasks] == sorted(task.task for task in tasks)
        assert {task.ino: (task.path, task.version) for task in tasks} == {
            node.ino: (b"/d/f%d" % number, 5 if number == 9 else 2) for number, node in enumerate(nodes) if number != 3
        }
        assert all([source.volume for source in task.sources] == [1] for task in tasks)
        assert await agents["s2"].claim(limit=1000) == []
        reports = [
            TaskReport(task.task, task.claim, "done", version=task.version, checksum=b"c" * 32, stamp=Stamp(10, 1, 1))
            for task in tasks
        ]
        reports[5] = TaskReport(tasks[5].task, tasks[5].claim, "failed", "for good")
        reports[6] = msgspec.structs.replace(reports[6], version=99)  # which there is not
        reports[7] = msgspec.structs.replace(reports[7], claim=99)
        reports[8] = msgspec.structs.replace(reports[8], source_volume=1, source_error="damaged")
        assert len(reports) > REPORTS_TOGETHER
        await agents["s2"].ask(ReportTasks([*reports, reports[0]]))
        found = [await where(mount, task.ino) for task in tasks]
        assert [n for n, it in enumerate(found) if it.replicas[1:] == []] == [5, 6, 7]
        states = {n: [task.state for task in found[n].pending if task.server == "s2"] for n in (5, 6, 7, 8, 9)}
        assert states == {5: ["dead"], 6: ["dead"], 7: ["claimed"], 8: [], 9: []}
        # Whoever copied a version has read all of it: then the home's is known as well.
        assert {replica.checksum for it in found[10:] for replica in it.replicas} == {b"c" * 32}
        assert [it.replicas[0].fault for it in found[7:10]] == ["", "damaged", ""]


async def test_the_first_task_after_a_rest_does_not_wait_for_others(url: str) -> None:
    async with small_network(url, bounds=Bounds(gather_s=1000.0, at_rest_s=1000.0)) as (office, mount):
        agents = await agents_of(office)
        await mount.ask(SetPolicy(ROOT_INO, copies=3))
        claimed: dict[str, list[Task]] = {}

        async def claim(server: str, wait_s: float) -> None:
            claimed[server] = await agents[server].claim(wait_s=wait_s)

        for wait_s, count in ((30.0, 1), (0.3, 0)):
            async with trio.open_nursery() as nursery:
                for server in ("s2", "s3"):
                    nursery.start_soon(claim, server, wait_s)
                await trio.testing.wait_all_tasks_blocked()
                await mount.commit((await mount.make(b"f%d" % count)).ino, 1)
            assert [len(tasks) for tasks in claimed.values()] == [count, count]


async def test_a_hot_file_has_one_task_per_volume(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        node = await mount.make(b"f")
        for version in range(1, 6):
            await mount.commit(node.ino, version)
        (pending,) = (await where(mount, node.ino)).pending
        assert pending.version == 5
        target = agents[pending.server]
        (task,) = await target.claim()
        await mount.commit(node.ino, 6)
        assert await target.claim() == []
        await target.done(task)
        (again,) = await target.claim()
        assert (again.volume, again.version) == (task.volume, 6)
        await target.ask(ReportTasks([TaskReport(task.task, task.claim, "done", version=5)]))
        assert len((await where(mount, node.ino)).pending) == 1


async def test_attempts_that_fail(url: str) -> None:
    async with small_network(url, max_attempts=2) as (office, mount):
        agents = await agents_of(office)
        node = await mount.make(b"f")
        await mount.commit(node.ino, 1)
        (pending,) = (await where(mount, node.ino)).pending
        target = agents[pending.server]

        async def attempt(outcome: str, **more: object) -> str:
            (task,) = await target.claim()
            await target.ask(ReportTasks([TaskReport(task.task, task.claim, outcome, "why\0not", **more)]))  # type: ignore[arg-type]
            (row,) = (await mount.ask(ListTasks())).tasks
            assert row.error == "why\N{REPLACEMENT CHARACTER}not"
            return row.state

        assert await attempt("retry", source_volume=1, source_error="rotten") == "deferred"
        assert await target.claim() == []
        assert (await where(mount, node.ino)).replicas[0].fault == "rotten"
        assert (await mount.ask(RetryTasks())).count == 1
        assert await attempt("changed") == "deferred"
        await mount.ask(RetryTasks())
        assert await attempt("retry") == "deferred"
        assert office.term is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_loop, office.term)
            with hurried():
                assert len(await target.claim(wait_s=10.0 * HURRY)) == 1
            nursery.cancel_scope.cancel()
        (row,) = (await mount.ask(ListTasks(state="claimed"))).tasks
        await target.ask(ReportTasks([TaskReport(row.task, 4, "retry", "still")]))
        assert (await mount.ask(ListTasks(state="dead"))).total == 1
        await mount.commit(node.ino, 2)
        assert (await mount.ask(ListTasks(state="waiting"))).total == 1
        assert await attempt("failed") == "dead"


async def test_a_back_off_that_ends_while_the_catalog_fails_ends_later(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        node = await mount.make(b"f")
        await mount.commit(node.ino, 1)
        (pending,) = (await where(mount, node.ino)).pending
        target = agents[pending.server]
        (task,) = await target.claim()
        await target.ask(ReportTasks([TaskReport(task.task, task.claim, "retry", "once")]))
        assert office.term is not None
        claims, write = office.term.claims, office.term.store.write

        async def fail_when_due(*arguments: Any, **options: Any) -> Any:
            if claims.due(monotonic_s()):
                raise CatalogFault("the disk of the catalog fails", errno.EIO)
            return await write(*arguments, **options)

        with monkeypatch.context() as failing:
            failing.setattr(office.term.store, "write", fail_when_due)
            with hurried(), pytest.raises(CatalogFault):
                await tick_loop(office.term)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_loop, office.term)
            with hurried():
                assert len(await target.claim(wait_s=10.0 * HURRY)) == 1
            nursery.cancel_scope.cancel()
        assert claims.due(monotonic_s()) == {}


async def test_claims_of_an_agent_that_started_again_come_back(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        node = await mount.make(b"f")
        await mount.commit(node.ino, 1)
        (pending,) = (await where(mount, node.ino)).pending
        (task,) = await agents[pending.server].claim()
        await agents[pending.server].ask(ExtendClaims([task.task]))
        await agents[pending.server].hello()
        restarted = await office.peer(pending.server, "agent")
        (again,) = await restarted.claim()
        assert (again.task, again.claim) == (task.task, task.claim + 1)
        await restarted.ask(ReportTasks([TaskReport(task.task, task.claim, "failed")]))
        assert (await mount.ask(ListTasks(state="claimed"))).total == 1


async def test_unlinked_files_live_until_their_last_close(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        other = await office.peer("s2")
        node = await mount.make(b"f")
        await mount.commit(node.ino, 1)
        await other.ask(Open(node.ino, False, 1))
        await mount.ask(Close([Closing(node.ino, 1)]))
        await mount.apply(Unlink(ROOT_INO, b"f", NOW))
        assert (await mount.attr(node.ino)).nlink == 0
        await other.ask(Close([Closing(node.ino, 2)]))
        again = await other.ask(Open(node.ino, False, 3))
        assert again.node.nlink == 0, "who looked the name up a moment before may still open what it meant"
        await other.ask(Close([Closing(node.ino, 4)]))

        async def gone() -> bool:
            return (await mount.ask(ListTasks(server="s1"))).total == 1

        await office.background(gone)
        with pytest.raises(Refused):
            await mount.attr(node.ino)
        with pytest.raises(Refused):
            await other.ask(Open(node.ino, False, 5))
        (task,) = await agents["s1"].claim()
        assert (task.operation, task.ino, task.volume) == ("delete", node.ino, 1)
        assert (await agents["s1"].ask(FindStrays(1, [node.ino]))).inodes == []
        await agents["s1"].done(task)
        for server in ("s2", "s3"):
            assert all(task.operation == "delete" for task in await agents[server].claim())
        await mount.ask(TakeInodes(1))
        stray = node.ino
        office.state.sessions.end(office.state.sessions.of_server("s1", "mount"))  # type: ignore[arg-type]
        assert (await agents["s1"].ask(FindStrays(1, [stray]))).inodes == [stray]


async def test_what_another_server_s_mount_has_made_here_is_no_stray_before_its_journal_has_come(url: str) -> None:
    async with small_network(url) as (office, _mount):
        agents = await agents_of(office)
        other = await office.peer("s2")
        ino = await other.new_ino()
        office.state.sessions.end(office.state.sessions.of_server("s2", "mount"))  # type: ignore[arg-type]
        assert (await agents["s1"].ask(FindStrays(1, [ino]))).inodes == []
        assert (await agents["s2"].ask(FindStrays(2, [ino]))).inodes == [ino], "its own agent has sent the journal before"
        await agents["s2"].ask(ApplyRecords(other.number, 1, [], final=True))
        assert (await agents["s1"].ask(FindStrays(1, [ino]))).inodes == [ino]


async def test_what_a_mount_of_a_server_that_left_has_made_is_a_stray(url: str) -> None:
    async with small_network(url) as (office, _mount):
        agents = await agents_of(office)
        other = await office.peer("s2")
        ino = await other.new_ino()
        office.state.sessions.end(office.state.sessions.of_server("s2", "mount"))  # type: ignore[arg-type]
        office.state.members.changed("s2", Standing(ServerState.LEFT), 1, monotonic_s())
        assert (await agents["s1"].ask(FindStrays(1, [ino]))).inodes == [ino]


async def test_a_file_with_two_names_in_a_directory_gets_one_task_more(url: str) -> None:
    async with small_network(url) as (office, mount):
        node = await mount.make(b"f")
        await mount.one(Link(node.ino, ROOT_INO, b"again", NOW))
        await mount.commit(node.ino, 1)
        await mount.ask(SetPolicy(ROOT_INO, copies=3))

        async def two_tasks() -> bool:
            return len((await where(mount, node.ino)).pending) == 2

        await office.background(two_tasks)
        assert len({task.server for task in (await where(mount, node.ino)).pending}) == 2


async def test_policies_move_copies(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        d = await mount.mkdir(b"d")
        sub = await mount.mkdir(b"sub", d.ino)
        node = await mount.make(b"f", sub.ino)
        outside = await mount.make(b"g")
        for ino in (node.ino, outside.ino):
            await mount.commit(ino, 1)
        assert (await mount.ask(GetPolicy(node.ino))).ino == ROOT_INO
        row = await mount.ask(SetPolicy(d.ino, 3, 1))
        assert (row.path, row.copies, row.sync_copies) == (b"/d", 3, 1)
        assert (await mount.ask(GetPolicy(node.ino))).ino == d.ino
        assert (await mount.ask(Locate(node.ino))).wanted_copies == 3
        assert len((await mount.ask(ListPolicies())).policies) == 2

        async def two_tasks() -> bool:
            return len((await where(mount, node.ino)).pending) == 2

        await office.background(two_tasks)
        assert len((await where(mount, outside.ino)).pending) == 1
        await mount.apply(Rename(ROOT_INO, b"g", d.ino, b"g", RENAME_NOREPLACE, NOW))
        assert len((await where(mount, outside.ino)).pending) == 2
        for server in ("s2", "s3"):
            for task in await agents[server].claim():
                await agents[server].done(task)
        await mount.ask(SetPolicy(d.ino, clear=True))

        async def surplus() -> bool:
            return [task.operation for task in (await where(mount, node.ino)).pending] == ["delete"]

        await office.background(surplus)
        for server in ("s2", "s3"):
            for task in await agents[server].claim():
                await agents[server].done(task)
        assert len((await where(mount, node.ino)).replicas) == 2
        for bad in (SetPolicy(d.ino, 0, 0), SetPolicy(d.ino, 17, 0), SetPolicy(d.ino, 2, 3), SetPolicy(node.ino, 2, 0)):
            with pytest.raises(Refused):
                await mount.ask(bad)
        with pytest.raises(Refused):
            await mount.ask(SetPolicy(ROOT_INO, clear=True))


async def test_a_new_volume_gets_the_copies_that_were_missing(office: Office) -> None:
    agent = await office.peer("s1", "agent")
    await agent.volume("u1")
    mount = await office.peer()
    node = await mount.make(b"f")
    await mount.commit(node.ino, 1)
    assert (await where(mount, node.ino)).pending == []
    second = await office.peer("s2", "agent")
    await second.volume("u2")

    async def queued() -> bool:
        return bool((await where(mount, node.ino)).pending)

    await office.background(queued)
    assert [task.ino for task in await second.claim()] == [node.ino]


async def test_volumes_and_space(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        assert await agents["s2"].volume("u2", free=99 * GIB + 1) == 2
        await agents["s3"].volume("u3", device="u2")
        space = await mount.ask(GetSpace())
        assert (space.total_bytes, space.inodes) == (200 * GIB, 1)
        volumes = (await mount.ask(ListVolumes())).volumes
        assert [(v.volume, v.server, v.up, v.uuid) for v in volumes] == [(n, f"s{n}", True, f"u{n}") for n in (1, 2, 3)]
        status = await mount.ask(GetStatus())
        assert [server.server for server in status.servers] == ["s1", "s2", "s3"]
        assert status.servers[0].roles == ["agent", "mount"]
        assert "password" not in status.catalog


async def test_capabilities(url: str) -> None:
    async with small_network(url) as (office, mount):
        other = await office.peer("s2")
        node = await mount.make(b"f")
        capability = SetXattr(node.ino, b"security.capability", b"x", 0, NOW)
        with pytest.raises(Refused) as busy:
            await other.one(capability)
        assert busy.value.errno == errno.ETXTBSY
        await mount.one(capability)
        assert (await mount.ask(Locate(node.ino))).caps
        await mount.commit(node.ino, 1)
        assert (await mount.ask(GetXattr(node.ino, b"security.capability"))).value == b"x", "set after the last write"
        await mount.one(RemoveXattr(node.ino, b"security.capability", NOW))
        assert not (await mount.ask(Locate(node.ino))).caps


async def test_a_new_manager_waits_for_the_mounts_it_does_not_know(url: str) -> None:
    async with small_network(url) as (_office, mount):
        kept, lost = await mount.make(b"kept"), await mount.make(b"lost")
        clean = await mount.make(b"clean")
        await mount.commit(clean.ino, 1)
        await mount.ask(Close([Closing(clean.ino, 5)]))
        for name in (b"kept", b"lost"):
            await mount.apply(Unlink(ROOT_INO, name, NOW))
    async with in_office(url, "s2") as office:
        assert office.term is not None
        agents = await office.three_servers()
        assert (await agents[0].ask(ListUnsettled(10))).inodes == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_loop, office.term)
            await trio.sleep(0.6)
            assert office.state.in_grace
            mount.connection = mount.connected(office)
            welcome = await mount.hello([OpenInode(kept.ino, True), OpenInode(clean.ino, True), OpenInode(999_999, True)])
            assert welcome.lost == [999_999]
            assert (await mount.attr(clean.ino)).dirty

            async def over() -> bool:
                return not office.state.in_grace

            with hurried():
                await until(over, 10.0 * HURRY)
            nursery.cancel_scope.cancel()

        async def reaped() -> bool:
            return not office.state.orphaned and not office.state.reaping

        await office.background(reaped)
        with pytest.raises(Refused):
            await mount.attr(lost.ino)
        assert (await mount.attr(kept.ino)).nlink == 0
        await mount.ask(Close([Closing(kept.ino, 1)]))
        await office.background(reaped)
        with pytest.raises(Refused):
            await mount.attr(kept.ino)


async def test_room_is_needed_for_what_is_allocated(office: Office) -> None:
    _, *agents = await office.three_servers()
    mount = await office.peer()
    node = await mount.make(b"mostly a hole")
    await mount.one(Commit(node.ino, 1, 1, Content(2**40, 24, NOW + 1, NOW + 1), True))
    tasks = [task for agent in agents for task in await agent.claim()]
    assert [(task.ino, task.size) for task in tasks] == [(node.ino, 2**40)]
    node = await mount.make(b"full")
    await mount.one(Commit(node.ino, 1, 1, Content(2**40, 2**31, NOW + 1, NOW + 1), True))
    assert [task for agent in agents for task in await agent.claim()] == []
