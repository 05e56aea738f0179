"""Real disks that are read-only, fail, hang, are full or away: others go on, files heal, and the disk is taken up again.

One network for all of them, whose second server has its only volume on a disk that does as it is told.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.network.disks.faultydisk import FaultyDisk, lab_on
from tests.support.conditions import godwit, happened, wait_for_copies, wait_until

REQUEST_TIMEOUT_S = 8.0
OVERRIDES: dict[str, dict[str, Any]] = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 6.0, "access_s": 3.0, "suspect_s": 2.0, "down_s": 4.0},
    "agent": {"report_s": 0.5},
}
MIB = 2**20

WRITES_AND_READS = """
import errno, os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(b"content")
    try:
        os.fsync(file.fileno())
    except OSError as error:
        print("synced:", errno.errorcode[error.errno])
with open(sys.argv[1]) as file:
    print(file.read(), end="")
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    folder = tmp_path_factory.mktemp("disks")
    made = FaultyDisk(folder, folder / "lab" / "s2" / "vol1")
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: FaultyDisk) -> Iterator[Lab]:
    with lab_on([disk], OVERRIDES) as made:
        yield made


def volume_of_s2(lab: Lab) -> dict[str, Any]:
    volumes = godwit(lab, "servers", "show", "s2")["server"]["volumes"]
    return dict(next(volume for volume in volumes if volume["path"].endswith("s2/vol1")))


def wait_for_disk(lab: Lab, condition: str, standing: str) -> None:
    def is_so() -> bool:
        volume = volume_of_s2(lab)
        return (volume["condition"], volume["standing"]) == (condition, standing)

    wait_until(is_so, f"the disk is {condition}, {standing}", 40)


def problems(lab: Lab) -> str:
    return str(godwit(lab, "servers", "show", "s2")["server"]["problems"])


def homes(lab: Lab, path: Path) -> set[str]:
    return {replica["server"] for replica in godwit(lab, "where", str(path))["replicas"] if replica["home"]}


def current(lab: Lab, path: Path) -> set[str]:
    return {replica["server"] for replica in godwit(lab, "where", str(path))["replicas"] if replica["current"]}


