"""Objects that are not as the catalog has them, copies that find no room, and a clock that is set ahead, under a running network.

The volume of s3 is a small disk.
"""

import datetime
import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.fence import despite_fence
from cluster.volume.layout import RECORD_XATTR, VolumeLayout
from lab.lab import Lab
from lab.launch import program_of
from tests.conftest import reading_logs
from tests.network.disks.faultydisk import FaultyDisk, lab_on
from tests.network.disks.test_catalog_disk import fill
from tests.network.disks.test_damage import home_of, object_of
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until
from tests.support.runner import godwit_process as run_godwit

OVERRIDES = {
    "mount": {"request_timeout_s": 8.0, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 4.0, "access_s": 3.0},
    "agent": {"report_s": 0.5},
}
CONTENT = os.urandom(40_000)
FIRST_STRAY, STRAYS = 3_000_000, 40
DAY_S = 86_400

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    folder = tmp_path_factory.mktemp("disks")
    made = FaultyDisk(folder, folder / "lab" / "s3" / "vol1", 64)
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: FaultyDisk) -> Iterator[Lab]:
    with lab_on([disk], OVERRIDES) as made, reading_logs(made):
        yield made


def replica(lab: Lab, path: Path, server: str) -> dict[str, Any]:
    """What `where` says of the copy on *server*."""
    return next(row for row in godwit(lab, "where", str(path))["replicas"] if row["server"] == server)


def contents(lab: Lab, name: str) -> set[bytes]:
    """What is read on all mounts."""
    return {(lab.mount(server) / name).read_bytes() for server in lab.servers}


def test_copies_without_room_are_told_and_damaged_ones_not_read(lab: Lab, disk: FaultyDisk) -> None:
    folder = lab.mount("s1") / "three copies"
    folder.mkdir()
    godwit(lab, "policy", "set", str(folder), "--copies", "3")
    whole, new = folder / "whole", folder / "new"
    whole.write_bytes(CONTENT)
    ino = wait_for_replicas(lab, str(whole), 3)["ino"]
    filler = fill(disk.at)
    try:
        wait_until(lambda: "nearly full" in str(godwit(lab, "servers", "show", "s3")["server"]["problems"]), "it is full", 20)
        new.write_bytes(CONTENT)
        why = wait_until(lambda: godwit(lab, "where", str(new))["shortfall"], "a copy has no place", 20)
        assert why == "1 copy has no place: no other volume has room"
        assert godwit(lab, "status")["below_policy"] == 1
        (listed,) = godwit(lab, "files", "--below-policy")["files"]
        assert (listed["path"], listed["reason"]) == ("/three copies/new", why)

        copy = object_of(lab, "s3", ino)
        despite_fence(copy, lambda: os.truncate(copy, 100))
        assert contents(lab, "three copies/whole") == {CONTENT}
        fault = wait_until(lambda: replica(lab, whole, "s3")["fault"], "the damage is known", 20)
        assert "100 bytes instead of 40000" in fault
        assert contents(lab, "three copies/whole") == {CONTENT}
    finally:
        filler.unlink()
    for path in (whole, new):
        wait_for_replicas(lab, str(path), 3)
    assert Path(copy).read_bytes() == CONTENT
    assert replica(lab, whole, "s3")["fault"] == ""
    assert godwit(lab, "status")["below_policy"] == 0


def link_and_unlink(path: str) -> None:
    os.link(path, f"{path}.linked")
    os.unlink(f"{path}.linked")


TOUCHES: dict[str, Callable[[str], None]] = {
    "its mode": lambda path: os.chmod(path, 0o640),
    "a link": link_and_unlink,
    "a damaged record": lambda path: os.setxattr(path, RECORD_XATTR, b"\xff{"),
}


def test_objects_that_were_only_touched_are_known_again(lab: Lab) -> None:
    paths = {how: lab.mount("s2") / how for how in TOUCHES}
    for path in paths.values():
        path.write_bytes(CONTENT)
    for how, path in paths.items():
        ino = wait_for_replicas(lab, str(path), 2)["ino"]
        touched = object_of(lab, "s2", ino)
        despite_fence(touched, lambda how=how, touched=touched: TOUCHES[how](touched))  # type: ignore[misc]
        assert contents(lab, how) == {CONTENT}, how
        said = f"inode {ino} on volume {replica(lab, path, 's2')['volume']} was touched by somebody else"
        wait_until(lambda said=said: said in lab.log("s2", "agent").read_text(), f"{how} is told", 20)  # type: ignore[misc]
        with path.open("ab") as file:
            file.write(b"more")
        assert contents(lab, how) == {CONTENT + b"more"}, how
    for how, path in paths.items():
        wait_for_replicas(lab, str(path), 2)
        assert (home_of(lab, path), replica(lab, path, "s2")["fault"]) == ("s2", ""), how


