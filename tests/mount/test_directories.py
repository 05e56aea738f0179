"""Names on one mount: listings, any bytes, link counts, renames."""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.acting import RENAME_EXCHANGE, RENAME_NOREPLACE, libc, renameat2
from tests.support.processes import start, together

libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
NAME_OFFSET, INO_OFFSET = 19, 0  # struct dirent of glibc on 64-bit Linux


class Stream:
    """A directory stream of the C library: with positions, `.` and `..`, which Python's functions hide."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        assert self._stream

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        while entry := libc.readdir(self._stream):
            yield ctypes.string_at(entry + NAME_OFFSET), ctypes.c_uint64.from_address(entry + INO_OFFSET).value

    def tell(self) -> int:
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


@contextmanager
def stream(path: Path) -> Iterator[Stream]:
    opened = Stream(path)
    try:
        yield opened
    finally:
        opened.close()


def test_each_untouched_name_comes_exactly_once_whatever_is_done_to_the_others(place: Path) -> None:
    for n in range(700):
        (place / f"{n}").symlink_to("nowhere")
    kept = {b"%d" % n for n in range(700) if n % 3 != 0}
    with stream(place) as listing:
        names = []
        for count, (name, _) in enumerate(listing):
            names.append(name)
            if count == 100:
                for n in range(0, 700, 3):
                    (place / f"{n}").unlink()
                for n in range(150):
                    (place / f"new-{n}").symlink_to("nowhere")
    assert sorted(name for name in names if name in kept) == sorted(kept)
    assert len(set(names)) == len(names)


def test_a_position_in_a_listing_can_be_gone_back_to(place: Path) -> None:
    for n in range(700):
        (place / f"{n}").symlink_to("nowhere")
    with stream(place) as listing:
        entries = iter(listing)
        beginning = [next(entries)[0] for _ in range(520)]
        position = listing.tell()
        rest = [name for name, _ in listing]
        listing.seek(position)
        assert [name for name, _ in listing] == rest
        assert set(beginning) | set(rest) == {b".", b"..", *(b"%d" % n for n in range(700))}
        (place / "0").unlink()
        (place / "new").symlink_to("nowhere")
        listing.rewind()
        assert {name for name, _ in listing} == {b".", b"..", b"new", *(b"%d" % n for n in range(1, 700))}


def test_dot_and_dot_dot_have_the_right_numbers(place: Path) -> None:
    (place / "in").mkdir()
    (place / "out").mkdir()
    (place / "in" / "moved").mkdir()
    (place / "in" / "moved").rename(place / "out" / "moved")
    with stream(place / "out" / "moved") as listing:
        numbers = dict(listing)
    assert numbers == {b".": (place / "out" / "moved").stat().st_ino, b"..": (place / "out").stat().st_ino}
    assert (place / "out" / "moved" / "..").stat().st_ino == (place / "out").stat().st_ino


def kind(entry: os.DirEntry[str]) -> str:
    """The type, from the listing alone."""
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "special"


def test_a_listing_tells_types_and_numbers(place: Path) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    (place / "symlink").symlink_to("directory")
    os.mkfifo(place / "pipe")
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(place / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with os.scandir(place) as entries:
        seen = {entry.name: (kind(entry), entry.inode()) for entry in entries}
    assert {name: shown for name, (shown, _) in seen.items()} == {
        "file": "file",
        "directory": "directory",
        "symlink": "symlink",
        "pipe": "special",
        "socket": "special",
        "null": "special",
    }
    assert {name: number for name, (_, number) in seen.items()} == {name: (place / name).lstat().st_ino for name in seen}


def test_names_of_any_bytes_up_to_255(place: Path) -> None:
    root = os.fsencode(place)
    every_byte = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    names = {
        every_byte,
        b"\xff" * 255,
        b"\n",
        b" ",
        b"-",
        b"...",
        b"\\",
        b"a\x01b",
        "é".encode(),
        b"\xe9",
    }
    for number, name in enumerate(sorted(names)):
        with open(os.path.join(root, name), "wb") as file:
            file.write(b"%d" % number)
    assert set(os.listdir(root)) == names
    for number, name in enumerate(sorted(names)):
        with open(os.path.join(root, name), "rb") as file:
            assert file.read() == b"%d" % number


def test_names_of_256_bytes_are_too_long(place: Path) -> None:
    long = place / ("n" * 256)
    (place / "file").touch()
    for call in (
        lambda: long.stat(),
        lambda: long.touch(),
        lambda: long.mkdir(),
        lambda: long.symlink_to("x"),
        lambda: os.mkfifo(long),
        lambda: os.link(place / "file", long),
        lambda: os.rename(place / "file", long),
        lambda: long.unlink(),
    ):
        with pytest.raises(OSError, match="File name too long") as caught:
            call()
        assert caught.value.errno == errno.ENAMETOOLONG


def test_link_counts_of_directories(place: Path) -> None:
    (place / "a").mkdir()
    (place / "b").mkdir()
    assert ((place / "a").stat().st_nlink, place.stat().st_nlink) == (2, 4)
    (place / "a" / "c").mkdir()
    (place / "a" / "file").touch()
    assert (place / "a").stat().st_nlink == 3
    (place / "a" / "c").rename(place / "b" / "c")
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (2, 3)
    renameat2(os.fsencode(place / "a" / "file"), os.fsencode(place / "b" / "c"), RENAME_EXCHANGE)
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (3, 2)
    (place / "a" / "file").rmdir()
    assert ((place / "a").stat().st_nlink, place.stat().st_nlink) == (2, 4)


def test_renames_that_are_refused(place: Path) -> None:
    (place / "full" / "inside").mkdir(parents=True)
    (place / "directory").mkdir()
    (place / "file").touch()
    for source, target, expected in (
        ("directory", "full", errno.ENOTEMPTY),
        ("directory", "file", errno.ENOTDIR),
        ("file", "directory", errno.EISDIR),
        ("full", "full/inside/below", errno.EINVAL),
        ("full/inside", "full", errno.ENOTEMPTY),
        ("missing", "file", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=os.strerror(expected)):
            (place / source).rename(place / target)
    with pytest.raises(FileExistsError):
        renameat2(os.fsencode(place / "file"), os.fsencode(place / "directory"), RENAME_NOREPLACE)
    (place / "directory").rename(place / "full" / "inside")
    assert sorted(os.listdir(place)) == ["file", "full"]


def test_a_rename_never_leaves_its_target_missing(place: Path) -> None:
    target = place / "target"
    target.write_bytes(b"0" * 10)
    reader = start(
        """
