"""The disk of an SQLite catalog takes no changes, or cannot be read either: what is refused, what goes on, and when it is over.

Its file system has no journal, so that it goes on after an error; the last test has it stop, as ext4 does with one.
"""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.processes import is_alive
from lab.state import read_state
from tests.network.disks.faultydisk import FaultyDisk
from tests.network.disks.test_bad_disks import drop_caches
from tests.network.disks.test_catalog_disk import attempt, fault, refusal, term
from tests.support.conditions import wait_until
from tests.support.runner import godwit_process as run_godwit

OVERRIDES = {
    "mount": {"request_timeout_s": 8.0, "renew_s": 0.5},
    "manager": {"term_s": 2.0, "session_timeout_s": 3.0, "access_s": 2.0},
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    folder = tmp_path_factory.mktemp("catalog")
    made = FaultyDisk(folder / "made", folder / "disk", 64, journal=False)
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: FaultyDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("network") / "lab"
    made = Lab.create(root, servers=2, db=f"sqlite:///{disk.at}/catalog.db", overrides=OVERRIDES)
    try:
        made.up()
        (made.mount("s1") / "kept").write_text("kept")
        wait_until(lambda: (disk.at / "catalog.db-reserve").exists(), "there is a reserve")
        yield made
    finally:
        disk.say("ok")
        made.down(purge=True)


@pytest.fixture
def alive(lab: Lab) -> Iterator[None]:
    """Fails if a process of the network ends meanwhile."""
    processes = read_state(lab.root).processes
    yield
    assert all(is_alive(process) for process in processes.values())


def wait_for_changes(lab: Lab) -> None:
    """Until both mounts can change something again."""
    first, second = (lab.mount(server) for server in lab.servers)
    wait_until(lambda: attempt(first) == attempt(second) == 0, "changes are made again")
    wait_until(lambda: not fault(lab), "the disk is good")


def synced(folder: Path) -> int:
    """Makes a file and has it made durable: 0, or with which error that failed."""
    try:
        with (folder / f"synced{time.monotonic_ns()}").open("xb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def kill_managers(lab: Lab) -> None:
    for server in lab.servers:
        lab.kill(server, "manager")


def start_managers(lab: Lab) -> None:
    for server in lab.servers:
        lab.start(server, "manager")


def read_for(lab: Lab, seconds: float) -> None:
    """Reads on all mounts again and again."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        assert [(lab.mount(server) / "kept").read_text() for server in lab.servers] == ["kept"] * 2


def test_managers_that_start_on_a_read_only_disk_take_the_office_when_it_can_be_written(lab: Lab, disk: FaultyDisk) -> None:
    kill_managers(lab)
    disk.remount("ro")
    try:
        start_managers(lab)
        failed = wait_until(lambda: attempt(lab.mount("s1")), "nobody is in office")
        assert failed in (errno.EROFS, errno.EIO)
        assert term(lab) == 0
        assert "the disk of the catalog is read-only" in run_godwit("status", "--root", str(lab.root)).stderr
    finally:
        disk.remount("rw")
    wait_for_changes(lab)


def test_nobody_waits_for_a_disk_that_cannot_be_read(lab: Lab, disk: FaultyDisk) -> None:
    kill_managers(lab)
    disk.sync()
    disk.say("eio")
    try:
        drop_caches()
        start_managers(lab)
        wait_until(lambda: attempt(lab.mount("s1")) == attempt(lab.mount("s2")) == errno.EIO, "what leases cover is over")
        began_s = time.monotonic()
        assert refusal(lab.mount("s1") / "more") == errno.EIO
        assert time.monotonic() - began_s < 4.0
        assert term(lab) == 0
        assert "the disk of the catalog fails" in run_godwit("status", "--root", str(lab.root)).stderr
    finally:
        disk.say("ok")
    wait_for_changes(lab)


def test_writes_that_fail_are_told_and_reads_go_on(lab: Lab, disk: FaultyDisk, alive: None) -> None:
    before = term(lab)
    disk.say("refuse")
    try:
        # What need not be durable goes into the kernel's cache, as with any file system.
        wait_until(lambda: synced(lab.mount("s2")) == errno.EIO, "what must be durable fails")
        assert "the disk of the catalog fails" in fault(lab)
        read_for(lab, 2 * lab.config("s1").manager.term_s)
        assert term(lab) == before
    finally:
        disk.say("ok")
    wait_for_changes(lab)
    wait_until(lambda: synced(lab.mount("s1")) == synced(lab.mount("s2")) == 0, "what was written is durable")


def test_a_file_system_that_stops_refuses_changes_until_it_is_mounted_anew(lab: Lab, disk: FaultyDisk) -> None:
    before = term(lab)
    disk.stop()
    wait_until(lambda: attempt(lab.mount("s1")) == errno.EROFS, "changes are refused")
    assert {refusal(lab.mount(server) / "more") for server in lab.servers} == {errno.EROFS}
    assert "the disk of the catalog is read-only" in fault(lab)
    read_for(lab, 2 * lab.config("s1").manager.term_s)
    assert term(lab) == before
    kill_managers(lab)
    disk.unmount()
    disk.repair()
    disk.mount()
    start_managers(lab)
    wait_for_changes(lab)
    read_for(lab, 0.1)
