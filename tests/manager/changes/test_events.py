"""What has happened is written with it, told in order under all managers, and forgotten some day."""

import errno
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from cluster.clock import file_time_ns
from cluster.errors import refused
from cluster.events import EventKind, sentence
from cluster.membership import Event
from cluster.messages import (
    ChangeMigration,
    DrainServer,
    EventRow,
    FindStrays,
    Heartbeat,
    ListEvents,
    LoseServer,
    MountCounts,
    RegisterVolumes,
    RemoveServer,
    RevokeServer,
    RotateAuthority,
    SetPolicy,
)
from manager.catalog.events import EVENTS_MAX, Again, cause_of, forget_oldest, note
from manager.catalog.faults import unreadable
from manager.catalog.schema import events, tasks
from manager.catalog.store import Transaction
from manager.rules.events import RISK_S
from manager.workers.events import Watch, count_waiting, forget_old
from tests.manager.changes.test_copies import agents_of
from tests.manager.changes.test_damage import FAULT
from tests.manager.changes.test_damage import scene as damaged_scene
from tests.manager.changes.test_membership import told
from tests.manager.migrating import files_with_copies, start
from tests.manager.office import Office, in_office, small_network
from tests.support.clocks import skip

HOUR_NS = 3600 * 10**9


async def happened(office: Office, **wanted: Any) -> list[EventRow]:
    return (await office.admin.ask(ListEvents(**wanted))).events


async def kinds(office: Office, **wanted: Any) -> list[str]:
    return [row.kind for row in await happened(office, **wanted)]


async def noted(office: Office, kind: EventKind, **values: Any) -> None:
    await office.store.write(lambda tx: note(tx.connection, kind, **values))


async def test_servers_come_and_go(office: Office) -> None:
    await office.three_servers()
    joined = [("server-joined", f"s{n}", 0) for n in (1, 2, 3)]
    added = [("volume-added", f"s{n}", n) for n in (1, 2, 3)]
    rows = await happened(office)
    assert [(row.kind, row.server, row.volume) for row in rows] == [
        one for both in zip(joined, added, strict=True) for one in both
    ]
    assert [sentence(row) for row in rows[-1:]] == ["volume 3 of s3 is new: /u3"]
    await told(office, "s2", Event.SILENT_TOO_LONG)
    await told(office, "s2", Event.SILENT_TOO_LONG)
    await told(office, "s2", Event.HEARD)
    await told(office, "s3", Event.SILENT_TOO_LONG)
    await office.admin.ask(RevokeServer("s3"))
    await office.admin.ask(RevokeServer("s3"))
    await office.admin.ask(LoseServer("s3"))
    await office.admin.ask(RemoveServer("s3"))
    after = await happened(office, after=rows[-1].event)
    expected = "server-down server-back server-down server-revoked server-lost server-left"
    assert [row.kind for row in after] == expected.split()
    assert [row.severity for row in after] == ["error", "info", "error", "warning", "error", "info"]


async def test_what_was_undone_has_not_happened(office: Office) -> None:
    def work(tx: Transaction) -> None:
        with tx.savepoint():
            note(tx.connection, EventKind.SERVER_BACK, server="s1")
            raise refused(errno.EINVAL)

    with pytest.raises(Exception, match="Invalid"):
        await office.store.write(work)
    assert await happened(office) == []


async def test_migrations(url: str) -> None:
    async with small_network(url) as (office, mount):
        (node,) = await files_with_copies(mount, await agents_of(office), 1, on=2)
        order = await start(mount, node.ino)
        for action in ("pause", "pause", "resume", "cancel", "cancel"):
            await office.admin.ask(ChangeMigration(order.migration, action))
        drain = await office.admin.ask(DrainServer("s1"))
        await office.admin.ask(DrainServer("s1"))
        rows = await happened(office, kind="migration")
        said = "migration-started migration-paused migration-resumed migration-cancelled migration-started"
        assert [row.kind for row in rows] == said.split()
        assert [row.fields["migration"] for row in rows] == [order.migration] * 4 + [drain.migration]
        assert sentence(rows[0]) == f"migration {order.migration} begins: from s1 to s3"
        assert await kinds(office, kind="server-draining") == ["server-draining"]


async def test_policies_and_rotations(office: Office) -> None:
    await office.three_servers()
    mount = await office.peer()
    folder = await mount.mkdir(b"a\xff")
    await office.admin.ask(SetPolicy(folder.ino, 3, 1))
    await office.admin.ask(SetPolicy(folder.ino, clear=True))
    rows = await happened(office, kind="policy")
    assert [(row.fields["path"], row.fields["copies"]) for row in rows] == [("/a\udcff", 3), ("/a\udcff", 2)]
    assert sentence(rows[0]) == r"the policy of /a\udcff is now: 3 copies, names held"
    await office.admin.ask(RotateAuthority(1))
    await office.admin.ask(RotateAuthority(1))
    (row,) = await happened(office, kind="authority")
    assert sentence(row) == "authority 2 is made known: a rotation has begun"


