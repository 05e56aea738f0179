"""Questions about the namespace."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Reply
from cluster.messages.caching import Grant
from cluster.messages.values import Entry, Node, Volume


class Found(Reply, frozen=True):
    """`node` is None if the directory has no such name. `grant` may be for the directory, the node, or both."""

    node: Node | None
    grant: Grant | None = None


class Lookup(ManagerRequest[Found], frozen=True):
    parent: int
    name: bytes


class Described(Reply, frozen=True):
    node: Node
    grant: Grant | None = None


class GetAttr(ManagerRequest[Described], frozen=True):
    ino: int


class Begun(Reply, frozen=True):
    """`number` counts the writers that have closed so far: what they wrote is in the object that is looked at now.

    `orderly`: whoever wrote it since the last commit has closed it; else a mount went away with it open, and may write it still.
    `written`: a mount that is here has it open for writing, and commits it itself.
    """

    node: Node
    number: int
    orderly: bool = False
    written: bool = False


class BeginCommit(ManagerRequest[Begun], frozen=True):
    """What a home's agent asks, holding the object's lock, before it looks at the object that it is to commit."""

    ino: int


class Parent(Reply, frozen=True):
    ino: int


class GetParent(ManagerRequest[Parent], frozen=True):
    """The directory that holds a directory (the root's is the root)."""

    ino: int


class Listing(Reply, frozen=True):
    """A page of a directory in the order of the cookies; `end` when nothing follows.

    `grant` may be for the directory and for any of the entries. `newest`: no entry that was there had a greater cookie.
    """

    entries: list[Entry]
    end: bool
    grant: Grant | None = None
    newest: int = 0


class ReadDir(ManagerRequest[Listing], frozen=True):
    """The entries whose cookie is greater than `after` and, unless that is 0, at most `until`; at most `limit` of them (bounded
    by the manager).

    A name that is renamed gets another cookie, behind all others: a listing ends where its directory ended when it began.
    """

    ino: int
    after: int
    limit: int
    until: int = 0


class Blob(Reply, frozen=True):
    value: bytes


class ReadLink(ManagerRequest[Blob], frozen=True):
    ino: int


class GetXattr(ManagerRequest[Blob], frozen=True):
    ino: int
    name: bytes


class Names(Reply, frozen=True):
    names: list[bytes]


class ListXattr(ManagerRequest[Names], frozen=True):
    ino: int


class Space(Reply, frozen=True):
    """What `statfs` answers. Bytes are divided by the root policy's number of copies; volumes on one device count once."""

    total_bytes: int
    free_bytes: int
    inodes: int


class GetSpace(ManagerRequest[Space], frozen=True):
    """The size of the whole network."""


class Volumes(Reply, frozen=True):
    volumes: list[Volume]


class ListVolumes(ManagerRequest[Volumes], frozen=True):
    """All volumes with their servers' addresses."""
