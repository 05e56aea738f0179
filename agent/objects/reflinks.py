"""Files that share their blocks until one of them is written: what btrfs and xfs can do, and ext4 cannot. Blocks."""

import errno
import fcntl
import os

FICLONE = 0x40049409  # _IOW(0x94, 9, int) of <linux/fs.h>
# What file systems say that have no reflinks (EOPNOTSUPP, ENOTTY, ENOSYS), across two of them (EXDEV), or for a pair
# of files that they do not share (EINVAL). ENOSPC and EIO are not in it: those are troubles of this disk.
CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS})


def clone(source: int, target: int) -> bool:
    """Makes *target* share all of *source*'s content, as it is at one moment; False if it cannot be. Raises `OSError`."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in CANNOT:
            return False
        raise
    return True


def snapshot(source: int, directory: str) -> int | None:
    """A descriptor of a nameless file in *directory* with the present content of *source*; None if there can be none."""
    try:
        taken = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        # O_TMPFILE is refused by some file systems, and on a read-only disk: then the object itself is read.
        return None
    try:
        if clone(source, taken):
            return taken
    except OSError:
        pass  # short of space: the object itself can be read all the same
    os.close(taken)
    return None