async def test_damage_is_one_event_for_many_objects_until_it_is_mended(office: Office) -> None:
    scene = await damaged_scene(office)
    assert office.term is not None
    watch = Watch(office.term)
    node = await scene.file(copied=False)
    await scene.damage(node.ino)
    await scene.damage(node.ino)
    await noted(office, EventKind.DAMAGE_FOUND, server="s1", volume=1, again=Again(3600.0, EventKind.DAMAGE_MENDED), ino=9)
    (row,) = await happened(office, kind="damage")
    assert (row.count, row.fields) == (2, {"ino": node.ino, "fault": FAULT})
    assert sentence(row) == f"2 objects are damaged on volume 1 of s1; the first: inode {node.ino}: {FAULT}"
    await watch.look()
    assert await kinds(office, kind="damage") == ["damage-found"]
    await office.store.write(lambda tx: tx.connection.exec_driver_sql("UPDATE replicas SET fault = ''"))
    await watch.look()
    await noted(office, EventKind.DAMAGE_FOUND, server="s1", volume=1, again=Again(3600.0, EventKind.DAMAGE_MENDED), ino=9)
    assert await kinds(office, kind="damage") == ["damage-found", "damage-mended", "damage-found"]


async def test_set_aside_objects_are_counted(office: Office) -> None:
    agent, _, _ = await office.three_servers()
    await agent.ask(FindStrays(1, [], 5))
    await agent.ask(FindStrays(1, [4711], 2))
    (row,) = await happened(office, kind="objects")
    assert (row.count, row.volume, row.server) == (7, 1, "s1")
    with pytest.raises(Exception, match="too many objects"):
        await agent.ask(FindStrays(1, [], 10**9))


async def test_full_volumes_are_told_once_by_all_managers(url: str) -> None:
    async with in_office(url) as office:
        agent = await office.peer("s1", "agent")
        await agent.volume("u1", free=0)
        assert office.term is not None
        await Watch(office.term).look()
        await Watch(office.term).look()
        assert (await kinds(office))[-1:] == ["volume-full"]
        newest = (await office.admin.ask(ListEvents())).newest
    async with in_office(url, "s2") as office:
        agent = await office.peer("s1", "agent")
        await agent.volume("u1", free=0)
        assert office.term is not None
        watch = Watch(office.term)
        await watch.look()
        assert await happened(office, after=newest) == []
        await agent.volume("u1")
        await watch.look()
        (row,) = await happened(office, after=newest)
        assert (row.kind, row.server, row.volume) == ("volume-room", "s1", 1)
        assert row.event > newest


async def test_files_whose_copies_wait_are_counted(office: Office) -> None:
    _, s2, s3 = await office.three_servers()
    mount = await office.peer()
    before_ns = file_time_ns()
    waiting = await mount.make(b"waiting")
    await mount.commit(waiting.ino, 1)
    for agent, uuid in ((s2, "u2"), (s3, "u3")):
        await agent.volume(uuid, free=0)
    short = await mount.make(b"short")
    await mount.commit(short.ino, 1)
    later_ns = file_time_ns() + HOUR_NS
    assert await office.store.read(lambda connection: count_waiting(connection, later_ns)) == 2
    assert await office.store.read(lambda connection: count_waiting(connection, before_ns - HOUR_NS)) == 0


async def test_files_at_risk_are_told_until_none_has_waited_for_a_minute(office: Office) -> None:
    agents = await office.three_servers()
    mount = await office.peer()
    node = await mount.make(b"f")
    await mount.commit(node.ino, 1)
    assert office.term is not None
    watch = Watch(office.term)
    await watch.look()
    assert await kinds(office, kind="files") == []
    await office.store.write(lambda tx: tx.execute(update(tasks).values(queued_ns=tasks.c.queued_ns - HOUR_NS)))
    for _ in range(2):
        await watch.look()
        (row,) = await happened(office, kind="files")
        assert (row.kind, row.count) == ("files-at-risk", 1)
    for agent in agents:
        for task in await agent.claim():
            await agent.done(task)
    await watch.look()
    assert await kinds(office, kind="files") == ["files-at-risk"]
    await skip(RISK_S)
    # Another manager waits for as long.
    await Watch(office.term).look()
    assert await kinds(office, kind="files") == ["files-at-risk"]
    await watch.look()
    assert await kinds(office, kind="files") == ["files-at-risk", "files-safe"]


async def test_a_fault_of_the_catalogs_disk_is_told_with_the_time_at_which_it_was_found(office: Office) -> None:
    assert office.term is not None
    watch, room = Watch(office.term), office.store.room
    room.failed(unreadable(OSError(errno.EIO, "it burns")))
    before_ns = file_time_ns()
    await watch.look()
    (fault,) = await happened(office)
    assert (fault.kind, fault.server) == ("catalog-fault", "s1")
    assert "it burns" in sentence(fault)
    assert fault.time_ns >= before_ns
    await watch.look()
    room.others_write()
    for _ in range(2):
        await watch.look()
        assert await kinds(office) == ["catalog-fault", "catalog-back"]


