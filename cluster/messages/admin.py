"""What people ask of the manager: its state, policies, where a file is."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Reply, Value
from cluster.messages.queue import TaskRow
from cluster.messages.reads import Space
from cluster.messages.servers import ServerInfo
from cluster.messages.values import Node


class NamesPolicy(StrEnum):
    """How names in a directory, and the attributes of what they name, may be changed; see docs/held-directories.md."""

    HELD = "held"  # by a mount that is alone there, which tells the manager afterwards
    THROUGH = "through"  # each change reaches the manager before it is acknowledged


class HoldCounts(Value, frozen=True):
    """Held directories and the records of mounts, in this term."""

    held: int = 0  # directories with which a mount is alone now
    granted: int = 0  # that mounts were let hold on their request
    refused: int = 0  # that they asked for and were not let
    recalled: int = 0  # held ones that were called back
    held_s: float = 0.0  # for how long directories were held that are not held any more, added up
    applied: int = 0  # records
    lost: int = 0  # records that could not be applied as they were made


class Status(Reply, frozen=True):
    """The whole network in figures."""

    cluster: str
    manager: str  # the server that answers
    term: int
    catalog: str  # its database's URL, without a password
    servers: list[ServerInfo]
    inodes: int  # in the namespace
    waiting_tasks: int
    claimed_tasks: int
    dead_tasks: int
    space: Space
    forsaken: int = 0  # objects whose files fell back to an older content
    conflicts: int = 0  # files that came from such objects
    damaged: int = 0  # replicas that would be current, but for something wrong with them
    catalog_fault: str = ""  # what the disk of the catalog does not allow; empty: nothing
    below_policy: int = 0  # files with fewer current copies than wanted
    names: NamesPolicy = NamesPolicy.THROUGH  # in force at the root
    names_differing: int = 0  # directories below whose own policy says otherwise
    holds: HoldCounts = HoldCounts()
    backup_problem: str = ""  # why the manager could not back the catalog up; empty: nothing is wrong
    backup_age_s: float = -1.0  # of the newest backup on the manager's server; -1: it has none


class GetStatus(ManagerRequest[Status], frozen=True):
    """Everything `godwit status` and `godwit servers ls` show."""


class BelowPolicyRow(Value, frozen=True):
    """A file with fewer current copies than its policy says; `since_ns`: when that was found out."""

    ino: int
    path: bytes
    reason: str
    since_ns: int


class BelowPolicy(Reply, frozen=True):
    files: list[BelowPolicyRow]
    total: int


class ListBelowPolicy(ManagerRequest[BelowPolicy], frozen=True):
    """The files below their policy."""

    limit: int = 1000


class PolicyRow(Reply, frozen=True):
    """A directory's policy."""

    ino: int  # where it is set: for an inherited one, an ancestor of what was asked for
    path: bytes
    copies: int  # replicas of each file, the home's included
    sync_copies: int  # of these, how many fsync waits for
    names: NamesPolicy = NamesPolicy.THROUGH  # in force, wherever it is said
    names_path: bytes = b""  # the directory that says so: this one or an ancestor; empty: none does, and it is the default
    servers: int = 0  # that have volumes which count: more copies cannot be on different servers


class PolicyRows(Reply, frozen=True):
    policies: list[PolicyRow]


class GetPolicy(ManagerRequest[PolicyRow], frozen=True):
    """The policy in force for a file or directory."""

    ino: int


class SetPolicy(ManagerRequest[PolicyRow], frozen=True):
    """Sets a directory's policy, or with `clear` makes it inherit again; files below are brought to it in the background."""

    ino: int
    copies: int = 0
    sync_copies: int = 0
    clear: bool = False
    names: NamesPolicy | None = None  # None: what the directory says of it stays


class ListPolicies(ManagerRequest[PolicyRows], frozen=True):
    """All directories that have a policy of their own."""


class ReplicaRow(Value, frozen=True):
    """A replica as people see it."""

    volume: int
    server: str
    path: str  # of its volume
    version: int
    current: bool  # it is of the newest version
    home: bool  # the file is written there
    checksum: bytes  # BLAKE3 digest; empty while unknown
    up: bool  # its server is heard, and its disk is there
    fault: str = ""  # what a reader found wrong with it; empty: nothing
    state: str = "up"  # of its server, see `cluster.membership`


class Where(Reply, frozen=True):
    """Where an inode's content is."""

    node: Node
    path: bytes
    replicas: list[ReplicaRow]
    policy: PolicyRow  # in force
    pending: list[TaskRow]  # its tasks
    writers: list[str]  # servers whose mounts have it open for writing
    forsaken: list[str] = []  # servers that may have a content that was given up when they were declared lost
    shortfall: str = ""  # why it has fewer copies than wanted; empty: it has them


class GetWhere(ManagerRequest[Where], frozen=True):
    ino: int
