"""Extended attributes, and what the kernel asks of capabilities before a write."""

import errno
import os
from collections.abc import Callable, Collection

from cluster.clock import file_time_ns
from cluster.errors import Refused
from cluster.messages import XATTR_NAMESPACES, XATTRS_UNKNOWN, GetXattr, ListXattr, Node, RemoveXattr, SetXattr, XattrKind
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.content.open_files import OpenFiles
from fusefs.content.privileges import SECURITY_CAPABILITY
from fusefs.names.lookups import Lookups
from fusefs.names.set_id_bits import SetIdBits

ACCESS_LIST = b"system.posix_acl_access"


def has_no_xattr(node: Node, name: bytes) -> bool:
    """Whether the manager has said that the inode has no attribute of that kind; False for a name that no attribute can have."""
    kind = XattrKind.of(name)
    can_be = kind is not XattrKind.OTHER or (name.startswith(XATTR_NAMESPACES) and name not in XATTR_NAMESPACES)
    return can_be and node.xattrs != XATTRS_UNKNOWN and not node.xattrs & kind


class Xattrs:
    """Reads and changes extended attributes. All methods raise `GodwitError`."""

    def __init__(
        self,
        session: ManagerSession,
        changes: Changes,
        lookups: Lookups,
        set_id_bits: SetIdBits,
        caching: Caching,
        open_files: OpenFiles,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._caching = caching
        self._changes = changes
        self._lookups = lookups
        self._set_id_bits = set_id_bits
        self._open_files = open_files
        self._timeout_s = timeout_s

    async def getxattr(self, ino: int, name: bytes, uid: int) -> bytes:
        """An attribute's value for *uid*; raises `Refused` with ENODATA if there is none.

        The kernel asks for the capabilities before a `write`: before every one while there are set-id bits, which a write takes
        away (unless it is root's), also one that the mount does not see otherwise. Who has the file open for writing knows
        that there are no capabilities: the manager does not let another mount set them meanwhile. After the last close nobody can
        write, although it is open for writing to the manager until it is committed.
        """
        if self.has_no_xattr(ino, name):
            raise Refused(os.strerror(errno.ENODATA), errno.ENODATA)
        if name == SECURITY_CAPABILITY:
            state = self._open_files.get(ino)
            if state is not None and state.is_registered_to_write:
                # The only request that comes before a write which the kernel makes past the mount.
                if self._set_id_bits.are_left_to_us() and uid != 0 and state.writers:
                    await self._set_id_bits.clear(ino)
                if not state.may_have_capabilities:
                    raise Refused(os.strerror(errno.ENODATA), errno.ENODATA)
        return (await self._session.call(GetXattr(ino, name), timeout_s=self._timeout_s)).value

    def has_no_xattr(self, ino: int, name: bytes) -> bool:
        """Whether it is known here that `getxattr` would do nothing and find nothing."""
        state = self._open_files.get(ino)
        if state is None or not state.is_registered_to_write:
            kept = self._caching.node(ino)
            return kept is not None and has_no_xattr(kept[0], name)
        if name != SECURITY_CAPABILITY or state.may_have_capabilities:
            return False
        return not self._set_id_bits.are_left_to_us() or self._set_id_bits.are_known_clear(ino)

    async def setxattr(self, ino: int, name: bytes, value: bytes, uid: int, groups: Callable[[], Collection[int]]) -> None:
        """Sets an attribute for *uid*, who is in *groups*."""
        if name == SECURITY_CAPABILITY and (state := self._open_files.get(ino)) is not None:
            state.capabilities_set()  # before the change, which may be done although its answer does not come
        keeps_sgid = name != ACCESS_LIST or uid == 0 or (await self._lookups.node(ino))[0].gid in groups()
        await self._changes.apply(SetXattr(ino, name, value, 0, file_time_ns(), keeps_sgid), ino)

    async def listxattr(self, ino: int, uid: int) -> list[bytes]:
        """The names that *uid* may see: `trusted.*` is for root alone."""
        names = (await self._session.call(ListXattr(ino), timeout_s=self._timeout_s)).names
        return names if uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    async def removexattr(self, ino: int, name: bytes) -> None:
        await self._changes.apply(RemoveXattr(ino, name, file_time_ns()), ino)
