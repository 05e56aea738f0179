"""What may be expected of `SEEK_DATA` and `SEEK_HOLE`: where exactly holes begin is the file system's own affair."""

import errno
import os
import stat


def extents_from(descriptor: int, offset: int) -> object:
    """What seeking gives as far as it must be the same everywhere; leaves the descriptor's offset at 0.

    Raises `OSError` for a file in which nothing can be sought, and `AssertionError` if a hole has anything but zeros, or data and
    holes are not where they can be.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "not of interest"
    data, hole = _sought(descriptor, offset, os.SEEK_DATA), _sought(descriptor, offset, os.SEEK_HOLE)
    os.lseek(descriptor, 0, os.SEEK_SET)
    size = status.st_size
    if offset >= size:
        assert (data, hole) == (None, None)
        return "behind the end"
    assert hole is not None
    assert offset <= hole <= size
    assert data is None or offset <= data < size
    assert (data == offset) is not (hole == offset)
    _require_zeros(descriptor, offset, size if data is None else data)
    return "before the end"


def runs(descriptor: int) -> list[tuple[int, int]]:
    """The parts (start, end) of a file that are data."""
    found = []
    end = 0
    while (start := _sought(descriptor, end, os.SEEK_DATA)) is not None:
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def _sought(descriptor: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _require_zeros(descriptor: int, start: int, end: int) -> None:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            part = os.pread(again, min(end - start, 1 << 20), start)
            assert part == bytes(len(part))
            assert part, "the file ends where there should be a hole"
            start += len(part)
    finally:
        os.close(again)
