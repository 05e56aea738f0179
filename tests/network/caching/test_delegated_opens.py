"""Opens that the mount's extension answers by itself: that it does, and that nobody can tell but by the speed."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.conftest import fresh, temporary_lab
from tests.support.conditions import godwit, wait_for_caching, wait_for_replicas, wait_until
from tests.support.modes import need_passthrough

ACCESS_S, TIMEOUT_S = 4.0, 3.0
OVERRIDES = {
    "mount": {"request_timeout_s": TIMEOUT_S, "renew_s": 1.0},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 30.0},
}
FILES = 50
TOLD_S = 1.6  # within which a mount has told its counts anew
AGAIN_S = 0.1  # more than it takes until a closed file lingers
WARMING, HANDLES = 3, 8  # times that a file is read before; then opened
REAPED_S = 2.0  # longer than it takes until what nobody has open is removed
OPEN_AND_READ = "import os, sys; print(len(open(sys.argv[1], 'rb').read()))"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_passthrough()
    with temporary_lab(OVERRIDES) as lab:
        wait_for_caching(lab, "s1")
        yield lab


HERE, ELSEWHERE = "s1", "s2"  # where the files' home is; where it is not


def opens(lab: Lab, server: str = HERE) -> float:
    """How many the extension of a server has answered."""
    metrics = godwit(lab, "servers", "show", server)["server"]["metrics"]
    return float(metrics["mount"]["godwit_delegated_opens_total"])


def made_by_s1(lab: Lab, server: str = HERE) -> Path:
    """A file at home on s1, as *server* sees it."""
    made = fresh(lab.mount(HERE)) / "file"
    made.write_bytes(b"first")
    wait_for_replicas(lab, str(made), 2)
    return lab.mount(server) / made.relative_to(lab.mount(HERE))


@contextmanager
def delegated(lab: Lab, path: Path, server: str = HERE) -> Iterator[list[FileIO]]:
    """Handles of a file, which the extension of *server* has given out, all or nearly all."""
    handles: list[FileIO] = []

    def are_delegated() -> bool:
        while handles:
            handles.pop().close()
        before = opens(lab, server)
        # Looking takes longer than a file lingers.
        for _ in range(WARMING):
            assert path.read_bytes() == b"first"
            time.sleep(AGAIN_S)
        handles.extend(open(path, "rb", buffering=0) for _ in range(HANDLES))  # noqa: SIM115  # closed below
        time.sleep(TOLD_S)
        return opens(lab, server) - before > WARMING

    wait_until(are_delegated, "the extension opens it")
    try:
        yield handles
    finally:
        for handle in handles:
            handle.close()


def there(lab: Lab, path: Path) -> Path:
    """The same file as s2 sees it."""
    return lab.mount("s2") / path.relative_to(lab.mount("s1"))


def objects_of(lab: Lab, path: Path, *, at_home: bool = False) -> list[Path]:
    """The objects that have its content, or only the one at its home."""
    where = godwit(lab, "where", str(path))
    rows = [row for row in where["replicas"] if row["home"] or not at_home]
    return [Path(VolumeLayout(Path(row["path"])).object_path(where["ino"])) for row in rows]


def test_files_that_were_read_are_opened_without_the_mount(lab: Lab) -> None:
    folder = fresh(lab.mount("s1"))
    paths = [folder / f"{number:02}" for number in range(FILES)]
    for path in paths:
        path.write_bytes(b"content")
    wait_for_replicas(lab, str(paths[-1]), 2)

    def are_delegated() -> bool:
        before = opens(lab)
        for _ in range(WARMING):
            assert all(path.read_bytes() == b"content" for path in paths)
            time.sleep(AGAIN_S)
        time.sleep(TOLD_S)
        return opens(lab) - before > (WARMING - 2) * FILES

    wait_until(are_delegated, "all of them are opened by the extension")


@pytest.mark.parametrize(("server", "writer"), [(HERE, ELSEWHERE), (ELSEWHERE, HERE)], ids=["here", "elsewhere"])
def test_what_another_server_writes_is_read_by_the_next_open(lab: Lab, server: str, writer: str) -> None:
    path = made_by_s1(lab, server)
    written = lab.mount(writer) / path.relative_to(lab.mount(server))
    with delegated(lab, path, server) as handles:
        for number in range(20):
            content = b"change %d" % number
            written.write_bytes(content)
            assert path.read_bytes() == content
            assert path.read_bytes() == content
            assert {os.pread(handle.fileno(), 100, 0) for handle in handles} == {content}
            time.sleep(AGAIN_S * (number % 2))


def test_what_was_removed_elsewhere_is_kept_for_who_has_it_open(lab: Lab) -> None:
    path = made_by_s1(lab)
    objects = objects_of(lab, path)
    with delegated(lab, path) as handles:
        there(lab, path).unlink()
        with pytest.raises(FileNotFoundError):
            path.read_bytes()
        time.sleep(REAPED_S)
        assert all(os.pread(handle.fileno(), 100, 0) == b"first" for handle in handles)
        assert all(one.exists() for one in objects), "the manager knows that it is open"
    wait_until(lambda: not any(one.exists() for one in objects), "its objects go when it is closed")


def test_a_lock_belongs_to_the_open_file_by_which_it_was_set(lab: Lab) -> None:
    path = made_by_s1(lab)
    with delegated(lab, path) as (first, other, *others), open(there(lab, path), "rb", buffering=0) as elsewhere:
        fcntl.flock(first, fcntl.LOCK_EX)
        for one in others:
            one.close()
        for one in (other, elsewhere):
            with pytest.raises(BlockingIOError):
                fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(elsewhere, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("server", [HERE, ELSEWHERE])
def test_all_that_an_open_file_is_asked_for_works(lab: Lab, server: str) -> None:
    path = made_by_s1(lab, server)
    with delegated(lab, path, server) as handles:
        one, another = handles[0].fileno(), handles[1].fileno()
        os.posix_fadvise(one, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(one, 100, 0) == b"first", "what the kernel has not"
        assert os.fstat(one).st_size == 5
        assert os.lseek(another, 0, os.SEEK_HOLE) == 5
        assert os.lseek(another, 0, os.SEEK_DATA) == 0
        os.fsync(one)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(one, b"x")
        with open(path, "r+b") as writer:
            writer.write(b"FIRST and more")
        assert {os.pread(handle.fileno(), 100, 0) for handle in handles} == {b"FIRST and more"}


def test_an_object_that_something_else_has_changed_is_examined(lab: Lab) -> None:
    path = made_by_s1(lab)
    (home,) = objects_of(lab, path, at_home=True)
    with delegated(lab, path):
        os.truncate(home, 3)
    assert path.read_bytes() == b"first", "from the copy on another server"


@pytest.mark.parametrize("server", [HERE, ELSEWHERE])
def test_nothing_is_opened_when_the_lease_has_ended(lab: Lab, server: str) -> None:
    path = made_by_s1(lab, server)
    with delegated(lab, path, server):
        lab.cut(server)
        try:
            time.sleep(ACCESS_S + 1.0)
            assert os.strerror(errno.EIO) in read_apart(path).stderr
        finally:
            lab.mend(server)
    wait_until(lambda: read_apart(path).stdout == "5\n", "it can be opened again")


def read_apart(path: Path) -> subprocess.CompletedProcess[str]:
    """How long another process finds a file to be, if it does; that may wait."""
    command = [sys.executable, "-c", OPEN_AND_READ, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=10 * TIMEOUT_S, check=False)
