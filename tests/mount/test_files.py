"""The content of files on one mount: descriptors, appending, mapping, sparse and large files, locks."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.acting import ANNA, acting_as
from tests.support.processes import together

GIB = 1 << 30


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_an_unlinked_file_lives_until_its_last_close(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"before")
    with opened(path, os.O_RDWR) as file:
        path.unlink()
        assert not path.exists()
        os.pwrite(file, b"after", 100)
        assert os.pread(file, 200, 0) == b"before" + bytes(94) + b"after"
        assert (os.fstat(file).st_nlink, os.fstat(file).st_size) == (0, 105)
        os.ftruncate(file, 3)
        os.fchmod(file, 0o600)
        os.fsync(file)
        assert os.fstat(file).st_mode & 0o777 == 0o600
        path.write_bytes(b"another")
        assert os.pread(file, 200, 0) == b"bef"
    assert path.read_bytes() == b"another"


def test_a_replaced_file_lives_until_its_last_close(place: Path) -> None:
    old, new = place / "old", place / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with opened(old, os.O_RDWR) as file:
        number = os.fstat(file).st_ino
        new.rename(old)
        assert os.pread(file, 10, 0) == b"old"
        os.pwrite(file, b"OLD", 0)
        assert (os.fstat(file).st_ino, os.fstat(file).st_nlink) == (number, 0)
    assert old.read_bytes() == b"new"


def test_descriptors_of_one_file_see_each_other(place: Path) -> None:
    path = place / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as first, opened(path, os.O_RDWR) as second:
        os.write(first, b"0123456789")
        assert os.read(second, 100) == b"0123456789"
        os.pwrite(second, b"xx", 4)
        assert os.pread(first, 100, 0) == b"0123xx6789"
        with opened(path, os.O_WRONLY | os.O_TRUNC):
            assert os.pread(first, 100, 0) == b""
            assert os.fstat(second).st_size == 0
        os.pwrite(first, b"end", 5)
        assert os.pread(second, 100, 0) == bytes(5) + b"end"


def test_the_mode_of_a_new_file_does_not_bind_its_creator(place: Path) -> None:
    place.chmod(0o777)
    with acting_as(ANNA), opened(place / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o000) as file:
        os.write(file, b"text")
        assert os.pread(file, 10, 0) == b"text"
        assert os.fstat(file).st_mode & 0o777 == 0


def test_two_processes_append_whole_records(place: Path) -> None:
    path = place / "log"
    code = """
letter, path = sys.argv[1:]
file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ready()
for _ in range(200):
    assert os.write(file, letter.encode() * 99 + b"\\n") == 100