def test_many_unknown_objects_are_left_alone_until_somebody_says_so(lab: Lab) -> None:
    layout = VolumeLayout(lab.volume("s1"))
    strays = [Path(layout.object_path(FIRST_STRAY + number)) for number in range(STRAYS)]
    lab.kill("s1", "agent")
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"of another catalog")
    lab.start("s1", "agent")
    wait_until(lambda: "godwit volumes sweep s1" in str(godwit(lab, "status")), "it is a problem", 30)
    assert all(path.exists() for path in strays)
    assert run_godwit("volumes", "sweep", "--yes", "s1", "--root", str(lab.root)).returncode == 0
    wait_until(lambda: not any(path.exists() for path in strays), "they are set aside", 30)
    assert len(godwit(lab, "volumes", "unknown", "s1")["unknown"]) == STRAYS
    wait_until(lambda: "volumes sweep" not in str(godwit(lab, "status")), "nothing is wrong any more", 30)


class Clock:
    """The wall clock of the processes of s1 that are started with it."""

    def __init__(self, folder: Path) -> None:
        self._shift, program = folder / "shift", folder / "wallclock.so"
        source = Path(__file__).with_name("wallclock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", program, source], check=True, timeout=60)
        self._environment = [f"LD_PRELOAD={program}", f"WALLCLOCK={self._shift}"]
        self.set_ahead(0)

    def set_ahead(self, seconds: int) -> None:
        with self._shift.open("r+b" if self._shift.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))

    def started(self, lab: Lab, *parts: str) -> None:
        by_it = Lab(lab.root, {part: ["env", *self._environment, *program_of(part)] for part in parts})
        for part in parts:
            lab.kill("s1", part)
            by_it.start("s1", part)


def test_a_clock_that_is_set_ahead_ages_nothing_and_ends_no_office(lab: Lab, tmp_path: Path) -> None:
    path, trash = lab.mount("s1") / "removed", VolumeLayout(lab.volume("s1")).trash
    path.write_bytes(CONTENT)
    ino = wait_for_replicas(lab, str(path), 2)["ino"]
    path.unlink()
    (removed,) = wait_until(lambda: list(trash.glob(f"{ino}.*")), "it is in the trash", 20)
    old = trash / f"{FIRST_STRAY}.{time.time_ns() - 8 * DAY_S * 10**9}"
    clock = Clock(tmp_path)
    for server in lab.servers[1:]:
        lab.kill(server, "manager")
    clock.started(lab, "manager")
    wait_until(lambda: manager(lab)["server"] == "s1", "s1 is the manager")
    for server in lab.servers[1:]:
        lab.start(server, "manager")
    before = manager(lab)
    old.touch()
    clock.set_ahead(30 * DAY_S)
    clock.started(lab, "agent")
    wait_until(lambda: not old.exists(), "what is old goes", 20)
    month = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)).strftime("%Y-%m-")
    assert f"\n{month}" in lab.log("s1", "agent").read_text(), "its clock was set"
    until_s = time.monotonic() + 2 * OVERRIDES["manager"]["term_s"]
    while time.monotonic() < until_s:
        (lab.mount("s2") / "written meanwhile").write_bytes(b"%d" % time.monotonic_ns())
        assert len(contents(lab, "written meanwhile")) == 1
    wait_for_copies(lab)
    assert (manager(lab)["server"], manager(lab)["term"]) == ("s1", before["term"])
    assert {row["state"] for row in godwit(lab, "servers", "ls")["servers"]} == {"up"}
    assert removed.exists()
    godwit(lab, "manager", "step-down")
    wait_until(lambda: f"\n{month}" in lab.log("s1", "manager").read_text(), "its clock was set, too", 20)


def manager(lab: Lab) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(run_godwit("manager", "show", "--json", "--root", str(lab.root)).stdout)
    return shown
