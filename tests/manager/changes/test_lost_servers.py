"""A server that is declared lost: what its files fall back to, and what becomes of what it alone had when it is back."""

import errno

import pytest
from sqlalchemy import select

from cluster.errors import Refused
from cluster.messages import (
    ROOT_INO,
    AddServer,
    Close,
    Closing,
    Commit,
    Content,
    FindStrays,
    ForgetForsaken,
    GetServer,
    GetStatus,
    KeepForsaken,
    ListForsaken,
    LoseServer,
    NameForsaken,
    Open,
    ReportTasks,
    Rmdir,
    Stamp,
    TaskReport,
    Unlink,
)
from manager.catalog.schema import abandoned
from tests.manager.changes.scene import Scene, scene_in
from tests.manager.office import NOW, in_office

CONTENT = Content(33, 8, NOW + 50, NOW + 60)


async def test_files_fall_back_to_what_others_have_and_the_others_stay(scene: Scene) -> None:
    whole = await scene.file(b"whole")
    dirty = await scene.file(b"dirty")
    older = await scene.file(b"older")
    only = await scene.file(b"only", copied=False)
    await scene.write(older, 2)
    await scene.dirty(dirty)
    foreseen = await scene.lose(dry_run=True)
    assert (foreseen.whole, foreseen.older, foreseen.only, foreseen.paths) == (1, 2, 1, [b"/only"])
    assert (foreseen.older_bytes, foreseen.only_bytes) == (30, 10)
    assert (await scene.agents["s2"].ask(GetServer("s1"))).info.state == "down"
    assert await scene.lose() == foreseen
    await scene.fall()
    for node, version in ((whole, 1), (dirty, 2), (older, 3)):
        seen = await scene.where(node.ino)
        assert await scene.home(node.ino) in ("s2", "s3")
        assert (seen.node.version, seen.node.dirty, seen.node.home_epoch, seen.node.size) == (version, False, 2, 10)
    assert await scene.home(only.ino) == "s1"
    lost = next(row for row in (await scene.where(only.ino)).replicas if row.home)
    assert (lost.server, lost.state) == ("s1", "lost")
    assert (await scene.where(older.ino)).forsaken == ["s1"]
    assert (await scene.where(whole.ino)).forsaken == []
    details = await scene.agents["s2"].ask(GetServer("s1"))
    assert (details.info.state, details.forsaken, details.holdings.homes) == ("lost", 2, 1)
    assert (await scene.agents["s2"].ask(GetStatus())).forsaken == 2


async def test_a_file_that_is_mostly_a_hole_needs_no_more_room_after_it_fell_back(scene: Scene) -> None:
    """The stamp of what is left tells its length only, for which no disk has room."""
    node = await scene.mount.make(b"mostly a hole")
    await scene.mount.one(Commit(node.ino, 1, 1, Content(2**40, 24, NOW + 1, NOW + 1), True))
    await scene.mount.ask(Close([Closing(node.ino, 9)]))
    ((copier, task),) = [(agent, task) for agent in scene.agents.values() for task in await agent.claim()]
    done = TaskReport(task.task, task.claim, "done", version=1, checksum=b"c" * 32, stamp=Stamp(2**40, 1, 1))
    await copier.ask(ReportTasks([done]))
    await scene.dirty(node)
    await scene.lose()
    await scene.fall()
    seen = (await scene.where(node.ino)).node
    assert (seen.version, seen.size, seen.blocks) == (2, 2**40, 24)
    left = [scene.agents["s2"], scene.agents["s3"]]
    assert [task.ino for agent in left for task in await agent.claim()] == [node.ino]


async def test_who_may_be_lost(scene: Scene) -> None:
    ask = scene.agents["s2"].ask
    for server, why in (("s1", "only a server that is down"), ("s2", "is the manager"), ("s9", "there is no server")):
        with pytest.raises(Refused, match=why):
            await ask(LoseServer(server))
    with pytest.raises(Refused, match="only a server that is down"):
        await ask(LoseServer("s3", force=True))
    await scene.lose()
    await ask(LoseServer("s1"))
    with pytest.raises(Refused, match="was declared lost"):
        await scene.office.peer("s1")
    assert (await ask(AddServer("s1", 60.0))).outcome == "readmitted"


async def test_a_file_that_somebody_may_be_writing_waits(scene: Scene) -> None:
    node = await scene.file(b"f")
    await scene.write(node, 2)
    other = await scene.office.peer("s3")
    await other.ask(Open(node.ino, True, 1))
    await scene.lose()

    async def looked_at() -> bool:
        return bool(await scene.rows(f"SELECT after FROM volume_scans WHERE volume = 1 AND after >= {node.ino}"))

    await scene.office.background(looked_at)
    assert await scene.home(node.ino) == "s1"
    await other.ask(Close([Closing(node.ino, 2)]))
    scene.office.state.leases.expire(1e12)
    await scene.fall()
    assert await scene.home(node.ino) != "s1"


async def test_the_next_manager_goes_on(url: str) -> None:
    async with in_office(url, "s2") as office:
        scene = await scene_in(office)
        nodes = [await scene.file(b"%d" % number) for number in range(5)]
        for node in nodes:
            await scene.write(node, 2)
        await scene.lose()
    async with in_office(url, "s3") as office:
        office.state.in_grace = False
        scene = Scene(office, await office.peer("s2"), {"s2": await office.peer("s2", "agent")})
        await scene.fall()
        assert [(await scene.where(node.ino)).node.version for node in nodes] == [3] * 5
        assert office.state.has_abandoned
    async with in_office(url, "s3") as office:
        assert office.state.has_abandoned


