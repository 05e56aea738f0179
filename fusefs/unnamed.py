"""`open` with O_TMPFILE, for which pyfuse3 has no handler: a file without a name, which `link` may give it later.

To the manager it is a file whose last name has gone (`manager.changes.namespace.create_unnamed`); everything else is as for a file that
was created.
"""

import struct

import trio

from fusefs.files import Files
from fusefs.kernel.replies import entry, opened
from fusefs.kernel.requests import Handler, Opcode, Raw
from fusefs.kernel.stream import OpenFlag
from fusefs.openfiles import Way

_CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask (which the kernel has applied), further flags; a name follows
_FLAGS = {Way.PASSED: OpenFlag.PASSTHROUGH, Way.DIRECT: OpenFlag.DIRECT_IO, Way.CACHED: OpenFlag(0)}


class Unnamed:
    """The handler."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.TMPFILE: self.tmpfile}

    async def tmpfile(self, request: Raw) -> bytes:
        """Not interrupted: the file would stay open without anybody knowing."""
        flags, mode, _, _ = _CREATE_IN.unpack_from(request.body)
        with trio.CancelScope(shield=True):
            number, seen = await self._files.create_unnamed(request.ino, mode, request.uid, request.gid, flags)
        told = self._files.tell_kernel(number)
        return entry(seen) + opened(number, _FLAGS[told.way], told.backing_id)
