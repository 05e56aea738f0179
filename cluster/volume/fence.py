"""The fence: an object's immutable flag, which makes writes fail also on descriptors that are open already (`stops_writers`).

A lease is no mutual exclusion for a mount that was stopped between its look at the clock and its write at its own disk. So
the agent that commits a file in the place of a silent mount fences the object first, and whoever writes it later, with a good
right, lifts the fence: what the silent mount then still writes fails with EPERM, or comes at a time when the file is open for
writing at this very place, as any other write.

Setting and clearing the flag moves the object's ctime, and so its stamp: only the object of a dirty file may be touched, and
its stamp is taken afterwards. All functions take descriptors of any access mode; all but `fence` raise `OSError`.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from cluster.volume.regular import open_regular

_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h, where a long has 64 bits
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x10
_LONG = struct.Struct("@l")
_INT = struct.Struct("@i")  # what the kernel reads and writes, whatever the request's number says

_NO_FLAGS = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_NO_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_CANNOT = _NO_FLAGS | {errno.EPERM, errno.EACCES, errno.EROFS}


def fence(descriptor: int) -> bool:
    """Fences the object; False where the file system, or this process's privilege, does not allow it."""
    try:
        flags = _flags(descriptor)
        if not flags & _IMMUTABLE:
            _set_flags(descriptor, flags | _IMMUTABLE)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def stops_writers(directory: str) -> bool | None:
    """Whether a fence stops who has a file of the directory's file system open already; None if that cannot be found out now.

    On ext4 it does; xfs and btrfs look at the flag only when a file is opened.
    """
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return False if error.errno in _NO_NAMELESS_FILES else None
    try:
        return fence(descriptor) and not _takes_writes(descriptor)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            lift(descriptor)
        os.close(descriptor)


def _takes_writes(descriptor: int) -> bool:
    try:
        os.pwrite(descriptor, b"x", 0)
    except PermissionError:
        return False
    except OSError:
        return True  # a full disk, perhaps: the flag was not looked at before
    return True


def is_fenced(descriptor: int) -> bool:
    """Whether writes to the object fail."""
    try:
        return bool(_flags(descriptor) & _IMMUTABLE)
    except OSError as error:
        if error.errno in _NO_FLAGS:
            return False
        raise


def lift(descriptor: int) -> None:
    """Lifts the fence if there is one."""
    if is_fenced(descriptor):
        _set_flags(descriptor, _flags(descriptor) & ~_IMMUTABLE)


def is_writable(descriptor: int) -> bool:
    """Whether a write through this descriptor would be let through: it is open for writing, and there is no fence."""
    for_reading = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    return not for_reading and not is_fenced(descriptor)


def open_object_at(path: str, *, lifting: bool) -> int:
    """A descriptor for reading and writing. A fence is lifted if the caller may write; else it reads only."""
    try:
        return open_regular(path, os.O_RDWR)
    except PermissionError:
        descriptor = open_regular(path, os.O_RDONLY)
    if not lifting:
        return descriptor
    try:
        lift(descriptor)
        return open_regular(path, os.O_RDWR)
    finally:
        os.close(descriptor)


def despite_fence(path: str, act: Callable[[], None]) -> None:
    """Does *act*, which renames, replaces or unlinks the object at *path*; the object stays fenced under whatever name.

    What a silent mount has open must go on failing: a write to an object that has been replaced would be lost.
    """
    try:
        act()
    except PermissionError:
        descriptor = open_regular(path, os.O_RDONLY)
    else:
        return
    try:
        lift(descriptor)
        try:
            act()
        finally:
            fence(descriptor)
    finally:
        os.close(descriptor)


def lift_below(root: str) -> None:
    """Lifts every fence at and below a directory that is to be deleted: of objects, and of bare mount points."""
    for folder, _folders, names in os.walk(root):
        for name in (".", *names):
            with suppress(OSError):
                descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    lift(descriptor)
                finally:
                    os.close(descriptor)


def _flags(descriptor: int) -> int:
    answer = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(_LONG.size))
    flags: int = _INT.unpack_from(answer)[0]
    return flags


def _set_flags(descriptor: int, flags: int) -> None:
    fcntl.ioctl(descriptor, _SET_FLAGS, _LONG.pack(flags))
