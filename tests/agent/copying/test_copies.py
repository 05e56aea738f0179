"""The target's side: tasks from the queue become verified, durable objects, or reports that say why not."""

import os
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio
from blake3 import blake3

from agent.copying.pulls import SMALL_BYTES
from agent.copying.tasks import is_small
from agent.objects.reading import CHUNK_BYTES
from cluster.messages import Replica, Stamp, Task, TaskOperation, WriteObject
from cluster.volume.extents import allocate
from cluster.volume.fence import despite_fence
from tests.agent.network import TIMEOUT_S, Network, digest, free_address, record_of, stamp_at
from tests.agent.relay import relay_to
from tests.agent.tokens import token_for
from tests.support.acting import KEEP_SIZE, PUNCH_HOLE

pytestmark = pytest.mark.deadline(60)


async def two(net: Network) -> None:
    await net.start("s1")
    await net.start("s2")


@pytest.mark.parametrize("size", [0, 1, 70_000, 256 * 1024, 256 * 1024 + 1, 5_000_001])
async def test_a_copy_is_the_same_and_says_what_it_is(net: Network, size: int) -> None:
    await two(net)
    content = os.urandom(size)
    node = await net.file("s1", 7, content)
    task = net.copy(7, "s1", "s2", path=b"/a/\xff name", mode=0o100640, uid=12, gid=34, checksum=digest(content))
    report = await net.manager.report_of(task)
    path = net.path("s2", 7)
    assert (report.outcome, report.version, report.checksum) == ("done", 1, digest(content))
    assert report.stamp == stamp_at(path)
    assert net.content("s2", 7) == content
    record = record_of(path)
    assert (record.ino, record.version, record.home_epoch) == (7, 1, 1)
    assert record.checksum == digest(content).hex()
    assert os.fsencode(record.path) == b"/a/\xff name"
    assert (record.mode, record.uid, record.gid, record.mtime_ns) == (0o100640, 12, 34, node.mtime_ns)
    assert os.stat(path).st_mtime_ns == node.mtime_ns
    assert net.left_over("s2") == []


async def test_a_newer_version_replaces_a_stale_copy(net: Network) -> None:
    await two(net)
    await net.file("s1", 7, b"one")
    await net.manager.report_of(net.copy(7, "s1", "s2"))
    Path(net.path("s1", 7)).write_bytes(b"one and two")
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: net.manager.nodes[7].version == 2, "settled")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert (report.outcome, report.version) == ("done", 2)
    assert net.content("s2", 7) == b"one and two"


async def test_holes_stay_holes(net: Network) -> None:
    await two(net)
    await net.file("s1", 7, b"")
    with open(net.path("s1", 7), "r+b") as file:
        file.seek(20_000_000)
        file.write(b"in the middle")
        file.truncate(40_000_001)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.nodes[7].dirty, "settled")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "done"
    assert net.content("s2", 7) == net.content("s1", 7)
    assert os.stat(net.path("s2", 7)).st_blocks * 512 < 200_000


SPARSE_BYTES = 300 * 1024 * 1024 + 1
PIECES = {0: b"at the beginning", 70_000_000: os.urandom(3_000_000), SPARSE_BYTES - 5: b"end"}


async def sparse_file(net: Network, pieces: dict[int, bytes]) -> None:
    """A file of s1 with these pieces at their offsets, and holes around them."""
    await net.file("s1", 7, b"")
    with open(net.path("s1", 7), "r+b") as file:
        file.truncate(SPARSE_BYTES)
        for offset, piece in pieces.items():
            os.pwrite(file.fileno(), piece, offset)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.nodes[7].dirty, "settled")


def assert_same_and_sparse(path: str, original: str) -> None:
    subprocess.run(["cmp", path, original], check=True, timeout=60)
    assert os.stat(path).st_blocks * 512 < 5_000_000


