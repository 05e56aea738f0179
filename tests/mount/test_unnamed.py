"""Files that are made without a name (O_TMPFILE), and get one later or never."""

import errno
import mmap
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Views
from tests.mount.test_births import born_ns
from tests.mount.test_files import opened
from tests.mount.test_times import wait_for_a_tick
from tests.support.acting import ANNA, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, BERT, ROOT, acting_as, link_open
from tests.support.choices import ACLS
from tests.support.modes import both_modes

WAYS = pytest.mark.parametrize("how", [AT_SYMLINK_FOLLOW, AT_EMPTY_PATH], ids=["by /proc", "by the descriptor"])


@pytest.fixture
def place(place_in_each_mode: Path) -> Path:
    """A fresh directory that everybody may enter."""
    return place_in_each_mode


@contextmanager
def unnamed(directory: Path, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    with opened(directory, os.O_TMPFILE | flags, mode) as file:
        yield file


def test_a_file_without_a_name_is_a_file(place: Path) -> None:
    before = place.stat()
    wait_for_a_tick(before.st_ctime_ns)
    with unnamed(place, mode=0o640) as file:
        os.write(file, b"0123456789")
        assert os.pread(file, 100, 2) == b"23456789"
        with mmap.mmap(file, 10) as mapping:
            mapping[0:3] = b"map"
        os.ftruncate(file, 5)
        os.fsync(file)
        os.fchmod(file, 0o600)
        os.setxattr(file, "user.kind", b"none")
        with opened(Path(f"/proc/self/fd/{file}"), os.O_RDONLY) as again:
            assert os.read(again, 100) == b"map34"
        seen = os.fstat(file)
        assert (seen.st_nlink, seen.st_size, stat.S_IMODE(seen.st_mode)) == (0, 5, 0o600)
        assert os.getxattr(file, "user.kind") == b"none"
        assert os.listdir(place) == []
    after = place.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_nlink) == (before.st_mtime_ns, before.st_ctime_ns, before.st_nlink)


@WAYS
def test_it_can_be_given_a_name(place: Path, how: int) -> None:
    (place / "taken").touch()
    (place / "other").mkdir()
    path = place / "other" / "named"
    with unnamed(place) as file:
        os.write(file, b"before, ")
        with pytest.raises(FileExistsError):
            link_open(file, os.fsencode(place / "taken"), how)
        link_open(file, os.fsencode(path), how)
        os.write(file, b"after")
        assert path.read_bytes() == b"before, after"
        assert (os.fstat(file).st_nlink, path.stat().st_ino) == (1, os.fstat(file).st_ino)
        link_open(file, os.fsencode(place / "second"), how)
        assert path.stat().st_nlink == 2
    path.rename(place / "moved")
    (place / "second").unlink()
    assert (place / "moved").read_bytes() == b"before, after"
    assert (place / "moved").stat().st_nlink == 1
    assert born_ns(place / "moved") < (place / "moved").stat().st_ctime_ns


@WAYS
def test_what_was_removed_gets_no_name_again(place: Path, how: int) -> None:
    with unnamed(place) as file:
        link_open(file, os.fsencode(place / "named"), how)
        (place / "named").unlink()
        with pytest.raises(FileNotFoundError):
            link_open(file, os.fsencode(place / "again"), how)
    with unnamed(place, os.O_RDWR | os.O_EXCL) as file, pytest.raises(FileNotFoundError):
        link_open(file, os.fsencode(place / "named"), how)
    assert os.listdir(place) == []


def test_the_last_descriptor_need_not_be_the_first(place: Path) -> None:
    with unnamed(place) as file:
        os.write(file, b"content")
        reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    os.sync()
    link_open(reader, os.fsencode(place / "named"))
    assert os.read(reader, 100) == b"content" == (place / "named").read_bytes()
    os.close(reader)


