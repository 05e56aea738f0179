"""File handles (name_to_handle_at(2), which NFS servers give to their clients) when the kernel has forgotten the inodes."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Views
from tests.support.acting import AT_FDCWD, libc

HANDLE_BYTES = 128  # MAX_HANDLE_SZ
MANY = 200


class Handle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = [("length", ctypes.c_uint32), ("kind", ctypes.c_int32), ("value", ctypes.c_ubyte * HANDLE_BYTES)]


def handle_of(path: Path) -> Handle:
    handle, mount = Handle(HANDLE_BYTES), ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at", os.fspath(path))
    return handle


@contextmanager
def opened(on: Path, handle: Handle) -> Iterator[int]:
    """What the handle is of, opened to read through the file system at *on*."""
    at = os.open(on, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = libc.open_by_handle_at(at, ctypes.byref(handle), os.O_RDONLY)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
    finally:
        os.close(at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def forget() -> None:
    """Has the kernel forget all names and inodes that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def content(on: Path, handle: Handle) -> bytes:
    with opened(on, handle) as descriptor:
        return os.read(descriptor, 100)


def where(on: Path, handle: Handle) -> str:
    with opened(on, handle) as descriptor:
        return os.readlink(f"/proc/self/fd/{descriptor}")


def error_of(on: Path, handle: Handle) -> int:
    with pytest.raises(OSError, match="open_by_handle_at") as caught, opened(on, handle):
        pass
    return caught.value.errno or 0


def test_many_files_are_found_after_the_kernel_forgot_them(place: Path) -> None:
    """Made a moment ago, as in xfstests generic/477."""
    handles = []
    for number in range(MANY):
        (place / f"{number}").write_bytes(b"%d" % number)
        handles.append(handle_of(place / f"{number}"))
    forget()
    assert [content(place, handle) for handle in handles] == [b"%d" % number for number in range(MANY)]


def test_a_removed_file_is_stale(place: Path) -> None:
    (place / "file").write_bytes(b"old")
    handle = handle_of(place / "file")
    (place / "file").unlink()
    (place / "file").write_bytes(b"new")
    forget()
    assert error_of(place, handle) == errno.ESTALE


def test_a_removed_file_is_found_while_it_is_open(place: Path) -> None:
    (place / "file").write_bytes(b"open")
    handle = handle_of(place / "file")
    with open(place / "file", "rb"):
        (place / "file").unlink()
        forget()
        assert content(place, handle) == b"open"


def test_directories_are_found_where_they_are_now(place: Path) -> None:
    """Through `..` of each, up to the root: as in xfstests generic/467 and 756."""
    (place / "a/b/c").mkdir(parents=True)
    (place / "other").mkdir()
    handle = handle_of(place / "a/b/c")
    (place / "a/b").rename(place / "other/moved")
    forget()
    assert where(place, handle) == str(place / "other/moved/c")
    (place / "other/moved/c").rmdir()
    forget()
    assert error_of(place, handle) == errno.ESTALE


def test_a_hard_link_keeps_the_handle_good(place: Path) -> None:
    (place / "file").write_bytes(b"linked")
    handle = handle_of(place / "file")
    (place / "link").hardlink_to(place / "file")
    (place / "file").unlink()
    forget()
    assert content(place, handle) == b"linked"


def test_what_another_server_changed(views: Views) -> None:
    """The handle is of a file that this server has made; the other one moves its directory, writes it anew and removes it."""
    (views.s1 / "a").mkdir()
    (views.s1 / "a/file").write_bytes(b"one")
    file, directory = handle_of(views.s1 / "a/file"), handle_of(views.s1 / "a")
    (views.s2 / "a").rename(views.s2 / "b")
    (views.s2 / "b/file").write_bytes(b"two")
    forget()
    assert (content(views.s1, file), where(views.s1, directory)) == (b"two", str(views.s1 / "b"))
    (views.s2 / "b/file").unlink()
    forget()
    assert error_of(views.s1, file) == errno.ESTALE


def test_a_handle_is_good_on_each_server(views: Views) -> None:
    (views.s1 / "file").write_bytes(b"here")
    assert (views.s2 / "file").read_bytes() == b"here"
    handle = handle_of(views.s1 / "file")
    forget()
    assert [content(view, handle) for view in views.all] == [b"here"] * 3


@pytest.mark.parametrize("name", [".", ".."])
def test_the_mount_itself(place: Path, name: str) -> None:
    handle = handle_of(place / name)
    inode = (place / name).stat().st_ino
    forget()
    with opened(place, handle) as descriptor:
        assert os.fstat(descriptor).st_ino == inode