"""
    together(code, ("a", path), ("b", path))
    records = path.read_bytes().split(b"\n")
    assert records.pop() == b""
    assert sorted(records) == [b"a" * 99] * 200 + [b"b" * 99] * 200


def test_append_ignores_the_offset(place: Path) -> None:
    path = place / "log"
    path.write_bytes(b"first")
    with opened(path, os.O_RDWR | os.O_APPEND) as file:
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, b"+second")
        assert os.lseek(file, 0, os.SEEK_CUR) == 12
        os.pwrite(file, b"+third", 0)
        assert os.pread(file, 100, 0) == b"first+second+third"


def test_a_shared_mapping_is_the_file(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"a" * 20_000)
    with opened(path, os.O_RDWR) as file, opened(path, os.O_RDWR) as other:
        with mmap.mmap(file, 20_000) as here, mmap.mmap(other, 20_000) as there:
            here[5000:5003] = b"map"
            assert there[4999:5004] == b"amapa"
            here.flush()
            assert os.pread(other, 5, 4999) == b"amapa"
            os.pwrite(other, b"write", 12_000)
            assert here[12_000:12_005] == b"write"
            here[0] = ord("z")
        os.fsync(file)
    content = path.read_bytes()
    assert (content[:1], content[5000:5003], content[12_000:12_005], len(content)) == (b"z", b"map", b"write", 20_000)


def test_a_private_mapping_is_nobody_elses_affair(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"a" * 10_000)
    with opened(path, os.O_RDONLY) as file, mmap.mmap(file, 10_000, access=mmap.ACCESS_COPY) as mapping:
        mapping[100:104] = b"mine"
        assert mapping[99:105] == b"aminea"
        path.unlink()
        assert mapping[9_999] == ord("a")
        assert os.pread(file, 10_000, 0) == b"a" * 10_000


def test_a_sparse_file_takes_no_room_and_may_be_larger_than_four_gib(place: Path) -> None:
    path = place / "large"
    with opened(path, os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"start", 0)
        os.pwrite(file, b"end", 5 * GIB)
        assert os.fstat(file).st_size == 5 * GIB + 3
        assert os.pread(file, 10, 4 * GIB - 5) == bytes(10)
        assert os.pread(file, 10, 5 * GIB - 2) == bytes(2) + b"end"
        assert os.lseek(file, 0, os.SEEK_END) == 5 * GIB + 3
    assert path.stat().st_blocks * 512 < 1 << 20
    os.truncate(path, 4 * GIB + 1)
    assert path.stat().st_size == 4 * GIB + 1
    os.truncate(path, 6 * GIB)
    with opened(path, os.O_RDONLY) as file:
        assert os.pread(file, 5, 0) == b"start"
        assert os.pread(file, 10, 5 * GIB - 2) == bytes(10)
    path.unlink()


def test_blocks_of_a_full_file_are_counted(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x" * 1_000_000)
    with opened(path, os.O_RDONLY) as file:
        os.fsync(file)
    assert 1_000_000 <= path.stat().st_blocks * 512 <= 1_200_000


def test_an_offset_beyond_all_limits_is_refused(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file:
        for call in (lambda: os.pwrite(file, b"x", 1 << 60), lambda: os.ftruncate(file, 1 << 60)):
            with pytest.raises(OSError, match="File too large") as caught:
                call()
            assert caught.value.errno == errno.EFBIG
        assert os.fstat(file).st_size == 0


def test_copies_inside_the_kernel(place: Path) -> None:
    source, target = place / "source", place / "target"
    content = os.urandom(3_000_001)
    source.write_bytes(content)
    with opened(source, os.O_RDONLY) as here, opened(target, os.O_RDWR | os.O_CREAT) as there:
        while os.copy_file_range(here, there, 1 << 20):
            pass
        assert os.pread(there, len(content) + 1, 0) == content
        os.ftruncate(there, 0)
        os.lseek(there, 0, os.SEEK_SET)
        offset = 0
        while count := os.sendfile(there, here, offset, 1 << 20):
            offset += count
    assert target.read_bytes() == content


def test_direct_io(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as file, mmap.mmap(-1, 8192) as block:
        block.write(b"d" * 8192)
        assert os.pwritev(file, [block], 4096) == 8192
        block[:] = bytes(8192)
        assert os.preadv(file, [block], 4096) == 8192
        assert block[:] == b"d" * 8192


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_locks_exclude_other_processes(place: Path, lock: str) -> None:
    path = place / "file"
    code = f"""
import fcntl
file = os.open(sys.argv[1], os.O_RDWR)
ready()
try:
    fcntl.{lock}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(1, b"mine")
except BlockingIOError:
    os.write(1, b"taken")
"""
    with opened(path, os.O_RDWR | os.O_CREAT) as file:
        take = getattr(fcntl, lock)
        take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert together(code, (path,)) == [b"taken"]
        take(file, fcntl.LOCK_UN)
        assert together(code, (path,)) == [b"mine"]


def test_many_files_open_at_once(place: Path) -> None:
    descriptors = [os.open(place / str(n), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for n in range(150)]
    try:
        for n, file in enumerate(descriptors):
            os.write(file, b"%d" % n)
        assert [os.pread(file, 10, 0) for file in descriptors] == [b"%d" % n for n in range(150)]
    finally:
        for file in descriptors:
            os.close(file)
    assert (place / "149").read_bytes() == b"149"


def test_a_large_file_comes_back_as_it_was_written(place: Path) -> None:
    content = os.urandom(1 << 20)
    path = place / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as file:
        for _ in range(32):
            assert os.write(file, content) == len(content)
    with opened(path, os.O_RDONLY) as file:
        assert all(os.read(file, 1 << 20) == content for _ in range(32))
        assert os.read(file, 1) == b""


def test_only_one_process_creates_exclusively(place: Path) -> None:
    code = """
ready()
won = 0
for n in range(50):
    try:
        os.close(os.open(f"{sys.argv[1]}/{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
os.write(1, b"%d" % won)
"""
    assert sum(map(int, together(code, *[(place,)] * 4))) == 50
