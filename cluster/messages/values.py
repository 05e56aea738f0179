"""Plain values that several messages carry."""

from __future__ import annotations

from enum import IntFlag

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Message, Reply, Value

ROOT_INO = 1
NAME_MAX = 255
XATTR_VALUE_MAX = 65536
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")  # of extended attributes whose names programs choose
SYMLINK_MAX = 4095


class XattrKind(IntFlag):
    """What extended attributes an inode may have, of kinds that the kernel asks for again and again."""

    CAPABILITY = 1  # `security.capability`
    ACCESS_ACL = 2  # `system.posix_acl_access`
    DEFAULT_ACL = 4  # `system.posix_acl_default`
    OTHER = 32  # any other, or has had one

    @classmethod
    def of(cls, name: bytes) -> XattrKind:
        """The kind of an attribute."""
        return _KINDS.get(name, cls.OTHER)


_KINDS = {
    b"security.capability": XattrKind.CAPABILITY,
    b"system.posix_acl_access": XattrKind.ACCESS_ACL,
    b"system.posix_acl_default": XattrKind.DEFAULT_ACL,
}
XATTRS_UNKNOWN = -1


class Node(Reply, frozen=True):
    """One inode as the catalog knows it.

    While it is `dirty`, its content is being written at the home: whoever needs the present size and times asks the home and lays
    them over (`cluster.volume.content`).
    """

    ino: int
    mode: int  # type and permission bits
    nlink: int
    uid: int
    gid: int
    rdev: int  # of a device, as of stat(2)
    size: int  # of the last commit, as the next one and the two times that follow
    blocks: int  # of 512 bytes
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int  # when it was made
    version: int = 0  # of the content, raised by each commit
    dirty: bool = False  # the content may be newer at its home
    home_volume: int = 0  # where it is written; 0 for what has no content
    home_epoch: int = 0  # raised whenever the home moves
    object_ctime_ns: int = 0  # of the home's object at the last commit, or as it was made; 0: not known
    xattrs: int = XATTRS_UNKNOWN  # of `XattrKind`: it has none of another kind


COOKIE_TERM_BITS = 40  # cookies of entries are `term << COOKIE_TERM_BITS | number`, so that they grow over all terms


class Entry(Message, frozen=True):
    """One directory entry."""

    name: bytes
    cookie: int  # its position in the listing: above 2, growing, never used again in this directory
    node: Node


class Stamp(Value, frozen=True):
    """What identifies the bytes of an object without reading them: any change made through the kernel alters it."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Replica(Value, frozen=True):
    """The content of one inode at one version on one volume."""

    volume: int
    version: int
    stamp: Stamp | None = None  # of the object; None while no agent has said it
    checksum: bytes = b""  # BLAKE3 digest; empty while unknown


class Volume(Value, frozen=True):
    """One backing directory of one server."""

    volume: int
    server: str
    path: str  # on that server
    address: str  # of the server's agent, host:port
    total_bytes: int  # of its file system
    free_bytes: int
    device: str  # equal for volumes that share a file system
    up: bool = True  # its agent was heard just now, and its disk is there
    uuid: str = ""  # the one in `volume.toml`
    state: str = "up"  # of its server, see `cluster.membership`
    accepts: bool = True  # new files may get their home there: it is good, and not being drained
    condition: str = "good"  # of its disk: `VolumeCondition`
    standing: str = "in"  # whether what is on it counts: `VolumeStanding`
    mount: str = ""  # as its agent names it, see `VolumeState`; empty if that has not said it in this term


class VolumeState(Value, frozen=True):
    """What an agent says of one of its volumes."""

    uuid: str  # the one in `volume.toml`
    path: str
    total_bytes: int  # of its file system
    free_bytes: int
    device: str  # equal for volumes that share a file system
    condition: str = "good"  # of its disk: `VolumeCondition`
    mount: str = ""  # of its file system; with another one, what had been read from it may not be on its disk


class Content(Value, frozen=True):
    """The content of a home's object as found by `fstat` at a commit."""

    size: int
    blocks: int  # of 512 bytes
    mtime_ns: int
    ctime_ns: int  # the object's own, which only identifies the content (see `Stamp`)


class InodeRange(Reply, frozen=True):
    """`count` inode numbers from `first` on, which belong to the session for good."""

    first: int
    count: int


class Inodes(Reply, frozen=True):
    inodes: list[int]


class Count(Reply, frozen=True):
    count: int
