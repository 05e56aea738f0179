"""Files without a name, when processes die: what was not named is gone then, what was is a file like others."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.conftest import fresh, temporary_lab
from tests.mount.test_files import opened
from tests.support.acting import link_open
from tests.support.conditions import godwit, wait_for_replicas, wait_until

OVERRIDES = {
    "mount": {"request_timeout_s": 20.0, "commit_s": 0.5, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 6.0, "access_s": 3.0},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with temporary_lab(OVERRIDES) as lab:
        yield lab


def object_of(lab: Lab, server: str, ino: int) -> Path:
    return Path(VolumeLayout(lab.volume(server)).object_path(ino))


@contextmanager
def without_their_mount(directory: Path, count: int) -> Iterator[list[int]]:
    """Descriptors of so many files without a name; when they are closed, there is nobody any more who would answer."""
    descriptors = [os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC) for _ in range(count)]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


def wait_until_gone(lab: Lab, server: str, ino: int) -> None:
    wait_until(lambda: not object_of(lab, server, ino).exists(), "the object is gone")


def test_its_object_goes_with_the_last_descriptor(lab: Lab) -> None:
    with opened(fresh(lab.mount("s1")), os.O_TMPFILE | os.O_RDWR) as file:
        ino = os.fstat(file).st_ino
        os.write(file, b"content")
        os.fsync(file)
        assert object_of(lab, "s1", ino).read_bytes() == b"content"
    wait_until_gone(lab, "s1", ino)


def test_the_manager_dies_before_it_has_a_name(lab: Lab) -> None:
    here = fresh(lab.mount("s1"))
    with opened(here, os.O_TMPFILE | os.O_RDWR) as kept, opened(here, os.O_TMPFILE | os.O_RDWR) as lost:
        os.write(kept, b"content")
        lab.kill("s1", "manager", signal.SIGKILL)
        link_open(kept, os.fsencode(here / "kept"))
        ino = os.fstat(lost).st_ino
    lab.start("s1", "manager")
    wait_until_gone(lab, "s1", ino)
    wait_for_replicas(lab, str(here / "kept"), 2)
    assert (lab.mount("s2") / here.name / "kept").read_bytes() == b"content"


def test_the_mount_dies(lab: Lab) -> None:
    here = fresh(lab.mount("s2"))
    with without_their_mount(here, 2) as (lost, kept):
        os.write(kept, b"content")
        link_open(kept, os.fsencode(here / "kept"))
        ino = os.fstat(lost).st_ino
        assert object_of(lab, "s2", ino).exists()
        lab.kill("s2", "mount", signal.SIGKILL)
    lab.start("s2", "mount")
    wait_until_gone(lab, "s2", ino)
    wait_for_replicas(lab, str(here / "kept"), 2)
    assert os.listdir(here) == ["kept"]


def test_the_server_dies(lab: Lab) -> None:
    here = fresh(lab.mount("s3"))
    with without_their_mount(here, 1) as (lost,):
        os.write(lost, b"content")
        ino = os.fstat(lost).st_ino
        for part in ("mount", "agent", "manager"):
            lab.kill("s3", part, signal.SIGKILL)
    for part in ("manager", "agent", "mount"):
        lab.start("s3", part)
    wait_until_gone(lab, "s3", ino)


def test_fsync_waits_for_the_copies_that_its_directory_wants_once_it_has_a_name(lab: Lab) -> None:
    here = fresh(lab.mount("s1"))
    godwit(lab, "policy", "set", str(here), "--copies", "3", "--sync-copies", "3")
    with opened(here, os.O_TMPFILE | os.O_RDWR) as file:
        os.write(file, b"content")
        os.fsync(file)
        link_open(file, os.fsencode(here / "named"))
        os.fsync(file)
        ino = os.fstat(file).st_ino
        assert [object_of(lab, server, ino).read_bytes() for server in lab.servers] == [b"content"] * 3
