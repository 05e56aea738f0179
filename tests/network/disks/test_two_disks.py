"""A server with two disks, one of which is not as it should be: when its agent starts, in one sector, or after a loss of power.

The bad one is the emptier, so that it gets the new files of its server. It has no journal, so that it goes on after an error.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.network.disks.faultydisk import FaultyDisk, lab_on
from tests.network.disks.test_bad_disks import OVERRIDES, drop_caches, read, write
from tests.support.acting import ANNA, acting_as
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until
from tests.support.runner import godwit_process as run_godwit

CONTENT = os.urandom(40_000)
CHANGE = b"overwritten"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FaultyDisk]]:
    folder = tmp_path_factory.mktemp("disks")
    at = folder / "lab" / "s2"
    made: list[FaultyDisk] = []
    try:
        made.append(FaultyDisk(folder / "first", at / "vol1", 256, journal=False))
        made.append(FaultyDisk(folder / "second", at / "vol2", 64))
        yield made
    finally:
        for disk in made:
            disk.end()


@pytest.fixture
def disk(disks: list[FaultyDisk]) -> FaultyDisk:
    return disks[0]


@pytest.fixture(scope="module")
def lab(disks: list[FaultyDisk]) -> Iterator[Lab]:
    with lab_on(disks, OVERRIDES) as made:
        yield made


def volumes(lab: Lab) -> dict[str, dict[str, Any]]:
    """What is said of the volumes of s2, by their directories' names."""
    return {Path(volume["path"]).name: volume for volume in godwit(lab, "servers", "show", "s2")["server"]["volumes"]}


def wait_for_disk(lab: Lab, condition: str) -> None:
    wait_until(lambda: volumes(lab)["vol1"]["condition"] == condition, f"the disk is {condition}", 40)


def problems(lab: Lab) -> str:
    return str(godwit(lab, "servers", "show", "s2")["server"]["problems"])


def home(lab: Lab, path: Path) -> str:
    """The directory of the volume on which the file has its home."""
    return next(str(replica["path"]) for replica in godwit(lab, "where", str(path))["replicas"] if replica["home"])


def new_file(lab: Lab, disk: FaultyDisk, name: str) -> Path:
    """A file of s2 with its home on the bad disk, and its copy elsewhere."""
    path = lab.mount("s2") / name

    def is_there() -> bool:
        path.unlink(missing_ok=True)
        write(path, CONTENT)
        return home(lab, path) == str(disk.at)

    wait_until(is_there, "its mount uses the disk", 20)
    wait_for_replicas(lab, str(path), 2)
    return path


def object_of(disk: FaultyDisk, path: Path) -> Path:
    return Path(VolumeLayout(disk.at).object_path(path.stat().st_ino))


def test_a_disk_that_is_bad_when_its_agent_starts_keeps_no_other_from_work(lab: Lab, disk: FaultyDisk) -> None:
    kept = new_file(lab, disk, "kept")
    lab.kill("s2", "agent")
    disk.sync()
    disk.say("eio")
    try:
        drop_caches()
        lab.start("s2", "agent")
        wait_until(lambda: volumes(lab)["vol1"]["condition"] != "good", "the bad disk is known")
        wait_until(lambda: volumes(lab)["vol2"]["condition"] == "good" and volumes(lab)["vol2"]["up"], "the other one works")
        assert str(disk.at) in problems(lab)
        wait_until(lambda: read(lab.mount("s1") / "kept") == CONTENT, "it is read elsewhere")
        write(lab.mount("s2") / "made meanwhile", b"new")
        assert home(lab, lab.mount("s2") / "made meanwhile") == str(lab.volume("s2", 2))
    finally:
        disk.say("ok")
    wait_for_disk(lab, "good")
    assert read(kept) == CONTENT
    subprocess.run(["sync", "-f", disk.at], check=False)  # tells of the errors, once


def test_a_volume_whose_toml_is_damaged_is_away_until_that_is_mended(lab: Lab, disk: FaultyDisk) -> None:
    kept = new_file(lab, disk, "of a damaged volume")
    toml = disk.at / "volume.toml"
    content = toml.read_bytes()
    lab.kill("s2", "agent")
    toml.write_bytes(b"\xff" + content)
    lab.start("s2", "agent")
    wait_for_disk(lab, "away")
    assert "volume.toml" in problems(lab)
    assert read(lab.mount("s3") / kept.name) == CONTENT
    toml.write_bytes(content)
    wait_for_disk(lab, "good")
    assert read(kept) == CONTENT


