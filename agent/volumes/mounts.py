"""Which mount of its file system a volume is on: what only the page cache had before another one may not be on the disk."""

import ctypes
import struct
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")

# Of linux/stat.h, and of linux/fcntl.h.
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES, _MASK_AT, _MOUNT_AT = 256, 0, 144
_AT_EMPTY_PATH = 0x1000

_libc = ctypes.CDLL(None)


def mount_of(descriptor: int) -> str:
    """Names the mount that the file is on: never as another one, as far as the kernel tells, and not as before the last boot.

    Where it does not tell (before Linux 6.8, or if statx(2) is forbidden), all mounts since that boot have one name.
    """
    boot = _BOOT.read_text(encoding="ascii").strip()
    status = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, status) != 0:
        return boot
    (mask,) = struct.unpack_from("=I", status, _MASK_AT)
    (mount,) = struct.unpack_from("=Q", status, _MOUNT_AT)
    return f"{boot} {mount}" if mask & _STATX_MNT_ID_UNIQUE else boot
