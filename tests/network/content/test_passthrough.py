"""Files that the kernel reads and writes past the mount: that it does, and that nothing is missed because of it."""

import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.conftest import fresh, temporary_lab
from tests.mount.test_files import opened
from tests.support.acting import link_open
from tests.support.conditions import godwit, wait_for_replicas, wait_until
from tests.support.modes import PASSTHROUGH, assert_mode, need_passthrough

COMMIT_S = 0.5
OVERRIDES = {
    "mount": {"request_timeout_s": 10.0, "commit_s": COMMIT_S, "renew_s": 0.7},
    "manager": {"access_s": 3.0, "term_s": 2.0, "session_timeout_s": 30.0},
}
PAGE = 4096
CONTENT = b"0123456789abcdef" * 1024
ANYBODY = 65534


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_passthrough()
    with temporary_lab(OVERRIDES) as lab:
        yield lab


@pytest.fixture
def here(lab: Lab) -> Path:
    """A directory on the mount of s1, which is the home of what is made there."""
    return fresh(lab.mount("s1"))


def seen_from(lab: Lab, server: str, path: Path) -> Path:
    return lab.mount(server) / path.relative_to(lab.mount("s1"))


def run(code: str, *arguments: object, user: int | None = None) -> str:
    """What another process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True, user=user).stdout


def test_status_says_so(lab: Lab) -> None:
    assert_mode(lab, PASSTHROUGH)
    assert [server["problems"] for server in godwit(lab, "status")["servers"]] == [[], [], []]


@pytest.mark.parametrize("named", [True, False], ids=["with a name", "without a name"])
def test_the_kernel_does_without_the_mount(lab: Lab, here: Path, named: bool) -> None:
    path, flags = (here / "file", os.O_CREAT) if named else (here, os.O_TMPFILE)
    with opened(path, flags | os.O_RDWR) as file:
        os.write(file, CONTENT)
        found: list[bytes] = []

        def work() -> None:
            found.append(os.pread(file, 16, 0))
            os.pwrite(file, b"new", 0)
            found.append(os.pread(file, 3, 0))

        lab.kill("s1", "mount", signal.SIGSTOP)
        try:
            worker = threading.Thread(target=work)
            worker.start()
            worker.join(10)
            done = list(found)
        finally:
            lab.kill("s1", "mount", signal.SIGCONT)
        worker.join()
        if not named:
            link_open(file, os.fsencode(here / "file"))
    assert done == [CONTENT[:16], b"new"]
    assert seen_from(lab, "s2", here / "file").read_bytes() == b"new" + CONTENT[3:]


def append(path: Path) -> bytes:
    descriptors = [os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2)]
    for number, descriptor in enumerate(descriptors * 3):
        os.write(descriptor, b"%d" % number)
    for descriptor in descriptors:
        os.close(descriptor)
    return CONTENT + b"012345"


def write_mapped(path: Path) -> bytes:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5:8] = b"map"
    return CONTENT[:5] + b"map" + CONTENT[8:]


def write_directly(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as page:
        page.write(b"d" * PAGE)
        os.pwrite(descriptor, page, PAGE)
        assert os.preadv(descriptor, [page], 0) == PAGE
        assert page[:PAGE] == CONTENT[:PAGE]
    os.close(descriptor)
    return CONTENT[:PAGE] + b"d" * PAGE + CONTENT[2 * PAGE :]


def make_sparse(path: Path) -> bytes:
    with path.open("r+b", buffering=0) as file:
        file.truncate(100)
        file.truncate(3 * PAGE)
        file.seek(1 << 20)
        file.write(b"end")
    return CONTENT[:100] + bytes((1 << 20) - 100) + b"end"


def replace_content(path: Path) -> bytes:
    path.write_bytes(b"short")
    return b"short"


WAYS = {function.__name__: function for function in (append, write_mapped, write_directly, make_sparse, replace_content)}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_is_seen_and_copied(lab: Lab, here: Path, way: str) -> None:
    path = here / "file"
    path.write_bytes(CONTENT)
    before = wait_for_replicas(lab, str(path), 2)
    expected = WAYS[way](path)
    assert [seen_from(lab, server, path).read_bytes() == expected for server in lab.servers] == [True] * 3

    def copied() -> bool:
        where = godwit(lab, "where", str(path))
        current = [replica["server"] for replica in where["replicas"] if replica["current"]]
        return bool(where["version"] > before["version"]) and len(current) == 2

    wait_until(copied, "the copy is current again")
    for replica in godwit(lab, "where", str(path))["replicas"]:
        assert Path(VolumeLayout(lab.volume(replica["server"])).object_path(before["ino"])).read_bytes() == expected


def test_what_stays_open_is_committed_without_a_close(lab: Lab, here: Path) -> None:
    path = here / "log"
    with path.open("wb", buffering=0) as file:
        for number in range(3):
            file.write(b"line\n")
            wait_until(lambda number=number: godwit(lab, "where", str(path))["version"] > number, "a commit")  # type: ignore[misc]
        assert godwit(lab, "where", str(path))["dirty"]


STORE = """
import mmap, sys, threading
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    threading.Thread(target=sys.stdin.read, daemon=True).start()
    number = 0
    while threading.active_count() > 1:
        number += 1
        mapped[0:8] = mapped[-8:] = number.to_bytes(8, "little")
