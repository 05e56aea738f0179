"""Makes a file that lies elsewhere an object of a volume: the file itself where both are on one file system, else a copy.

A file that is taken over has two names until the network knows it: its old one and that of the object. So at each moment it is
in its old place or in the network; what an interruption leaves is told by the record, which is written first, and has the mode
and the owner that the file had. Whoever takes over the file itself must have found that nobody has it open for writing
(`held_still`).
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import NamedTuple

from cluster.volume import extents
from cluster.volume.fence import lift
from cluster.volume.layout import RECORD_XATTR, ObjectRecord, VolumeLayout, read_record, write_record

OBJECT_MODE = 0o600
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_LEASES = frozenset({errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM})
_NO_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.E2BIG, errno.ERANGE, errno.ENOSPC})


class How(StrEnum):
    """How a file's content came into the volume."""

    LINKED = "in place"
    CLONED = "by reflink"
    COPIED = "by copy"


class Leftover(NamedTuple):
    """What an interrupted attempt has left of a file."""

    record: ObjectRecord
    is_object: bool  # the file is the object of that number still


class ChangedError(Exception):
    """Somebody changes the file, or has it open for writing."""


def open_source(folder: int, name: bytes) -> int:
    """A descriptor of a file in a directory, whose access time stays. Raises `OSError`."""
    try:
        return os.open(name, _SOURCE | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _SOURCE, dir_fd=folder)


def same_name(folder: int, name: bytes, descriptor: int) -> bool:
    """Whether the name in the directory is that of the open file."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def held_still(descriptor: int) -> Iterator[bool]:
    """While inside, nobody begins to write the file; False where the file system cannot tell.

    Raises `ChangedError` if somebody has it open for writing, or tried to open it meanwhile. `SIGIO` must be ignored.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise ChangedError("somebody has it open for writing") from None
        if error.errno not in _NO_LEASES:
            raise
        yield False
        return
    try:
        yield True
        if fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise ChangedError("somebody has opened it for writing meanwhile")
    finally:
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def link_in(layout: VolumeLayout, source: int, record: ObjectRecord) -> bool:
    """Makes the file itself the object; False, and it is as it was, where that cannot be. Raises `OSError`.

    A repeat with another number is harmless. `give_back` undoes it.
    """
    try:
        write_record(source, record)
        _link(source, layout, record.ino)
    except OSError as error:
        with suppress(OSError):
            os.removexattr(source, RECORD_XATTR)
        if error.errno in _NO_LINK:
            return False
        raise
    # Only now, when the record tells who it was: what is an object belongs to whoever owns the volume.
    os.fchown(source, os.geteuid(), os.getegid())
    os.fchmod(source, OBJECT_MODE)
    return True


def _link(source: int, layout: VolumeLayout, ino: int) -> None:
    path = layout.object_path(ino)
    for attempt in range(2):
        try:
            # By the descriptor: whatever has its name by now. Only with a directory given, links are followed.
            os.link(f"/proc/self/fd/{source}", path, src_dir_fd=source, follow_symlinks=True)
        except FileNotFoundError:
            if attempt:
                raise
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), mode=0o700)
        else:
            return


def copy_in(layout: VolumeLayout, source: int, record: ObjectRecord) -> tuple[int, How]:
    """Makes a copy of the file an object, durably and compared; a descriptor of it, and how.

    Raises `ChangedError` if the file changes meanwhile, `OSError`; then there is no object.
    """
    before = os.fstat(source)
    made = layout.create_object(record.ino)
    try:
        how = How.CLONED if extents.clone(source, made) else How.COPIED
        if how is How.COPIED:
            extents.copy_all(source, made)
        write_record(made, record)
        os.utime(made, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(made)
        if how is How.COPIED and not extents.are_equal(source, made):
            raise ChangedError("it changed while it was copied")
        if _times(os.fstat(source)) != _times(before):
            raise ChangedError("it changed while it was copied")
    except BaseException:
        layout.remove_objects([record.ino])
        os.close(made)
        raise
    return made, how


def _times(status: os.stat_result) -> tuple[int, int]:
    # No ctime: FUSE file systems have coarse ones, and a link or a chmod changes no content.
    return status.st_size, status.st_mtime_ns


def find_leftover(layout: VolumeLayout, source: int) -> Leftover | None:
    """What an interrupted attempt has left of this file; None for any other file. Raises `OSError`."""
    record = read_record(source)
    if record is None:
        return None
    status = os.fstat(source)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(layout.object_path(record.ino)), status):
            return Leftover(record, is_object=True)
    # Its object was set aside meanwhile; nothing else makes a file with a record look so.
    is_taken = (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), OBJECT_MODE)
    return Leftover(record, is_object=False) if record.mode and is_taken else None


def give_back(layout: VolumeLayout, source: int, record: ObjectRecord) -> None:
    """Makes a file what it was before `link_in`. Raises `OSError`."""
    lift(source)
    os.fchown(source, record.uid, record.gid)
    os.fchmod(source, stat.S_IMODE(record.mode))  # after the owner, whose change takes set-id bits away
    status = os.fstat(source)
    for path in (layout.object_path(record.ino), *_set_aside(layout, record.ino)):
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), status):
                os.unlink(path)
    with suppress(OSError):
        os.removexattr(source, RECORD_XATTR)


def _set_aside(layout: VolumeLayout, ino: int) -> list[str]:
    """Where the object may be that an agent took for a stray."""
    try:
        return [os.fspath(layout.unknown / name) for name in os.listdir(layout.unknown) if name.startswith(f"{ino}.")]
    except FileNotFoundError:
        return []


def remove_old(folder: int, name: bytes, descriptor: int) -> bool:
    """Removes the file's old name; False if that is another file's by now. Raises `OSError`."""
    if not same_name(folder, name, descriptor):
        return False
    try:
        os.unlink(name, dir_fd=folder)
    except PermissionError:
        # Its agent has committed and fenced it meanwhile: whoever asked is about to commit it again.
        lift(descriptor)
        os.unlink(name, dir_fd=folder)
    return True
