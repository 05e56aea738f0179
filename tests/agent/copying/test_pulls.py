"""The source's side of a copy: what is served, and what is never served."""

import errno
import fcntl
import mmap
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.copying.pulls import YOUNG_NS
from agent.objects.reading import CHUNK_BYTES, Altered, ObjectReader
from agent.objects.reflinks import FICLONE
from cluster.errors import Changed, Corrupt, GodwitError, Refused, TokenRefused
from cluster.messages import (
    PULLED_MAX_BYTES,
    PULLS_MAX,
    RANGES_MAX,
    SUM_BLOCK_BYTES,
    Chunk,
    PullEnd,
    PullHeader,
    PullObject,
    PullObjects,
    Stamp,
    SumBlocks,
)
from cluster.rpc.connection import Answer
from cluster.volume.content import content_of
from cluster.volume.layout import write_record
from tests.agent.network import TIMEOUT_S, Network, digest, network, record_of, stamp_at
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)

LARGE = 48 * 1024 * 1024
"""More than the buffers between a source and a reader that has stopped."""


async def pulled(net: Network, request: PullObject, after_first: object = None) -> bytes:
    """All bytes of a pull that succeeds, with their digest checked."""
    channel = await net.channel("s1")
    try:
        async with channel.open_stream(request) as replies:
            header = (await anext(replies)).reply
            assert isinstance(header, PullHeader)
            content = b""
            async for answer in replies:
                if isinstance(answer.reply, PullEnd):
                    assert len(content) == header.size
                    assert answer.reply.checksum == digest(content)
                    return content
                assert isinstance(answer.reply, Chunk)
                content += answer.body
                if callable(after_first):
                    after_first()
                    after_first = None
        raise AssertionError("no end")
    finally:
        channel.close()


def request_for(net: Network, ino: int) -> PullObject:
    node = net.manager.nodes[ino]
    return PullObject(ino, node.home_volume, node.version, net.manager.stamp(ino), token_for(ino))


@pytest.mark.parametrize("size", [0, 1, 5000, CHUNK_BYTES, CHUNK_BYTES + 1, 6 * CHUNK_BYTES + 77])
async def test_a_whole_object_is_served_with_its_digest(net: Network, size: int) -> None:
    await net.start("s1")
    content = os.urandom(size)
    await net.file("s1", 7, content)
    before = stamp_at(net.path("s1", 7))
    assert await pulled(net, request_for(net, 7)) == content
    assert stamp_at(net.path("s1", 7)) == before


async def pulled_together(net: Network, requests: list[PullObject]) -> Answer:
    channel = await net.channel("s1")
    try:
        return await channel.exchange(PullObjects(requests), timeout_s=TIMEOUT_S)
    finally:
        channel.close()


async def test_small_objects_are_served_together_and_none_fails_another(net: Network) -> None:
    await net.start("s1")
    contents = {7: b"first", 8: b"", 9: os.urandom(CHUNK_BYTES), 10: b"altered", 11: b"removed", 12: b"refused"}
    for ino, content in contents.items():
        await net.file("s1", ino, content)
    requests = [request_for(net, ino) for ino in contents]
    Path(net.path("s1", 10)).write_bytes(b"altered, and longer")
    os.unlink(net.path("s1", 11))
    requests[5] = msgspec.structs.replace(requests[5], token=b"no token")
    requests.append(msgspec.structs.replace(requests[0], ino=0))
    answer = await pulled_together(net, requests)
    assert answer.body == contents[7] + contents[8] + contents[9]
    results = answer.reply.results
    assert results[:3] == [PullEnd(digest(contents[ino])) for ino in (7, 8, 9)]
    kinds = [result.kind for result in results[3:]]
    assert kinds == [Corrupt.kind, Corrupt.kind, TokenRefused.kind, Refused.kind]