@pytest.mark.parametrize("pieces", [PIECES, {}, {1: b"x"}], ids=["pieces", "nothing", "a beginning"])
async def test_holes_are_not_sent(net: Network, pieces: dict[int, bytes]) -> None:
    await two(net)
    await sparse_file(net, pieces)
    relay = await relay_to(net, "s1")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    with open(net.path("s1", 7), "rb") as file:
        assert (report.outcome, report.checksum) == ("done", blake3(file.read()).digest())
    assert_same_and_sparse(net.path("s2", 7), net.path("s1", 7))
    assert relay.sent < 6 * CHUNK_BYTES + 100_000, "chunks with something in them"


async def test_holes_that_an_older_version_has_too_are_not_sent(net: Network) -> None:
    await two(net)
    await sparse_file(net, PIECES)
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"

    def change() -> None:
        """Something where there was a hole, a hole where there was something, and more of it at the end."""
        with open(net.path("s1", 7), "r+b") as file:
            os.pwrite(file.fileno(), b"new" * 100_000, 200_000_000)
            allocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 71_000_000, 1_000_000)
            file.truncate(SPARSE_BYTES + 1_000_000)

    despite_fence(net.path("s1", 7), change)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: net.manager.nodes[7].size == SPARSE_BYTES + 1_000_000, "settled")
    relay = await relay_to(net, "s1")
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert_same_and_sparse(net.path("s2", 7), net.path("s1", 7))
    assert relay.sent < 3_000_000


async def test_holes_of_a_copy_on_the_same_server_stay_holes(net: Network) -> None:
    await net.start_with(net.config("s1", volumes=[str(net.folder / "one"), str(net.folder / "two")]))
    await sparse_file(net, PIECES)
    node, other = net.manager.nodes[7], net.manager.volume_of("s1", 1)
    sources = [Replica(node.home_volume, node.version, net.manager.stamp(7))]
    task = net.manager.put("s1", TaskOperation.COPY, 7, other, node.version, sources=sources, size=node.size)
    assert (await net.manager.report_of(task)).outcome == "done"
    original, copy = (layout.object_path(7) for layout in net.agents["s1"].layouts)
    assert_same_and_sparse(copy, original)


async def test_many_small_copies(net: Network) -> None:
    await two(net)
    contents = {ino: os.urandom(ino) for ino in range(4000, 4300)}
    for ino, content in contents.items():
        await net.file("s1", ino, content)
    tasks = [net.copy(ino, "s1", "s2") for ino in contents]
    for task in tasks:
        assert (await net.manager.report_of(task)).outcome == "done"
    assert all(net.content("s2", ino) == content for ino, content in contents.items())


async def test_a_corrupt_source_is_reported_and_the_next_one_is_used(net: Network) -> None:
    await two(net)
    await net.start("s3")
    content = os.urandom(400_000)
    await net.file("s1", 7, content)
    home = Replica(net.manager.volume_of("s1"), 1, net.manager.stamp(7))
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    copy = Replica(net.manager.volume_of("s2"), 1, report.stamp)
    os.truncate(net.path("s1", 7), 100)
    report = await net.manager.report_of(net.copy(7, "s1", "s3", sources=[home, copy]))
    assert (report.outcome, report.source_volume) == ("done", home.volume)
    assert "stamp" in report.source_error
    assert net.content("s3", 7) == content


async def test_content_that_is_not_the_catalogs_is_never_taken(net: Network) -> None:
    await two(net)
    for ino, size in ((7, 10), (8, 400_000)):
        await net.file("s1", ino, os.urandom(size))
        report = await net.manager.report_of(net.copy(ino, "s1", "s2", checksum=digest(b"something else")))
        assert (report.outcome, report.source_volume) == ("retry", net.manager.volume_of("s1"))
        assert "digest" in report.source_error
        assert not os.path.exists(net.path("s2", ino))
    assert net.left_over("s2") == []


