"""What the kernel is told of inodes, names and handles, as bytes of the message stream: for what pyfuse3 does not answer.

The layouts are those of the kernel's `include/uapi/linux/fuse.h`.
"""

import errno
import stat
import struct

from cluster.errors import refused
from cluster.messages import Node
from fusefs.caching import Seen
from fusefs.channel import OpenFlag

PREFERRED_IO_BYTES = 128 * 1024
"""What programs are told to read and write at a time."""
DIRECTORY_BYTES = 4096

_ENTRY = struct.Struct("<QQQQII")  # inode, generation; for how long name and attributes are good: seconds, nanoseconds
_VALID = struct.Struct("<QI4x")  # for how long attributes are good
_ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")  # inode, size, blocks, times in seconds, their nanoseconds, mode, links, …
_OPEN = struct.Struct("<QIi")  # handle, flags, backing id

_NO_ATTRIBUTES = bytes(_ATTRIBUTES.size)
NS = 10**9


def entry(seen: Seen) -> bytes:
    """A name, present or absent. Raises ENOENT for one that is absent and may not be kept."""
    if seen.node is None and seen.entry_s <= 0:
        raise refused(errno.ENOENT)
    entry_s, entry_ns = divmod(int(seen.entry_s * NS), NS)
    attr_s, attr_ns = divmod(int(seen.attr_s * NS), NS)
    if seen.node is None:
        return _ENTRY.pack(0, 0, entry_s, 0, entry_ns, 0) + _NO_ATTRIBUTES
    return _ENTRY.pack(seen.node.ino, 0, entry_s, attr_s, entry_ns, attr_ns) + _attributes(seen.node)


def attributes(seen: Seen) -> bytes:
    """An inode's attributes."""
    assert seen.node is not None
    return _VALID.pack(*divmod(int(seen.attr_s * NS), NS)) + _attributes(seen.node)


def _attributes(node: Node) -> bytes:
    atime_s, atime_ns = divmod(node.atime_ns, NS)
    mtime_s, mtime_ns = divmod(node.mtime_ns, NS)
    ctime_s, ctime_ns = divmod(node.ctime_ns, NS)
    directory = stat.S_ISDIR(node.mode)
    return _ATTRIBUTES.pack(
        node.ino,
        DIRECTORY_BYTES if directory else node.size,
        DIRECTORY_BYTES // 512 if directory else node.blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        node.mode,
        node.nlink,
        node.uid,
        node.gid,
        node.rdev,
        PREFERRED_IO_BYTES,
        0,
    )


def opened(number: int, flags: OpenFlag, backing_id: int = 0) -> bytes:
    """A handle."""
    return _OPEN.pack(number, flags, backing_id)
