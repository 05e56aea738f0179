"""New names: of regular files, which are opened by the same request, and of everything else."""

import errno
import os
import stat

from cluster.clock import file_time_ns
from cluster.errors import Refused, refused
from cluster.messages import Create
from fusefs.caching.cache import EntryReply
from fusefs.caching.changes import Changes
from fusefs.content.attributes import Attributes
from fusefs.content.creating import Creator
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.opening import Opener
from fusefs.names.lookups import Lookups


class Creation:
    """Makes what the kernel asks for. All methods raise `GodwitError`."""

    def __init__(
        self,
        changes: Changes,
        creator: Creator,
        opener: Opener,
        lookups: Lookups,
        attributes: Attributes,
        numbers: InodeNumbers,
        paths: LastKnownPaths,
    ) -> None:
        self._changes = changes
        self._creator = creator
        self._opener = opener
        self._lookups = lookups
        self._attributes = attributes
        self._numbers = numbers
        self._paths = paths

    async def create(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, flags: int
    ) -> tuple[int, EntryReply]:
        """Makes a regular file and opens it; an existing one is opened unless *flags* has `O_EXCL`."""
        # From before the object is made: the kernel holds the directory's lock as long as the whole request takes.
        with self._changes.under_way(parent):
            while True:
                try:
                    number, made = await self._creator.create(parent, name, mode, umask, uid, gid, flags)
                except Refused as error:
                    if error.errno != errno.EEXIST or flags & os.O_EXCL:
                        raise
                    # Others may remove the name before it is opened: then it can be made after all.
                    existing = await self._open_existing(parent, name, uid, flags)
                    if existing is not None:
                        return existing
                else:
                    return number, self._changes.entry_reply(made, parent, name)

    def create_known(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, flags: int
    ) -> tuple[int, EntryReply] | None:
        """As `create`, without a task (saves 150 µs); None, and nothing has changed, if somebody has to be asked."""
        created = self._creator.create_known(parent, name, mode, umask, uid, gid, flags)
        if created is None:
            return None
        number, made = created
        return number, self._changes.entry_reply(made, parent, name)

    async def _open_existing(self, parent: int, name: bytes, uid: int, flags: int) -> tuple[int, EntryReply] | None:
        """Opens the file whose name was taken; None if it is gone by now."""
        node = await self._lookups.existing(parent, name)
        if node is None:
            return None
        if not stat.S_ISREG(node.mode):
            raise refused(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EEXIST)
        number = await self._opener.open(node.ino, flags, uid)
        # Without timeouts: a recall since the lookup would not be noticed here.
        return number, EntryReply(await self._attributes.live(node))

    async def create_unnamed(
        self, directory: int, mode: int, umask: int, uid: int, gid: int, flags: int
    ) -> tuple[int, EntryReply]:
        """Makes a regular file that has no name yet, as if in *directory*, and opens it."""
        number, made = await self._creator.create_unnamed(directory, mode, umask, uid, gid, flags)
        return number, self._changes.entry_reply_unnamed(made)

    async def make_regular(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> EntryReply:
        """mknod(2) of a regular file."""
        return self._changes.entry_reply(await self._creator.make(parent, name, mode, umask, uid, gid), parent, name)

    async def make(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b""
    ) -> EntryReply:
        """Makes anything but a regular file: a directory, a symbolic link, a device, a pipe or a socket."""
        ino = await self._numbers.take()
        create = Create(parent, name, ino, mode, uid, gid, rdev, file_time_ns(), target=target, umask=umask)
        made = await self._changes.make(create)
        self._paths.note(ino, parent, name)
        return self._changes.entry_reply(made, parent, name)

    def make_known(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b""
    ) -> EntryReply | None:
        """As `make`, without a task; None, and nothing has changed, if somebody has to be asked."""
        ino = self._numbers.take_known()
        if ino is None:
            return None
        made = self._changes.make_known(
            Create(parent, name, ino, mode, uid, gid, rdev, file_time_ns(), target=target, umask=umask)
        )
        if made is None:
            self._numbers.put_back(ino)
            return None
        self._paths.note(ino, parent, name)
        return self._changes.entry_reply(made, parent, name)
