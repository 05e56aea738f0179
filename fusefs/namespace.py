"""Names and attributes: every question and every change goes to the manager, and nothing is cached."""

import errno
import os

from cluster.clock import file_time_ns
from cluster.errors import Refused, refused
from cluster.messages import (
    Create,
    GetAttr,
    GetSpace,
    GetXattr,
    Link,
    ListXattr,
    Lookup,
    Node,
    Operation,
    ReadLink,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Space,
    Unlink,
)
from cluster.session import ManagerSession
from fusefs.attributes import Attributes
from fusefs.files import SECURITY_CAPABILITY, Files
from fusefs.inodes import InodeNumbers
from fusefs.openfiles import OpenFiles
from fusefs.paths import LastKnownPaths


class Namespace:
    """The operations of the overlay that are not about the bytes of a file. All raise `GodwitError`."""

    def __init__(
        self,
        session: ManagerSession,
        attributes: Attributes,
        open_files: OpenFiles,
        files: Files,
        numbers: InodeNumbers,
        paths: LastKnownPaths,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._attributes = attributes
        self._open_files = open_files
        self._files = files
        self._numbers = numbers
        self._paths = paths
        self._timeout_s = timeout_s

    async def lookup(self, parent: int, name: bytes) -> Node:
        node = (await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)).node
        if node is None:
            raise refused(errno.ENOENT)
        self._paths.saw(node.ino, parent, name)
        return await self._attributes.live(node)

    async def getattr(self, ino: int) -> Node:
        return await self._attributes.live((await self._session.call(GetAttr(ino), timeout_s=self._timeout_s)).node)

    async def setattr(self, change: SetAttr, size: int | None) -> Node:
        """Changes attributes and, if *size* is given, the length of the file, which goes first."""
        if size is not None:
            await self._files.truncate(change.ino, size)
        if change.mode is change.uid is change.gid is change.atime_ns is change.mtime_ns is None:
            return await self.getattr(change.ino)
        node = await self._session.apply_one(change, timeout_s=self._timeout_s)
        if node.dirty and change.mtime_ns is not None:
            node = await self._files.set_times(node, change)
        return await self._attributes.live(node)

    async def make(self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b"") -> Node:
        """Makes anything but a regular file: a directory, a symbolic link, a device, a pipe or a socket."""
        ino = await self._numbers.take()
        now_ns = file_time_ns()
        create = Create(parent, name, ino, mode, uid, gid, rdev, now_ns, target=target)
        node = await self._session.apply_one(create, timeout_s=self._timeout_s)
        self._paths.saw(node.ino, parent, name)
        return node

    async def readlink(self, ino: int) -> bytes:
        return (await self._session.call(ReadLink(ino), timeout_s=self._timeout_s)).value

    async def link(self, ino: int, parent: int, name: bytes) -> Node:
        node = await self._session.apply_one(Link(ino, parent, name, file_time_ns()), timeout_s=self._timeout_s)
        return await self._attributes.live(node)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._apply(Unlink(parent, name, file_time_ns()))

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._apply(Rmdir(parent, name, file_time_ns()))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        await self._apply(Rename(parent, name, new_parent, new_name, flags, file_time_ns()))

    async def _apply(self, operation: Operation) -> None:
        await self._session.apply([operation], timeout_s=self._timeout_s)

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """An attribute's value; raises `Refused` with ENODATA if there is none.

        The kernel asks for the capabilities before every `write`. Who has the file open for writing knows that there
        are none: the manager does not let another mount set them meanwhile.
        """
        if name == SECURITY_CAPABILITY:
            state = self._open_files.get(ino)
            if state is not None and state.registered_write and not state.caps:
                raise Refused(os.strerror(errno.ENODATA), errno.ENODATA)
        return (await self._session.call(GetXattr(ino, name), timeout_s=self._timeout_s)).value

    async def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        if name == SECURITY_CAPABILITY and (state := self._open_files.get(ino)) is not None:
            state.caps = True
        await self._apply(SetXattr(ino, name, value, 0, file_time_ns()))

    async def listxattr(self, ino: int, uid: int) -> list[bytes]:
        """The names that *uid* may see: `trusted.*` is for root alone."""
        names = (await self._session.call(ListXattr(ino), timeout_s=self._timeout_s)).names
        return names if uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    async def removexattr(self, ino: int, name: bytes) -> None:
        await self._apply(RemoveXattr(ino, name, file_time_ns()))

    async def space(self) -> Space:
        return await self._session.call(GetSpace(), timeout_s=self._timeout_s)
