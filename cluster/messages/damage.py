"""Replicas beside what the catalog says of them."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.values import Node, Stamp


class ReplicaState(Value, frozen=True):
    """What the catalog says of a replica on a volume of the sender's server."""

    ino: int
    version: int  # that the replica has
    wanted: int  # the inode's version; -1 if the inode is gone or has no name
    stamp: Stamp | None  # of its object
    checksum: bytes
    fault: str  # what is known to be wrong with it; empty: nothing
    is_home: bool
    dirty: bool  # the home may have newer content
    home_epoch: int
    others: int  # other replicas that are current, on servers that count
    task: str  # the operation that is queued for it; empty: none
    path: bytes = b""  # only if it was asked for


class ReplicaStates(Reply, frozen=True):
    """In the order of their inodes; nothing follows an empty page."""

    replicas: list[ReplicaState]


class ListReplicas(ManagerRequest[ReplicaStates], frozen=True):
    """What a volume of the sender's server is to hold: at most `limit` replicas, of inodes behind `after`."""

    volume: int
    after: int
    limit: int
    with_paths: bool = False


class HeldObject(Value, frozen=True):
    """A replica that must have the committed content of its file."""

    ino: int
    version: int
    stamp: Stamp
    checksum: bytes
    fault: str  # what is known to be wrong with it; empty: nothing


class HeldObjects(Reply, frozen=True):
    """`last`: the last inode that was looked at, 0 if none is left."""

    objects: list[HeldObject]
    last: int


class ListHeld(ManagerRequest[HeldObjects], frozen=True):
    """What a volume of the sender's server must hold: of the next `limit` replicas behind the inode `after` those that are
    current, and not the home's object of a file that may be being written."""

    volume: int
    after: int
    limit: int


class Damage(Reply, frozen=True):
    """`pending`: another replica is to take over, and will as soon as nobody can be writing the file."""

    pending: bool


class ReportDamage(ManagerRequest[Damage], frozen=True):
    """The object on a volume of the sender's server is not what the catalog says.

    Nothing happens if the catalog does not say that any more.
    """

    volume: int
    ino: int
    version: int  # that the catalog says it has
    stamp: Stamp  # that the catalog says it has
    fault: str  # what is wrong with it


class Restamp(ManagerRequest[Done], frozen=True):
    """The object has the content of its version and a new stamp: somebody touched it, or brought it back. As `ReportDamage`."""

    volume: int
    ino: int
    version: int
    stamp: Stamp  # that the catalog says it has
    found: Stamp  # that it has


MISSING = "its object is missing"  # the fault of a replica of which nothing is left


class AcceptContent(ManagerRequest[Node], frozen=True):
    """An operator wants the file although its home's object is damaged and nobody has a current replica.

    What is there becomes a new version; with `older`, what the newest older replica has, and what is there is kept beside it.
    Refused if nothing is wrong, or if there is nothing to accept.
    """

    ino: int
    older: bool = False
