"""A mount without the extension, and one whose volume cannot be passed through, beside one that has all it needs.

They differ in speed, and in what docs/passthrough.md says that they lack. What they have they say.
"""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.conftest import fresh, temporary_lab
from tests.mount.test_files import opened
from tests.network.locking import Holder, held
from tests.support.conditions import godwit, wait_for_replicas, wait_until
from tests.support.modes import FALLBACK, PASSTHROUGH, files_of, need_passthrough

PAGE = 4096
RECORDS = 200
NOT_BUILT = "the extension fusefs.kernel._channel was not built"
STACKED = "the volume is on a stacked file system"
WITHOUT_EXTENSION = """
import runpy, sys
sys.modules["fusefs.kernel._channel"] = None
sys.argv[1:1] = ["run", "mount"]
runpy.run_module("cli.main", run_name="__main__")
"""

APPEND = """
import os, sys
path, who, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND)
for number in range(times):
    os.write(file, f"{who} {number:06}\\n".encode())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """s1 has no extension, the volume of s2 is on an overlayfs, s3 passes files through."""
    need_passthrough()
    with temporary_lab({}) as lab:
        lab.kill("s1", "mount")
        Lab(lab.root, {"mount": [sys.executable, "-c", WITHOUT_EXTENSION]}).start("s1", "mount")
        volume = lab.volume("s2")
        lab.kill("s2")
        stacked = tmp_path_factory.mktemp("stacked")
        folders = {name: stacked / name for name in ("lower", "upper", "work")}
        volume.rename(folders["upper"])
        for folder in (volume, folders["lower"], folders["work"]):
            folder.mkdir()
        options = f"lowerdir={folders['lower']},upperdir={folders['upper']},workdir={folders['work']}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, volume], check=True)
        try:
            lab.start("s2")
            yield lab
        finally:
            lab.down()
            subprocess.run(["umount", volume], check=True)


@pytest.fixture(params=["s1", "s2", "s3"])
def paths(lab: Lab, request: pytest.FixtureRequest) -> dict[str, Path]:
    """A file that does not exist yet, as each server sees it; who makes it on its own mount is named by `home`."""
    folder = fresh(lab.mount(request.param))
    wait_until(lambda: all((lab.mount(name) / folder.name).is_dir() for name in lab.servers), "all see the directory", 10)
    return {**{name: lab.mount(name) / folder.name / "file" for name in lab.servers}, "home": folder / "file"}


def test_each_says_what_it_has(lab: Lab) -> None:
    volume = lab.volume("s2")
    assert files_of(lab) == {
        "s1": (FALLBACK, NOT_BUILT),
        "s2": (FALLBACK, f"{volume}: {STACKED}"),
        "s3": (PASSTHROUGH, ""),
    }
    servers = godwit(lab, "status")["servers"]
    answerers = {server["server"]: server["counts"]["answerer"] for server in servers}
    assert answerers == {"s1": "python", "s2": "extension", "s3": "extension"}
    problems = {server["server"]: server["problems"] for server in servers}
    assert problems == {"s1": [f"locks of its mount's files hold on this server only: {NOT_BUILT}"], "s2": [], "s3": []}


def test_each_says_once_in_its_log_what_it_lacks(lab: Lab) -> None:
    files_of(lab)
    told = {name: [line for line in lab.log(name, "mount").read_text().splitlines() if "WARNING" in line] for name in lab.servers}
    assert [line.partition("WARNING")[2].strip() for line in told["s1"] if "fusefs.kernel.stream" in line] == [
        f"s1 mount fusefs.kernel.stream: files go through the mount process: {NOT_BUILT}",
        f"s1 mount fusefs.kernel.stream: locks of this mount's files hold on this server only: {NOT_BUILT}",
    ]
    assert sum(STACKED in line for line in told["s2"]) == 1


def test_what_one_writes_the_others_read(paths: dict[str, Path]) -> None:
    with opened(paths["home"], os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"a" * 3 * PAGE, 0)
        for name in ("s1", "s2", "s3"):
            assert paths[name].read_bytes() == b"a" * 3 * PAGE
        os.ftruncate(file, PAGE + 1)
        os.pwrite(file, b"b", 5 * PAGE)
    for name in ("s1", "s2", "s3"):
        assert paths[name].read_bytes() == b"a" * (PAGE + 1) + bytes(4 * PAGE - 1) + b"b"


def test_all_write_one_file_side_by_side(lab: Lab, paths: dict[str, Path]) -> None:
    paths["home"].touch()
    commands = [[sys.executable, "-c", APPEND, str(path), name, str(RECORDS)] for name, path in paths.items()]
    writers = [subprocess.Popen(command) for command in commands]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    expected = sorted(f"{name} {number:06}" for name in paths for number in range(RECORDS))
    for name in lab.servers:
        assert sorted(paths[name].read_text().splitlines()) == expected


def test_what_is_written_through_a_mapping_is_read_by_all_and_copied(lab: Lab, paths: dict[str, Path]) -> None:
    paths["home"].write_bytes(bytes(2 * PAGE))
    for name in lab.servers:
        with opened(paths[name], os.O_RDWR) as file, mmap.mmap(file, 2 * PAGE) as mapped:
            at = PAGE + int(name[1:])
            mapped[at] = ord(name[1:])
            mapped.flush()
        with opened(paths["home"], os.O_RDONLY) as file, mmap.mmap(file, 2 * PAGE, access=mmap.ACCESS_READ) as mapped:
            assert mapped[at] == ord(name[1:])
    wanted = bytes(PAGE + 1) + b"123" + bytes(PAGE - 4)
    assert {name: paths[name].read_bytes() for name in lab.servers} == dict.fromkeys(lab.servers, wanted)
    where = wait_for_replicas(lab, str(paths["home"]), 2)
    assert len({replica["checksum"] for replica in where["replicas"] if replica["current"]}) == 1


def test_what_there_is_no_way_for_is_refused_and_the_rest_is_done_otherwise(lab: Lab) -> None:
    """On the mount without the extension."""
    here = fresh(lab.mount("s1"))
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.open(here, os.O_TMPFILE | os.O_RDWR)
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as file, opened(here / "copy", os.O_RDWR | os.O_CREAT) as copy:
        os.pwrite(file, b"x", PAGE)
        assert subprocess.run(["fallocate", "-l", "100000", here / "file"], capture_output=True).returncode != 0
        assert os.fstat(file).st_size == PAGE + 1
        assert (os.lseek(file, 0, os.SEEK_DATA), os.lseek(file, 0, os.SEEK_HOLE)) == (0, PAGE + 1), "all is taken for data"
        subprocess.run(["cp", here / "file", here / "other"], check=True)
        assert (here / "other").read_bytes() == bytes(PAGE) + b"x"
        assert os.copy_file_range(file, copy, PAGE + 1, offset_src=0) == PAGE + 1


def test_locks_hold_on_its_own_server_and_not_beyond(lab: Lab) -> None:
    folder = fresh(lab.mount("s1"))
    (folder / "file").touch()
    holder = held("flock", folder / "file")
    with opened(folder / "file", os.O_RDWR) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    wait_until(lambda: (lab.mount("s3") / folder.name / "file").exists(), "s3 sees it", 10)
    elsewhere = Holder("flock", lab.mount("s3") / folder.name / "file")
    assert elsewhere.says() == "held"
    elsewhere.end()
    holder.end()
