"""Where an object has blocks and holes, and copies from one object to another, as mounts ask an agent for them."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import Refused
from cluster.leases import READ
from cluster.messages import AllocateObject, CommitObject, CopyObject, CreateObject, ReadObject, Request, SeekObject
from cluster.volume.extents import COPY_MAX_BYTES
from tests.agent.fakemanager import regular_file
from tests.agent.network import TIMEOUT_S, Network, Somebody
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)

BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x20


def copy_of(
    ino: int, volume: int, source: int, token: bytes, *, offset: int = 0, length: int = 7, source_volume: int = 0
) -> CopyObject:
    """A copy of the beginning of *source*, for which *token* is, to *offset* of *ino*."""
    own = token if source == ino else token_for(ino)
    return CopyObject(ino, volume, own, offset, ReadObject(source, source_volume or volume, token, 0, length))


async def started(net: Network) -> tuple[Somebody, int]:
    await net.start("s1")
    return await net.channel("s1"), net.manager.volume_of("s1")


async def test_space_is_allocated_punched_and_found(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"x" * 3 * BLOCK)

    async def allocate(mode: int, offset: int, length: int) -> os.stat_result:
        await channel.call(AllocateObject(7, volume, token_for(7), mode, offset, length), timeout_s=TIMEOUT_S)
        return os.stat(net.path("s1", 7))

    async def seek(offset: int, whence: int) -> int | None:
        request = SeekObject(7, volume, token_for(7), offset, whence)
        return (await channel.call(request, timeout_s=TIMEOUT_S)).offset

    assert (await allocate(0, 3 * BLOCK, BLOCK)).st_size == 4 * BLOCK
    kept = await allocate(KEEP_SIZE, 4 * BLOCK, 16 * BLOCK)
    assert (kept.st_size, kept.st_blocks * 512 >= 20 * BLOCK) == (4 * BLOCK, True)
    await allocate(PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
    assert net.content("s1", 7) == b"x" * BLOCK + bytes(BLOCK) + b"x" * BLOCK + bytes(BLOCK)
    assert [await seek(0, os.SEEK_DATA), await seek(0, os.SEEK_HOLE)] == [0, BLOCK]
    assert [await seek(BLOCK, os.SEEK_DATA), await seek(BLOCK, os.SEEK_HOLE)] == [2 * BLOCK, BLOCK]
    assert [await seek(4 * BLOCK, os.SEEK_DATA), await seek(4 * BLOCK, os.SEEK_HOLE)] == [None, None]
    await allocate(COLLAPSE_RANGE, BLOCK, BLOCK)
    assert net.content("s1", 7) == b"x" * 2 * BLOCK + bytes(BLOCK)
    await allocate(INSERT_RANGE, 0, BLOCK)
    assert net.content("s1", 7) == bytes(BLOCK) + b"x" * 2 * BLOCK + bytes(BLOCK)


async def test_what_is_allocated_is_committed(net: Network) -> None:
    channel, volume = await started(net)
    await net.start("s2")
    node = await net.file("s1", 7, b"content", dirty=True)
    await channel.call(AllocateObject(7, volume, token_for(7), KEEP_SIZE, 0, 100 * BLOCK), timeout_s=TIMEOUT_S)
    committed = await channel.call(CommitObject(7, volume, token_for(7), final=True), timeout_s=TIMEOUT_S)
    assert (committed.version, committed.size) == (node.version + 1, 7)
    assert committed.blocks * 512 >= 100 * BLOCK
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert net.content("s2", 7) == b"content"


async def test_objects_of_one_server_are_copied_there(net: Network) -> None:
    channel, volume = await started(net)
    content = os.urandom(COPY_MAX_BYTES + 5000)
    await net.file("s1", 7, content)
    await net.file("s1", 8, b"before")

    async def copy(start: int, offset: int, length: int) -> int:
        source = ReadObject(7, volume, token_for(7, mode=READ), start, length)
        return (await channel.call(CopyObject(8, volume, token_for(8), offset, source), timeout_s=TIMEOUT_S)).count

    assert await copy(0, 3, 10) == 10
    assert net.content("s1", 8) == b"bef" + content[:10]
    assert await copy(0, 0, len(content)) == COPY_MAX_BYTES
    assert await copy(COPY_MAX_BYTES, COPY_MAX_BYTES, len(content)) == 5000
    assert await copy(len(content), len(content), 10) == 0
    assert net.content("s1", 8) == content


async def test_an_older_home_is_no_source(net: Network) -> None:
    channel, volume = await started(net)
    net.manager.nodes[7] = regular_file(7, volume, home_epoch=3)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    await channel.call(CommitObject(7, volume, token_for(7, epoch=3), final=False), timeout_s=TIMEOUT_S)
    await net.file("s1", 8, b"content")
    with pytest.raises(Refused) as refusal:
        await channel.call(copy_of(8, volume, 7, token_for(7, epoch=2)), timeout_s=TIMEOUT_S)
    assert refusal.value.errno == errno.EXDEV
    assert net.content("s1", 8) == b"content"


REFUSED: list[tuple[Callable[[int], Request[Any]], int]] = [
    (lambda volume: AllocateObject(7, volume, token_for(7), 0, -1, 10), errno.EINVAL),
    (lambda volume: AllocateObject(7, volume, token_for(7), 0, 2**63 - 1, 2), errno.EINVAL),
    (lambda volume: AllocateObject(7, volume, token_for(7), 0, 0, 0), errno.EINVAL),
    (lambda volume: AllocateObject(7, volume, token_for(7), 0, 2**62, 1), errno.EFBIG),
    (lambda volume: AllocateObject(7, volume, token_for(7), 0x1000, 0, 10), errno.EOPNOTSUPP),
    (lambda volume: AllocateObject(7, volume, token_for(7), 2**31, 0, 10), errno.EOPNOTSUPP),
    (lambda volume: SeekObject(7, volume, token_for(7), -1, os.SEEK_DATA), errno.EINVAL),
    (lambda volume: SeekObject(7, volume, token_for(7), 0, os.SEEK_SET), errno.EINVAL),
    (lambda volume: copy_of(7, volume, 7, token_for(7), offset=-1), errno.EINVAL),
    (lambda volume: copy_of(7, volume, 7, token_for(7), length=2**63), errno.EINVAL),
    (lambda volume: copy_of(7, volume, 7, token_for(7), offset=3), errno.EINVAL),
    (lambda volume: copy_of(7, volume, 99, token_for(99)), errno.EXDEV),
    (lambda volume: copy_of(7, volume, 99, token_for(7)), errno.EXDEV),
    (lambda volume: copy_of(7, volume, 7, token_for(7), source_volume=volume + 50), errno.EXDEV),
]


async def test_nonsense_is_refused_with_its_errno(net: Network) -> None:
    channel, volume = await started(net)
    await net.file("s1", 7, b"content")
    for number, (make, expected) in enumerate(REFUSED):
        with pytest.raises(Refused) as refusal:
            await channel.call(make(volume), timeout_s=TIMEOUT_S)
        assert refusal.value.errno == expected, number
    assert net.content("s1", 7) == b"content"
