"""What an agent says of its volumes, and that one bad disk does not silence the others."""

import dataclasses
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.volumes.health import Examiner, Report, examine, shortage
from agent.volumes.volume import LocalVolume
from cluster.volume.probe import probe
from tests.agent.network import QUICK, Network, make_volume

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


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, threading.Event]]:
    """Volumes in the test's directory that do not answer, by their names, until the event is set."""
    events: dict[str, threading.Event] = {}
    asked = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        if isinstance(path, Path) and path.parent == tmp_path and path.name in events:
            events[path.name].wait(60)
        return asked(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    yield events
    for event in events.values():
        event.set()


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
    assert problem == f"{path}: it is not a file"
    assert state.free_bytes == 0


def test_folders_that_somebody_removed_are_made_anew(volume: LocalVolume) -> None:
    folders = [volume.layout.staging, volume.layout.trash]
    for folder in folders:
        folder.rmdir()
    look(volume)
    assert [stat.S_IMODE(folder.lstat().st_mode) for folder in folders] == [0o700, 0o700]


@pytest.mark.parametrize("name", ["staging", "trash"])
def test_something_else_in_their_place_is_a_problem(volume: LocalVolume, tmp_path: Path, name: str) -> None:
    folder = volume.layout.root / name
    folder.rmdir()
    folder.symlink_to(tmp_path)
    state, problem, _gone = look(volume)
    assert problem == f"{folder}: Not a directory"
    assert (state.free_bytes, state.condition) == (0, "failing")
    folder.unlink()
    assert look(volume).state.condition == "good"


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


async def test_a_disk_that_hangs_is_asked_by_one_thread_and_heard_when_it_is_back(
    volume: LocalVolume, hanging: dict[str, threading.Event]
) -> None:
    examiner = Examiner(volume, patience_s=0.2)
    hanging["volume"] = threading.Event()
    before = trio.current_time()
    for _again in range(3):
        state, problem, _gone = await examiner.run()
        assert problem == f"{volume.layout.root}: no answer within 0.2 s"
        assert state.free_bytes == 0
    assert trio.current_time() - before < 5
    hanging["volume"].set()
    with trio.fail_after(10):
        while (await examiner.run()).problem.endswith("no answer within 0.2 s"):
            await trio.lowlevel.checkpoint()
    assert (await examiner.run()).state.free_bytes > 0


async def test_a_disk_that_hangs_does_not_silence_the_server(
    net: Network, tmp_path: Path, hanging: dict[str, threading.Event]
) -> None:
    roots = [str(tmp_path / "good"), str(tmp_path / "bad")]
    running = await net.start_with(net.config("s1", volumes=roots), dataclasses.replace(QUICK, patience_s=0.5))
    assert running.agent is not None

    def are_marked() -> bool:
        return all(layout.identity().catalog for layout in running.layouts)

    await net.manager.wait_for(are_marked, "volume.toml is written for the last time")
    hanging["bad"] = threading.Event()
    try:
        await net.manager.wait_for(lambda: "no answer" in str(net.manager.registrations[-1].problems), "the problem")
        report = net.manager.registrations[-1]
        good, bad = report.volumes
        assert (good.free_bytes > 0, bad.free_bytes) == (True, 0)
    finally:
        hanging["bad"].set()
    await net.manager.wait_for(lambda: net.manager.registrations[-1].volumes[1].free_bytes > 0, "it is back")


def test_a_disk_that_is_away_is_not_tried_by_making_a_file_in_its_place(tmp_path: Path) -> None:
    error = probe(f"{tmp_path}/probe")
    assert error is not None
    assert error.errno == errno.ENOENT
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "objects").mkdir()
    assert probe(f"{tmp_path}/probe") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objects", "probe"]