def test_nobody_else_on_the_server_gets_at_what_is_in_a_volume(lab: Lab, disk: FaultyDisk) -> None:
    """Whatever rights its directory had before its agent has opened it."""
    kept = new_file(lab, disk, "private")
    found = str(object_of(disk, kept).relative_to(disk.at))
    lab.kill("s2", "agent")
    disk.at.chmod(0o755)
    (disk.at / "volume.toml").chmod(0o644)
    # By descriptors, since pytest's own folders above are root's, too.
    folder, toml = os.open(disk.at, os.O_PATH), os.open(disk.at / "volume.toml", os.O_PATH)
    try:
        assert not is_refused("volume.toml", folder)
        lab.start("s2", "agent")
        wait_for_disk(lab, "good")
        for name in ("volume.toml", "objects", found):
            assert is_refused(name, folder), name
        assert is_refused(f"/proc/self/fd/{toml}", folder), "who has found it before gets no lock"
    finally:
        os.close(folder)
        os.close(toml)


def is_refused(name: str, folder: int) -> bool:
    """Whether another user may not open that."""
    try:
        with acting_as(ANNA):
            os.close(os.open(name, os.O_RDONLY, dir_fd=folder))
    except PermissionError:
        return True
    return False


def test_a_file_with_a_bad_sector_is_read_from_another_copy(lab: Lab, disk: FaultyDisk) -> None:
    path = new_file(lab, disk, "bad sector")
    (reader,) = {"s1", "s3"} - {row["server"] for row in godwit(lab, "where", str(path))["replicas"]}
    begin, end = disk.places_of(object_of(disk, path))
    disk.say(f"bad {begin} {end}")
    try:
        drop_caches()
        assert read(lab.mount(reader) / path.name) == CONTENT
        # There the kernel reads the disk itself, and no process of Godwit sees what it gets.
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            path.read_bytes()
        assert volumes(lab)["vol1"]["condition"] == "good"
        done = run_godwit("fsck", "--deep", "--repair", "s2", "--root", str(lab.root), timeout_s=120)
        assert (done.returncode, "unreadable" in done.stdout) == (0, True), done
        assert home(lab, path) != str(disk.at)
        assert read(path) == CONTENT
    finally:
        disk.say("ok")


def test_a_server_that_loses_power_comes_back_with_one_content_for_all(lab: Lab, disk: FaultyDisk) -> None:
    """What had been copied was on the disk. Of what had not, the disk has the new times, and the old content."""
    copied, lost = new_file(lab, disk, "copied"), new_file(lab, disk, "lost")
    disk.sync()
    overwrite(lab, copied)
    wait_for_copies(lab)
    for server in ("s1", "s3"):
        lab.kill(server, "agent")
    begin, end = disk.places_of(object_of(disk, lost))
    disk.say(f"lose {begin} {end}")
    overwrite(lab, lost)
    with object_of(disk, lost).open("rb") as file:
        os.fsync(file.fileno())
    changed_ns = object_of(disk, lost).stat().st_mtime_ns

    disk.say(f"lose 0 {1 << 40}")
    lab.kill("s2")
    disk.unmount()
    disk.say("ok")
    disk.mount()
    assert object_of(disk, lab.mount("s1") / "copied").read_bytes() == CHANGE + CONTENT[len(CHANGE) :]
    left = object_of(disk, lab.mount("s1") / "lost")
    assert (left.read_bytes(), left.stat().st_mtime_ns) == (CONTENT, changed_ns)
    for server in ("s1", "s3"):
        lab.start(server, "agent")
    lab.start("s2")
    wait_for_disk(lab, "good")
    for path in (copied, lost):
        wait_for_replicas(lab, str(path), 2)
    assert {read(lab.mount(server) / "copied") for server in lab.servers} == {CHANGE + CONTENT[len(CHANGE) :]}
    assert {read(lab.mount(server) / "lost") for server in lab.servers} == {CONTENT}


def overwrite(lab: Lab, path: Path) -> None:
    """In place. Returns when that is committed."""
    with path.open("r+b") as file:
        file.write(CHANGE)
    wait_until(lambda: not godwit(lab, "where", str(path))["dirty"], "it is committed")
