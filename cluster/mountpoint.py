"""Keeps programs from writing to the directory beneath a mount while nothing is mounted there.

What a program writes there before the mount comes, or after it went, would be acknowledged and then hidden on one disk, on no
mount. So the bare directory is *shielded*: it is immutable, so that no name can be made in it and programs get EPERM; where
its file system has no such flag, or something lies in it, an empty read-only file system covers it, so that they get EROFS.
The shield stays when the mount goes, however it goes. A mount may lie on either.
"""

import ctypes
import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from cluster.errors import from_os_error
from cluster.mounted import COVER
from cluster.volume.fence import fence

log = logging.getLogger(__name__)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_COVER_OPTIONS = b"size=4k,nr_inodes=8,mode=0555"
CONNECTIONS = Path("/sys/fs/fuse/connections")  # control files of FUSE file systems, where `fusectl` is mounted
_NOT_BARE = frozenset({errno.ENOTCONN, errno.EIO})  # a mount whose process is dead, or does not answer


def make_mountpoint(path: Path) -> None:
    """Makes the directory at *path*, with those above it. What is there is not touched: it may be a dead mount."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir()


def shield(path: str) -> None:
    """Keeps programs from writing to the bare directory at *path*; may be repeated.

    Nothing is done where something is mounted. What cannot be shielded is said in the log, and so is what somebody has put
    there before. Raises `GodwitError` if there is no such directory.
    """
    try:
        if os.path.ismount(path) or os.statvfs(path).f_flag & os.ST_RDONLY:
            return
        left = len(os.listdir(path))
        made = make_immutable(path)
    except OSError as error:
        if error.errno in _NOT_BARE:
            return
        raise from_os_error(error, f"looking at the mount point {path}") from error
    if left:
        log.warning(
            "%s is not empty: what lies there beneath the mount (%d names) is hidden by it; move it elsewhere", path, left
        )
    if left or not made:
        _cover(path)


def make_immutable(path: str) -> bool:
    """Makes a directory immutable; False where its file system, or this process's privilege, does not allow it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fence(descriptor)
    finally:
        os.close(descriptor)


def detach_by_force(path: str) -> None:
    """Unmounts what is mounted at *path*, in use or not; of a FUSE file system all requests end first. Raises `OSError`.

    That order matters. A thread that has the kernel drop pages waits for reads of them, in a state that no signal ends, and
    keeps /dev/fuse open meanwhile. If those reads are this process's to answer, and it has stopped doing so or is dead, then
    without force neither would ever end: not the thread, not its process, and no program that waits for the mount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), ctypes.c_int(_MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def abort(device: str, connections: Path = CONNECTIONS) -> None:
    """Ends all requests of the FUSE file system with this device number, `major:minor`, and leaves it mounted.

    Unlike `detach_by_force` it needs no privilege but to be the user who mounted it. Raises `OSError`.
    """
    major, minor = map(int, device.split(":"))
    # The kernel's own number of the device (MKDEV), not user space's.
    (connections / str(major << 20 | minor) / "abort").write_bytes(b"1")


def _cover(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if libc.mount(COVER.encode(), os.fsencode(path), b"tmpfs", flags, _COVER_OPTIONS) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.warning("programs can write to %s while nothing is mounted there: it cannot be shielded (%s)", path, reason)
