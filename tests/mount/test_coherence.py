"""Three mounts, one namespace: what one mount has finished, the others see at once, whatever they had open or had seen before."""

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.mount.conftest import Views
from tests.support.acting import RENAME_EXCHANGE, renameat2
from tests.support.processes import together
from tests.support.trees import snapshot

PAIRS = list(itertools.permutations(("s1", "s2", "s3"), 2))


def stat_fields(path: Path) -> dict[str, object]:
    st = path.lstat()
    names = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns", "st_ctime_ns")
    return {name: getattr(st, name) for name in names}


def append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        assert os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


def overwrite(path: Path, data: bytes, offset: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
    finally:
        os.close(descriptor)


def remove_and_create_again(directory: Path) -> None:
    (directory / "file").unlink()
    (directory / "file").write_bytes(b"0123456789")


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda d: (d / "new").write_bytes(b"new"),
    "overwrite": lambda d: overwrite(d / "file", b"XX", 3),
    "write the same size": lambda d: (d / "file").write_bytes(b"9876543210"),
    "append": lambda d: append(d / "file", b"more"),
    "truncate": lambda d: os.truncate(d / "file", 4),
    "extend": lambda d: os.truncate(d / "file", 9000),
    "write far out": lambda d: overwrite(d / "file", b"far", 1 << 20),
    "rename": lambda d: (d / "file").rename(d / "directory" / "moved"),
    "replace": lambda d: (d / "other").rename(d / "file"),
    "exchange": lambda d: renameat2(os.fsencode(d / "file"), os.fsencode(d / "directory"), RENAME_EXCHANGE),
    "unlink": lambda d: (d / "file").unlink(),
    "link": lambda d: (d / "new").hardlink_to(d / "file"),
    "symlink": lambda d: (d / "new").symlink_to("file"),
    "mkdir": lambda d: (d / "directory" / "inner").mkdir(),
    "rmdir": lambda d: (d / "directory").rmdir(),
    "mkfifo": lambda d: os.mkfifo(d / "pipe"),
    "chmod": lambda d: (d / "file").chmod(0o4711),
    "chown": lambda d: os.chown(d / "file", 11, 12),
    "utime": lambda d: os.utime(d / "file", ns=(7, 1_000_000_000_000_000_007)),
    "setxattr": lambda d: os.setxattr(d / "file", "user.new", b"value"),
    "removexattr": lambda d: os.removexattr(d / "file", "user.old"),
    "remove and create again": remove_and_create_again,
}


