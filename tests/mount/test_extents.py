"""Blocks and holes of files on one mount: allocating, punching, seeking, copying within the kernel."""

import errno
import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.test_files import opened
from tests.support.acting import ANNA, BERT, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Outcome, acting_as, fallocate, outcome
from tests.support.extents import runs
from tests.support.running import need

BLOCK = 4096
MIB = 1 << 20


@pytest.fixture
def place(place_in_each_mode: Path) -> Path:
    """A fresh directory that everybody may enter."""
    return place_in_each_mode


def room(descriptor: int) -> int:
    """How many bytes of the disk the file has."""
    return os.fstat(descriptor).st_blocks * 512


def test_space_is_there_before_it_is_written(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file:
        os.posix_fallocate(file, 0, MIB)
        assert (os.fstat(file).st_size, room(file) >= MIB) == (MIB, True)
        fallocate(file, KEEP_SIZE, MIB, MIB)
        assert (os.fstat(file).st_size, room(file) >= 2 * MIB) == (MIB, True)
        assert os.pread(file, 2 * MIB, 0) == bytes(MIB)
        os.pwrite(file, b"end", MIB)
        assert os.fstat(file).st_size == MIB + 3
    assert (place / "file").read_bytes() == bytes(MIB) + b"end"


def test_what_is_punched_or_zeroed_reads_as_zeros_everywhere(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file, opened(place / "file", os.O_RDONLY) as other:
        os.write(file, b"x" * 8 * BLOCK)
        os.fsync(file)
        full = room(file)
        with mmap.mmap(other, 8 * BLOCK, prot=mmap.PROT_READ) as mapping:
            assert mapping[BLOCK : 2 * BLOCK] == b"x" * BLOCK
            fallocate(file, PUNCH_HOLE | KEEP_SIZE, BLOCK - 10, BLOCK + 20)
            fallocate(file, ZERO_RANGE, 4 * BLOCK, 100)
            fallocate(file, ZERO_RANGE, 7 * BLOCK, 2 * BLOCK)
            content = (
                b"x" * (BLOCK - 10)
                + bytes(BLOCK + 20)
                + b"x" * (2 * BLOCK - 10)
                + bytes(100)
                + b"x" * (3 * BLOCK - 100)
                + bytes(2 * BLOCK)
            )
            assert os.pread(file, 10 * BLOCK, 0) == content
            assert os.pread(other, 10 * BLOCK, 0) == content
            assert mapping[:] == content[: 8 * BLOCK]
        assert os.fstat(file).st_size == 9 * BLOCK
        assert room(file) <= full  # a block less, and one more at the end


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda file: fallocate(file, 0, 0, 0), errno.EINVAL),
        (lambda file: fallocate(file, 0, -1, 10), errno.EINVAL),
        (lambda file: fallocate(file, PUNCH_HOLE, 0, 10), errno.EOPNOTSUPP),
        (lambda file: fallocate(file, 0x1000, 0, 10), errno.EOPNOTSUPP),
        (lambda file: fallocate(file, 0, 0, 1 << 62), errno.EFBIG),
        (lambda file: os.lseek(file, 7, os.SEEK_DATA), errno.ENXIO),
        (lambda file: os.lseek(file, 7, os.SEEK_HOLE), errno.ENXIO),
        (lambda file: os.lseek(file, -1, os.SEEK_DATA), errno.ENXIO),
        (lambda file: os.copy_file_range(file, file, 5, 0, 3), errno.EINVAL),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_errno(place: Path, act: Callable[[int], object], expected: int) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"content")
        assert outcome(lambda: act(file)) == Outcome(errno.errorcode[expected])
        assert os.pread(file, 100, 0) == b"content"
        os.posix_fallocate(file, 0, 10)
        assert os.lseek(file, 9, os.SEEK_HOLE) in (9, 10)


