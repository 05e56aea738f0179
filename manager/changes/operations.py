"""The table of operations: for each change of the namespace how it is applied, what it recalls, and what else follows from it.

A new operation is a message class in `cluster.messages.changes`, a function that applies it, and a row here. Everything that
handles operations reads the table and knows none of them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.messages import (
    Commit,
    Create,
    CreateUnnamed,
    Link,
    Node,
    Open,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from manager.catalog.store import Transaction
from manager.changes.attributes import CAPABILITY_XATTR, remove_xattr, set_attr, set_xattr
from manager.changes.content import commit
from manager.changes.namespace import create, create_unnamed, link, rename, rmdir, unlink
from manager.memory.mutations import Mutation, Part
from manager.memory.state import State


class ApplyOperation(Protocol):
    """Part of a transaction: checks, claims what it changes (`State.claim`), and only then writes. A refusal leaves no trace."""

    def __call__(self, tx: Transaction, state: State, mutation: Mutation, op: Any, /) -> Node | None:
        """The inode as it is now; None where the operation may have removed it. Raises `GodwitError`."""


def _never(_operation: Any) -> bool:
    return False


@dataclass(frozen=True)
class Row:
    """What is to be known of one kind of operation."""

    apply: ApplyOperation  # body of the transaction; claims what it changes before it writes
    fields: Mapping[Part, str]  # the inodes that the message names, by the fields that do; others are found by name
    recalls: Collection[Part]  # what every other session must have stopped caching before the operation takes effect
    creates: bool = False  # it makes an inode; a regular file is open for writing by the session from the start
    of_agents: bool = False  # agents may ask it, of what they serve: everything else is for mounts alone
    grows: bool = False  # the catalog becomes larger: refused while its disk is full, as on a local file system
    changes_opens: Callable[[Any], bool] = _never  # it may clear `dirty` or add a capability: see `State.changing`
    known: tuple[str, ...] = field(init=False)  # of `fields`, those that are recalled
    directories: tuple[str, ...] = field(init=False)  # of `fields`, the directories in which names change

    def __post_init__(self) -> None:
        directories = (Part.DIRECTORY, Part.NEW_DIRECTORY)
        object.__setattr__(self, "recalls", frozenset(self.recalls))
        object.__setattr__(self, "known", tuple(name for part, name in self.fields.items() if part in self.recalls))
        object.__setattr__(self, "directories", tuple(name for part, name in self.fields.items() if part in directories))


_IN = {Part.DIRECTORY: "parent"}
_ITSELF = {Part.INODE: "ino"}

OPERATIONS: Mapping[type[Operation], Row] = {
    Create: Row(create, _IN | _ITSELF, {Part.DIRECTORY}, creates=True, grows=True),
    CreateUnnamed: Row(create_unnamed, _ITSELF, (), creates=True, grows=True),
    Link: Row(link, _IN | _ITSELF, {Part.DIRECTORY, Part.INODE}, grows=True),
    Unlink: Row(unlink, _IN, {Part.DIRECTORY, Part.INODE}),
    Rmdir: Row(rmdir, _IN, {Part.DIRECTORY, Part.INODE}),
    Rename: Row(rename, _IN | {Part.NEW_DIRECTORY: "new_parent"}, frozenset(Part)),
    SetAttr: Row(set_attr, _ITSELF, {Part.INODE}, of_agents=True),
    SetXattr: Row(set_xattr, _ITSELF, {Part.INODE}, grows=True, changes_opens=lambda op: op.name == CAPABILITY_XATTR),
    RemoveXattr: Row(remove_xattr, _ITSELF, {Part.INODE}),
    # What anybody may see does not change: whoever has a dirty file open sees what is at its home.
    Commit: Row(commit, _ITSELF, (), of_agents=True, changes_opens=lambda _op: True),
}


def as_markdown() -> str:
    """What is recalled, as a table for docs/leases.md."""
    lines = ["| request | is recalled from all other mounts |", "|---|---|"]
    for kind, row in OPERATIONS.items():
        lines.append(f"| `{kind.__name__}` | {', '.join(part for part in Part if part in row.recalls) or 'nothing'} |")
    lines.append(f"| `{Open.__name__}` for writing | {Part.INODE} |")
    return "\n".join(lines) + "\n"


def grows(operations: Iterable[Operation]) -> bool:
    """Whether the catalog becomes larger."""
    return any(OPERATIONS[type(operation)].grows for operation in operations)


def changed_for_opens(operations: Iterable[Operation]) -> list[int]:
    """The inodes whose dirty flag may be cleared, or that may get a capability: see `State.changing`."""
    return [op.ino for op in operations if OPERATIONS[type(op)].changes_opens(op)]  # type: ignore[union-attr]


def known_before(operations: Iterable[Operation]) -> list[int]:
    """What is recalled as far as it can be told without reading the catalog."""
    return [getattr(operation, name) for operation in operations for name in OPERATIONS[type(operation)].known]


def directories_of(operation: Operation) -> list[int]:
    """The directories in which the operation changes names; of a rename, the one that gets the name comes last."""
    return [getattr(operation, name) for name in OPERATIONS[type(operation)].directories]
