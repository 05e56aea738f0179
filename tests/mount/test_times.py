"""Times on one mount: exact when they are set, and moved by exactly the operations that move them on ext4."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.acting import RENAME_EXCHANGE, renameat2

CLOCK_REALTIME_COARSE = 5
DEADLINE_S = 5.0


def truncate_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def write(path: Path, data: bytes = b"x") -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, data)
    os.close(descriptor)


def exchange(path: Path) -> None:
    renameat2(os.fsencode(path), os.fsencode(path.parent / "other"), RENAME_EXCHANGE)


def reopen(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


FILE, PARENT = ("file mtime", "file ctime"), ("parent mtime", "parent ctime")

# What is done to a file of 5 bytes, and what times it moves.
MOVES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "read": (Path.read_bytes, set()),
    "open for writing": (reopen, set()),
    "write": (write, {*FILE}),
    "write nothing": (lambda path: write(path, b""), set()),
    "truncate": (lambda path: os.truncate(path, 2), {*FILE}),
    "truncate to the same size": (lambda path: os.truncate(path, 5), {*FILE}),
    "open with O_TRUNC": (truncate_open, {*FILE}),
    "chmod": (lambda path: path.chmod(0o600), {"file ctime"}),
    "chown": (lambda path: os.chown(path, 1, 1), {"file ctime"}),
    "set an attribute": (lambda path: os.setxattr(path, "user.a", b""), {"file ctime"}),
    "remove an attribute": (lambda path: os.removexattr(path, "user.old"), {"file ctime"}),
    "link": (lambda path: os.link(path, path.parent / "new"), {"file ctime", *PARENT}),
    "unlink": (Path.unlink, {*PARENT}),
    "unlink one of two": (lambda path: (path.parent / "second").unlink(), {"file ctime", *PARENT}),
    "rename": (lambda path: path.rename(path.parent / "new"), {"file ctime", *PARENT}),
    "replace": (lambda path: path.rename(path.parent / "other"), {"file ctime", *PARENT}),
    "exchange": (exchange, {"file ctime", *PARENT}),
    "symlink": (lambda path: (path.parent / "new").symlink_to("x"), {*PARENT}),
    "mkdir": (lambda path: (path.parent / "new").mkdir(), {*PARENT}),
    "mkfifo": (lambda path: os.mkfifo(path.parent / "new"), {*PARENT}),
    "rmdir": (lambda path: (path.parent / "empty").rmdir(), {*PARENT}),
    "create": (lambda path: (path.parent / "new").touch(), {*PARENT}),
    "chmod of the parent": (lambda path: path.parent.chmod(0o700), {"parent ctime"}),
    "utime": (lambda path: os.utime(path, (1, 1)), {*FILE}),
    "list": (lambda path: os.listdir(path.parent), set()),
}


def wait_for_a_tick(after_ns: int) -> None:
    """Waits until the clock that file systems stamp with has gone past *after_ns*."""
    deadline = time.monotonic() + DEADLINE_S
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= after_ns:
        assert time.monotonic() < deadline, "the clock stands still"
        time.sleep(0.001)


def times_of(file: int, parent: Path) -> dict[str, int]:
    here, above = os.fstat(file), parent.stat()
    return {
        "file mtime": here.st_mtime_ns,
        "file ctime": here.st_ctime_ns,
        "parent mtime": above.st_mtime_ns,
        "parent ctime": above.st_ctime_ns,
    }


@pytest.fixture
def file(place: Path) -> Path:
    (place / "parent" / "empty").mkdir(parents=True)
    path = place / "parent" / "file"
    path.write_bytes(b"01234")
    os.setxattr(path, "user.old", b"")
    (path.parent / "other").touch()
    return path


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_which_times(file: Path, name: str) -> None:
    operation, expected = MOVES[name]
    if name == "unlink one of two":
        (file.parent / "second").hardlink_to(file)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = times_of(descriptor, file.parent)
        wait_for_a_tick(max(before.values()))
        operation(file)
        after = times_of(descriptor, file.parent)
    finally:
        os.close(descriptor)
    moved = {name for name in before if before[name] != after[name]}
    if name == "unlink":
        moved.discard("file ctime")  # nobody can see the ctime of a file without a name but who has it open
    assert moved == expected
    if name != "utime":
        assert all(before[time_name] < after[time_name] <= time.time_ns() for time_name in moved)


@pytest.mark.parametrize(
    "time_ns",
    [0, 1, 123_456_789, 1_234_567_890_987_654_321, 2**32 * 10**9 + 1, -1, -1_500_000_000],
)
def test_times_are_kept_to_the_nanosecond(file: Path, time_ns: int) -> None:
    os.utime(file, ns=(time_ns, time_ns))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (time_ns, time_ns)
    os.utime(file.parent, ns=(time_ns, time_ns + 5))
    assert (file.parent.stat().st_atime_ns, file.parent.stat().st_mtime_ns) == (time_ns, time_ns + 5)
    (file.parent / "link").symlink_to("nowhere")
    os.utime(file.parent / "link", ns=(time_ns + 1, time_ns + 2), follow_symlinks=False)
    assert (file.parent / "link").lstat().st_mtime_ns == time_ns + 2


def test_times_that_were_set_stay_while_the_file_is_open_and_after(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    os.write(descriptor, b"news")
    os.utime(descriptor, ns=(5, 1_000_000_007))
    assert os.fstat(descriptor).st_mtime_ns == 1_000_000_007
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_mtime_ns == 1_000_000_007
    os.close(descriptor)
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (5, 1_000_000_007)
    with file.open("rb") as reader:
        reader.read()
    assert file.stat().st_mtime_ns == 1_000_000_007


def test_a_new_file_has_the_time_of_its_creation(place: Path) -> None:
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    for name, make in (("file", Path.touch), ("directory", Path.mkdir), ("pipe", os.mkfifo)):
        make(place / name)
        st = (place / name).stat()
        assert st.st_atime_ns == st.st_mtime_ns == st.st_ctime_ns
        assert before <= st.st_mtime_ns <= time.time_ns()
