"""Programs on several servers that share files: followers of a log, mapped files, programs that are run, appends.

On the network with its default times: what is awaited here comes long before a lease would have run out by itself.
"""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from lab.lab import Lab
from tests.conftest import fresh
from tests.support.acting import RENAME_EXCHANGE, renameat2
from tests.support.conditions import wait_until
from tests.support.processes import together

LINES = 20
FOLLOWED_WITHIN_S = 5.0
RECORDS = 10_000
RECORD_BYTES = 40
RENEW_S = 5.0  # by default
APPENDS_TIMEOUT_S = 240


@pytest.fixture
def folder(network: Lab, orderly_logs: None) -> str:
    """The name of a fresh directory in the root of all mounts."""
    return fresh(network.mount("s1")).name


# ------------------------------------------------------------------------------------------------------ following


class Follower:
    """`tail -f` on a file, and what it has printed."""

    def __init__(self, path: Path) -> None:
        self.output = b""
        self._process = subprocess.Popen(["tail", "-n", "+1", "-f", "-s", "0.05", str(path)], stdout=subprocess.PIPE)
        self._reader = Thread(target=self._read)
        self._reader.start()

    def has(self, written: bytes) -> bool:
        """Whether it has printed so much."""
        return len(self.output) >= len(written)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := os.read(self._process.stdout.fileno(), 65536):
            self.output += piece

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def followed(path: Path) -> Iterator[Follower]:
    follower = Follower(path)
    try:
        yield follower
    finally:
        follower.end()


def append_through(path: Path) -> Callable[[bytes], None]:
    """Opens the log for each line."""

    def append(line: bytes) -> None:
        with path.open("ab", buffering=0) as log:
            log.write(line)

    return append


@pytest.mark.parametrize("keeps_open", [True, False], ids=["kept open", "opened for each line"])
def test_tail_follows_a_log_that_another_server_writes(network: Lab, folder: str, keeps_open: bool) -> None:
    path = network.mount("s1") / folder / "log"
    path.write_bytes(b"")
    written = b""
    with followed(network.mount("s2") / folder / "log") as follower, path.open("ab", buffering=0) as kept:
        append: Callable[[bytes], object] = kept.write if keeps_open else append_through(path)
        if not keeps_open:
            kept.close()
        for number in range(LINES):
            line = b"line %d\n" % number
            append(line)
            written += line
            wait_until(partial(follower.has, written), f"line {number} is followed", FOLLOWED_WITHIN_S)
            assert follower.output == written


GROWING_S = 5.0
GROWING = r"""
import os, sys, time
role, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
file = open(path, "ab", buffering=0) if role == "append" else None
ready()
until = time.time() + seconds
at, wrong = 0, 0
while time.time() < until:
    if role == "stat":
        os.stat(path)
    elif role == "append":
        file.write(b"%063d\n" % at)
        at += 1
        time.sleep(0.001)
    else:
        file = file or open(path, "rb", buffering=0)
        first = max(0, at - 4)
        file.seek(64 * first)
        found = file.read(1 << 17)
        at = first + len(found) // 64
        wrong += sum(found[64 * n : 64 * n + 64] != b"%063d\n" % (first + n) for n in range(at - first))
        if role == "open and read":
            file.close()
            file = None
print(at, wrong)
"""


def test_who_reads_what_another_server_is_writing_while_others_look_at_it_reads_no_zeros(network: Lab, folder: str) -> None:
    """The kernel takes a new size over before it drops its last page, behind whose old end there are zeros."""
    written, followed = (network.mount(server) / folder / "log" for server in ("s1", "s3"))
    written.touch()
    roles = [("append", written), ("read", followed), ("open and read", followed), ("stat", followed)]
    appended, *read, _ = (said.split() for said in together(GROWING, *((*role, GROWING_S) for role in roles)))
    assert int(appended[0]) > 300
    assert all(int(at) > 100 for at, _wrong in read)
    assert [wrong for _at, wrong in read] == [b"0", b"0"]


