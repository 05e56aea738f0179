"""The attributes of a file as the network is to have them."""

import os
import stat
from typing import NamedTuple

from cli.importing.findings import OF_BRICKS, Brick, Found
from cluster.messages import XATTR_NAMESPACES, ImportedName, ImportedXattr
from cluster.volume.layout import RECORD_XATTR

CAPABILITY_XATTR = b"security.capability"
_LISTS = (b"system.posix_acl_access", b"system.posix_acl_default")
_OWN = RECORD_XATTR.encode()  # of Godwit, on files that were exported or are being taken over


class Xattrs(NamedTuple):
    """Extended attributes."""

    kept: list[ImportedXattr]
    lost: list[bytes]  # names of those that the network cannot have
    is_piece: bool = False  # the file is a part of one of GlusterFS

    @property
    def has_capability(self) -> bool:
        """Which the kernel takes away when the owner changes."""
        return any(xattr.name == CAPABILITY_XATTR for xattr in self.kept)


def read_xattrs(path: int | bytes, brick: Brick | None) -> Xattrs:
    """Those of a descriptor's file, or of what is at *path* itself. Raises `OSError`."""
    follow = isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError:
        # A file system that has none.
        return Xattrs([], [])
    kept, lost = [], []
    for name in names:
        encoded = os.fsencode(name)
        if encoded == _OWN or (brick is not None and encoded.startswith(OF_BRICKS)):
            continue
        if not encoded.startswith(XATTR_NAMESPACES) and encoded not in _LISTS:
            lost.append(encoded)
            continue
        kept.append(ImportedXattr(encoded, os.getxattr(path, name, follow_symlinks=follow)))
    return Xattrs(kept, lost, is_piece=brick is not None and brick.is_piece(names))


def imported_name(parent: int, found: Found, ino: int, xattrs: Xattrs, target: bytes = b"") -> ImportedName:
    """What is to be made of a name that is no file's, or of a file whose content is not looked at yet."""
    status = found.status
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return ImportedName(
        parent,
        found.name,
        ino,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_rdev if device else 0,
        status.st_atime_ns,
        status.st_mtime_ns,
        target,
        xattrs.kept,
    )


def weight(name: ImportedName) -> int:
    """About how many bytes it takes in a request."""
    return 200 + len(name.name) + len(name.target) + sum(len(xattr.name) + len(xattr.value) + 8 for xattr in name.xattrs)
