"""What an agent says of its volumes, and that one bad disk does not silence the others."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from agent.volumes.health import Examiner, Report, examine, shortage
from agent.volumes.volume import LocalVolume
from cluster.volume.probe import probe
from tests.agent.network import Network, make_volume

pytestmark = pytest.mark.deadline(60)

MIB = 2**20
GIB = 2**30


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LocalVolume]:
    opened = make_volume(tmp_path / "volume")
    yield opened
    opened.close()


def look(volume: LocalVolume) -> Report:
    return examine(volume, volume.opened_as)


def hang(volume: LocalVolume) -> Path:
    """Makes the volume one that does not answer: opening a pipe for reading waits for somebody who writes."""
    return hang_at(volume.layout.root)


def hang_at(root: Path) -> Path:
    pipe = root / "volume.toml"
    pipe.rename(root / "kept.toml")
    os.mkfifo(pipe)
    return pipe


def recover(pipe: Path) -> None:
    """Ends the hanging of all who wait, and makes the volume whole again."""
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        pipe.with_name("kept.toml").rename(pipe)
    finally:
        os.close(writer)


def test_a_sound_volume_has_no_problem(volume: LocalVolume) -> None:
    state, problem, _gone = look(volume)
    assert problem in ("", f"{volume.layout.root}: nearly full", f"{volume.layout.root}: nearly out of inodes")
    assert msgspec.structs.replace(state, free_bytes=0) == msgspec.structs.replace(volume.opened_as, free_bytes=0)
    assert 0 < state.free_bytes <= state.total_bytes


def test_a_disk_that_is_not_mounted_is_no_volume(volume: LocalVolume) -> None:
    (volume.layout.root / "volume.toml").unlink()
    state, problem, _gone = look(volume)
    assert "is not a volume" in problem
    assert "is its disk mounted?" in problem
    assert (state.free_bytes, state.total_bytes) == (0, volume.opened_as.total_bytes)


def test_another_volume_in_its_place_is_noticed(volume: LocalVolume) -> None:
    path = volume.layout.root / "volume.toml"
    path.write_text(path.read_text().replace(volume.uuid, "00000000-0000-0000-0000-000000000000"))
    state, problem, _gone = look(volume)
    assert problem.endswith("another volume is there now")
    assert state.free_bytes == 0


def test_an_error_of_the_system_is_the_volumes_problem(volume: LocalVolume) -> None:
    path = volume.layout.root / "volume.toml"
    path.unlink()
    path.mkdir()
    state, problem, _gone = look(volume)
    assert problem == f"{volume.layout.root}: Is a directory"
    assert state.free_bytes == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_volume_takes_nothing(volume: LocalVolume) -> None:
    root = str(volume.layout.root)
    if subprocess.run(["mount", "--bind", root, root], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        state, problem, _gone = look(volume)
        assert problem == f"{root}: read-only"
        assert state.free_bytes == 0
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def statvfs(*, total: int, free: int, inodes: int = 0, free_inodes: int = 0) -> os.statvfs_result:
    return os.statvfs_result((4096, 4096, total // 4096, free // 4096, free // 4096, inodes, free_inodes, free_inodes, 0, 255))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (statvfs(total=GIB, free=GIB), ""),
        (statvfs(total=1000 * GIB, free=21 * GIB), ""),
        (statvfs(total=1000 * GIB, free=19 * GIB), "/v: nearly full"),
        (statvfs(total=GIB, free=50 * MIB), "/v: nearly full"),
        (statvfs(total=16 * MIB, free=2 * MIB), ""),
        (statvfs(total=GIB, free=GIB, inodes=1000, free_inodes=20), ""),
        (statvfs(total=GIB, free=GIB, inodes=1000, free_inodes=19), "/v: nearly out of inodes"),
    ],
)
def test_what_runs_out_is_said_in_time(status: os.statvfs_result, expected: str) -> None:
    assert shortage("/v", status) == expected


async def test_a_disk_that_hangs_is_asked_by_one_thread_and_heard_when_it_is_back(volume: LocalVolume) -> None:
    examiner = Examiner(volume, patience_s=0.2)
    pipe = hang(volume)
    before = trio.current_time()
    for _again in range(3):
        state, problem, _gone = await examiner.run()
        assert problem == f"{volume.layout.root}: no answer within 0.2 s"
        assert state.free_bytes == 0
    assert trio.current_time() - before < 5
    recover(pipe)
    with trio.fail_after(10):
        while (await examiner.run()).problem.endswith("no answer within 0.2 s"):
            await trio.lowlevel.checkpoint()
    assert (await examiner.run()).state.free_bytes > 0


async def test_a_disk_that_hangs_does_not_silence_the_server(net: Network, tmp_path: Path) -> None:
    roots = [str(tmp_path / "good"), str(tmp_path / "bad")]
    running = await net.start_with(net.config("s1", volumes=roots))
    assert running.agent is not None

    def are_marked() -> bool:
        return all(layout.identity().catalog for layout in running.layouts)

    await net.manager.wait_for(are_marked, "volume.toml is written for the last time")
    pipe = hang_at(tmp_path / "bad")
    try:
        await net.manager.wait_for(lambda: "no answer" in str(net.manager.registrations[-1].problems), "the problem")
        report = net.manager.registrations[-1]
        good, bad = report.volumes
        assert (good.free_bytes > 0, bad.free_bytes) == (True, 0)
    finally:
        recover(pipe)
    await net.manager.wait_for(lambda: net.manager.registrations[-1].volumes[1].free_bytes > 0, "it is back")


def test_a_disk_that_is_away_is_not_tried_by_making_a_file_in_its_place(tmp_path: Path) -> None:
    error = probe(f"{tmp_path}/probe")
    assert error is not None
    assert error.errno == errno.ENOENT
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "objects").mkdir()
    assert probe(f"{tmp_path}/probe") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objects", "probe"]
