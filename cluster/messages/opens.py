"""Opening and closing files."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.caching import Grant
from cluster.messages.values import Node, Replica


class Opened(Reply, frozen=True):
    """What a mount needs to do I/O on an inode."""

    node: Node
    replicas: list[Replica]  # the current ones
    caps: bool  # it has a `security.capability` attribute, which a write takes away
    wanted_copies: int  # of the policy in force
    sync_copies: int  # of the policy in force: how many copies fsync waits for
    token: bytes = b""  # the lease that `Open` grants; else empty
    grant: Grant | None = None


class Open(ManagerRequest[Opened], frozen=True):
    """Registers that the session holds the inode open. May be repeated.

    Opening for writing marks the inode dirty in the catalog before the reply.
    """

    ino: int
    write: bool  # for writing, too
    sequence: int  # grows within the session: in force until a `Close` of the inode with a larger one


class Closing(Value, frozen=True):
    """The session does not hold the inode open any more (or, with `still_open`, no longer for writing)."""

    ino: int
    sequence: int
    still_open: bool = False


class Close(ManagerRequest[Done], frozen=True):
    """Takes back registrations made before (by sequence); sent in batches.

    The home's own mount commits before it; a mount that asks another server's agent to commit closes first.
    """

    closings: list[Closing]


class Locate(ManagerRequest[Opened], frozen=True):
    """As `Open`, but registers nothing."""

    ino: int


class LeaseTokens(Reply, frozen=True):
    """Sealed tokens (`cluster.leases`) in the order of the request; empty for an inode that does not exist."""

    tokens: list[bytes]
    grant: Grant | None = None


class AskLeases(ManagerRequest[LeaseTokens], frozen=True):
    """Grants or renews leases, many at once; to write if the session has the inode open for writing.

    The tokens are for the agents of the inodes' homes. With a `volume`, and for agents in any case, they are passes instead: to
    read replicas, which nobody keeps account of.
    """

    inodes: list[int]
    volume: int = 0  # whose agent is to take them, for replicas there; 0: the inodes' homes


class AwaitCopies(ManagerRequest[Done], frozen=True):
    """Answers when `copies` replicas (the home's included) hold at least `version`; `Unavailable` after `timeout_s`."""

    ino: int
    version: int
    copies: int
    timeout_s: float
