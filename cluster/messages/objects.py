"""Objects on volumes: what every agent does with them for others."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import AgentRequest, Done, Reply
from cluster.messages.values import Content, Node, Stamp


class ObjectStat(Reply, frozen=True):
    content: Content


class StatObject(AgentRequest[ObjectStat], frozen=True):
    """The present size and times of the home's object.

    All data requests carry the requester's sealed lease token for the inode. They are refused with `TokenRefused` if it is
    forged, has expired, or is for another inode or mode, and with `Fenced` if it is of an older home epoch than the object.
    """

    ino: int
    volume: int
    token: bytes


class CreateObject(AgentRequest[ObjectStat], frozen=True):
    """Makes an empty object, for a server whose own volumes take no new files. Harmless if it is there and empty.

    The only request without a token: the catalog does not know the inode yet, whose number belongs to the requester.
    """

    ino: int
    volume: int


class Data(Reply, frozen=True):
    """The bytes are in the frame's body."""


class ReadObject(AgentRequest[Data], frozen=True):
    """At most `length` bytes from `offset`; fewer only at the end of the object."""

    ino: int
    volume: int
    token: bytes  # a lease or a pass to read
    offset: int
    length: int
    stamp: Stamp | None = None  # of a replica that is not the home: refused with `Changed` unless the object's is this


class Written(Reply, frozen=True):
    count: int


class WriteObject(AgentRequest[Written], frozen=True):
    """Writes the frame's body. Not repeated by the connection when it breaks."""

    ino: int
    volume: int
    token: bytes  # a lease to write
    offset: int
    append: bool = False  # at the end, whatever `offset` says


class TruncateObject(AgentRequest[Done], frozen=True):
    ino: int
    volume: int
    token: bytes
    size: int


class AllocateObject(AgentRequest[Done], frozen=True):
    """fallocate(2) of the home's object."""

    ino: int
    volume: int
    token: bytes  # a lease to write
    mode: int  # as of fallocate(2)
    offset: int
    length: int


class Position(Reply, frozen=True):
    """`offset` is None where nothing of what was sought follows."""

    offset: int | None


class SeekObject(AgentRequest[Position], frozen=True):
    """Where data or a hole of the home's object begins."""

    ino: int
    volume: int
    token: bytes
    offset: int  # from where on
    whence: int  # lseek's `SEEK_DATA` or `SEEK_HOLE`


class CopyObject(AgentRequest[Written], frozen=True):
    """Writes at `offset` what a read of `source`, an object of the same server, would give; maybe less of it.

    Refused with EXDEV if the source cannot be read like that, for whatever reason: then it is read and written as usual.
    """

    ino: int
    volume: int
    token: bytes  # a lease to write
    offset: int  # where to
    source: ReadObject  # what, with a token of its own


class SyncObject(AgentRequest[Done], frozen=True):
    """fsync of the home's object."""

    ino: int
    volume: int
    token: bytes


class SetObjectTimes(AgentRequest[Node], frozen=True):
    """Sets the times of a file that is being written: under the object's lock, in the catalog and on the object."""

    ino: int
    volume: int
    token: bytes  # a lease to write
    atime_ns: int | None  # None: as it is
    mtime_ns: int | None  # None: as it is


class CommitObject(AgentRequest[Node], frozen=True):
    """Asks the home's agent to commit the object's present content to the catalog; the reply is the catalog's node."""

    ino: int
    volume: int
    token: bytes
    final: bool  # the asking mount has no writer left


class ExamineObject(AgentRequest[Done], frozen=True):
    """The object does not show what the catalog says: its agent finds out whether it has that content all the same.

    Refused with `Corrupt` if it has not, which the manager knows then; `Unavailable` while nobody can say, or another replica is
    about to take over.
    """

    ino: int
    volume: int
    token: bytes
