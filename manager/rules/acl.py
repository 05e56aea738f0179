"""POSIX access control lists in the kernel's extended attribute format, version 2. Pure.

Sources: `include/uapi/linux/posix_acl_xattr.h` for the format, `fs/posix_acl.c` for the rules (`posix_acl_valid`,
`posix_acl_equiv_mode`, `posix_acl_create_masq`, `__posix_acl_chmod_masq`).
"""

import errno
import struct
from typing import NamedTuple

from cluster.errors import refused

ACCESS_XATTR = b"system.posix_acl_access"
DEFAULT_XATTR = b"system.posix_acl_default"

USER_OBJ = 0x01  # the owner
USER = 0x02  # a named user
GROUP_OBJ = 0x04  # the owning group
GROUP = 0x08  # a named group
MASK = 0x10  # what named ones and the owning group may have at most
OTHER = 0x20

NO_ID = 0xFFFFFFFF  # ACL_UNDEFINED_ID
_VERSION = 2  # POSIX_ACL_XATTR_VERSION
_HEADER = struct.Struct("<I")  # the version
_ENTRY = struct.Struct("<HHI")  # tag, permissions, qualifier
_RANK = {USER_OBJ: 0, USER: 1, GROUP_OBJ: 2, GROUP: 3, MASK: 4, OTHER: 5}  # the order in which the kernel stores and checks them
_NAMED = (USER, GROUP)
_REQUIRED = (USER_OBJ, GROUP_OBJ, OTHER)


class AclEntry(NamedTuple):
    """One line of a list; `qualifier` is the user or group of USER and GROUP entries, else `NO_ID`."""

    tag: int
    permissions: int
    qualifier: int = NO_ID


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl | None:
    """The list in an attribute's value, in canonical order; None if it has no entries. Raises EINVAL (or EOPNOTSUPP)."""
    if not value:
        return None
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise refused(errno.EINVAL, "malformed access control list")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise refused(errno.EOPNOTSUPP, "unknown version of access control list")
    entries = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if not entries:
        return None
    _check(entries)
    canonical = [entry if entry.tag in _NAMED else entry._replace(qualifier=NO_ID) for entry in entries]
    return tuple(sorted(canonical, key=lambda entry: (_RANK[entry.tag], entry.qualifier)))


def _check(entries: list[AclEntry]) -> None:
    tags = [entry.tag for entry in entries]
    named = [(entry.tag, entry.qualifier) for entry in entries if entry.tag in _NAMED]
    if (
        any(tag not in _RANK or entry.permissions & ~7 for tag, entry in zip(tags, entries, strict=True))
        or any(tags.count(tag) != 1 for tag in _REQUIRED)
        or tags.count(MASK) > 1
        or (named and MASK not in tags)
        or len(set(named)) != len(named)
        or any(qualifier == NO_ID for _tag, qualifier in named)
    ):
        raise refused(errno.EINVAL, "invalid access control list")


def pack(acl: Acl) -> bytes:
    """The attribute's value."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def _permissions(acl: Acl, tag: int) -> int | None:
    return next((entry.permissions for entry in acl if entry.tag == tag), None)


def _group_class(acl: Acl) -> int:
    """What the mode's group bits show: the mask, or the owning group's permissions where there is no mask."""
    return MASK if _permissions(acl, MASK) is not None else GROUP_OBJ


def mode_of(acl: Acl, mode: int) -> int:
    """*mode* with the permission bits that the list stands for."""
    owner = _permissions(acl, USER_OBJ) or 0
    group = _permissions(acl, _group_class(acl)) or 0
    other = _permissions(acl, OTHER) or 0
    return mode & ~0o777 | owner << 6 | group << 3 | other


def is_mode_only(acl: Acl) -> bool:
    """Whether mode bits say all that the list says."""
    return len(acl) == len(_REQUIRED)


def chmod(acl: Acl, mode: int) -> Acl:
    """The access list after `chmod` to *mode*."""
    bits = {USER_OBJ: mode >> 6 & 7, _group_class(acl): mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in acl)


def inherit(default: Acl, mode: int) -> tuple[int, Acl | None]:
    """The mode and the access list (None if the mode says it all) of what is created with *mode* under a default list."""
    group_class = _group_class(default)
    bits = {USER_OBJ: mode >> 6 & 7, group_class: mode >> 3 & 7, OTHER: mode & 7}
    access = tuple(entry._replace(permissions=entry.permissions & bits.get(entry.tag, 7)) for entry in default)
    return mode_of(access, mode), None if is_mode_only(access) else access