"""


def test_what_is_stored_through_a_mapping_all_the_time_is_committed_and_copied(lab: Lab, here: Path) -> None:
    """Stores into a page that is dirty change no time, so that copies have to see to it that there is one moment they are of."""
    path = here / "mapped"
    path.write_bytes(bytes(64 * PAGE))
    before = wait_for_replicas(lab, str(path), 2)["version"]
    writer = subprocess.Popen([sys.executable, "-c", STORE, str(path)], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: godwit(lab, "where", str(path))["version"] >= before + 4, "it is committed again and again")
        assert [replica["fault"] for replica in godwit(lab, "where", str(path))["replicas"]] == ["", ""]
    finally:
        writer.communicate(timeout=30)
    assert writer.returncode == 0
    after = wait_for_replicas(lab, str(path), 2)
    contents = {Path(VolumeLayout(Path(replica["path"])).object_path(after["ino"])).read_bytes() for replica in after["replicas"]}
    assert contents == {path.read_bytes()}
    assert [replica["fault"] for replica in after["replicas"]] == ["", ""]


def test_stat_tells_what_a_mapping_changed(here: Path) -> None:
    path = here / "mapped"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert path.stat().st_mtime_ns == 1
        mapped[0:1] = b"x"
        mapped.flush()
        assert path.stat().st_mtime_ns > 1


def test_another_server_writes_at_the_same_time(lab: Lab, here: Path) -> None:
    path = here / "both"
    path.write_bytes(CONTENT)
    there = seen_from(lab, "s2", path)
    with path.open("r+b", buffering=0) as local, there.open("r+b", buffering=0) as remote:
        for number in range(50):
            mark = b"%06d" % number
            os.pwrite(local.fileno(), mark, 0)
            assert os.pread(remote.fileno(), 6, 0) == mark
            os.pwrite(remote.fileno(), mark[::-1], 100)
            assert os.pread(local.fileno(), 6, 100) == mark[::-1]
    assert path.read_bytes() == seen_from(lab, "s3", path).read_bytes()


def test_a_home_stays_while_it_is_read_there(lab: Lab, here: Path) -> None:
    path = here / "film"
    path.write_bytes(CONTENT)
    wait_for_replicas(lab, str(path), 2)

    def migration() -> dict[str, object]:
        row: dict[str, object] = godwit(lab, "migrations", "show", str(number))["migration"]
        return row

    with path.open("rb", buffering=0) as file:
        number = godwit(lab, "migrate", str(path), "--from", "s1", "--to", "s3")["migration"]["migration"]
        wait_until(lambda: "at its home" in str(migration()["problem"]), "it waits for the reader")
        seen_from(lab, "s2", path).write_bytes(b"newer")
        assert file.read() == b"newer"
    wait_until(lambda: migration()["state"] == "done", "it goes on after the close")
    assert path.read_bytes() == b"newer"


def test_what_was_opened_before_the_home_came_goes_on(lab: Lab, here: Path) -> None:
    path = here / "moves"
    path.write_bytes(CONTENT)
    where = wait_for_replicas(lab, str(path), 2)
    (server,) = [replica["server"] for replica in where["replicas"] if replica["server"] != "s1"]
    there = seen_from(lab, server, path)
    with there.open("rb", buffering=0) as reader:
        assert os.pread(reader.fileno(), 16, 0) == CONTENT[:16]
        with there.open("r+b", buffering=0) as writer:
            writer.write(b"from there")
            assert os.pread(reader.fileno(), 10, 0) == b"from there"
            assert path.read_bytes()[:10] == b"from there"


def test_a_cut_off_writer_is_stopped_and_goes_on_afterwards(lab: Lab) -> None:
    path = fresh(lab.mount("s3")) / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(CONTENT)
        lab.cut("s3")
        try:
            wait_until(lambda: write_errno(file.fileno()) == errno.EPERM, "writing fails")
        finally:
            lab.mend("s3")
        wait_until(lambda: write_errno(file.fileno()) == 0, "writing goes on")
        assert os.pread(file.fileno(), 3, 0) == b"new"
    assert (lab.mount("s1") / path.relative_to(lab.mount("s3"))).read_bytes() == b"new" + CONTENT[3:]


def write_errno(descriptor: int) -> int:
    try:
        os.pwrite(descriptor, b"new", 0)
    except OSError as error:
        return error.errno or -1
    return 0


SET_ID: dict[str, Callable[[Path, int], None]] = {
    "written by somebody else": lambda path, user: run_as(user, "os.write(os.open(sys.argv[1], os.O_WRONLY), b'x')", path),
    "truncated by somebody else": lambda path, user: run_as(user, "os.truncate(sys.argv[1], 2)", path),
    "given away": lambda path, _user: os.chown(path, 1, 1),
}


def run_as(user: int, code: str, path: Path) -> None:
    run(f"import os, sys; os.setgroups([]); os.setgid({user}); os.setuid({user}); {code}", path)


@pytest.mark.parametrize("change", SET_ID)
def test_set_id_bits_go(here: Path, change: str) -> None:
    for path in (here, here.parent):
        path.chmod(0o755)
    path = here / "program"
    path.write_bytes(CONTENT)
    path.chmod(0o6777)
    path.write_bytes(CONTENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777, "root may"
    SET_ID[change](path, ANYBODY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@pytest.mark.parametrize("content", ["b'x'", "bytes(1 << 20)"], ids=["a byte", "a MiB"])
def test_set_id_bits_go_when_it_is_written_from_another_server(lab: Lab, here: Path, content: str) -> None:
    for path in (here, here.parent):
        path.chmod(0o755)
    path = here / "program"
    path.write_bytes(CONTENT)
    path.chmod(0o6777)
    with path.open("rb"):  # so its home stays here
        there = seen_from(lab, "s2", path)
        there.write_bytes(CONTENT)
        assert stat.S_IMODE(path.stat().st_mode) == 0o6777, "root may"
        run_as(ANYBODY, f"os.write(os.open(sys.argv[1], os.O_WRONLY), {content})", there)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(there.stat().st_mode) == 0o777


def test_a_writer_loses_set_id_bits_that_came_after_its_open(here: Path) -> None:
    path = here / "program"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_WRONLY)
    path.chmod(0o4777)
    code = f"import os, sys; os.setgid({ANYBODY}); os.setuid({ANYBODY}); os.write(int(sys.argv[1]), b'x')"
    subprocess.run([sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor], check=True, timeout=20)
    os.close(descriptor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
