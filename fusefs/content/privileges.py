"""What Linux takes away when a file's content or owner changes: capabilities, and for whoever is not root the set-id bits.

With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves the bits to the mount, and in return does not ask before every write whether there
is something to take. (It still removes capabilities by itself, except for `O_TRUNC` and what goes around its page cache.)
"""

import errno
import stat

from cluster.clock import file_time_ns
from cluster.errors import Refused
from cluster.messages import RemoveXattr, SetAttr
from fusefs.caching.changes import Changes
from fusefs.content.open_inode import OpenInode

SECURITY_CAPABILITY = b"security.capability"


def without_set_id(mode: int) -> int:
    """The permission bits of *mode* after a change; set-group-id without group execution means something else, and stays."""
    kept = stat.S_IMODE(mode) & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept


def has_set_id(mode: int) -> bool:
    """Whether a change would take something away."""
    return without_set_id(mode) != stat.S_IMODE(mode)


class Privileges:
    """Takes privileges away in the catalog."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def drop_capabilities(self, state: OpenInode) -> None:
        """Asks nobody if there are none. Raises `GodwitError`."""
        if not state.may_have_capabilities:
            return
        try:
            await self._changes.apply(RemoveXattr(state.ino, SECURITY_CAPABILITY, file_time_ns()), state.ino)
        except Refused as error:
            if error.errno != errno.ENODATA:
                raise
        state.capabilities_removed()

    async def drop_set_id(self, state: OpenInode) -> None:
        """For `O_TRUNC`: for other changes of content, the kernel asks for it. Raises `GodwitError`."""
        if has_set_id(state.node.mode):
            change = SetAttr(state.ino, file_time_ns(), mode=without_set_id(state.node.mode))
            state.answered((await self._changes.apply(change, state.ino)).made)