async def test_a_file_that_is_being_written_is_changed(net: Network) -> None:
    await two(net)
    await net.file("s1", 7, b"first", dirty=True)
    channel = await net.channel("s1")
    request = WriteObject(7, net.manager.volume_of("s1"), token_for(7), 0, append=True)
    await channel.call(request, body=b" and more", timeout_s=TIMEOUT_S)
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "changed"
    assert not os.path.exists(net.path("s2", 7))


async def test_without_a_source_the_task_is_tried_later(net: Network) -> None:
    await two(net)
    await net.file("s1", 7, b"content")
    unknown = Replica(99, 1, net.manager.stamp(7))
    stampless = Replica(net.manager.volume_of("s1"), 1, None)
    report = await net.manager.report_of(net.copy(7, "s1", "s2", sources=[unknown, stampless]))
    assert report.outcome == "retry"
    assert "99" in report.error
    assert "stamp" in report.error
    report = await net.manager.report_of(net.copy(7, "s1", "s2", sources=[]))
    assert report.outcome == "retry"
    await net.agents["s1"].kill()
    for size in (7, 500_000):
        stamp = msgspec.structs.replace(net.manager.stamp(7), size=size)
        source = Replica(net.manager.volume_of("s1"), 1, stamp)
        report = await net.manager.report_of(net.copy(7, "s1", "s2", sources=[source], size=size))
        assert report.outcome == "retry"
        assert report.source_error == ""
    assert net.left_over("s2") == []


async def test_a_home_is_never_overwritten(net: Network) -> None:
    await two(net)
    await net.file("s1", 7, b"precious")
    await net.file("s2", 8, b"other")
    source = Replica(net.manager.volume_of("s2"), 5, net.manager.stamp(8))
    task = net.manager.put("s1", "copy", 7, net.manager.volume_of("s1"), 5, sources=[source], size=5)
    report = await net.manager.report_of(task)
    assert report.outcome == "failed"
    assert net.content("s1", 7) == b"precious"


async def test_tasks_that_make_no_sense_fail_with_a_reason(net: Network) -> None:
    await two(net)
    manager = net.manager
    report = await manager.report_of(manager.put("s2", "polish", 7, manager.volume_of("s2")))
    assert report.outcome == "failed"
    report = await manager.report_of(manager.put("s2", TaskOperation.DELETE, 7, manager.volume_of("s1")))
    assert report.outcome == "retry"
    assert "no volume" in report.error


async def test_a_deleted_object_is_in_the_trash_until_its_time_has_come(net: Network) -> None:
    await net.start("s1")
    manager, trash = net.manager, net.agents["s1"].layout.trash
    volume = manager.volume_of("s1")
    await net.file("s1", 7, b"content")
    for _ in range(2):
        assert (await manager.report_of(manager.put("s1", TaskOperation.DELETE, 7, volume))).outcome == "done"
        assert not os.path.exists(net.path("s1", 7))
    (kept,) = trash.iterdir()
    assert kept.read_bytes() == b"content"
    assert kept.name.startswith("7.")

    config = net.agents["s1"].config
    await net.agents["s1"].stop()
    agent = msgspec.structs.replace(config.agent, trash_keep_s=0.0, listen=free_address())
    await net.start_with(msgspec.structs.replace(config, agent=agent))
    await manager.wait_for(lambda: not list(trash.iterdir()), "purged")


async def test_what_a_killed_agent_had_finished_is_confirmed_and_not_copied_again(net: Network) -> None:
    await two(net)
    content = os.urandom(300_000)
    await net.file("s1", 7, content)
    net.manager.hold_reports = True
    task = net.copy(7, "s1", "s2")
    await net.manager.wait_for(lambda: os.path.exists(net.path("s2", 7)), "the rename")
    before = stamp_at(net.path("s2", 7))
    config = net.agents["s2"].config
    await net.agents["s2"].kill()
    (net.agents["s2"].layout.staging / "9.abandoned").write_bytes(b"half")
    await net.agents["s1"].kill()
    net.manager.hold_reports = False
    assert net.manager.reports == []
    await net.start_with(config)
    report = await net.manager.report_of(task)
    assert (report.outcome, report.version, report.checksum) == ("done", 1, digest(content))
    assert report.stamp == before == stamp_at(net.path("s2", 7))
    assert net.left_over("s2") == []


