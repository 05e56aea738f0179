"""Opens files without waiting for a disk, for event loops."""

import ctypes
import errno
import os

from cluster.volume.regular import FLAGS, OF_OTHERS, require_regular

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # of all architectures
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_WITH_O_PATH = os.O_CLOEXEC | os.O_NOFOLLOW
_NOT_CACHED = frozenset({errno.EAGAIN, errno.ENOSYS, errno.EINVAL, errno.EPERM})  # EPERM: of seccomp filters, or a fence


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_cached(path: str, flags: int) -> int | None:
    """Opens a regular file if the kernel has all of *path* in its caches (openat2(2) with `RESOLVE_CACHED`, Linux 5.12).

    None if the disk would have to be asked, or if the kernel cannot tell: then `open_regular` in a thread says what there is.
    Raises `OSError`.
    """
    # openat2 refuses (EINVAL) what open ignores.
    wanted = flags | (FLAGS & _WITH_O_PATH if flags & os.O_PATH else FLAGS)
    how = _OpenHow(wanted, 0, _RESOLVE_CACHED)
    descriptor: int = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor >= 0:
        return require_regular(descriptor, path)
    error = ctypes.get_errno()
    if error in _NOT_CACHED or error in OF_OTHERS:
        return None
    raise OSError(error, os.strerror(error), path)
