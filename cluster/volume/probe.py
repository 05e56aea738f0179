"""Tries a disk: what only the page cache answers says nothing of it. Which errors are a disk's."""

import errno
import os

BLOCK = b"godwit\n" * 585

DISK_ERRNOS = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.EUCLEAN, errno.ENOTCONN})
"""What a system call says of the disk rather than of the file. (EUCLEAN: ext4 and xfs find themselves damaged.)"""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def probe(path: str) -> OSError | None:
    """What a disk answers to a block that is written to the file at *path* and read back, beside the page cache. Blocks.

    The file lies at the top of a volume; where there is none, since its disk is away, nothing is made. That a disk is full is no
    fault of it.
    """
    try:
        descriptor = _open_in_volume(*os.path.split(path))
        try:
            os.pwrite(descriptor, BLOCK, 0)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.pread(descriptor, len(BLOCK), 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        return None if error.errno in _FULL else error
    return None


def _open_in_volume(root: str, name: str) -> int:
    # By way of a folder that only a volume has: so the file is on the disk that has it, whatever is unmounted meanwhile.
    folder = os.open(f"{root}/objects", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(f"../{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
