"""Copies within one server, and what a file system with reflinks spares: the ioctl is played by one that copies.

With real ones: `test_filesystems.py`.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.copying.pulls import SMALL_BYTES
from agent.objects.reading import CHUNK_BYTES, Altered, ObjectReader
from agent.objects.reflinks import FICLONE, clone, snapshot
from agent.objects.staging import StagedFile
from cluster.messages import Replica
from tests.agent.network import Network, digest, make_volume, record_of, stamp_at
from tests.agent.relay import relay_to

pytestmark = pytest.mark.deadline(60)

real_ioctl = fcntl.ioctl


class Reflinks:
    """Stands in for a file system with reflinks; `before` is done to a source before it is cloned."""

    def __init__(self) -> None:
        self.made = 0
        self.error = 0
        self.before: Callable[[], object] = int

    def ioctl(self, target: int, request: int, *arguments: Any) -> Any:
        if request != FICLONE:
            return real_ioctl(target, request, *arguments)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.before()
        self.made += 1
        (source,) = arguments
        os.ftruncate(target, 0)
        os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
        return 0


@pytest.fixture
def reflinks(monkeypatch: pytest.MonkeyPatch) -> Reflinks:
    made = Reflinks()
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    return made


async def copied_to_the_other_volume(net: Network, tmp_path: Path, content: bytes) -> None:
    """Also looks at how: nothing may come over the network, although a remote source is named first."""
    await net.start_with(net.config("s1", volumes=[str(tmp_path / "a"), str(tmp_path / "b")]))
    await net.start("s2")
    await net.file("s1", 7, content)
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    remote = Replica(net.manager.volume_of("s2"), 1, report.stamp)
    home = Replica(net.manager.volume_of("s1"), 1, net.manager.stamp(7))
    relays = [await relay_to(net, server) for server in ("s1", "s2")]
    target = net.manager.volume_of("s1", 1)
    task = net.manager.put("s1", "copy", 7, target, 1, sources=[remote, home], size=len(content), path=b"/x", mode=0o100600)
    report = await net.manager.report_of(task)
    path = net.agents["s1"].layouts[1].object_path(7)
    assert (report.outcome, report.checksum, report.stamp) == ("done", digest(content), stamp_at(path))
    assert Path(path).read_bytes() == content
    assert (record_of(path).checksum, record_of(path).version) == (digest(content).hex(), 1)
    assert [relay.sent for relay in relays] == [0, 0]
    assert net.left_over("s1") == []


@pytest.mark.parametrize("size", [0, 5, SMALL_BYTES + 1, 3 * CHUNK_BYTES + 5])
async def test_a_copy_within_a_server_never_leaves_it(net: Network, tmp_path: Path, size: int) -> None:
    await copied_to_the_other_volume(net, tmp_path, os.urandom(size))


async def test_it_is_a_reflink_where_there_are_such(net: Network, tmp_path: Path, reflinks: Reflinks) -> None:
    await copied_to_the_other_volume(net, tmp_path, os.urandom(3_000_000))
    assert reflinks.made


async def test_a_corrupt_source_on_the_same_server_is_blamed(net: Network, tmp_path: Path) -> None:
    await net.start_with(net.config("s1", volumes=[str(tmp_path / "a"), str(tmp_path / "b")]))
    await net.file("s1", 7, os.urandom(400_000))
    os.truncate(net.path("s1", 7), 100)
    home = Replica(net.manager.volume_of("s1"), 1, net.manager.stamp(7))
    report = await net.manager.report_of(
        net.manager.put("s1", "copy", 7, net.manager.volume_of("s1", 1), 1, sources=[home], size=400_000)
    )
    assert (report.outcome, report.source_volume) == ("retry", home.volume)
    assert "stamp" in report.source_error


def read_all(reader: ObjectReader) -> bytes:
    content = b""
    while not reader.finished:
        content += reader.read()
    return content


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "object"
    path.write_bytes(os.urandom(3 * CHUNK_BYTES))
    return path


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * CHUNK_BYTES)
        file.write(b"written meanwhile")


def test_a_snapshot_is_read_while_the_object_is_written(source: Path, tmp_path: Path, reflinks: Reflinks) -> None:
    content = source.read_bytes()
    reader = ObjectReader(str(source), stamp_at(str(source)), snapshots=str(tmp_path))
    first = bytes(reader.read())
    overwrite(source)
    assert first + read_all(reader) == content
    assert reader.digest() == digest(content)
    reader.close()
    assert reflinks.made == 1
    assert os.listdir(tmp_path) == ["object"]


def test_a_snapshot_of_what_was_being_written_is_not_taken(source: Path, tmp_path: Path, reflinks: Reflinks) -> None:
    stamp = stamp_at(str(source))
    reflinks.before = lambda: overwrite(source)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Altered):
        ObjectReader(str(source), stamp, snapshots=str(tmp_path))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSPC])
def test_without_a_snapshot_the_object_itself_is_read_and_watched(
    source: Path, tmp_path: Path, reflinks: Reflinks, error: int
) -> None:
    reflinks.error = error
    reader = ObjectReader(str(source), stamp_at(str(source)), snapshots=str(tmp_path))
    reader.read()
    overwrite(source)
    with pytest.raises(Altered):
        read_all(reader)
    reader.close()


def test_a_clone_that_fails_for_want_of_space_is_an_error(source: Path, tmp_path: Path, reflinks: Reflinks) -> None:
    reflinks.error = errno.ENOSPC
    descriptor = os.open(source, os.O_RDWR)
    with pytest.raises(OSError, match="No space"):
        clone(descriptor, descriptor)
    assert snapshot(descriptor, str(tmp_path)) is None
    os.close(descriptor)


def test_what_is_written_over_a_clone_replaces_it_even_by_zeros(source: Path, tmp_path: Path, reflinks: Reflinks) -> None:
    volume = make_volume(tmp_path / "v")
    staged = StagedFile(volume, 7)
    descriptor = os.open(source, os.O_RDONLY)
    assert staged.clone(descriptor, 2 * CHUNK_BYTES)
    staged.put(bytes(CHUNK_BYTES), 0)
    content = Path(staged.path).read_bytes()
    assert content == bytes(CHUNK_BYTES) + source.read_bytes()[CHUNK_BYTES : 2 * CHUNK_BYTES]
    assert reflinks.made == 1
    os.close(descriptor)
    staged.discard()
    volume.close()


def test_a_disk_that_does_not_give_a_snapshot_directory_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    reader = ObjectReader(str(source), stamp_at(str(source)), snapshots=str(tmp_path / "nowhere"))
    assert read_all(reader) == source.read_bytes()
    reader.close()


def test_ranges_are_read_in_order(source: Path) -> None:
    content = source.read_bytes()
    ranges = [(0, 1), (100, CHUNK_BYTES + 5), (3 * CHUNK_BYTES - 1, 1)]
    reader = ObjectReader(str(source), stamp_at(str(source)), ranges=ranges)
    expected = b"".join(content[offset : offset + length] for offset, length in ranges)
    assert read_all(reader) == expected
    assert reader.digest() == digest(expected)
    reader.close()
