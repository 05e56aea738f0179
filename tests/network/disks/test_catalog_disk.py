"""The disk of an SQLite catalog becomes full, slow or silent under real processes: none ends, and nobody waits for ever.

The processes' logs and what they remember are on that disk, too: whoever can do without the catalog is to go on.
"""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import exits
from lab.lab import Lab
from lab.processes import is_alive
from lab.state import read_state
from tests.network.disks.faultydisk import FaultyDisk
from tests.support.conditions import kinds, wait_until
from tests.support.runner import godwit_process as run_godwit

DISK_MIB = 192
PROMPT_S = 5.0
REQUEST_TIMEOUT_S = 8.0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    folder = tmp_path_factory.mktemp("catalog")
    made = FaultyDisk(folder / "made", folder / "disk", DISK_MIB)
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: FaultyDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("network") / "lab"
    overrides = {"mount": {"request_timeout_s": REQUEST_TIMEOUT_S}}
    made = Lab.create(root, servers=2, db=f"sqlite:///{disk.at}/catalog.db", overrides=overrides)
    for server in made.servers:
        for name in ("log", "state"):
            there = disk.at / server / name
            there.mkdir(parents=True)
            (root / server).mkdir(exist_ok=True)
            (root / server / name).symlink_to(there)
    try:
        made.up()
        wait_until(lambda: (disk.at / "catalog.db-reserve").exists(), "there is a reserve")
        yield made
    finally:
        disk.say("ok")
        made.down(purge=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is, for one file."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def attempt(folder: Path) -> int:
    """Makes a file: 0, or with which error that failed, in the time that a mount waits for a manager."""
    began_s = time.monotonic()
    try:
        (folder / f"new{time.monotonic_ns()}").open("xb").close()
    except OSError as error:
        return error.errno or 0
    finally:
        assert time.monotonic() - began_s < REQUEST_TIMEOUT_S + PROMPT_S
    return 0


def refusal(path: Path) -> int:
    """With which error making a file fails, in time."""
    began_s = time.monotonic()
    with pytest.raises(OSError, match=str(path)) as told:
        path.touch()
    assert time.monotonic() - began_s < PROMPT_S
    return told.value.errno or 0


def fault(lab: Lab) -> str:
    done = run_godwit("status", "--json", "--root", str(lab.root))
    return str(json.loads(done.stdout)["catalog_fault"]) if done.returncode in (0, exits.ATTENTION) else ""


def test_a_full_disk_ends_nobody_and_removing_makes_room(lab: Lab, disk: FaultyDisk) -> None:
    first, second = (lab.mount(server) for server in lab.servers)
    kept = [first / f"kept{number}" for number in range(50)]
    for path in kept:
        path.write_text(path.name)
    processes = read_state(lab.root).processes
    filler = fill(disk.at)
    wait_until(lambda: attempt(first) == errno.ENOSPC, "the disk is full")
    assert {refusal(mount / "more") for mount in (first, second)} == {errno.ENOSPC}
    assert "full" in fault(lab)
    for path in kept:
        assert (second / path.name).read_text() == path.name
        path.unlink()
    time.sleep(2 * lab.config("s1").manager.term_s)
    assert not [path for path in kept if path.exists()]
    filler.unlink()
    wait_until(lambda: not fault(lab), "there is room again")
    wait_until(lambda: kinds(lab, "catalog") == ["catalog-fault", "catalog-back"], "both are told")
    (second / "afterwards").write_text("afterwards")
    assert (first / "afterwards").read_text() == "afterwards"
    assert all(is_alive(process) for process in processes.values())


def term(lab: Lab) -> int:
    """Of the manager in office; 0 if there is none."""
    shown = json.loads(run_godwit("manager", "show", "--json", "--root", str(lab.root)).stdout)
    return int(shown["term"]) if shown["server"] else 0


def test_a_slow_disk_is_waited_for_as_long_as_a_request_may_last(lab: Lab, disk: FaultyDisk) -> None:
    processes = read_state(lab.root).processes
    disk.say("slow")
    try:
        ends_s = time.monotonic() + 5 * lab.config("s1").manager.term_s
        outcomes = []
        while time.monotonic() < ends_s:
            outcomes += [attempt(lab.mount(server)) for server in lab.servers]
        # ext4 has whoever writes a file wait while it commits that file's change before: on such a disk for 15 s and more.
        assert set(outcomes) <= {0, errno.EIO}
        assert outcomes.count(0) > outcomes.count(errno.EIO)
    finally:
        disk.say("ok")
    assert all(is_alive(process) for process in processes.values())
    wait_until(lambda: term(lab) > 0, "somebody is in office")
    wait_until(lambda: attempt(lab.mount("s1")) == attempt(lab.mount("s2")) == 0, "changes are made again")


def test_a_silent_disk_holds_nobody_up_for_longer_than_a_request_may_last(lab: Lab, disk: FaultyDisk) -> None:
    first, second = (lab.mount(server) for server in lab.servers)
    (first / "before").write_text("before")
    processes = read_state(lab.root).processes
    disk.say("hang")
    try:
        # Its journal takes what comes until the next commit of it.
        failed = wait_until(lambda: attempt(first), "the catalog does not answer")
        # What had been on the way is over now, so that this is about a disk that hangs already, logs and all.
        assert {failed, attempt(first), attempt(second)} == {errno.EIO}
        assert term(lab) == 0
        assert "no manager" in run_godwit("status", "--root", str(lab.root)).stderr
    finally:
        disk.say("ok")
    wait_until(lambda: attempt(first) == attempt(second) == 0, "the catalog answers again")
    assert (second / "before").read_text() == "before"
    assert all(is_alive(process) for process in processes.values())
    assert "failed with EIO" in lab.log("s1", "mount").read_text()