@pytest.fixture
def files(lab: Lab, request: pytest.FixtureRequest) -> dict[str, bytes]:
    """Files whose homes are on the disk, with a copy each elsewhere; by their paths below any mount."""
    wait_for_disk(lab, "good", "in")
    folder = f"of-{request.node.name}"
    (lab.mount("s2") / folder).mkdir()
    contents = {f"{folder}/{number}": os.urandom(3000 + number) for number in range(3)}
    for name, content in contents.items():
        with open(lab.mount("s2") / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    wait_for_copies(lab)
    wait_until(lambda: all(len(current(lab, lab.mount("s2") / name)) == 2 for name in contents), "copies")
    assert all(homes(lab, lab.mount("s2") / name) == {"s2"} for name in contents)
    return contents


def can_read(lab: Lab, files: dict[str, bytes]) -> bool:
    """Whether all files can be read on all mounts; what is read must be right."""
    try:
        check_all(lab, files)
    except subprocess.CalledProcessError:
        return False
    return True


def check_all(lab: Lab, files: dict[str, bytes]) -> None:
    for server in lab.servers:
        for name, content in files.items():
            assert read(lab.mount(server) / name) == content, (server, name)


def read(path: Path) -> bytes:
    """By another process, which can be given up."""
    done = run(["cat", path], 4 * REQUEST_TIMEOUT_S)
    done.check_returncode()
    return done.stdout


def write(path: Path, content: bytes) -> None:
    done = put(path, content)
    assert done.returncode == 0, done.stderr


def put(path: Path, content: bytes) -> "subprocess.CompletedProcess[bytes]":
    """Writes and syncs."""
    return run(["dd", f"of={path}", "conv=fsync", "bs=64k"], 60, content)


def run(command: list[str | Path], within_s: float, content: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Runs a program that may wait for a disk in the kernel, where nothing ends it: it is not waited for then."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(content, within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{command} does not end")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def drop_caches() -> None:
    """Has the kernel ask disks for all that is not in use."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def wait_until_healed(lab: Lab, files: dict[str, bytes]) -> None:
    """All have a home and two current copies besides those on the disk."""

    def is_healed(name: str) -> bool:
        path = lab.mount("s1") / name
        return "s2" not in homes(lab, path) and len(current(lab, path) - {"s2"}) == 2

    wait_until(lambda: all(is_healed(name) for name in files), "the files are healed", 60)


def test_a_read_only_disk_is_left_and_emptied_and_files_are_written_elsewhere(
    lab: Lab, disk: FaultyDisk, files: dict[str, bytes]
) -> None:
    disk.sync()
    disk.remount("ro")
    try:
        write(lab.mount("s2") / "made-while-read-only", b"new")
        check_all(lab, files)
        wait_for_disk(lab, "read-only", "out")
        assert "read-only" in problems(lab)
        wait_until_healed(lab, files)
        name = next(iter(files))
        write(lab.mount("s2") / name, b"changed")
        assert read(lab.mount("s3") / name) == b"changed"
        (lab.mount("s1") / list(files)[1]).unlink()
        left = [name for name in files if name != list(files)[1]]
        objects = [VolumeLayout(disk.at).object_path((lab.mount("s1") / name).stat().st_ino) for name in left]
        wait_for_copies(lab)
        drain = godwit(lab, "drain", "s2")["migration"]["migration"]
        wait_until(lambda: godwit(lab, "migrations", "show", str(drain))["migration"]["state"] == "done", "the drain is over", 20)
        assert godwit(lab, "servers", "show", "s2")["server"]["holds"]["replicas"] == 0
        assert godwit(lab, "servers", "add", "s2")["outcome"] == "undrained"
        check_all(lab, {name: content for name, content in files.items() if name not in list(files)[:2]})
    finally:
        disk.remount("rw")
    wait_for_disk(lab, "good", "in")
    wait_until(lambda: not any(map(os.path.exists, objects)), "what was let go is set aside", 30)


def test_a_disk_that_is_away_is_not_written_to_and_is_taken_up_again(lab: Lab, disk: FaultyDisk, files: dict[str, bytes]) -> None:
    disk.unmount()
    try:
        wait_for_disk(lab, "away", "in")
        assert "is its disk mounted?" in problems(lab)
        check_all(lab, files)
        write(lab.mount("s2") / "made-while-away", b"new")
        lab.kill("s2", "agent")
        lab.start("s2", "agent")
        wait_for_disk(lab, "away", "out")
        wait_until_healed(lab, files)
        assert list(disk.at.iterdir()) == []
        assert read(lab.mount("s3") / "made-while-away") == b"new"
    finally:
        disk.mount()
    wait_for_disk(lab, "good", "in")
    check_all(lab, files)
    out, back = happened(lab, "volume", "--server", "s2")[-2:]
    assert (out["kind"], out["fields"]["condition"], back["kind"]) == ("volume-out", "away", "volume-back")


def test_the_trash_of_a_full_disk_makes_room_for_writes_that_nobody_sees(lab: Lab) -> None:
    wait_for_disk(lab, "good", "in")
    big, again = lab.mount("s2") / "big", lab.mount("s2") / "again"
    free = os.statvfs(lab.volume("s2")).f_bavail * os.statvfs(lab.volume("s2")).f_frsize
    write(big, bytes(free * 7 // 10))
    big.unlink()
    wait_until(lambda: os.statvfs(lab.volume("s2")).f_bavail * os.statvfs(lab.volume("s2")).f_frsize > free * 9 // 10, "room", 30)
    write(again, bytes(free * 7 // 10))
    again.unlink()
    wait_for_copies(lab)


def test_reading_what_is_cached_of_a_disk_that_hangs_holds_up_nobody(lab: Lab, disk: FaultyDisk) -> None:
    """To note when it was read would be a change of the disk. What is written there is nowhere else."""
    wait_for_disk(lab, "good", "in")
    path = lab.mount("s2") / "written-as-it-hangs"
    write(lab.mount("s2") / "warm", b"new")
    disk.say("hang")
    try:
        done = run([sys.executable, "-c", WRITES_AND_READS, path], 4 * REQUEST_TIMEOUT_S)
        assert done.stdout == b"synced: EIO\ncontent", done.stderr
        listed = run(["ls", lab.mount("s2")], REQUEST_TIMEOUT_S)
        assert listed.returncode == 0, listed.stderr
    finally:
        disk.say("ok")
    wait_for_disk(lab, "good", "in")


def test_a_disk_that_hangs_stops_nobody_who_does_not_need_it(lab: Lab, disk: FaultyDisk, files: dict[str, bytes]) -> None:
    os.sync()
    drop_caches()
    disk.say("hang")
    try:
        # Its own mount finds out by itself, and answers everything else meanwhile.
        began = time.monotonic()
        new = subprocess.Popen(["touch", lab.mount("s2") / "made-as-it-fell-silent"])
        listed = run(["ls", "-l", lab.mount("s2")], REQUEST_TIMEOUT_S)
        assert listed.returncode == 0, listed.stderr
        assert new.wait(2 * REQUEST_TIMEOUT_S) == 0
        assert time.monotonic() - began < REQUEST_TIMEOUT_S
        wait_for_disk(lab, "silent", "in")
        # A mount that did not use the disk lately hears of it from the manager, every two seconds.
        wait_until(lambda: put(lab.mount("s2") / "made-while-it-is-heard", b"new").returncode == 0, "new files go elsewhere", 30)
        began = time.monotonic()
        write(lab.mount("s2") / "made-while-silent", b"new")
        check_all(lab, files)
        assert time.monotonic() - began < 2 * REQUEST_TIMEOUT_S
        wait_for_disk(lab, "silent", "out")
        wait_until_healed(lab, files)
    finally:
        disk.say("ok")
    wait_for_disk(lab, "good", "in")


def test_a_disk_that_fails_is_left_and_its_files_are_read_elsewhere(lab: Lab, disk: FaultyDisk, files: dict[str, bytes]) -> None:
    """The last one: its file system has to be repaired, and so to be let go by everybody."""
    disk.sync()
    disk.say("eio")
    # As on any disk, what was just written there may be lost. From then on nothing new goes there, whoever knows of it by now.
    put(lab.mount("s2") / "made-as-it-failed", b"new")
    write(lab.mount("s2") / "made-at-once-afterwards", b"new")
    drop_caches()
    wait_until(lambda: volume_of_s2(lab)["condition"] in ("failing", "read-only", "away"), "the failure is seen", 30)
    # What its mount opens before it hears of that, the kernel reads from the disk itself (docs/reliability.md).
    wait_until(lambda: can_read(lab, files), "files are read elsewhere", 30)
    write(lab.mount("s2") / "made-while-failing", b"new")
    wait_until(lambda: volume_of_s2(lab)["standing"] == "out", "the disk is left", 30)
    wait_until_healed(lab, files)
    check_all(lab, files)
    assert "out of use" in problems(lab)
    # From now on ext4 takes no changes, whatever its flags say. What is there can be read, also by an agent that starts now.
    disk.say("ok")
    lab.kill("s2", "agent")
    lab.start("s2", "agent")
    wait_until(lambda: volume_of_s2(lab)["up"], "its agent is back")
    wait_until(lambda: volume_of_s2(lab)["condition"] in ("failing", "read-only"), "the volume is open", 30)
