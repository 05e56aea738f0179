"""`open` with O_TMPFILE, for which pyfuse3 has no handler: a file without a name, which `link` may give it later.

To the manager it is a file whose last name has gone (`manager.changes.namespace.create_unnamed`); everything else is as for a
file that was created.
"""

import errno
import struct

import trio

from cluster.errors import refused
from fusefs.content.handles import Handles
from fusefs.kernel.interrupts import is_unanswered
from fusefs.kernel.replies import entry, opened
from fusefs.kernel.requests import Handler, Opcode, Raw
from fusefs.names.creating import Creation

_CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask, further flags; a name follows


class Unnamed:
    """The handler."""

    def __init__(self, creation: Creation, handles: Handles) -> None:
        self._creation = creation
        self._handles = handles

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.TMPFILE: self.tmpfile}

    async def tmpfile(self, request: Raw) -> bytes:
        """Not interrupted: the file would stay open without anybody knowing."""
        flags, mode, umask, _ = _CREATE_IN.unpack_from(request.body)
        with trio.CancelScope(shield=True):
            number, made = await self._creation.create_unnamed(request.ino, mode, umask, request.uid, request.gid, flags)
        if is_unanswered():
            self._handles.release(number)
            raise refused(errno.EINTR)
        reply = self._handles.reply(number)
        return entry(made) + opened(number, reply.flags, reply.backing_id)
