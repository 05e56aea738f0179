"""What mounts ask of an agent: bytes, times and commits of a home's object."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.serving.dataserver import IO_MAX_BYTES, OPEN_OBJECTS
from cluster.errors import Changed, Fenced, Refused, TokenRefused, Unavailable, Undone
from cluster.leases import READ
from cluster.messages import (
    AllocateObject,
    CommitObject,
    CopyObject,
    CreateObject,
    ReadObject,
    Request,
    SeekObject,
    SetObjectTimes,
    Stamp,
    StatObject,
    SyncObject,
    TruncateObject,
    WriteObject,
)
from tests.agent.fakemanager import regular_file
from tests.agent.network import TIMEOUT_S, Network, Somebody, record_of, stamp_at, with_epoch
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)


async def read(channel: Somebody, ino: int, volume: int, offset: int = 0, length: int = IO_MAX_BYTES) -> bytes:
    return (await channel.exchange(ReadObject(ino, volume, token_for(ino), offset, length), timeout_s=TIMEOUT_S)).body


async def started(net: Network) -> tuple[Somebody, int]:
    await net.start("s1")
    return await net.channel("s1"), net.manager.volume_of("s1")


async def test_bytes_come_back_as_they_were_written(net: Network) -> None:
    channel, volume = await started(net)
    call = channel.call
    await call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    await call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    small, large = os.urandom(1000), os.urandom(3_000_000)
    assert (await call(WriteObject(7, volume, token_for(7), 0), body=small, timeout_s=TIMEOUT_S)).count == len(small)
    assert (await call(WriteObject(7, volume, token_for(7), 1000), body=large, timeout_s=TIMEOUT_S)).count == len(large)
    assert await read(channel, 7, volume) == small + large
    assert await read(channel, 7, volume, 500, 1000) == (small + large)[500:1500]
    assert await read(channel, 7, volume, 3_000_990) == large[-10:]
    assert await read(channel, 7, volume, 9_000_000) == b""
    assert await read(channel, 7, volume, 10, 0) == b""
    await call(TruncateObject(7, volume, token_for(7), 1500), timeout_s=TIMEOUT_S)
    await call(SyncObject(7, volume, token_for(7)), timeout_s=TIMEOUT_S)
    content = (await call(StatObject(7, volume, token_for(7)), timeout_s=TIMEOUT_S)).content
    assert content.size == 1500
    assert content.ctime_ns == os.stat(net.path("s1", 7)).st_ctime_ns
    with pytest.raises(Refused) as refusal:
        await call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    assert refusal.value.errno == errno.EEXIST


async def test_what_is_not_in_the_page_cache_is_read_too(net: Network) -> None:
    channel, volume = await started(net)
    content = os.urandom(600_000)
    await net.file("s1", 7, content)
    descriptor = os.open(net.path("s1", 7), os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert await read(channel, 7, volume, 100_000, 400_000) == content[100_000:500_000]
    assert await read(channel, 7, volume) == content


async def test_appended_records_never_overwrite_one_another(net: Network) -> None:
    channel, volume = await started(net)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    records = [bytes([number]) * size for number, size in enumerate((10, 200_000, 3, 70_000, 5) * 8)]

    async def append(record: bytes) -> None:
        request = WriteObject(7, volume, token_for(7), 0, append=True)
        assert (await channel.call(request, body=record, timeout_s=TIMEOUT_S)).count == len(record)

    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(append, record)
    content = net.content("s1", 7)
    assert len(content) == sum(map(len, records))
    assert all(record in content for record in records)


async def test_a_read_token_is_no_right_to_change_anything(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content", dirty=True)
    token = token_for(7, mode=READ)
    before = os.stat(net.path("s1", 7)).st_mtime_ns
    requests: list[Request[Any]] = [SetObjectTimes(7, volume, token, 1, 1), TruncateObject(7, volume, token, 1)]
    for request in requests:
        with pytest.raises(TokenRefused, match="no right to write"):
            await channel.call(request, timeout_s=TIMEOUT_S)
    assert os.stat(net.path("s1", 7)).st_mtime_ns == before


REFUSED: list[tuple[Callable[[int], object], int]] = [
    (lambda volume: ReadObject(7, volume, token_for(7), -1, 10), errno.EINVAL),
    (lambda volume: ReadObject(7, volume, token_for(7), 0, -1), errno.EINVAL),
    (lambda volume: ReadObject(7, volume, token_for(7), 0, IO_MAX_BYTES + 1), errno.EINVAL),
    (lambda volume: ReadObject(7, volume, token_for(7), 2**63 - 1, 2), errno.EINVAL),
    (lambda volume: WriteObject(7, volume, token_for(7), -5), errno.EINVAL),
    (lambda volume: TruncateObject(7, volume, token_for(7), -1), errno.EINVAL),
    (lambda volume: TruncateObject(7, volume, token_for(7), 2**63), errno.EINVAL),
    (lambda volume: TruncateObject(7, volume, token_for(7), 2**63 - 1), errno.EFBIG),
    (lambda volume: StatObject(-7, volume, token_for(-7)), errno.EINVAL),
    (lambda volume: StatObject(0, volume, token_for(0)), errno.EINVAL),
    (lambda volume: StatObject(2**63, volume, token_for(2**63)), errno.EINVAL),
    (lambda volume: StatObject(99, volume, token_for(99)), errno.ENOENT),
    (lambda volume: SetObjectTimes(99, volume, token_for(99), 1, 1), errno.ENOENT),
    (lambda volume: CommitObject(99, volume, token_for(99), final=True), errno.ENOENT),
]


async def test_nonsense_is_refused_with_its_errno(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    for number, (make, expected) in enumerate(REFUSED):
        with pytest.raises(Refused) as refusal:
            await channel.call(make(volume), timeout_s=TIMEOUT_S)  # type: ignore[arg-type]
        assert refusal.value.errno == expected, number
    for request in (StatObject(7, volume + 50, token_for(7)), CreateObject(8, volume + 50)):
        with pytest.raises(Undone, match="its disk may be away"):
            await channel.call(request, timeout_s=TIMEOUT_S)
    assert net.content("s1", 7) == b"content"


def home_requests(volume: int, token: bytes) -> list[Request[Any]]:
    """Every request to a home."""
    return [
        StatObject(7, volume, token),
        ReadObject(7, volume, token, 0, 10),
        WriteObject(7, volume, token, 0),
        TruncateObject(7, volume, token, 0),
        AllocateObject(7, volume, token, 0, 0, 10),
        SeekObject(7, volume, token, 0, os.SEEK_DATA),
        CopyObject(7, volume, token, 0, ReadObject(7, volume, token, 0, 10)),
        SyncObject(7, volume, token),
        SetObjectTimes(7, volume, token, 0, 0),
        CommitObject(7, volume, token, final=True),
    ]


async def test_an_older_home_epoch_is_fenced_off(net: Network) -> None:
    channel, volume = await started(net)
    net.manager.nodes[7] = regular_file(7, volume, home_epoch=3)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    await channel.call(CommitObject(7, volume, token_for(7, epoch=3), final=False), timeout_s=TIMEOUT_S)
    for request in home_requests(volume, token_for(7, epoch=2)):
        with pytest.raises(Fenced):
            await channel.call(request, timeout_s=TIMEOUT_S)
    await channel.call(StatObject(7, volume, token_for(7, epoch=4)), timeout_s=TIMEOUT_S)
    net.manager.nodes[7] = with_epoch(net.manager.nodes[7], 4)
    with pytest.raises(Fenced):
        await channel.call(CommitObject(7, volume, token_for(7, epoch=3), final=True), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (token_for(7, secret=bytes(32)), "not made by a manager"),
        (token_for(7)[:-1] + b"\x00", "not made by a manager"),
        (token_for(7, server="s2"), "not made by a manager of this cluster for this server"),
        (b"", "not made by a manager"),
        (token_for(8), "for inode 8"),
        (token_for(7, term=2), "term 2, of which this agent has not heard"),
        (token_for(7, age_s=60.1), "expired"),
    ],
    ids=["forged", "altered", "another server's", "none", "another inode", "another term", "expired"],
)
async def test_a_token_that_is_not_good_is_refused(net: Network, token: bytes, why: str) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    for request in home_requests(volume, token):
        with pytest.raises(TokenRefused, match=why):
            await channel.call(request, timeout_s=TIMEOUT_S)
    assert await read(channel, 7, volume) == b"content"


async def test_a_token_to_read_is_no_right_to_write(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    token = token_for(7, mode=READ)
    with pytest.raises(TokenRefused, match="no right to write"):
        await channel.call(WriteObject(7, volume, token, 0), timeout_s=TIMEOUT_S)
    with pytest.raises(TokenRefused, match="no right to write"):
        await channel.call(TruncateObject(7, volume, token, 0), timeout_s=TIMEOUT_S)
    with pytest.raises(TokenRefused, match="no right to write"):
        await channel.call(AllocateObject(7, volume, token, 0, 0, 100), timeout_s=TIMEOUT_S)
    copy = CopyObject(7, volume, token, 7, ReadObject(7, volume, token, 0, 7))
    with pytest.raises(TokenRefused, match="no right to write"):
        await channel.call(copy, timeout_s=TIMEOUT_S)
    assert (await channel.call(StatObject(7, volume, token), timeout_s=TIMEOUT_S)).content.size == 7


async def test_a_replica_is_read_only_with_the_stamp_the_catalog_knows(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    stamp = net.manager.stamp(7)
    request = ReadObject(7, volume, token_for(7, epoch=99), 0, 100, stamp)
    assert (await channel.exchange(request, timeout_s=TIMEOUT_S)).body == b"content"
    other = msgspec.structs.replace(stamp, ctime_ns=stamp.ctime_ns + 1)
    with pytest.raises(Changed):
        await channel.call(ReadObject(7, volume, token_for(7), 0, 100, other), timeout_s=TIMEOUT_S)


async def test_times_of_a_dirty_file_are_set_on_its_object_too(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content", dirty=True)
    node = await channel.call(SetObjectTimes(7, volume, token_for(7), None, 10**18), timeout_s=TIMEOUT_S)
    assert node.mtime_ns == os.stat(net.path("s1", 7)).st_mtime_ns == 10**18
    node = await channel.call(SetObjectTimes(7, volume, token_for(7), 5 * 10**17, None), timeout_s=TIMEOUT_S)
    assert (node.atime_ns, node.mtime_ns) == (5 * 10**17, 10**18)
    node = await channel.call(CommitObject(7, volume, token_for(7), final=True), timeout_s=TIMEOUT_S)
    assert (node.dirty, node.mtime_ns) == (False, 10**18)


async def test_times_of_a_clean_file_leave_its_object_as_it_is(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    before = stamp_at(net.path("s1", 7))
    node = await channel.call(SetObjectTimes(7, volume, token_for(7), 1, 2), timeout_s=TIMEOUT_S)
    assert (node.atime_ns, node.mtime_ns) == (1, 2)
    assert stamp_at(net.path("s1", 7)) == before


async def test_commits_raise_the_version_only_when_something_was_written(net: Network) -> None:
    channel, volume = await started(net)
    node = await net.file("s1", 7, b"content", dirty=True)
    assert (node.version, node.size, node.dirty) == (1, 7, True)
    node = await channel.call(CommitObject(7, volume, token_for(7), final=False), timeout_s=TIMEOUT_S)
    assert node.version == 1
    await channel.call(WriteObject(7, volume, token_for(7), 7), body=b"!", timeout_s=TIMEOUT_S)
    node = await channel.call(CommitObject(7, volume, token_for(7), final=True), timeout_s=TIMEOUT_S)
    assert (node.version, node.size, node.dirty) == (2, 8, False)
    assert record_of(net.path("s1", 7)).version == 2
    assert net.manager.stamp(7) == stamp_at(net.path("s1", 7))


async def test_more_objects_than_descriptors_can_be_used(net: Network) -> None:
    channel, volume = await started(net)
    inodes = range(100, 100 + OPEN_OBJECTS + 50)
    for ino in inodes:
        await channel.call(CreateObject(ino, volume), timeout_s=TIMEOUT_S)
        await channel.call(WriteObject(ino, volume, token_for(ino), 0), body=b"%d" % ino, timeout_s=TIMEOUT_S)
    for ino in inodes:
        assert await read(channel, ino, volume) == b"%d" % ino


async def test_a_stopping_agent_answers_what_it_has_begun(net: Network) -> None:
    channel, volume = await started(net)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    outcomes: list[int] = []

    async def write() -> None:
        request = WriteObject(7, volume, token_for(7), 0, append=True)
        try:
            outcomes.append((await channel.call(request, body=bytes(1 << 20), timeout_s=TIMEOUT_S)).count)
        except Unavailable:
            outcomes.append(0)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(write)
        await net.manager.wait_for(lambda: os.stat(net.path("s1", 7)).st_size > 0, "a write")
        await net.agents["s1"].stop()
    assert sum(outcomes) == os.stat(net.path("s1", 7)).st_size
    assert len(outcomes) == 8


def test_stamps_tell_replaced_bytes(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"a")
    before = stamp_at(str(path))
    status = os.stat(path)

    def rewritten() -> Stamp:
        path.write_bytes(b"b")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return stamp_at(str(path))

    deadline = 200
    while (after := rewritten()) == before and deadline:
        deadline -= 1
    assert (after.size, after.mtime_ns) == (before.size, before.mtime_ns)
    assert after.ctime_ns > before.ctime_ns