async def test_nothing_is_put_over_what_was_abandoned_and_nobody_deletes_it(scene: Scene) -> None:
    kept, removed = await scene.file(b"kept"), await scene.file(b"removed")
    for node in (kept, removed):
        await scene.write(node, 2)
    await scene.lose()
    await scene.fall()
    await (await scene.office.peer("s2")).apply(Unlink(ROOT_INO, b"removed", NOW))
    agent = await scene.come_back()
    await scene.fall()
    assert await agent.claim() == []
    assert await scene.rows("SELECT task FROM tasks WHERE volume = 1") == []
    assert (await agent.ask(FindStrays(1, [kept.ino, removed.ino]))).inodes == []
    found = (await agent.ask(ListForsaken())).objects
    assert [(item.ino, item.volume, item.stamp, item.kept_size, item.conflict) for item in found] == [
        (kept.ino, 1, None, 10, 0),
        (removed.ino, 1, None, 10, 0),
    ]
    assert found[0].kept_checksum == b"c" * 32
    for node in (kept, removed):
        await agent.ask(ForgetForsaken(1, node.ino))
    assert (await agent.ask(FindStrays(1, [kept.ino, removed.ino]))).inodes == [kept.ino, removed.ino]
    with pytest.raises(Refused) as again:
        await agent.ask(ForgetForsaken(1, kept.ino))
    assert again.value.errno == errno.ENOENT


async def test_what_was_not_committed_is_known_by_its_stamp(scene: Scene) -> None:
    node = await scene.file(b"f")
    await scene.dirty(node)
    await scene.lose()
    await scene.fall()
    agent = await scene.come_back()
    (item,) = (await agent.ask(ListForsaken())).objects
    assert item.stamp == Stamp(10, NOW + 1, NOW + 1)


async def test_it_is_kept_beside_the_file_as_a_file_of_its_own(scene: Scene) -> None:
    directory = await scene.mount.mkdir(b"d")
    node = await scene.file(b"plan", parent=directory.ino)
    await scene.write(node, 2)
    await scene.lose()
    await scene.fall()
    agent = await scene.come_back()
    number = (await agent.ask(KeepForsaken(1, node.ino))).first
    assert (await agent.ask(KeepForsaken(1, node.ino))).first == number, "a repeat draws no other"
    assert (await agent.ask(FindStrays(1, [number]))).inodes == [], "the object that was renamed is no stray"
    path = (await agent.ask(NameForsaken(1, node.ino, CONTENT))).path
    assert path == b"/d/plan.conflict-s1-20231114T221320"
    with pytest.raises(Refused) as again:
        await agent.ask(NameForsaken(1, node.ino, CONTENT))
    assert again.value.errno == errno.ENOENT
    kept = (await scene.where(number)).node
    assert (kept.size, kept.mtime_ns, kept.mode, kept.uid, kept.gid) == (33, NOW + 50, 0o100640, 7, 8)
    assert (kept.version, kept.dirty, kept.nlink, await scene.home(number)) == (1, False, 1, "s1")
    assert [replica.checksum for replica in (await scene.where(number)).replicas] == [b""]
    assert [task.operation for task in (await scene.where(number)).pending] == ["copy"]
    assert (await agent.ask(GetServer("s1"))).conflicts == [path]
    assert (await agent.ask(GetStatus())).conflicts == 1
    await (await scene.office.peer("s2")).apply(Unlink(directory.ino, path.rpartition(b"/")[2], NOW))

    async def forgotten() -> bool:
        return (await agent.ask(GetStatus())).conflicts == 0

    await scene.office.background(forgotten)


@pytest.mark.parametrize("gone", ["file", "directory"])
async def test_it_is_kept_where_the_file_was_or_in_lost_and_found(scene: Scene, gone: str) -> None:
    paths = []
    directory = await scene.mount.mkdir(b"d")
    nodes = [
        await scene.file(b"f" * 255, parent=directory.ino) if gone == "file" else await scene.file(b"f", parent=directory.ino)
    ]
    nodes.append(await scene.file(b"g", parent=directory.ino))
    for node in nodes:
        await scene.write(node, 2)
    await scene.lose()
    await scene.fall()
    other = await scene.office.peer("s2")
    await other.apply(Unlink(directory.ino, b"f" * 255 if gone == "file" else b"f", NOW), Unlink(directory.ino, b"g", NOW))
    if gone == "directory":
        await other.apply(Rmdir(ROOT_INO, b"d", NOW))
    agent = await scene.come_back()
    for node in nodes:
        await agent.ask(KeepForsaken(1, node.ino))
        paths.append((await agent.ask(NameForsaken(1, node.ino, CONTENT))).path)
    folder = b"/d/" if gone == "file" else b"/lost+found/"
    assert all(path.startswith(folder) and b".conflict-s1-" in path for path in paths)
    assert all(len(path.rpartition(b"/")[2]) <= 255 for path in paths)
    assert len(set(paths)) == 2
    if gone == "directory":
        found = await other.lookup(b"lost+found")
        assert (found.mode, found.uid, found.nlink) == (0o040700, 0, 2)


async def test_two_conflicts_of_one_moment_get_two_names(scene: Scene) -> None:
    node = await scene.file(b"f")
    await scene.mount.make(b"f.conflict-s1-20231114T221320")
    await scene.write(node, 2)
    await scene.lose()
    await scene.fall()
    agent = await scene.come_back()
    await agent.ask(KeepForsaken(1, node.ino))
    assert (await agent.ask(NameForsaken(1, node.ino, CONTENT))).path == b"/f.conflict-s1-20231114T221320-2"
    rows = await scene.office.store.read(lambda connection: connection.execute(select(abandoned.c.ino)).all())
    assert rows == []