def test_who_may_not_write_allocates_nothing(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    with opened(place / "file", os.O_RDONLY) as file:
        assert outcome(lambda: fallocate(file, 0, 0, 100)) == Outcome("EBADF")
    assert (place / "file").read_bytes() == b"content"


def test_data_and_holes_are_found(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"a" * BLOCK, MIB)
        os.pwrite(file, b"b" * 10, 3 * MIB)
        os.ftruncate(file, 5 * MIB)
        assert runs(file) == [(MIB, MIB + BLOCK), (3 * MIB, 3 * MIB + BLOCK)]
        fallocate(file, PUNCH_HOLE | KEEP_SIZE, MIB, BLOCK)
        assert runs(file) == [(3 * MIB, 3 * MIB + BLOCK)]
        os.ftruncate(file, 3 * MIB + 5)
        assert runs(file) == [(3 * MIB, 3 * MIB + 5)]
    with opened(place / "file", os.O_RDONLY) as file:
        assert runs(file) == [(3 * MIB, 3 * MIB + 5)]


def test_what_was_written_through_a_mapping_is_data(place: Path) -> None:
    with opened(place / "file", os.O_RDWR | os.O_CREAT) as file, opened(place / "file", os.O_RDONLY) as other:
        os.ftruncate(file, MIB)
        with mmap.mmap(file, MIB) as mapping:
            mapping[100 * BLOCK] = 1
            assert runs(other) == [(100 * BLOCK, 101 * BLOCK)]
            assert os.pread(other, BLOCK, 100 * BLOCK) == b"\x01" + bytes(BLOCK - 1)
            mapping[200 * BLOCK] = 1
            assert runs(other) == [(100 * BLOCK, 101 * BLOCK), (200 * BLOCK, 201 * BLOCK)]


def test_a_range_is_copied(place: Path) -> None:
    content = os.urandom(20 * MIB)
    (place / "from").write_bytes(content)
    with opened(place / "from", os.O_RDONLY) as source, opened(place / "to", os.O_RDWR | os.O_CREAT) as target:
        assert os.copy_file_range(source, target, 10, 5, 3) == 10
        assert os.pread(target, 100, 0) == bytes(3) + content[5:15]
        assert os.copy_file_range(source, target, 100 * MIB, 0, 0) == 20 * MIB
        assert os.copy_file_range(source, target, 100, 20 * MIB, 0) == 0
        assert os.fstat(target).st_size == 20 * MIB
        assert os.copy_file_range(target, target, MIB, 0, 20 * MIB) == MIB
    assert (place / "to").read_bytes() == content + content[:MIB]


def test_what_was_written_through_a_mapping_is_copied(place: Path) -> None:
    with opened(place / "from", os.O_RDWR | os.O_CREAT) as source, opened(place / "to", os.O_RDWR | os.O_CREAT) as target:
        os.ftruncate(source, MIB)
        os.ftruncate(target, MIB)
        with mmap.mmap(source, MIB) as here, mmap.mmap(target, MIB) as there:
            here[5000:5003] = b"new"
            there[5000:5003] = b"old"
            there[0:3] = b"old"
            assert os.copy_file_range(source, target, MIB - BLOCK, BLOCK, BLOCK) == MIB - BLOCK
            assert (there[0:3], there[5000:5003]) == (b"old", b"new")
            assert os.pread(target, 3, 5000) == b"new"


@pytest.mark.parametrize("how", ["allocating", "copying"])
def test_a_change_by_somebody_else_takes_the_set_id_bits(place: Path, how: str) -> None:
    path = place / "program"
    path.write_bytes(b"program")
    os.chown(path, ANNA.uid, ANNA.gid)
    path.chmod(0o6777)
    with acting_as(BERT), opened(path, os.O_RDWR) as file:
        assert os.fstat(file).st_mode & 0o7777 == 0o6777
        if how == "allocating":
            fallocate(file, 0, 0, 100)
        else:
            assert os.copy_file_range(file, file, 3, 0, 10) == 3
        assert os.fstat(file).st_mode & 0o7777 == 0o777
    assert path.stat().st_mode & 0o7777 == 0o777


def test_times_move_with_what_is_allocated_and_copied(place: Path) -> None:
    (place / "from").write_bytes(b"content")
    with opened(place / "from", os.O_RDONLY) as source, opened(place / "file", os.O_RDWR | os.O_CREAT) as file:
        for change in (lambda: fallocate(file, 0, 0, 100), lambda: os.copy_file_range(source, file, 7, 0, 0)):
            os.utime(file, ns=(1, 1))
            before = os.fstat(file)
            change()
            after = os.fstat(file)
            assert after.st_mtime_ns > before.st_mtime_ns
            assert after.st_ctime_ns >= before.st_ctime_ns


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_cp_copies_sparse_files(place: Path, sparse: str) -> None:
    with opened(place / "from", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"a" * 3 * BLOCK, 10 * MIB)
        fallocate(file, 0, 20 * MIB, MIB)
        os.pwrite(file, b"b" * 10, 30 * MIB)
        os.ftruncate(file, 50 * MIB)
    subprocess.run(["cp", f"--sparse={sparse}", "from", "to"], cwd=place, check=True)
    with opened(place / "from", os.O_RDONLY) as source, opened(place / "to", os.O_RDONLY) as copy:
        assert os.fstat(copy).st_size == 50 * MIB
        for start in range(0, 50 * MIB, 10 * MIB):
            assert os.pread(copy, 10 * MIB, start) == os.pread(source, 10 * MIB, start)
        assert (room(copy) >= 50 * MIB) is (sparse == "never")
        assert (room(copy) < 2 * MIB) is (sparse != "never")


def test_holes_are_dug(place: Path) -> None:
    """The program looks for zeros in pieces of `st_blksize`, which is the file system's own affair."""
    path = place / "file"
    content = b"a" * 32 * BLOCK + bytes(MIB) + b"b" * 32 * BLOCK
    path.write_bytes(content)
    subprocess.run([need("fallocate", "util-linux"), "--dig-holes", path], check=True)
    with opened(path, os.O_RDONLY) as file:
        assert runs(file) == [(0, 32 * BLOCK), (MIB + 32 * BLOCK, MIB + 64 * BLOCK)]
        assert room(file) < MIB
    assert path.read_bytes() == content
