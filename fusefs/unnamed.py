"""`open` with O_TMPFILE, for which pyfuse3 has no handler: a file without a name, which `link` may give it later.

To the manager it is a file whose last name has gone (`manager.namespace.create_unnamed`); everything else is as for a file that
was created.
"""

import struct

import trio

from cluster.messages import Node
from fusefs.attributes import PREFERRED_IO_BYTES
from fusefs.caching import Seen
from fusefs.channel import OpenFlag
from fusefs.files import Files, ToldKernel
from fusefs.openfiles import Way
from fusefs.raw import Handler, Opcode, Raw

_CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask (which the kernel has applied), further flags; a name follows
_ENTRY = struct.Struct("<QQQQII")  # inode, generation; for how long name and attributes are good: seconds, nanoseconds
_ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")  # inode, size, blocks, times in seconds, their nanoseconds, mode, links, …
_OPEN = struct.Struct("<QIi")  # handle, flags, backing id

NS = 10**9


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
        return entry(seen) + opened(self._files.tell_kernel(number))


def entry(seen: Seen) -> bytes:
    """A new file as the kernel is told of it; there is no name that it could keep."""
    node = seen.node
    assert node is not None
    seconds, nanoseconds = divmod(int(seen.attr_s * NS), NS)
    return _ENTRY.pack(node.ino, 0, 0, seconds, 0, nanoseconds) + _attributes(node)


def _attributes(node: Node) -> bytes:
    times = [divmod(time_ns, NS) for time_ns in (node.atime_ns, node.mtime_ns, node.ctime_ns)]
    return _ATTRIBUTES.pack(
        node.ino,
        node.size,
        node.blocks,
        *(seconds for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        node.mode,
        node.nlink,
        node.uid,
        node.gid,
        node.rdev,
        PREFERRED_IO_BYTES,
        0,
    )


def opened(told: ToldKernel) -> bytes:
    """What the kernel is told of the handle."""
    flags = OpenFlag(0)
    if told.way is Way.PASSED:
        flags |= OpenFlag.PASSTHROUGH
    elif told.way is Way.DIRECT:
        flags |= OpenFlag.DIRECT_IO
    return _OPEN.pack(told.number, flags, told.backing_id)
