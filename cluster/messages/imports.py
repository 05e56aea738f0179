"""Files that were there before the network, and become part of it: what `godwit import` asks of the manager."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.changes import Commit
from cluster.messages.values import Content, Node


class ImportOutcome(StrEnum):
    """What became of a name."""

    MADE = "made"
    THERE = "there"
    """The name is that of this very inode already: an attempt before has made it."""
    TAKEN = "taken"
    """Another inode has the name; nothing was changed."""
    UNKNOWN = "unknown"
    """There is no inode of that number that could get another name."""
    REFUSED = "refused"


class ImportedXattr(Value, frozen=True):
    name: bytes
    value: bytes


class ImportedName(Value, frozen=True):
    """A name, and the inode that it is to have.

    A new inode's `ino` comes from a range of this session. `mode` includes the type; 0: `ino` is a file that was imported before,
    which gets another name. A regular file's object lies on `home_volume` already, and is as `content` says.
    """

    parent: int
    name: bytes
    ino: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    target: bytes = b""  # a symbolic link's
    xattrs: list[ImportedXattr] = []
    home_volume: int = 0
    content: Content | None = None


class ImportedAs(Value, frozen=True):
    """What became of one name. `node`: the inode that has it; `reason`: why it was refused."""

    outcome: ImportOutcome
    node: Node | None = None
    reason: str = ""


class Imported(Reply, frozen=True):
    """For each name of the request, in its order."""

    names: list[ImportedAs]


class ImportNames(ManagerRequest[Imported], frozen=True):
    """Makes inodes and names as they were elsewhere. May be repeated: what is made already is `THERE`.

    Attributes, times and lists are those that the request says: nothing is inherited from the directory but its policy. Regular
    files are born dirty and open for writing by the session, until `FinishImport`: as long as their objects have names outside
    of the volume, their change times are not the last ones. If the session ends before, their home's agent commits them.
    """

    names: list[ImportedName]
    now_ns: int


class FinishImport(ManagerRequest[Done], frozen=True):
    """Commits files that this session has imported, and closes them. All or none, as `Commit` is refused."""

    commits: list[Commit]