@pytest.mark.parametrize("writer", ["s1", "s2", "s3"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_one_mount_did_the_others_see_at_once(views: Views, name: str, writer: str) -> None:
    (views.s1 / "file").write_bytes(b"0123456789")
    os.setxattr(views.s1 / "file", "user.old", b"")
    (views.s2 / "other").write_bytes(b"the other")
    (views.s3 / "directory").mkdir()
    before = [snapshot(os.fsencode(view)) for view in views.all]
    assert before[0] == before[1] == before[2]
    at = getattr(views, writer)
    CHANGES[name](at)
    seen = {view: snapshot(os.fsencode(view)) for view in views.all}
    assert seen[at] != before[0]
    for view in views.all:
        assert seen[view] == seen[at], f"{name} on {writer}, as {view} sees it"
        for path in seen[at]:
            assert stat_fields(view / os.fsdecode(path)) == stat_fields(at / os.fsdecode(path)), (path, view)


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_an_open_handle_reads_what_another_mount_wrote_since(views: Views, writer: str, reader: str) -> None:
    there, here = getattr(views, writer) / "file", getattr(views, reader) / "file"
    (views.s1 / "file").write_bytes(b"0" * 20_000)
    descriptor = os.open(here, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert os.pread(descriptor, 30_000, 0) == b"0" * 20_000
        for letter in (b"1", b"2", b"3"):
            overwrite(there, letter * 20_000, 0)
            assert os.pread(descriptor, 30_000, 0) == letter * 20_000
        overwrite(there, b"z", 9_999)
        assert os.pread(descriptor, 3, 9_998) == b"3z3"
        append(there, b"end")
        assert os.pread(descriptor, 30_000, 19_999) == b"3end"
        assert os.fstat(descriptor).st_size == 20_003
        os.truncate(there, 2)
        assert os.pread(descriptor, 30_000, 0) == b"33"
        assert os.lseek(descriptor, 0, os.SEEK_END) == 2
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_mounts_that_write_to_one_open_file_see_each_other(views: Views, first: str, second: str) -> None:
    (views.s1 / "file").touch()
    here = os.open(getattr(views, first) / "file", os.O_RDWR | os.O_CLOEXEC)
    there = os.open(getattr(views, second) / "file", os.O_RDWR | os.O_CLOEXEC)
    try:
        for turn in range(5):
            os.pwrite(here, b"h%d" % turn, turn * 10)
            assert os.pread(there, 2, turn * 10) == b"h%d" % turn
            os.pwrite(there, b"t%d" % turn, turn * 10 + 5)
            assert os.pread(here, 7, turn * 10) == b"h%d\0\0\0t%d" % (turn, turn)
        assert os.fstat(here).st_size == os.fstat(there).st_size == 47
        os.ftruncate(there, 3)
        assert os.pread(here, 100, 0) == b"h0\0"
        os.fsync(there)
        os.pwrite(here, b"!", 2)
        os.fsync(here)
        assert os.pread(there, 100, 0) == b"h0!"
    finally:
        os.close(here)
        os.close(there)
    assert {view.joinpath("file").read_bytes() for view in views.all} == {b"h0!"}


def test_writing_through_another_server_to_a_file_whose_home_is_elsewhere(views: Views, network: Lab) -> None:
    """It is open at the home, too, so that the home stays."""
    content = os.urandom(3_000_000)
    (views.s1 / "file").write_bytes(content)
    number = (views.s1 / "file").stat().st_ino
    home = network.volume("s1") / "objects" / str(number // 4096) / str(number)
    assert home.read_bytes() == content, "the home of a file is where it was created"
    changed = content[:1_000_000] + b"through s2" + content[1_000_010:] + b"and more"
    with (views.s1 / "file").open("r+b"):
        overwrite(views.s2 / "file", b"through s2", 1_000_000)
        append(views.s2 / "file", b"and more")
        assert (views.s3 / "file").read_bytes() == changed
        assert (views.s1 / "file").read_bytes() == changed
        assert home.read_bytes() == changed


def test_appends_from_three_mounts_interleave_whole_records(views: Views) -> None:
    (views.s2 / "log").touch()
    code = """
letter, path = sys.argv[1:]
file = os.open(path, os.O_WRONLY | os.O_APPEND)
ready()
for _ in range(60):
    assert os.write(file, letter.encode() * 99 + b"\\n") == 100
"""
    together(code, *[(letter, view / "log") for letter, view in zip("abc", views.all, strict=True)])
    for view in views.all:
        records = (view / "log").read_bytes().split(b"\n")
        assert records.pop() == b""
        assert sorted(records) == [b"a" * 99] * 60 + [b"b" * 99] * 60 + [b"c" * 99] * 60


def test_append_goes_to_the_end_that_another_mount_made(views: Views) -> None:
    (views.s1 / "log").touch()
    files = [os.open(view / "log", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC) for view in views.all]
    try:
        for n in range(9):
            os.write(files[n % 3], b"%d" % n)
        assert {os.pread(file, 100, 0) for file in files} == {b"012345678"}
    finally:
        for file in files:
            os.close(file)


@pytest.mark.parametrize(("remover", "holder"), PAIRS)
def test_a_file_that_another_mount_unlinked_lives_until_the_last_close(views: Views, remover: str, holder: str) -> None:
    (views.s1 / "file").write_bytes(b"content")
    descriptor = os.open(getattr(views, holder) / "file", os.O_RDWR | os.O_CLOEXEC)
    try:
        (getattr(views, remover) / "file").unlink()
        assert os.listdir(getattr(views, holder)) == []
        assert os.pread(descriptor, 100, 0) == b"content"
        os.pwrite(descriptor, b"C", 0)
        assert os.pread(descriptor, 100, 0) == b"Content"
        assert os.fstat(descriptor).st_nlink == 0
    finally:
        os.close(descriptor)


def test_exclusive_creation_has_one_winner_in_the_whole_network(views: Views) -> None:
    code = """
ready()
won = 0
for n in range(40):
    try:
        os.close(os.open(f"{sys.argv[1]}/{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
os.write(1, b"%d" % won)
"""
    assert sum(map(int, together(code, *[(view,) for view in views.all]))) == 40


def test_racing_renames_lose_nothing(views: Views) -> None:
    for n in range(30):
        (views.s1 / f"{n}").symlink_to(f"{n}")
    code = """
ready()
for n in range(30):
    try:
        os.rename(f"{sys.argv[1]}/{n}", f"{sys.argv[1]}/{sys.argv[2]}-{n}")
    except FileNotFoundError:
        pass
"""
    together(code, *[(view, number) for number, view in enumerate(views.all)])
    for view in views.all:
        assert sorted(os.readlink(path) for path in view.iterdir()) == sorted(str(n) for n in range(30))


def test_permission_bits_bind_everywhere_at_once(views: Views) -> None:
    (views.s1 / "directory").mkdir(mode=0o755)
    (views.s1 / "directory" / "file").touch()
    assert (views.s2 / "directory" / "file").exists()
    (views.s3 / "directory").chmod(0o700)
    assert stat.S_IMODE((views.s2 / "directory").stat().st_mode) == 0o700


def test_directories_and_names_conflict_across_mounts(views: Views) -> None:
    (views.s1 / "directory").mkdir()
    with pytest.raises(FileExistsError):
        (views.s2 / "directory").mkdir()
    (views.s2 / "directory" / "file").touch()
    with pytest.raises(OSError, match="Directory not empty") as caught:
        (views.s3 / "directory").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    (views.s1 / "directory" / "file").unlink()
    (views.s3 / "directory").rmdir()
    with pytest.raises(FileNotFoundError):
        (views.s2 / "directory" / "file").touch()


def test_an_open_directory_shows_what_another_mount_made(views: Views) -> None:
    descriptor = os.open(views.s2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        assert os.listdir(descriptor) == []
        (views.s1 / "one").mkdir()
        (views.s3 / "two").touch()
        assert sorted(os.listdir(descriptor)) == ["one", "two"]
        assert os.stat("two", dir_fd=descriptor).st_ino == (views.s3 / "two").stat().st_ino
    finally:
        os.close(descriptor)
