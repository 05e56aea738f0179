"""Small files that are replaced as a whole, and names that are made durable."""

import errno
import os
from pathlib import Path

SMALL_BYTES = 1 << 20  # of a configuration, a note, a volume.toml: they have some hundred


def replace_file(path: Path, content: bytes, *, mode: int = 0o600, group: int = -1, synced: bool = True) -> None:
    """Replaces a file by one that holds *content*: a reader, and who comes after a crash, finds either the old or the new one.

    *synced*: it is the new one even after a power failure. Blocks; raises `OSError`, and then the old one is still there.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            if group >= 0:  # else the process's own; the units of some forbid the call
                os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(content)
            if synced:
                file.flush()
                os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if synced:
        sync_directory(path.parent)


def read_file(path: str | Path) -> bytes:
    """What a small file holds. Raises `OSError`.

    Its access time stays as it is: to set it means to wait for a disk that hangs, although the kernel has the content.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:  # EPERM: the file is somebody else's, who may want to know who reads it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return read_all(descriptor, path)


def read_all(descriptor: int, path: str | Path) -> bytes:
    """What a small file holds; closes *descriptor*. Raises `OSError`; EFBIG for one that no memory should be taken for."""
    with open(descriptor, "rb") as file:
        content = file.read(SMALL_BYTES + 1)
    if len(content) > SMALL_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {SMALL_BYTES >> 20} MiB", os.fspath(path))
    return content


def sync_directory(path: str | Path) -> None:
    """Makes the names in a directory durable. Blocks; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