def test_appending(place: Path) -> None:
    with unnamed(place, os.O_RDWR | os.O_APPEND) as file:
        os.write(file, b"one")
        os.pwrite(file, b"two", 0)
        assert os.pread(file, 100, 0) == b"onetwo"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda place: os.open(place, os.O_TMPFILE | os.O_RDONLY), errno.EINVAL),
        (lambda place: os.open(place / "file", os.O_TMPFILE | os.O_RDWR), errno.ENOTDIR),
        (lambda place: os.open(place / "absent", os.O_TMPFILE | os.O_RDWR), errno.ENOENT),
    ],
)
def test_where_none_can_be_made(place: Path, make: Callable[[Path], int], expected: int) -> None:
    (place / "file").touch()
    with pytest.raises(OSError) as refusal:  # noqa: PT011 - its number is compared
        make(place)
    assert refusal.value.errno == expected


def test_whose_it_is(place: Path) -> None:
    place.chmod(0o755)
    (place / "annas").mkdir()
    os.chown(place / "annas", ANNA.uid, 5000)
    (place / "annas").chmod(0o2755)
    with acting_as(BERT), pytest.raises(PermissionError):
        os.open(place / "annas", os.O_TMPFILE | os.O_RDWR)
    with acting_as(ANNA, umask=0o077), unnamed(place / "annas", mode=0o666) as file:
        seen = os.fstat(file)
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (ANNA.uid, 5000, 0o600)
        link_open(file, os.fsencode(place / "annas" / "named"))
    assert (place / "annas" / "named").stat().st_uid == ANNA.uid


def test_it_inherits_access_lists(place: Path) -> None:
    os.setxattr(place, "system.posix_acl_default", ACLS[1])
    with acting_as(ROOT, umask=0):
        with unnamed(place, mode=0o666) as file:
            link_open(file, os.fsencode(place / "unnamed"))
        with opened(place / "created", os.O_RDWR | os.O_CREAT, 0o666):
            pass
    lists = [os.getxattr(place / name, "system.posix_acl_access") for name in ("unnamed", "created")]
    assert lists[0] == lists[1]


def test_programs_use_it(place: Path) -> None:
    before_ns = place.stat().st_mtime_ns
    wait_for_a_tick(before_ns)
    with tempfile.TemporaryFile(dir=place) as file:
        assert (os.fstat(file.fileno()).st_nlink, place.stat().st_mtime_ns) == (0, before_ns), "it never had a name"
        file.write(b"content")
        file.seek(0)
        assert file.read() == b"content"
    with unnamed(place, mode=0o751) as other:
        os.write(other, b"content")
        os.utime(other, ns=(5, 7))
        link_open(other, os.fsencode(place / "named"))
        for options in (["--attributes-only", "--preserve=all"], ["--archive"]):
            subprocess.run(["cp", *options, place / "named", place / "copy"], check=True)
            seen = (place / "copy").stat()
            assert (stat.S_IMODE(seen.st_mode), seen.st_mtime_ns) == (0o751, 7)
    assert (place / "copy").read_bytes() == b"content"


@both_modes
def test_another_server_sees_it_once_it_has_a_name(views: Views) -> None:
    with unnamed(views.s1) as file:
        os.write(file, b"before")
        assert [os.listdir(view) for view in views.all] == [[], [], []]
        assert not (views.s2 / "named").exists()
        link_open(file, os.fsencode(views.s1 / "named"))
        assert (views.s2 / "named").read_bytes() == b"before"
        assert (views.s3 / "named").stat().st_nlink == 1
        os.write(file, b" and after")
        with (views.s2 / "named").open("ab") as other:
            other.write(b" and elsewhere")
        assert os.pread(file, 100, 0) == b"before and after and elsewhere"
        (views.s2 / "named").unlink()
        assert os.fstat(file).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            link_open(file, os.fsencode(views.s1 / "again"))
    assert [os.listdir(view) for view in views.all] == [[], [], []]