async def test_a_damaged_copy_is_not_confirmed_but_made_again(net: Network) -> None:
    await two(net)
    content = os.urandom(300_000)
    await net.file("s1", 7, content)
    await net.manager.report_of(net.copy(7, "s1", "s2"))
    with open(net.path("s2", 7), "r+b") as file:
        file.write(b"damage")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "done"
    assert net.content("s2", 7) == content


async def test_claims_are_kept_while_a_copy_takes_its_time(net: Network) -> None:
    await net.start("s1")
    config = net.config("s2")
    manager = msgspec.structs.replace(config.manager, claim_timeout_s=0.3)
    await net.start_with(msgspec.structs.replace(config, manager=manager))
    await net.file("s1", 7, b"content")
    net.manager.hold_reports = True
    task = net.copy(7, "s1", "s2")
    await net.manager.wait_for(lambda: net.manager.extended.count(task) >= 2, "claims extended")
    net.manager.hold_reports = False
    net.manager.notify()
    assert (await net.manager.report_of(task)).outcome == "done"


async def test_one_inode_is_worked_on_by_one_task_at_a_time(net: Network, tmp_path: Path) -> None:
    await net.start("s1")
    roots = [str(tmp_path / "a"), str(tmp_path / "b")]
    await net.start_with(net.config("s2", volumes=roots))
    await net.file("s1", 7, os.urandom(1_000_000))
    first, second = (net.manager.volume_of("s2", index) for index in (0, 1))
    source = Replica(net.manager.volume_of("s1"), 1, net.manager.stamp(7))
    tasks = [net.manager.put("s2", "copy", 7, volume, 1, sources=[source], size=1_000_000) for volume in (first, second, first)]
    for task in tasks:
        assert (await net.manager.report_of(task)).outcome == "done"
    contents = {Path(layout.object_path(7)).read_bytes() for layout in net.agents["s2"].layouts}
    assert contents == {net.content("s1", 7)}
    assert net.left_over("s2") == []


async def test_a_stopping_agent_reports_what_it_has_done(net: Network) -> None:
    await two(net)
    for ino in range(20, 40):
        await net.file("s1", ino, os.urandom(100))
    tasks = [net.copy(ino, "s1", "s2") for ino in range(20, 40)]
    await net.manager.wait_for(lambda: net.manager.claims, "claims")
    with trio.fail_after(4):
        await net.agents["s2"].stop()
    assert not net.manager.claims
    assert {report.task for report in net.manager.reports} == set(tasks)
    assert net.left_over("s2") == []


async def test_a_source_whose_server_is_down_comes_last(net: Network) -> None:
    await two(net)
    await net.start("s3")
    await net.file("s1", 7, b"content")
    home = Replica(net.manager.volume_of("s1"), 1, net.manager.stamp(7))
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    copy = Replica(net.manager.volume_of("s2"), 1, report.stamp)
    os.truncate(net.path("s1", 7), 0)
    net.manager.down = {"s1"}
    report = await net.manager.report_of(net.copy(7, "s1", "s3", sources=[home, copy]))
    assert (report.outcome, report.source_error) == ("done", "")


def test_what_size_a_task_is_of() -> None:
    def task(operation: str, size: int, *sources: int) -> Task:
        replicas = [Replica(1, 1, Stamp(source, 0, 0)) for source in sources]
        return Task(1, 1, operation, 7, 1, 1, size=size, sources=[*replicas, Replica(2, 1, None)])

    assert is_small(task(TaskOperation.COPY, SMALL_BYTES, SMALL_BYTES))
    assert is_small(task(TaskOperation.DELETE, 10**12))
    assert not is_small(task(TaskOperation.COPY, 0, 5, SMALL_BYTES + 1))
    assert not is_small(task(TaskOperation.COPY, SMALL_BYTES + 1))
