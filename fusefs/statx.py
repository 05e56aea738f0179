"""`statx` with the time of birth, for which pyfuse3 has no handler. The kernel asks like this when it is to tell that time, and
keeps it with the attributes; it never changes.
"""

import os
import struct

from fusefs.attributes import PREFERRED_IO_BYTES
from fusefs.caching import Seen
from fusefs.namespace import Namespace
from fusefs.raw import Handler, Opcode, Raw

_HEAD = struct.Struct("<QI4x16x")  # for how long it is good: seconds, nanoseconds; flags, spare
_ATTRIBUTES = struct.Struct("<IIQIIIH2xQQQQ")  # mask, block size, flags, links, uid, gid, mode, inode, size, blocks, known flags
_TIME = struct.Struct("<qI4x")
_DEVICES = struct.Struct("<IIII112x")  # the file's own and its file system's, which the kernel knows

BASIC_STATS, BIRTH_TIME = 0x7FF, 0x800  # of linux/stat.h
NS = 10**9


class Statx:
    """The handler."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.STATX: self.statx}

    async def statx(self, request: Raw) -> bytes:
        return encode(await self._namespace.getattr(request.ino))


def encode(seen: Seen) -> bytes:
    """The answer: all that there is, whatever was asked for."""
    node = seen.node
    assert node is not None
    head = _HEAD.pack(*divmod(int(seen.attr_s * NS), NS))
    attributes = _ATTRIBUTES.pack(
        BASIC_STATS | BIRTH_TIME,
        PREFERRED_IO_BYTES,
        0,
        node.nlink,
        node.uid,
        node.gid,
        node.mode,
        node.ino,
        node.size,
        node.blocks,
        0,
    )
    times = [_TIME.pack(*divmod(time_ns, NS)) for time_ns in (node.atime_ns, node.btime_ns, node.ctime_ns, node.mtime_ns)]
    return head + attributes + b"".join(times) + _DEVICES.pack(os.major(node.rdev), os.minor(node.rdev), 0, 0)
