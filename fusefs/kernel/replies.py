"""What the kernel is told of inodes, names and handles, as bytes of the message stream: for what pyfuse3 does not answer.

The layouts are those of the kernel's `include/uapi/linux/fuse.h`.
"""

import errno
import os
import stat
import struct

from cluster.errors import refused
from cluster.messages import Node
from fusefs.caching.cache import EntryReply
from fusefs.kernel.stream import OpenFlag

PREFERRED_IO_BYTES = 128 * 1024
"""What programs are told to read and write at a time."""
DIRECTORY_BYTES = 4096  # the size of every directory, as of a small one on ext4

_ENTRY = struct.Struct("<QQQQII")  # inode, generation; for how long name and attributes are good: seconds, nanoseconds
_VALID = struct.Struct("<QI4x")  # for how long attributes are good
_ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")  # inode, size, blocks, times in seconds, their nanoseconds, mode, links, …
_OPEN = struct.Struct("<QIi")  # handle, flags, backing id
_STATX_VALID = struct.Struct("<QI4x16x")  # for how long it is good; flags, spare
_STATX = struct.Struct("<IIQIIIH2xQQQQ")  # mask, block size, flags, links, uid, gid, mode, inode, size, blocks, known flags
_STATX_TIME = struct.Struct("<qI4x")
_STATX_DEVICES = struct.Struct("<IIII112x")  # the file's own and its file system's, which the kernel knows

_NO_ATTRIBUTES = bytes(_ATTRIBUTES.size)
_BASIC_STATS, _BIRTH_TIME = 0x7FF, 0x800  # of linux/stat.h
NS = 10**9


def entry(reply: EntryReply) -> bytes:
    """A name, present or absent. Raises ENOENT for one that is absent and may not be kept."""
    if reply.node is None and reply.entry_s <= 0:
        raise refused(errno.ENOENT)
    entry_s, entry_ns = divmod(int(reply.entry_s * NS), NS)
    attr_s, attr_ns = divmod(int(reply.attr_s * NS), NS)
    if reply.node is None:
        return _ENTRY.pack(0, 0, entry_s, 0, entry_ns, 0) + _NO_ATTRIBUTES
    return _ENTRY.pack(reply.node.ino, 0, entry_s, attr_s, entry_ns, attr_ns) + attributes_of(reply.node)


def attributes(reply: EntryReply) -> bytes:
    """An inode's attributes."""
    assert reply.node is not None
    return _VALID.pack(*divmod(int(reply.attr_s * NS), NS)) + attributes_of(reply.node)


def attributes_of(node: Node) -> bytes:
    """An inode's attributes alone, without for how long they are good."""
    atime_s, atime_ns = divmod(node.atime_ns, NS)
    mtime_s, mtime_ns = divmod(node.mtime_ns, NS)
    ctime_s, ctime_ns = divmod(node.ctime_ns, NS)
    return _ATTRIBUTES.pack(
        node.ino,
        *_extent(node),
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


def statx(reply: EntryReply) -> bytes:
    """An inode's attributes with the time of birth: all that there is, whatever was asked for."""
    node = reply.node
    assert node is not None
    attributes = _STATX.pack(
        _BASIC_STATS | _BIRTH_TIME,
        PREFERRED_IO_BYTES,
        0,
        node.nlink,
        node.uid,
        node.gid,
        node.mode,
        node.ino,
        *_extent(node),
        0,
    )
    times = (node.atime_ns, node.btime_ns, node.ctime_ns, node.mtime_ns)
    return b"".join(
        [
            _STATX_VALID.pack(*divmod(int(reply.attr_s * NS), NS)),
            attributes,
            *(_STATX_TIME.pack(*divmod(time_ns, NS)) for time_ns in times),
            _STATX_DEVICES.pack(os.major(node.rdev), os.minor(node.rdev), 0, 0),
        ]
    )


def _extent(node: Node) -> tuple[int, int]:
    """Size in bytes, and in blocks of 512: all directories look alike."""
    return (DIRECTORY_BYTES, DIRECTORY_BYTES // 512) if stat.S_ISDIR(node.mode) else (node.size, node.blocks)


def opened(number: int, flags: OpenFlag, backing_id: int = 0) -> bytes:
    """A handle."""
    return _OPEN.pack(number, flags, backing_id)
