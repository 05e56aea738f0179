"""Requests about where a file has blocks and where holes: `fallocate`, `lseek` for data and holes, `copy_file_range`.

pyfuse3 has no handlers for them; they arrive as `fusefs.kernel.requests` decodes them. What the backing file system cannot do is
refused as it refuses it. ENOSYS is never the answer: the kernel would not ask again.
"""

import errno
import math
import os
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from cluster.errors import GodwitError, refused
from cluster.volume.extents import is_repeatable
from fusefs.content.access import Access
from fusefs.content.homes import Homes
from fusefs.content.objects import Object
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import IoMode, OpenInode
from fusefs.content.reading import Reader
from fusefs.kernel.requests import Handler, Opcode, Raw

_FALLOCATE = struct.Struct("<QqqI4x")  # handle, offset, length, mode
_LSEEK = struct.Struct("<QqI4x")  # handle, offset, whence
_COPY_FILE_RANGE = struct.Struct("<QqQQqQQ")  # handle and offset to read, node, handle and offset to write, length, flags
_POSITION = struct.Struct("<q")
_COUNT = struct.Struct("<I4x")

COPY_ANSWER_MAX_BYTES = 0x7FFFF000
"""What Linux lets one read or write transfer; it also fits in the answer."""


class Extents:
    """The handlers. *drop_inode* makes the kernel write and forget its pages of an inode; it blocks."""

    def __init__(
        self, access: Access, open_files: OpenFiles, homes: Homes, reader: Reader, drop_inode: Callable[[int], object]
    ) -> None:
        self._access = access
        self._open_files = open_files
        self._homes = homes
        self._reader = reader
        self._drop_inode = drop_inode

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.FALLOCATE: self.fallocate, Opcode.LSEEK: self.lseek, Opcode.COPY_FILE_RANGE: self.copy_file_range}

    async def fallocate(self, request: Raw) -> bytes:
        """Not interrupted: what went on at another server might meet what the application does next."""
        number, offset, length, mode = _FALLOCATE.unpack_from(request.body)
        state = self._open_files.handle(number).inode
        with trio.CancelScope(shield=True):
            await self._access.change(state, lambda home: home.allocate(mode, offset, length), repeatable=is_repeatable(mode))
        return b""

    async def lseek(self, request: Raw) -> bytes:
        number, offset, whence = _LSEEK.unpack_from(request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise refused(errno.EINVAL, f"whence {whence}")
        state = self._open_files.handle(number).inode
        if state.writers and state.io.mode is not IoMode.PASSED:
            # The kernel writes pages of a shared mapping when it likes; until then the object may have a hole there.
            await trio.to_thread.run_sync(self._drop_inode, state.ino)
        found = None if offset < 0 else await self._access.reading(state, lambda: self._reader.seek(state, offset, whence))
        if found is None:
            raise refused(errno.ENXIO)  # nothing of the kind follows, as lseek(2) says
        return _POSITION.pack(found)

    async def copy_file_range(self, request: Raw) -> bytes:
        """Refused with EXDEV where the bytes would come here anyway: the kernel reads and writes them instead."""
        number, start, _node, target, offset, length, flags = _COPY_FILE_RANGE.unpack_from(request.body)
        if flags:  # none is defined
            raise refused(errno.EINVAL, f"flags {flags:#x}")
        copy = partial(self._copy, self._open_files.handle(number).inode, self._open_files.handle(target).inode)
        return _COUNT.pack(await copy_all(copy, start, offset, min(length, COPY_ANSWER_MAX_BYTES)))

    async def _copy(self, source: OpenInode, target: OpenInode, start: int, offset: int, length: int) -> int:
        found = await self._access.reading(source, lambda: self._source(source, target))
        if found is None:
            raise refused(errno.EXDEV)
        return await self._access.change(target, lambda home: home.copy_from(found, start, offset, length))

    async def _source(self, source: OpenInode, target: OpenInode) -> Object | None:
        """The object that can be copied from at the target's home, if there is one."""
        if target.home is not None and target.home.is_remote:
            return self._homes.remote(source.node)
        return await self._reader.local(source)


async def copy_all(copy: Callable[[int, int, int], Awaitable[int]], start: int, offset: int, length: int) -> int:
    """Copies piece by piece until all is done, the source ends, or something comes in between; returns how much was copied.

    Interrupted only between two pieces: what went on at another server might meet what the application does next.
    """
    done = 0
    while done < length and not (done and trio.current_effective_deadline() == -math.inf):
        try:
            with trio.CancelScope(shield=True):
                copied = await copy(start + done, offset + done, length - done)
        except GodwitError:
            if done:
                break
            raise
        if not copied:
            break
        done += copied
    return done
