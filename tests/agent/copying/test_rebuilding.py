"""A newer version of a large object is made from the older one that is there: only what differs is sent."""

import os
import random
from pathlib import Path

import msgspec
import pytest
import trio

from agent.objects.blocks import REBUILD_MIN_BYTES, UNLIKE_SHARE, Rebuild, Unlike, is_worth_a_look
from agent.objects.staging import StagedFile
from cluster.messages import SUM_BLOCK_BYTES, TaskReport
from cluster.volume.fence import despite_fence
from tests.agent.network import Network, digest, make_volume, record_of, stamp_at
from tests.agent.relay import relay_to
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)

SIZE = 2 * REBUILD_MIN_BYTES + 77_777
OLD = random.Random(1).randbytes(SIZE)


def changed(content: bytes, *parts: tuple[int, bytes]) -> bytes:
    result = bytearray(content)
    for offset, data in parts:
        result[offset : offset + len(data)] = data
    return bytes(result)


def write(net: Network, content: bytes) -> None:
    """Writes the home's object, whether an agent has fenced it or not."""

    def act() -> None:
        Path(net.path("s1", 7)).write_bytes(content)

    despite_fence(net.path("s1", 7), act)


async def settle_as(net: Network, content: bytes) -> None:
    """The home's object gets other content, and its agent commits it."""
    write(net, content)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.nodes[7].dirty, "settled")


async def copy_twice(net: Network, new: bytes) -> tuple[TaskReport, int]:
    """A copy of `OLD`, then one of *new*; the second report, and how many bytes the source sent for it."""
    await net.start("s1")
    await net.start("s2")
    await net.file("s1", 7, OLD)
    relay = await relay_to(net, "s1")
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert relay.sent >= SIZE
    await settle_as(net, new)
    before = relay.sent
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert net.left_over("s2") == []
    return report, relay.sent - before


CHANGES = {
    "nothing": OLD,
    "one block": changed(OLD, (5 * SUM_BLOCK_BYTES, b"other")),
    "first and last byte": changed(OLD, (0, bytes([OLD[0] ^ 1])), (SIZE - 1, bytes([OLD[-1] ^ 1]))),
    "zeros where something was": changed(OLD, (3 * SUM_BLOCK_BYTES, bytes(SUM_BLOCK_BYTES))),
    "appended": OLD + b"more",
    "cut off": OLD[: SIZE - 1_000_000],
    "a hole at its end": OLD + bytes(2 * SUM_BLOCK_BYTES),
    "zeros at its end": changed(OLD, (SIZE - 3 * SUM_BLOCK_BYTES, bytes(3 * SUM_BLOCK_BYTES))),
}


@pytest.mark.parametrize("new", CHANGES.values(), ids=list(CHANGES))
async def test_a_small_change_costs_little(net: Network, new: bytes) -> None:
    report, sent = await copy_twice(net, new)
    assert (report.outcome, report.version, report.checksum) == ("done", 2, digest(new))
    assert report.stamp == stamp_at(net.path("s2", 7))
    assert net.content("s2", 7) == new
    assert record_of(net.path("s2", 7)).checksum == digest(new).hex()
    assert sent < 0.05 * SIZE


async def test_another_content_is_sent_as_a_whole(net: Network) -> None:
    new = random.Random(2).randbytes(SIZE)
    report, sent = await copy_twice(net, new)
    assert report.outcome == "done"
    assert net.content("s2", 7) == new
    assert SIZE <= sent < 1.05 * SIZE


async def test_holes_of_a_rebuilt_object_stay_holes(net: Network) -> None:
    new = changed(OLD, (0, bytes(SIZE // 4)))
    await copy_twice(net, new)
    await settle_as(net, newer := changed(new, (SIZE - 5, b"end")))
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert net.content("s2", 7) == newer
    assert os.stat(net.path("s2", 7)).st_blocks * 512 < 0.8 * SIZE


async def test_a_source_that_is_written_meanwhile_is_changed(net: Network) -> None:
    await net.start("s1")
    await net.start("s2")
    await net.file("s1", 7, OLD)
    await net.manager.report_of(net.copy(7, "s1", "s2"))
    await settle_as(net, changed(OLD, (9, b"new")))
    write(net, b"newest")
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "changed"
    assert net.content("s2", 7) == OLD
    assert net.left_over("s2") == []


async def test_comparing_for_longer_than_a_pass_is_good(net: Network) -> None:
    await net.start("s1")
    await net.start("s2")
    await net.file("s1", 7, OLD)
    relay = await relay_to(net, "s1")
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    await settle_as(net, new := changed(OLD, (9, b"new")))
    relay.sent = 0
    relay.delay_s, net.manager.access_s = 1.8, 1.2
    report = await net.manager.report_of(net.copy(7, "s1", "s2", token=token_for(7, access_s=1.2)))
    assert report.outcome == "done", report.error
    assert net.content("s2", 7) == new
    assert relay.sent < 0.05 * SIZE


async def test_damage_in_the_older_version_is_not_taken_over(net: Network) -> None:
    await copy_twice(net, changed(OLD, (1, b"x")))
    with open(net.path("s2", 7), "r+b") as file:
        file.seek(6 * SUM_BLOCK_BYTES)
        file.write(b"damage")
    await settle_as(net, new := changed(OLD, (1, b"y")))
    with trio.fail_after(30):
        assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert net.content("s2", 7) == new


def test_when_an_older_version_is_looked_at() -> None:
    assert is_worth_a_look(REBUILD_MIN_BYTES, REBUILD_MIN_BYTES)
    assert is_worth_a_look(10 * REBUILD_MIN_BYTES, REBUILD_MIN_BYTES)
    assert not is_worth_a_look(REBUILD_MIN_BYTES, REBUILD_MIN_BYTES - 1)
    assert not is_worth_a_look(REBUILD_MIN_BYTES // 2, REBUILD_MIN_BYTES)


def test_it_is_given_up_as_soon_as_too_much_differs(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v")
    old = os.open(tmp_path / "old", os.O_RDWR | os.O_CREAT)
    os.ftruncate(old, 100 * SUM_BLOCK_BYTES)
    staged = StagedFile(volume, 7)
    rebuild = Rebuild(old, staged, 100 * SUM_BLOCK_BYTES)
    allowed = int(100 * UNLIKE_SHARE)
    rebuild.compare(memoryview(bytes(32 * allowed)))
    assert rebuild.missing() == [(0, allowed * SUM_BLOCK_BYTES)]
    with pytest.raises(Unlike):
        rebuild.compare(memoryview(bytes(32)))
    staged.discard()
    os.close(old)
    volume.close()
