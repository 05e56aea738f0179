"""Volumes on xfs and btrfs: reflinks that are real, and no fence."""

import mmap
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.copying.pulls import YOUNG_NS
from agent.copying.receiving import LONG_BYTES
from agent.objects.reading import CHUNK_BYTES, Altered, ObjectReader
from cluster.volume.fence import stops_writers
from tests.agent.copying.test_rebuilding import CHANGES, SIZE, copy_twice
from tests.agent.network import digest, network, stamp_at
from tests.agent.objects.test_reflinks import copied_to_the_other_volume, overwrite, read_all

pytestmark = pytest.mark.deadline(60)

IMAGE_BYTES = 2 << 30  # most of it a hole; xfs wants at least 300 MiB


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of such a file system, in an image."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root: run the tests with sudo")
    folder = tmp_path_factory.mktemp(request.param)
    image, place = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([f"mkfs.{request.param}", "-q", image], check=True, timeout=60)
    place.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, place], check=False, timeout=60)
    if f"\t{request.param}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has no {request.param}")
    assert done.returncode == 0
    try:
        yield place
    finally:
        # A thread of an agent that has ended may be trying the disk still.
        subprocess.run(["umount", "--lazy", place], check=True, timeout=60)
        image.unlink()


@pytest.fixture
def folder(mounted: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=mounted))


def is_shared(path: str) -> bool:
    """Whether all blocks of a file are those of another one, too."""
    told = subprocess.run(["filefrag", "-s", "-v", path], capture_output=True, check=True, text=True, timeout=60).stdout
    extents = [line for line in told.splitlines() if line.lstrip()[:1].isdigit()]
    return bool(extents) and all("shared" in line for line in extents)


def test_there_is_no_fence(folder: Path) -> None:
    assert not stops_writers(str(folder))
    assert os.listdir(folder) == []


async def test_a_copy_within_a_server_takes_no_room(folder: Path) -> None:
    content = random.Random(1).randbytes(4 * LONG_BYTES + 5)
    async with network(folder) as net:
        await copied_to_the_other_volume(net, folder, content)
        assert is_shared(net.agents["s1"].layouts[1].object_path(7))
        assert not is_shared(net.path("s2", 7))


def test_a_snapshot_is_read_while_the_object_is_written(folder: Path) -> None:
    path = folder / "object"
    path.write_bytes(content := os.urandom(3 * CHUNK_BYTES))
    with closing(ObjectReader(str(path), stamp_at(str(path)), snapshots=str(folder))) as reader:
        first = bytes(reader.read())
        overwrite(path)
        assert first + read_all(reader) == content
    assert os.listdir(folder) == ["object"]


def test_a_snapshot_is_of_one_moment_although_stores_through_a_mapping_go_on(folder: Path) -> None:
    path = folder / "object"
    path.write_bytes(bytes(2 * CHUNK_BYTES))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = mapped[-1] = 1
        time.sleep(YOUNG_NS / 1e9)  # a second change within a tick of an older kernel's clock would leave no trace
        stamp = stamp_at(str(path))
        mapped[0] = mapped[-1] = 2
        with closing(ObjectReader(str(path), stamp, snapshots=str(folder), is_written=True)) as reader:
            mapped[0] = mapped[-1] = 3
            found = read_all(reader)
        assert (found[0], found[-1]) == (2, 2)
        with pytest.raises(Altered):
            ObjectReader(str(path), stamp, snapshots=str(folder), is_written=True)


@pytest.mark.parametrize("name", ["one block", "zeros where something was", "cut off"])
async def test_a_newer_version_is_made_from_the_older_one(folder: Path, name: str) -> None:
    new = CHANGES[name]

    async with network(folder) as net:
        report, sent = await copy_twice(net, new)
        assert (report.outcome, report.checksum) == ("done", digest(new))
        assert net.content("s2", 7) == new
        assert sent < 0.05 * SIZE
