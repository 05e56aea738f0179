"""A mount that is cut off: it answers from its caches until its deadline and never after, and holds up nobody for longer.

Everything that it may have cached is looked at all the time while another server changes it. The old answer may be seen
only by who asked before the change was acknowledged. One machine has one monotonic clock, so all times compare.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.leases import margin_s
from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, wait_for_caching, wait_for_copies, wait_for_replicas, wait_until

ACCESS_S = 3.0
REQUEST_TIMEOUT_S = 4.0
WHOLE_AGAIN_S = 5.0
SLACK_S = 2.0  # for a machine that has other things to do
OVERRIDES = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 0.7},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 6.0, "claim_timeout_s": 5.0},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The manager is on s1, and s1 is the home of all files: s3 is the one that is cut off."""
    lab = Lab.create(tmp_path_factory.mktemp("cut") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        wait_for_caching(lab, "s3")
        yield lab
    finally:
        lab.down(purge=True)


@dataclass(frozen=True)
class Seen:
    """What one look gave: a value, or the errno."""

    began_s: float
    value: object
    error: int


class Watcher:
    """A thread that looks again and again."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.seen: list[Seen] = []
        self._look = look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                seen = Seen(began_s, self._look(), 0)
            except OSError as error:
                seen = Seen(began_s, None, error.errno or 0)
            self.seen.append(seen)
            time.sleep(0.002)

    def has_seen_since(self, since_s: float) -> bool:
        """Whether its last look began after that and succeeded."""
        return self.seen[-1].began_s > since_s and self.seen[-1].error == 0

    def stop(self) -> list[Seen]:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a look hangs"
        return self.seen


@dataclass(frozen=True)
class Kind:
    """Something that may be cached of a directory with a `file`: how it is looked at, what is seen, how it is changed.

    `asks`: each look begins with a question to the manager.
    """

    look: Callable[[Path, int], object]
    old: object
    change: Callable[[Path], object]
    new: object
    asks: bool = False


def is_there(path: Path) -> bool:
    """Like `os.path.lexists`, which takes every error for an absence."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def overwrite(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, b"new", 0)
    finally:
        os.close(descriptor)


KINDS = {
    "a size": Kind(lambda d, _fd: os.stat(d / "file").st_size, 3, lambda d: os.truncate(d / "file", 5), 5),
    "a mode": Kind(lambda d, _fd: os.stat(d / "file").st_mode & 0o777, 0o640, lambda d: (d / "file").chmod(0o604), 0o604),
    "an absent name": Kind(lambda d, _fd: is_there(d / "name"), False, lambda d: (d / "name").symlink_to("x"), True),
    "a name": Kind(lambda d, _fd: is_there(d / "file"), True, lambda d: (d / "file").unlink(), False),
    "a listing": Kind(lambda d, _fd: os.listdir(d), ["file"], lambda d: (d / "file").rename(d / "other"), ["other"]),
    "what a name means": Kind(
        lambda d, _fd: os.stat(d / "file").st_size,
        3,
        lambda d: ((d / "new").write_bytes(b"newer"), (d / "new").rename(d / "file")),
        5,
    ),
    "content of an open file": Kind(lambda _d, fd: os.pread(fd, 3, 0), b"old", lambda d: overwrite(d / "file"), b"new"),
    "attributes of an open file": Kind(lambda _d, fd: os.fstat(fd).st_size, 3, lambda d: os.truncate(d / "file", 5), 5),
    "content": Kind(lambda d, _fd: (d / "file").read_bytes(), b"old", lambda d: overwrite(d / "file"), b"new", asks=True),
}


def made_by_s1(lab: Lab, count: int) -> list[Path]:
    """Directories with one finished file each."""
    made = [fresh(lab.mount("s1")) for _ in range(count)]
    for directory in made:
        (directory / "file").write_bytes(b"old")
        (directory / "file").chmod(0o640)
    wait_for_copies(lab)
    for directory in made:
        wait_for_replicas(lab, str(directory / "file"), 2)
    return made


def acknowledged(change: Callable[[Path], object], directory: Path) -> tuple[float, float]:
    """Makes the change; when it began, and when it was acknowledged."""
    began_s = time.monotonic()
    change(directory)
    return began_s, time.monotonic()


def test_the_old_is_never_seen_after_the_new_was_acknowledged(lab: Lab) -> None:
    made = made_by_s1(lab, len(KINDS))
    there = [lab.mount("s3") / directory.name for directory in made]
    descriptors = [os.open(directory / "file", os.O_RDONLY | os.O_CLOEXEC) for directory in there]
    kinds = list(KINDS.values())
    watchers = [
        Watcher(lambda kind=kind, directory=directory, fd=fd: kind.look(directory, fd))  # type: ignore[misc]
        for kind, directory, fd in zip(kinds, there, descriptors, strict=True)
    ]
    try:
        wait_until(lambda: all(len(watcher.seen) > 10 for watcher in watchers), "everything was seen")
        lab.cut("s3")
        cut_s = time.monotonic()
        try:
            with ThreadPoolExecutor(len(kinds)) as pool:
                times = list(pool.map(acknowledged, [kind.change for kind in kinds], made))
            wait_until(lambda: all(w.seen[-1].error == errno.EIO for w in watchers), "every look fails", 30)
        finally:
            lab.mend("s3")
            mended_s = time.monotonic()
        wait_until(lambda: all(w.has_seen_since(mended_s) for w in watchers), "all is whole again", WHOLE_AGAIN_S)
    finally:
        seen = [watcher.stop() for watcher in watchers]
        for descriptor in descriptors:
            os.close(descriptor)
    for name, kind, looks, (began_s, done_s) in zip(KINDS, kinds, seen, times, strict=True):
        _check(name, kind, looks, done_s)
        assert done_s - began_s < ACCESS_S + margin_s(ACCESS_S) + SLACK_S, name
        from_cache = [look for look in looks if look.began_s > cut_s and not look.error and look.value == kind.old]
        assert from_cache or kind.asks, f"{name}: nothing was answered from a cache"


def _check(name: str, kind: Kind, looks: list[Seen], done_s: float) -> None:
    for look in looks:
        late_s = look.began_s - done_s
        assert look.error in (0, errno.EIO), f"{name}: {errno.errorcode[look.error]}"
        if late_s > 0:
            assert look.error or look.value == kind.new, f"{name}: {look.value!r} {late_s:.3f} s after the acknowledgement"
        elif not look.error:
            assert look.value in (kind.old, kind.new)
    assert looks[0].value == kind.old
    assert looks[-1].value == kind.new


MAPPED = """
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
print("opened", flush=True)
sys.stdin.readline()
os.fstat(file)
pages = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
while True:
    began = time.monotonic()
    print(began, pages[:3].decode(), flush=True)
    time.sleep(0.002)
"""


@contextmanager
def opened_to_map(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has opened the file. Told to, it maps it, and says again and again what is there."""
    command = [sys.executable, "-c", MAPPED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert next_line(process) == "opened\n"
            yield process
        finally:
            process.kill()


def next_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def mapped(process: "subprocess.Popen[str]") -> str:
    """Has it map; what it sees first."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    return next_line(process).split()[1]


def seen_until_the_end(process: "subprocess.Popen[str]", since_s: float) -> set[str]:
    """What it sees from then on, until a page cannot be read: that ends it with SIGBUS, as on a disk that fails."""
    looks = [line.split() for line in process.communicate(timeout=ACCESS_S + REQUEST_TIMEOUT_S + 10)[0].splitlines()]
    assert process.returncode == -signal.SIGBUS
    assert len(looks) > 10
    return {value for began, value in looks if float(began) > since_s}


def test_mapped_pages_are_not_seen_after_the_deadline(lab: Lab) -> None:
    (directory,) = made_by_s1(lab, 1)
    there = lab.mount("s3") / directory.name / "file"
    with opened_to_map(there) as process:
        assert mapped(process) == "old"
        lab.cut("s3")
        try:
            overwrite(directory / "file")
            assert seen_until_the_end(process, since_s=time.monotonic()) <= {"new"}
        finally:
            lab.mend("s3")
    wait_until(lambda: _content(there) == b"new", "s3 is whole again", WHOLE_AGAIN_S)


@pytest.mark.parametrize("opened_first", ["writer", "reader"])
def test_mapped_pages_of_what_must_not_be_cached_go_at_the_deadline(lab: Lab, opened_first: str) -> None:
    """Nobody asks for them back, so they may be older than what others see, but not for longer than the token lasts."""
    (directory,) = made_by_s1(lab, 1)
    there = lab.mount("s3") / directory.name / "file"
    with ExitStack() as stack:
        if opened_first == "reader":
            process = stack.enter_context(opened_to_map(there))  # through the page cache, else around it
        writer = stack.enter_context((directory / "file").open("r+b", buffering=0))
        if opened_first == "writer":
            process = stack.enter_context(opened_to_map(there))
        writer.write(b"own")
        assert mapped(process) == "own"
        lab.cut("s3")
        cut_s = time.monotonic()
        try:
            os.pwrite(writer.fileno(), b"new", 0)
            assert seen_until_the_end(process, since_s=cut_s + ACCESS_S + SLACK_S) <= {"new"}
        finally:
            lab.mend("s3")
        writer.close()
        wait_until(lambda: _content(there) == b"new", "s3 is whole again", WHOLE_AGAIN_S)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def listed(path: Path) -> tuple[int, str, float]:
    """`ls`: its exit code, what it said on stderr, and how long it took."""
    began_s = time.monotonic()
    done = subprocess.run(["ls", str(path)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr, time.monotonic() - began_s


def test_ls_fails_in_time_and_works_again_without_mounting_anew(lab: Lab) -> None:
    (directory,) = made_by_s1(lab, 1)
    there = lab.mount("s3") / directory.name
    assert listed(there)[0] == 0
    before = os.stat(there).st_dev, lab.pid("s3", "mount")
    lab.cut("s3")
    try:
        tries: list[tuple[int, str, float]] = []

        def fails() -> bool:
            tries.append(listed(there))
            return tries[-1][0] != 0

        wait_until(fails, "ls fails", ACCESS_S + REQUEST_TIMEOUT_S + 10)
        assert os.strerror(errno.EIO) in tries[-1][1]
        assert max(took_s for _code, _said, took_s in tries) < REQUEST_TIMEOUT_S + SLACK_S
    finally:
        lab.mend("s3")
    mended_s = time.monotonic()
    wait_until(lambda: listed(there)[0] == 0, "ls works again", WHOLE_AGAIN_S)
    (there / "written").write_bytes(b"by s3")
    assert time.monotonic() - mended_s < WHOLE_AGAIN_S
    assert (directory / "written").read_bytes() == b"by s3"
    assert (os.stat(there).st_dev, lab.pid("s3", "mount")) == before


def test_others_wait_for_its_leases_and_for_nothing_else(lab: Lab) -> None:
    """A directory that it has open is waited for until the lease has ended, one that it never looked at not at all."""
    looked_at, never_looked_at = made_by_s1(lab, 2)
    descriptor = os.open(lab.mount("s3") / looked_at.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        assert os.listdir(descriptor) == ["file"]
        waited_out = godwit(lab, "leases", "ls")["waited_out"]
        lab.cut("s3")
        try:
            began_s = time.monotonic()
            (never_looked_at / "new").mkdir()
            assert time.monotonic() - began_s < ACCESS_S / 3
            assert godwit(lab, "leases", "ls")["waited_out"] == waited_out
            (looked_at / "new").mkdir()
            assert time.monotonic() - began_s < ACCESS_S + margin_s(ACCESS_S) + SLACK_S
            assert godwit(lab, "leases", "ls")["waited_out"] > waited_out
            began_s = time.monotonic()
            (looked_at / "newer").mkdir()
            assert time.monotonic() - began_s < ACCESS_S / 3, "it is waited for once"
        finally:
            lab.mend("s3")
        wait_until(lambda: _names(descriptor) == ["file", "new", "newer"], "s3 sees both", WHOLE_AGAIN_S)
    finally:
        os.close(descriptor)


def _names(descriptor: int) -> list[str] | None:
    try:
        return sorted(os.listdir(descriptor))
    except OSError:
        return None
