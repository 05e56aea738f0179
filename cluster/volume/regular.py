"""Opens objects and other files of a volume, whatever lies in their place.

Whoever may write to a volume's directories can leave something else there. A FIFO would hold the thread that opens it until
somebody opens its other end, a device would do what its driver does, and a socket gives the error of a disk that is gone.

Reading sets no access time: that is a change in the journal, and waits for a disk that hangs even if the content is cached.
"""

import errno
import os
import stat

FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOATIME  # O_NONBLOCK: nothing to a regular file
OF_OTHERS = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR})  # what opening something else may give


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of the regular file at *path*, close-on-exec. Raises `OSError`, EBADMSG if something else is there."""
    try:
        descriptor = os.open(path, flags | FLAGS)
    except OSError as error:
        if error.errno in OF_OTHERS and not stat.S_ISREG(os.lstat(path).st_mode):
            raise _no_file(path) from error
        raise
    return require_regular(descriptor, path)


def require_regular(descriptor: int, path: str | os.PathLike[str]) -> int:
    """*descriptor*, if it is of a regular file; else it is closed, and `OSError` raised (EBADMSG)."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return descriptor


def _no_file(path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.EBADMSG, "it is not a file", os.fspath(path))