async def test_problems_are_told_once_whatever_numbers_are_in_them(office: Office) -> None:
    agent, mount = await office.peer("s1", "agent"), await office.peer("s1")
    assert office.term is not None
    watch = Watch(office.term)
    for count in (1, 2):
        await agent.ask(RegisterVolumes("127.0.0.1:7602", [], problems=[f"{count} objects are odd", "it smells"]))
        await mount.ask(Heartbeat(MountCounts(problems=[f"{count}.5 changes lost"])))
        await watch.look()
    rows = await happened(office, kind="server-problem")
    assert sorted((row.fields["problem"], row.count) for row in rows) == [
        ("1 objects are odd", 1),
        ("1.5 changes lost", 1),
        ("it smells", 1),
    ]
    # It is there again, or another manager sees it.
    await Watch(office.term).look()
    assert {row.count for row in await happened(office, kind="server-problem")} == {2}


async def test_a_server_does_not_fill_the_list_with_problems(office: Office) -> None:
    agent = await office.peer("s1", "agent")
    assert office.term is not None
    for letter in "abc":
        problems = [letter * (n + 1) for n in range(15)]
        await agent.ask(RegisterVolumes("127.0.0.1:7602", [], problems=problems))
        await Watch(office.term).look()
    assert len(await happened(office, kind="server-problem")) == 20


def test_what_is_the_same_of_problems() -> None:
    assert cause_of("its log: 12 of 13,5 s") == cause_of("its log: 1 of 2 s") != cause_of("its log: of 2 s")


async def test_they_are_asked_for_by_number_time_server_kind_and_severity(office: Office) -> None:
    for number in range(5):
        await noted(office, EventKind.SERVER_DOWN, server=f"s{number}", time_ns=number * HOUR_NS)
    await noted(office, EventKind.MIGRATION_DONE, server="s1", time_ns=9 * HOUR_NS, migration=1)
    first = (await happened(office))[0].event
    assert [row.server for row in await happened(office, limit=2)] == ["s4", "s1"]
    assert [row.server for row in await happened(office, after=first, limit=2)] == ["s1", "s2"]
    assert [row.server for row in await happened(office, since_ns=3 * HOUR_NS)] == ["s3", "s4", "s1"]
    assert await kinds(office, server="s1") == ["server-down", "migration-done"]
    assert await kinds(office, kind="migration-done") == await kinds(office, kind="migration") == ["migration-done"]
    assert await kinds(office, kind="serv") == []
    assert await kinds(office, severity="warning") == ["server-down"] * 5
    with pytest.raises(Exception, match="severity"):
        await happened(office, severity="loud")


async def test_who_follows_by_the_number_misses_nothing(office: Office) -> None:
    """Whatever is filtered, and however many come at once."""
    after, seen = (await office.admin.ask(ListEvents(limit=1))).newest, []
    for number in range(7):
        await noted(office, EventKind.SERVER_BACK if number % 2 else EventKind.SERVER_DOWN, server=f"s{number}")
    for _ in range(3):
        answer = await office.admin.ask(ListEvents(after=after, kind="server-down", limit=2))
        seen += [row.server for row in answer.events]
        after = answer.newest
    assert seen == ["s0", "s2", "s4", "s6"]
    assert (await office.admin.ask(ListEvents(after=after))).events == []


async def test_a_row_that_is_damaged_does_not_hide_the_others(office: Office) -> None:
    for server in ("s1", "s2"):
        await noted(office, EventKind.SERVER_BACK, server=server)
    await office.store.write(lambda tx: tx.execute(update(events).where(events.c.server == "s1").values(fields='{"a": [1')))
    assert [sentence(row) for row in await happened(office)] == ["s1 is back", "s2 is back"]


async def test_old_ones_are_forgotten_and_so_are_too_many(url: str) -> None:
    now_ns = file_time_ns()
    async with in_office(url, events_keep_s=3600.0) as office:
        assert office.term is not None
        for age in (3, 2, 0):
            await noted(office, EventKind.SERVER_BACK, server=f"s{age}", time_ns=now_ns - age * HOUR_NS)
        await forget_old(office.term)
        (row,) = await happened(office)
        assert row.server == "s0"
        # A number that is far ahead stands for many.
        values = {"event": row.event + EVENTS_MAX, "severity": "info", "kind": "server-back", "server": "s9", "last_ns": now_ns}
        await office.store.write(lambda tx: tx.execute(events.insert(), values))
        await forget_old(office.term)
        assert [row.server for row in await happened(office)] == ["s9"]
        assert not await office.store.write(partial(_forget_all, now_ns=now_ns + HOUR_NS))
        assert await happened(office) == []


def _forget_all(tx: Transaction, now_ns: int) -> bool:
    return forget_oldest(tx.connection, now_ns)
