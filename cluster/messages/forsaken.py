"""Abandoned objects, which may have what nobody else has. On the wire they are *forsaken*, as in the catalog."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.values import Content, InodeRange, Stamp


class ForsakenObject(Value, frozen=True):
    """The object of a home on a server that was declared lost: its file fell back to an older replica."""

    volume: int
    ino: int
    mode: int
    uid: int
    gid: int
    stamp: Stamp | None  # of its last commit, if the file has that content still: only another content is new; None: any is
    kept_size: int  # what is not new in any case: an object of this size
    kept_checksum: bytes  # and with this digest; empty: not known
    conflict: int  # the inode that it becomes; 0 until that was asked for


class ForsakenObjects(Reply, frozen=True):
    objects: list[ForsakenObject]


class ListForsaken(ManagerRequest[ForsakenObjects], frozen=True):
    """The first of the abandoned objects on the volumes of the sender's server."""


class KeepForsaken(ManagerRequest[InodeRange], frozen=True):
    """The object holds what nobody else has: which inode it is to become. The same one each time."""

    volume: int
    ino: int


class NewName(Reply, frozen=True):
    path: bytes


class NameForsaken(ManagerRequest[NewName], frozen=True):
    """The object is that of its new inode now, with this content: it gets its conflict name, and is abandoned no more.

    ENOENT if it is not (any more): a repeat finds it done.
    """

    volume: int
    ino: int
    content: Content


class ForgetForsaken(ManagerRequest[Done], frozen=True):
    """The object is not there, or holds nothing new. ENOENT as for `NameForsaken`."""

    volume: int
    ino: int
