"""Files of this machine's Godwit processes below `/run`, while they run: none outlives a reboot.

Names that processes agree on (locks, notes) lie in directories that root alone can write to; locks where root alone can open
them, since whoever can read a file can hold its `flock`, and whoever can bind a name first keeps others from it.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import Refused

RUNTIME = Path("/run/godwit")
MOUNT_LOCKS = RUNTIME / "mounts"
PUBLIC = 0o755
PRIVATE = 0o700


def make_runtime_directory(path: Path, mode: int) -> None:
    """Makes a directory in `/run` of this user's own with just this mode, and those above it; may be repeated.

    Raises `Refused` for one that somebody else owns, or that is none.
    """
    if not path.parent.exists():
        make_runtime_directory(path.parent, PUBLIC)
    path.mkdir(mode=mode, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise Refused(f"{path} belongs to user {found.st_uid}: remove it, nobody else may say what runs here")
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor of a lock file that only its owner can open. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def only_process(folder: Path, name: str, what: str) -> Iterator[None]:
    """Holds the lock *name* in *folder*, which is made for it: private, so that others cannot take it first.

    The lock is free again as soon as its process has ended, however it did; its number is in it. Raises `Refused` while another
    one has it.
    """
    try:
        make_runtime_directory(folder, PRIVATE)
        descriptor = open_lock(folder / name)
    except OSError as error:
        raise Refused(f"{what} cannot take its lock {folder / name}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"{what} runs already on this machine (it holds {folder / name})") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def mount_lock(cluster: str, server: str) -> str:
    """The name, in `MOUNT_LOCKS`, of the lock of a server's only mount process."""
    return f"{cluster}:{server}.lock"


def holder_of(path: Path) -> int | None:
    """The number of the process that took the lock last: it may have ended since. None if nobody ever did."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