import os, sys
count = 0
os.set_blocking(0, False)
os.write(1, b".")
while True:
    with open(sys.argv[1], "rb") as file:
        content = file.read()
    assert len(content) == 10 and len(set(content)) == 1, content
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
""",
        target,
    )
    assert reader.stdout is not None
    assert reader.stdout.read(1) == b"."
    for n in range(100):
        (place / "next").write_bytes(b"%d" % (n % 10) * 10)
        (place / "next").rename(target)
    _, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors.decode()


def test_a_removed_directory_takes_no_new_names(place: Path) -> None:
    gone = place / "gone"
    gone.mkdir()
    descriptor = os.open(gone, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        gone.rmdir()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        for call in (
            lambda: os.mkdir("new", dir_fd=descriptor),
            lambda: os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor),
            lambda: os.symlink("x", "new", dir_fd=descriptor),
            lambda: os.stat("new", dir_fd=descriptor),
        ):
            with pytest.raises(FileNotFoundError):
                call()
    finally:
        os.close(descriptor)


def test_a_directory_can_be_synced_also_when_it_was_listed_or_is_gone(place: Path) -> None:
    directory = place / "directory"
    directory.mkdir()
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (place, directory)]
    try:
        (directory / "file").touch()
        for descriptor in descriptors:
            os.fsync(descriptor)
            os.listdir(descriptor)
            os.fdatasync(descriptor)
        (directory / "file").unlink()
        directory.rmdir()
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_hard_links_are_one_file(place: Path) -> None:
    first, second = place / "first", place / "second"
    first.write_bytes(b"text")
    second.hardlink_to(first)
    assert first.stat().st_nlink == 2
    assert first.samefile(second)
    second.write_bytes(b"changed")
    second.chmod(0o600)
    assert (first.read_bytes(), first.stat().st_mode & 0o777) == (b"changed", 0o600)
    first.unlink()
    assert (second.stat().st_nlink, second.read_bytes()) == (1, b"changed")
    (place / "directory").mkdir()
    with pytest.raises(PermissionError):
        os.link(place / "directory", place / "other")


def test_numbers_of_inodes_are_stable_and_not_used_again(directory: Path) -> None:
    path = directory / "file"
    seen = set()
    for _ in range(20):
        path.write_bytes(b"x")
        number = path.stat().st_ino
        path.rename(directory / "other")
        assert (directory / "other").stat().st_ino == number
        (directory / "other").unlink()
        seen.add(number)
    assert len(seen) == 20


def test_deep_paths(place: Path) -> None:
    deep = place
    for n in range(60):
        deep = deep / f"level-{n}"
        deep.mkdir()
    (deep / "file").write_bytes(b"down here")
    (place / "level-0").rename(place / "renamed")
    moved = Path(str(deep).replace("/level-0/", "/renamed/"))
    assert (moved / "file").read_bytes() == b"down here"


def test_only_one_of_many_makes_or_removes_a_directory(place: Path) -> None:
    code = """
ready()
made = removed = 0
for n in range(30):
    try:
        os.mkdir(f"{sys.argv[1]}/{n}")
        made += 1
    except FileExistsError:
        pass
for n in range(30):
    try:
        os.rename(f"{sys.argv[1]}/{n}", f"{sys.argv[1]}/by-{os.getpid()}-{n}")
        removed += 1
    except FileNotFoundError:
        pass
os.write(1, b"%d %d" % (made, removed))
"""
    counts = [tuple(map(int, said.split())) for said in together(code, *[(place,)] * 3)]
    assert sum(made for made, _ in counts) == sum(moved for _, moved in counts)
    assert sum(made for made, _ in counts) >= 30
    assert len(os.listdir(place)) == sum(moved for _, moved in counts)