# -------------------------------------------------------------------------------------------------------- mapping

FLAGS = {"MAP_PRIVATE": mmap.MAP_PRIVATE, "MAP_SHARED": mmap.MAP_SHARED}


def mapped_privately_or_shared(name: str) -> Callable[[int], mmap.mmap]:
    return lambda descriptor: mmap.mmap(descriptor, 0, flags=FLAGS[name], prot=mmap.PROT_READ)


MAPPINGS: dict[str, Callable[[int], mmap.mmap]] = {
    "ACCESS_READ": lambda descriptor: mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ),
    "MAP_PRIVATE": mapped_privately_or_shared("MAP_PRIVATE"),
    "MAP_SHARED": mapped_privately_or_shared("MAP_SHARED"),
}


def content_mapped(path: Path, mapping: Callable[[int], mmap.mmap]) -> bytes:
    """The whole file through pages of a new mapping."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mapping(descriptor) as pages:
            return pages[:]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_file_that_is_mapped_anew_shows_what_was_finished_elsewhere(network: Lab, folder: str, name: str) -> None:
    """A change of the same length, a longer file, a shorter one, and another file under the same name; by the home and others."""
    views = [network.mount(server) / folder / "mapped" for server in network.servers]
    content = os.urandom(300_000)
    views[0].write_bytes(content)

    def overwrite(path: Path) -> bytes:
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(b"overwritten")
        return content[:100_000] + b"overwritten" + content[100_011:]

    def extend(path: Path) -> bytes:
        with path.open("ab") as file:
            file.write(b"more" * 5000)
        return content + b"more" * 5000

    def cut(path: Path) -> bytes:
        os.truncate(path, 123_456)
        return content[:123_456]

    def replace(path: Path) -> bytes:
        other = os.urandom(123_456)
        path.with_name("other").write_bytes(other)
        path.with_name("other").replace(path)
        return other

    assert {content_mapped(view, MAPPINGS[name]) for view in views} == {content}
    for change in (overwrite, extend, cut, replace):
        for writer in views:
            content = change(writer)
            for view in views:
                assert content_mapped(view, MAPPINGS[name]) == content, f"{change.__name__} at {writer}, mapped at {view}"


def test_a_mapping_shows_what_was_finished_elsewhere_once_the_file_was_looked_at(network: Lab, folder: str) -> None:
    """The mapping stays; stat tells the kernel that its pages are out of date."""
    path = network.mount("s1") / folder / "mapped"
    path.write_bytes(b"0" * 10_000)
    here = network.mount("s2") / folder / "mapped"
    with here.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert pages[:] == b"0" * 10_000
        for letter in (b"1", b"2", b"3"):
            with path.open("r+b") as writer:
                writer.write(letter * 10_000)
            assert os.fstat(file.fileno()).st_size == 10_000
            assert pages[:] == letter * 10_000


POLLS = """
import mmap
file = os.open(sys.argv[1], os.O_RDONLY)
pages = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
print(pages[:3].decode(), flush=True)
while pages[:3] != b"new":
    time.sleep(0.002)
