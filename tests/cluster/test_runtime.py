"""What processes of one machine agree on in `/run`: nobody else can take it first."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import Refused
from cluster.runtime import PRIVATE, PUBLIC, holder_of, make_runtime_directory, only_process
from lab.registry import locked

NOBODY = 65534


def as_nobody(path: Path) -> set[str]:
    """What another user gets who wants to open a lock, to remove it, or to make one beside it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writing, " ".join(_take(path)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as told:
        return set(told.read().decode().split())


def _take(path: Path) -> list[str]:
    attempts: list[Callable[[], object]] = [
        lambda: os.open(path, os.O_RDONLY),
        lambda: os.unlink(path),
        lambda: os.open(f"{path}2", os.O_CREAT | os.O_WRONLY),
    ]
    found = []
    for attempt in attempts:
        try:
            attempt()
            found.append("done")
        except OSError as error:
            found.append(str(error.errno))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A `/run` that everybody can enter."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return tmp_path / "run"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_no_other_user_can_take_a_lock(run: Path) -> None:
    with only_process(run / "mounts", "a.lock", "a mount of s1"):
        assert as_nobody(run / "mounts" / "a.lock") == {str(errno.EACCES)}
    make_runtime_directory(run / "labs", PUBLIC)
    with locked(run / "labs" / "b.lock", "the lab"):
        assert as_nobody(run / "labs" / "b.lock") == {str(errno.EACCES)}


def test_a_process_is_the_only_one_until_it_ends(run: Path) -> None:
    with only_process(run / "mounts", "a.lock", "a mount of s1"):
        with pytest.raises(Refused, match="a mount of s1 runs already"), only_process(run / "mounts", "a.lock", "a mount of s1"):
            pytest.fail("there are two")
        with only_process(run / "mounts", "b.lock", "a mount of s2"):
            pass
    with only_process(run / "mounts", "a.lock", "a mount of s1"):
        pass


def test_a_directory_that_was_open_to_others_is_closed(run: Path) -> None:
    (run / "mounts").mkdir(parents=True)
    (run / "mounts").chmod(0o777)
    make_runtime_directory(run / "mounts", PRIVATE)
    assert stat.S_IMODE((run / "mounts").stat().st_mode) == PRIVATE


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_a_directory_of_somebody_else_is_refused(run: Path) -> None:
    (run / "mounts").mkdir(parents=True)
    os.chown(run / "mounts", NOBODY, NOBODY)
    with pytest.raises(Refused, match="belongs to user 65534"), only_process(run / "mounts", "a.lock", "a mount of s1"):
        pytest.fail("somebody else could take the lock away")


def test_the_lock_of_a_mount_says_whose_it_was(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "a.lock") is None
    with only_process(tmp_path, "a.lock", "a mount"):
        own = holder_of(tmp_path / "a.lock")
    assert own == holder_of(tmp_path / "a.lock") == os.getpid()
    (tmp_path / "a.lock").write_bytes(b"\xff nobody")
    assert holder_of(tmp_path / "a.lock") is None