async def test_not_too_much_is_served_together(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, b"content")
    request = request_for(net, 7)
    half = msgspec.structs.replace(request.stamp, size=PULLED_MAX_BYTES // 2 + 1)
    assert len((await pulled_together(net, [request] * PULLS_MAX)).body) == PULLS_MAX * len(b"content")
    elsewhere = msgspec.structs.replace(request, volume=999)
    for many in (
        [],
        [request] * (PULLS_MAX + 1),
        [msgspec.structs.replace(request, stamp=half)] * 2,
        [request, elsewhere],
    ):
        with pytest.raises(Refused):
            await pulled_together(net, many)


async def problem_with(net: Network, request: PullObject, after_first: object = None) -> GodwitError:
    with pytest.raises(GodwitError) as problem:
        await pulled(net, request, after_first)
    return problem.value


async def test_damage_is_corrupt_and_never_served(tmp_path: Path) -> None:
    def truncate(path: str) -> None:
        os.truncate(path, 2_000_000)

    def alter_a_byte_and_restore_mtime(path: str) -> None:
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(1_500_000)
            file.write(b"?")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    async with network(tmp_path) as net:
        await net.start("s1")
        for ino, damage in enumerate((truncate, alter_a_byte_and_restore_mtime, os.unlink), start=7):
            await net.file("s1", ino, os.urandom(3_000_000))
            damage(net.path("s1", ino))
            assert type(await problem_with(net, request_for(net, ino))) is Corrupt


async def test_parts_and_sums_are_served_of_what_was_asked_for_only(net: Network) -> None:
    await net.start("s1")
    content = os.urandom(3 * SUM_BLOCK_BYTES + 5)
    await net.file("s1", 7, content)
    request = request_for(net, 7)
    parts = [(0, 10), (10, 1), (SUM_BLOCK_BYTES, 2 * SUM_BLOCK_BYTES + 5)]
    expected = content[:11] + content[SUM_BLOCK_BYTES:]
    assert await pulled(net, msgspec.structs.replace(request, ranges=parts)) == expected
    channel = await net.channel("s1")
    sums = SumBlocks(request.ino, request.volume, request.version, request.stamp, request.token)
    async with channel.open_stream(sums) as replies:
        answers = [await anext(replies) for _ in range(3)]
    blocks = [content[start : start + SUM_BLOCK_BYTES] for start in range(0, len(content), SUM_BLOCK_BYTES)]
    digests = b"".join(digest(block) for block in blocks)
    assert answers[0].reply == PullHeader(len(digests))
    assert answers[1].body == digests
    assert answers[2].reply == PullEnd(digest(content))
    channel.close()
    for nonsense in ([(5, 0)], [(-1, 5)], [(10, 5), (14, 5)], [(len(content), 1)], [(0, 1)] * (RANGES_MAX + 1)):
        assert type(await problem_with(net, msgspec.structs.replace(request, ranges=nonsense))) is Refused


async def test_a_newer_version_or_a_dirty_inode_is_a_change(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, b"first", dirty=True)
    request = request_for(net, 7)
    Path(net.path("s1", 7)).write_bytes(b"second")
    assert isinstance(await problem_with(net, request), Changed)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=False)
    assert isinstance(await problem_with(net, request), Corrupt)
    descriptor = os.open(net.path("s1", 7), os.O_RDONLY)
    write_record(descriptor, msgspec.structs.replace(record_of(net.path("s1", 7)), version=2))
    os.close(descriptor)
    assert isinstance(await problem_with(net, request), Changed)
    del net.manager.nodes[7]
    os.unlink(net.path("s1", 7))
    assert isinstance(await problem_with(net, request), Refused)


async def test_a_write_while_it_is_sent_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ioctl = fcntl.ioctl

    def without_reflinks(descriptor: int, request: int, *arguments: Any) -> Any:
        if request == FICLONE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return ioctl(descriptor, request, *arguments)

    monkeypatch.setattr(fcntl, "ioctl", without_reflinks)
    async with network(tmp_path) as net:
        await net.start("s1")
        await net.file("s1", 7, bytes(LARGE), dirty=True)
        request = request_for(net, 7)

        def overwrite_the_end() -> None:
            with open(net.path("s1", 7), "r+b") as file:
                file.seek(LARGE - 1)
                file.write(b"!")

        assert isinstance(await problem_with(net, request, overwrite_the_end), Changed)

        def cut_off() -> None:
            os.truncate(net.path("s1", 7), CHUNK_BYTES)

        status = content_of(os.stat(net.path("s1", 7)))
        stamp = msgspec.structs.replace(request.stamp, mtime_ns=status.mtime_ns, ctime_ns=status.ctime_ns)
        request = msgspec.structs.replace(request, stamp=stamp)
        assert isinstance(await problem_with(net, request, cut_off), Changed)


async def test_content_that_denies_its_record_is_corrupt(net: Network) -> None:
    await net.start("s1")
    for ino, size in ((7, 10), (8, 3_000_000)):
        await net.file("s1", ino, os.urandom(size))
        path = net.path("s1", ino)
        descriptor = os.open(path, os.O_RDONLY)
        write_record(descriptor, msgspec.structs.replace(record_of(path), checksum="00" * 32))
        os.close(descriptor)
        request = msgspec.structs.replace(request_for(net, ino), stamp=stamp_at(path))
        assert isinstance(await problem_with(net, request), Corrupt)


async def test_a_fresh_change_is_waited_out_before_the_first_byte(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, b"content")
    changed_s = trio.current_time()
    await pulled(net, request_for(net, 7))
    assert trio.current_time() - changed_s > 0.03


async def test_a_reader_that_stops_holds_up_nobody(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, bytes(LARGE))
    await net.file("s1", 8, b"small")
    slow = await net.channel("s1")
    async with slow.open_stream(request_for(net, 7)) as replies:
        await anext(replies)
        assert await pulled(net, request_for(net, 8)) == b"small"
        assert len(await pulled(net, request_for(net, 7))) == LARGE
    slow.close()


def stored_without_a_trace(path: Path, mapped: mmap.mmap) -> Stamp:
    """The stamp of a file before a 2 was stored in a page that was dirty already, and afterwards."""
    # Again if anybody else's sync of the whole file system has come in between, and had the page written.
    for _ in range(50):
        mapped[0] = 1
        time.sleep(YOUNG_NS / 1e9)  # a second change within a tick of an older kernel's clock would leave no trace
        stamp = stamp_at(str(path))
        mapped[0] = 2
        if stamp_at(str(path)) == stamp:
            return stamp
    raise AssertionError("each store changed the file's times")


def test_what_is_stored_through_a_mapping_while_it_is_read_is_seen(tmp_path: Path) -> None:
    """In a page that was dirty already: until that has been written to the disk, stores into it change no time."""
    path = tmp_path / "object"
    path.write_bytes(bytes(2 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        stamp = stored_without_a_trace(path, mapped)
        with closing(ObjectReader(str(path), stamp, is_written=True)) as reader:
            assert reader.read()[0] == 2
            mapped[0] = 3
            with pytest.raises(Altered):
                reader.check()
