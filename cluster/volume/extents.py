"""Where a file has blocks and where holes: the system calls, for mounts and agents alike.

All functions block and raise `OSError`. What a mode means, and which there are, is the backing file system's affair.
"""

import ctypes
import errno
import fcntl
import os

COPY_MAX_BYTES = 16 * 1024 * 1024
"""As much is copied by one call, so that no thread and no connection is held for long."""

_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})  # the kernel does not copy between these two
_PIECE_BYTES = 1 << 20
_CLONE = 0x40049409  # FICLONE of linux/fs.h
_NO_CLONE = _NO_COPY | {errno.ENOTTY, errno.EPERM, errno.EBADF, errno.ETXTBSY}
_COLLAPSE_RANGE = 0x08  # of linux/falloc.h
_INSERT_RANGE = 0x20

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
_SYNC_FILE_RANGE_WRITE = 2


def start_writeback(descriptor: int) -> None:
    """Has the kernel begin to write what is dirty of the file; what is clean stays in the page cache."""
    if _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which the standard library has only mode 0."""
    if _fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def is_repeatable(mode: int) -> bool:
    """Whether allocating twice is the same as once: not where what lies behind is moved."""
    return not mode & (_COLLAPSE_RANGE | _INSERT_RANGE)


def seek(descriptor: int, offset: int, whence: int) -> int | None:
    """Where data or a hole begins, at *offset* or behind; None if nothing of the kind follows. Moves the descriptor's offset."""
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def copy(source: int, target: int, start: int, offset: int, length: int) -> int:
    """Copies at most `COPY_MAX_BYTES` within the kernel, sharing blocks if the file system can; returns how many, 0 at the end.

    EXDEV: the kernel does not copy between these two.
    """
    return os.copy_file_range(source, target, min(length, COPY_MAX_BYTES), start, offset)


def clone(source: int, target: int) -> bool:
    """Makes an empty file share all blocks of another; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _CLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def copy_all(source: int, target: int) -> None:
    """Copies a whole file into an empty one, with its holes, whatever file systems they are on. EIO if it gets shorter."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while (data := seek(source, offset, os.SEEK_DATA)) is not None:
        offset = seek(source, data, os.SEEK_HOLE) or size
        while data < offset:
            data += _copy_piece(source, target, data, offset - data)


def _copy_piece(source: int, target: int, start: int, length: int) -> int:
    try:
        done = copy(source, target, start, start, length)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
        done = os.pwrite(target, os.pread(source, min(length, _PIECE_BYTES), start), start)
    if done == 0:
        raise OSError(errno.EIO, "it is shorter than it was")
    return done


def are_equal(one: int, other: int) -> bool:
    """Whether two files have the same content, of which the pages of *other* that are in memory are not believed."""
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    os.posix_fadvise(other, 0, 0, os.POSIX_FADV_DONTNEED)
    offset = 0
    while piece := os.pread(one, _PIECE_BYTES, offset):
        if os.pread(other, len(piece), offset) != piece:
            return False
        offset += len(piece)
    return not os.pread(other, 1, offset)
