"""Held directories: a mount that is alone in a directory changes it by itself, and sends its records afterwards.

See docs/held-directories.md.
"""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Message, Reply, Value
from cluster.messages.caching import Grant
from cluster.messages.changes import Operation
from cluster.messages.values import Entry, Node


class HeldDirectory(Reply, frozen=True):
    """The directory with all its names; `node` is None if it is not to be held now.

    The session is alone with the inodes of `grant`: nobody else is told anything of them, or changes them, before they are called
    back. They are the directory and those of its entries, but for directories, that nobody else has open or caches.
    """

    node: Node | None = None
    entries: list[Entry] = []
    grant: Grant | None = None
    wait_s: float = 0.0  # not held: for how long asking again is useless
    everywhere: bool = False  # that is so for all directories


class Hold(ManagerRequest[HeldDirectory], frozen=True):
    """The session wants to be alone in a directory. All that it has recorded was sent before."""

    ino: int


class Expected(Value, frozen=True):
    """An inode of which a record takes away a name, as the recorder knew it."""

    ino: int
    version: int  # of its content
    committed: int = 0  # the version of a commit that the recorder had sent, and may have heard nothing of
    home_epoch: int = 0  # under which that was: the content up to its version is the recorder's own


class Record(Message, frozen=True):
    """A change that was acknowledged to a program. `expected`: what the operation removes, renames or replaces, in this order."""

    operation: Operation
    expected: list[Expected] = []


class LostRecord(Value, frozen=True):
    """A record that could not be applied, since others have been there after the recorder had lost its lease."""

    sequence: int
    errno: int
    reason: str
    kept_as: bytes = b""  # the name under which what it made was kept; empty: it has none


class RecordsApplied(Reply, frozen=True):
    """`last`: the sequence up to which the catalog has the journal.

    The session is alone with the inodes of `grant`, among those that the records name.
    """

    last: int
    tokens: list[bytes] = []  # a lease token for each regular file that these records made and that still is there
    grant: Grant | None = None
    lost: list[LostRecord] = []


class ApplyRecords(ManagerRequest[RecordsApplied], frozen=True):
    """*Mutation, by sequence.* Applies the next records of the journal of a mount, all in one transaction with their number.

    Records up to the number that the catalog has are passed over, so a repeat changes nothing.
    """

    session: int  # the number of the mount's session, which names its journal
    first: int  # the sequence of the first record; they are counted from 1
    records: list[Record]
    durable: bool = False  # answered when they are on the catalog's disk
    more: bool = False  # others follow at once
    final: bool = False  # the mount is dead and nothing follows: what it held is free
