"""The set-id bits that Linux takes from a file whose content or owner changes.

With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves that to the mount, and in return does not ask before every write whether there is
something to take. (It still removes capabilities by itself.)
"""

import stat

ACCESS_LIST = b"system.posix_acl_access"


def without_set_id(mode: int) -> int:
    """The permission bits of *mode* after a change; set-group-id without group execution means something else, and stays."""
    kept = stat.S_IMODE(mode) & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept


def has_set_id(mode: int) -> bool:
    """Whether a change would take something away."""
    return without_set_id(mode) != stat.S_IMODE(mode)
