"""When a file was made, as `statx` tells it: the same on all mounts, whatever becomes of the file."""

import ctypes
import os
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Views
from tests.mount.test_times import wait_for_a_tick
from tests.support.acting import AT_FDCWD, libc
from tests.support.modes import both_modes

AT_SYMLINK_NOFOLLOW = 0x100
BASIC_STATS, BIRTH_TIME = 0x7FF, 0x800
NS = 10**9
STATX = struct.Struct("<IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII")
BIRTH, SIZE = 13, 8

MAKING: dict[str, Callable[[Path], object]] = {
    "file": Path.touch,
    "directory": Path.mkdir,
    "link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(259, 70_000)),
}


def statx(path: Path) -> tuple[int, ...]:
    """statx(2) with the time of birth, which the Python standard library does not have; of what a symbolic link is."""
    found = ctypes.create_string_buffer(256)
    if libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, BASIC_STATS | BIRTH_TIME, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return STATX.unpack_from(found)


def born_ns(path: Path) -> int:
    fields = statx(path)
    assert fields[0] & BIRTH_TIME, "the file system does not tell"
    return fields[BIRTH] * NS + fields[BIRTH + 1]


@pytest.mark.parametrize("kind", MAKING)
def test_everything_is_born_when_it_is_made(place: Path, kind: str) -> None:
    (place / "first").mkdir()
    first_ns = (place / "first").stat().st_mtime_ns
    wait_for_a_tick(first_ns)
    MAKING[kind](place / "new")
    assert first_ns < born_ns(place / "new") <= time.time_ns()


@pytest.mark.parametrize("kind", MAKING)
def test_statx_says_otherwise_what_stat_says(place: Path, kind: str) -> None:
    path = place / "new"
    MAKING[kind](path)
    os.chown(path, 4001, 5000, follow_symlinks=False)
    os.utime(path, ns=(-1_500_000_000, 2**32 * NS + 1), follow_symlinks=False)
    _, block, _, links, uid, gid, mode, ino, size, blocks, _, *rest = statx(path)
    access, _birth, change, modified = (rest[at] * NS + rest[at + 1] for at in range(0, 8, 2))
    same = path.lstat()
    assert (mode, ino, links, uid, gid, size) == same[:2] + same[3:7]
    assert (block, blocks) == (same.st_blksize, same.st_blocks)
    assert (access, modified, change) == (same.st_atime_ns, same.st_mtime_ns, same.st_ctime_ns)
    assert os.makedev(rest[8], rest[9]) == same.st_rdev
    assert os.makedev(rest[10], rest[11]) == same.st_dev


def test_nothing_changes_it(place_in_each_mode: Path) -> None:
    place = place_in_each_mode
    path = place / "file"
    path.write_bytes(b"content")
    born = born_ns(path)
    wait_for_a_tick(path.stat().st_ctime_ns)
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")
        assert born_ns(path) == born
        os.fsync(file.fileno())
        file.truncate(1)
        assert born_ns(path) == born
    os.utime(path, ns=(0, 0))
    path.chmod(0o600)
    os.setxattr(path, "user.a", b"")
    (place / "second").hardlink_to(path)
    path.rename(place / "renamed")
    path.write_bytes(b"another")
    (place / "renamed").replace(path)
    assert born_ns(path) == born == born_ns(place / "second")


def test_stat_shows_it(place: Path) -> None:
    path = place / "file"
    path.touch()
    told = subprocess.run(["stat", "-c", "%W %s", path], check=True, capture_output=True, text=True).stdout
    assert told == f"{born_ns(path) // NS} 0\n"


@both_modes
def test_it_is_the_same_on_all_mounts(views: Views) -> None:
    with (views.s1 / "file").open("w+b", buffering=0) as file:
        born = born_ns(views.s1 / "file")
        assert born == os.fstat(file.fileno()).st_mtime_ns
        wait_for_a_tick(born)
        for size in range(1, 4):
            file.write(b"x")
            for view in views.all:
                assert (born_ns(view / "file"), statx(view / "file")[SIZE]) == (born, size)
    with (views.s2 / "file").open("ab") as file:
        file.write(b"from elsewhere")
    assert [(born_ns(view / "file"), statx(view / "file")[SIZE]) for view in views.all] == [(born, 17)] * 3