print("new", flush=True)
"""


def test_a_mapping_shows_what_was_finished_elsewhere_without_a_look_when_the_lease_is_renewed(network: Lab, folder: str) -> None:
    """The program touches its pages all the time, so it has them again before the writer has written."""
    path = network.mount("s1") / folder / "mapped"
    path.write_bytes(b"old" * 1000)
    here = network.mount("s2") / folder / "mapped"
    command = [sys.executable, "-c", "import os, sys, time" + POLLS, str(here)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "old\n"
            with path.open("r+b", buffering=0) as writer:
                time.sleep(0.2)
                writer.write(b"new")
            began_s = time.monotonic()
            assert process.wait(4 * RENEW_S) == 0
            assert time.monotonic() - began_s < 2 * RENEW_S
        finally:
            process.kill()


# -------------------------------------------------------------------------------------------------------- running

PROGRAM = '#include <stdio.h>\nint main(void) {{ puts("{said}"); return 0; }}\n'


def build(folder: Path, said: str) -> Path:
    """Compiles a program that says so, large enough for several pages."""
    source = folder / f"{said}.c"
    source.write_text(PROGRAM.format(said=said))
    subprocess.run(["gcc", "-static", "-o", str(folder / said), str(source)], check=True, timeout=60)
    return folder / said


def test_a_program_runs_on_every_mount_and_its_successor_after_it(network: Lab, folder: str, tmp_path: Path) -> None:
    views = [network.mount(server) / folder for server in network.servers]
    for installer, said in zip(views, ("first", "second", "third"), strict=True):
        subprocess.run(["install", str(build(tmp_path, said)), str(installer / "new")], check=True, timeout=60)
        (installer / "new").replace(installer / "program")
        for _ in range(2):
            for view in views:
                done = subprocess.run([str(view / "program")], capture_output=True, text=True, check=True, timeout=60)
                assert done.stdout == f"{said}\n", f"installed at {installer}, run at {view}"


# ------------------------------------------------------------------------------------------------------ appending


def test_appends_of_two_servers_to_one_file_are_all_there_and_whole(network: Lab, folder: str) -> None:
    """Ten thousand records each; those of one server stay in their order."""
    path = network.mount("s1") / folder / "log"
    path.write_bytes(b"")
    code = f"""
letter, path = sys.argv[1:]
file = os.open(path, os.O_WRONLY | os.O_APPEND)
ready()
for number in range({RECORDS}):
    record = (letter + "%08d" % number).ljust({RECORD_BYTES - 1}, letter) + "\\n"
    assert os.write(file, record.encode()) == {RECORD_BYTES}
"""
    arguments = [(letter, network.mount(server) / folder / "log") for letter, server in (("a", "s1"), ("b", "s2"))]
    together(code, *arguments, timeout_s=APPENDS_TIMEOUT_S)
    for server in network.servers:
        records = (network.mount(server) / folder / "log").read_bytes().split(b"\n")
        assert records.pop() == b""
        assert len(records) == 2 * RECORDS
        for letter in (b"a", b"b"):
            own = [record for record in records if record.startswith(letter)]
            assert own == [(letter + b"%08d" % number).ljust(RECORD_BYTES - 1, letter) for number in range(RECORDS)]


# ---------------------------------------------------------------------------------------------------------- renames

RENAMES = 250


def _renames(folder: Path, mine: str, errors: list[OSError], refused: list[int]) -> None:
    """Renames between two names, exchanges them, and puts files of its own in their places."""
    for number in range(RENAMES):
        try:
            match number % 4:
                case 0:
                    os.rename(folder / "a", folder / "b")
                case 1:
                    os.rename(folder / "b", folder / "a")
                case 2:
                    renameat2(os.fsencode(folder / "a"), os.fsencode(folder / "b"), RENAME_EXCHANGE)
                case _:
                    (folder / mine).write_text(mine)
                    os.rename(folder / mine, folder / "a")
        except FileNotFoundError as error:
            refused.append(error.errno or 0)
        except OSError as error:
            errors.append(error)


def test_names_that_all_servers_rename_give_nobody_a_stale_handle(network: Lab, folder: str) -> None:
    """Somebody else may have been faster, which is `ENOENT`; nothing else, whatever happens between two lookups."""
    for name in ("a", "b"):
        (network.mount("s1") / folder / name).write_text(name)
    errors: list[OSError] = []
    refused: list[int] = []
    threads = [
        Thread(target=_renames, args=(network.mount(server) / folder, f"{server}-{number}", errors, refused))
        for server in network.servers
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(refused) < len(threads) * RENAMES
    seen = [{path.name: path.read_text() for path in (network.mount(server) / folder).iterdir()} for server in network.servers]
    assert seen[0]
    assert seen == [seen[0]] * len(seen)
