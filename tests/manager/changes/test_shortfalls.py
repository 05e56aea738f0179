"""Files below their policy: noted with the reason, listed, and looked at again when room has come."""

from cluster.messages import GetStatus, GetWhere, ListBelowPolicy, ListTasks, ReportTasks, TaskReport, TaskState
from manager.changes.shortfalls import reexamine, try_again
from manager.rules.placement import Layout, Place, why_short
from manager.workers.shortfalls import Room
from tests.manager.office import GIB, Office


def place(volume: int, *, free: int = 100 * GIB, accepts: bool = True, counts: bool = True) -> Place:
    return Place(volume, f"s{volume}", f"d{volume}", 200 * GIB, free, up=True, counts=counts, accepts=accepts)


def test_why_a_copy_has_no_place() -> None:
    layout = Layout((1,), 1, ())
    for places, why in (
        ([place(1)], "not enough volumes"),
        ([place(1), place(2, counts=False)], "not enough volumes"),
        ([place(1), place(2, accepts=False)], "takes new copies"),
        ([place(1), place(2, free=0)], "has room"),
    ):
        assert why in why_short(1, 10, layout, {one.volume: one for one in places})


def test_when_files_are_looked_at_again() -> None:
    room = Room(0.0)
    assert room.has_come({2: place(2, free=GIB)}, 0.0)
    assert not room.has_come({2: place(2, free=GIB)}, 1.0)
    assert not room.has_come({2: place(2, free=0)}, 2.0)
    assert room.has_come({2: place(2, free=3 * GIB)}, 3.0)
    assert not room.has_come({2: place(2, free=3 * GIB), 3: place(3, accepts=False)}, 4.0)
    assert room.has_come({2: place(2, free=3 * GIB), 3: place(3)}, 5.0)
    assert room.has_come({2: place(2, free=3 * GIB), 3: place(3)}, 5000.0)


async def test_a_file_gets_its_copy_when_room_has_come(office: Office) -> None:
    _, s2, s3 = await office.three_servers()
    mount = await office.peer()
    for agent, uuid in ((s2, "u2"), (s3, "u3")):
        await agent.volume(uuid, free=0)
    node = await mount.make(b"f")
    await mount.commit(node.ino, 1)
    assert (await mount.ask(GetStatus())).below_policy == 1
    (row,) = (await mount.ask(ListBelowPolicy())).files
    assert (row.ino, row.path, row.reason) == (node.ino, b"/f", "1 copy has no place: no other volume has room")
    assert (await mount.ask(GetWhere(node.ino))).shortfall == row.reason
    await s3.volume("u3")
    assert await office.store.write(lambda tx: reexamine(tx, office.state, 0)) == node.ino
    (task,) = await s3.claim()
    (row,) = (await mount.ask(ListBelowPolicy())).files
    assert row.reason == "a copy is claimed in the queue of s3"
    await s3.ask(ReportTasks([TaskReport(task.task, task.claim, "failed", "No space left")]))
    assert (await mount.ask(ListTasks(state=TaskState.DEAD))).total == 1
    assert await office.store.write(lambda tx: try_again(tx, office.state, 0)) == task.task
    (task,) = await s3.claim()
    await s3.done(task)
    assert (await mount.ask(ListBelowPolicy())).files == []
    assert (await mount.ask(GetStatus())).below_policy == 0
