"""The bytes of files, by handles: reading, writing, truncating, syncing."""

from cluster.messages import Node, SetAttr
from fusefs.content.access import Access
from fusefs.content.homes import Homes
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Buffer
from fusefs.content.open_files import OpenFiles
from fusefs.content.opening import Opener
from fusefs.content.privileges import Privileges
from fusefs.content.reading import Reader
from fusefs.content.syncing import Syncer


class Files:
    """The operations of the overlay on open files. All raise `GodwitError`."""

    def __init__(
        self,
        open_files: OpenFiles,
        opener: Opener,
        access: Access,
        reader: Reader,
        syncer: Syncer,
        privileges: Privileges,
        homes: Homes,
    ) -> None:
        self._open_files = open_files
        self._opener = opener
        self._access = access
        self._reader = reader
        self._syncer = syncer
        self._privileges = privileges
        self._homes = homes

    async def read(self, number: int, offset: int, length: int) -> Buffer:
        """Bytes of the newest content that had been written when the kernel asked for the attributes before this."""
        state = self._open_files.reader(number)
        return await self._access.reading(state, lambda: self._reader.read(state, offset, length))

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Writes at *offset*, or at the end if the handle was opened with `O_APPEND`; returns how much was written."""
        handle = self._open_files.handle(number)
        state = handle.inode
        # The kernel leaves that to the mount for what goes around its page cache.
        if state.may_have_capabilities:
            await self._privileges.drop_capabilities(state)
        written = await self._access.change(
            state, lambda home: home.write(offset, data, append=handle.append), repeatable=not handle.append
        )
        if handle.durable:
            await self.fsync(number, data_only=False)
        return written

    async def truncate(self, ino: int, size: int) -> None:
        """Sets the length, whether or not the file is open."""
        state = self._open_files.get(ino)
        if state is not None and state.writers:
            # A handle of its own: the last of the others may be closed, and the file committed, before this has been done.
            number = self._open_files.open_handle(state, write=True)
        else:
            number = await self._opener.open_to_write(ino)
        try:
            await self._access.change(self._open_files.handle(number).inode, lambda home: home.truncate(size))
        finally:
            self._open_files.release_handle(number)

    async def fsync(self, number: int, *, data_only: bool) -> None:
        """Content and attributes, the names, and copies: see `Syncer.sync`."""
        await self._syncer.sync(self._open_files.handle(number).inode, data_only=data_only)

    def written_here(self, ino: int) -> LocalObject | None:
        """The object of a file that is open for writing on this mount, if this server is its home."""
        state = self._open_files.get(ino)
        if state is None or not state.is_registered_to_write or not isinstance(state.home, LocalObject):
            return None
        return state.home

    async def set_times(self, node: Node, change: SetAttr) -> Node:
        """The times of a dirty file, where its home is."""
        state = self._open_files.get(node.ino)
        if state is not None and state.home is not None:
            return await state.home.set_times(change)
        return await self._homes.set_times(node, change)
