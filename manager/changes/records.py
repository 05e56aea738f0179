"""Records of mounts, applied once and in order: the sequence of the last one is written in the transaction of their effects.

If the mount is alone with all that its records name, nothing can have changed there, and they are applied as any operation is.
Otherwise it has lost a lease, or this manager does not know of it: each record is applied by itself, if the names that it takes
away still mean what the mount knew; what was made keeps a conflict name beside one that was taken. See docs/held-directories.md.
"""

import errno
import logging
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import GodwitError, Refused, refused
from cluster.events import EventKind
from cluster.messages import (
    ApplyRecords,
    Create,
    Expected,
    LostRecord,
    Node,
    Operation,
    Record,
    Rename,
    Rmdir,
    SetAttr,
    Unlink,
)
from manager.catalog.events import Again, note
from manager.catalog.gathered import Gathered
from manager.catalog.hot import Hot
from manager.catalog.inodes import find_entry, find_inode, find_inodes, node_of
from manager.catalog.schema import journals, ranges
from manager.catalog.store import Transaction
from manager.changes.apply import apply_operation
from manager.changes.conflict_names import free_name
from manager.changes.operations import OPERATIONS
from manager.memory.journals import Journal
from manager.memory.mutations import HeldElsewhere, Mutation
from manager.memory.notes import parents_of
from manager.memory.state import State

log = logging.getLogger(__name__)

_AGAIN = Again(60.0)  # a journal comes in many messages
GATHERED_MIN = 4  # removals in a row, for which their inodes are asked for together

_FIND = Hot(select(journals.c.server, journals.c.last, journals.c.final).where(journals.c.session == bindparam("session")))
_ADD = Hot(insert(journals))
_ADVANCE = Hot(
    update(journals)
    .where(journals.c.session == bindparam("b_session"))
    .values(last=bindparam("to_last"), final=bindparam("to_final"), changed_ns=bindparam("to_changed_ns"))
)
_RELEASE_NUMBERS = delete(ranges).where(ranges.c.session == bindparam("b_session"))


@dataclass
class Outcome:
    """What has become of the records of a message."""

    lost: list[LostRecord] = field(default_factory=list)
    made: list[Node] = field(default_factory=list)  # by all its records, applied now or before, as they are now
    born: list[tuple[int, Node]] = field(default_factory=list)  # of these, with which the session is alone: see `stay_alone`
    files: list[int] = field(default_factory=list)  # regular ones that it made, with names or without, if they were looked for


def find_journal(connection: Connection, journal: Journal) -> None:
    """Reads how far the journal has been applied, under its lock."""
    row = _FIND.one_or_none(connection, {"session": journal.session})
    if row is not None:
        journal.server, journal.last, journal.final = row.server, row.last, bool(row.final)
    journal.is_read = True


def apply_records(
    tx: Transaction, state: State, mutation: Mutation, journal: Journal, request: ApplyRecords, *, recovered: bool
) -> Outcome:
    """Applies those records of the request that the catalog does not have, or passes them over.

    *recovered*: the journal is sent by another process than the one that wrote it. Raises `HeldElsewhere` if others must stop
    caching something first; then nothing has been changed.
    """
    records = request.records[journal.last + 1 - request.first :]
    first = request.first + len(request.records) - len(records)
    # What a dead mount made nobody is alone with.
    mutation.born = None if recovered else set()
    outcome, gathered = Outcome(), None
    if recovered and find_inodes(tx.connection, numbers_of(records)):
        outcome.lost = _apply_each(tx, state, mutation, first, records)
    else:
        outcome.lost, gathered = _apply_all(tx, state, mutation, first, records)
    if outcome.lost:
        _note_lost(tx, mutation.session.server, outcome.lost)
    _note_progress(tx, journal, mutation, max(journal.last, first + len(records) - 1), final=request.final)
    if gathered is not None and len(records) == len(request.records):
        outcome.made = [node_of(row) for row in gathered.added]
        outcome.born = [
            (node.ino if stat.S_ISDIR(node.mode) else gathered.parents[node.ino], node)
            for node in outcome.made
            if node.ino in (mutation.born or ())
        ]
    else:
        describe(tx.connection, state, mutation, request.records, outcome)
    tx.after(lambda: _applied(state, mutation, len(records), outcome.lost))
    return outcome


def _note_lost(tx: Transaction, server: str, lost: list[LostRecord]) -> None:
    note(tx.connection, EventKind.RECORDS_LOST, server=server, count=len(lost), again=_AGAIN, why=lost[0].reason)


def numbers_of(records: Iterable[Record]) -> list[int]:
    """The inodes that the records make."""
    return list(dict.fromkeys(op.ino for op in _operations(records) if OPERATIONS[type(op)].creates))  # type: ignore[union-attr]


def _operations(records: Iterable[Record]) -> list[Operation]:
    return [record.operation for record in records]


# --------------------------------------------------------------------------------------------------------- applying


def _apply_all(
    tx: Transaction, state: State, mutation: Mutation, first: int, records: list[Record]
) -> tuple[list[LostRecord], Gathered | None]:
    """Applies the records as they are if nothing can refuse them, else each by itself; what was lost, and what was gathered."""
    if is_alone_with_all(state, mutation, records):
        try:
            with tx.savepoint():
                gathered = _apply_gathered(tx, state, mutation, records)
        except HeldElsewhere:
            raise
        except GodwitError as error:
            log.error(
                "%s recorded what it should not have, and is looked at record by record: %s", mutation.session.server, error
            )
            mutation.born = None if mutation.born is None else set()
        else:
            return [], gathered
    return _apply_each(tx, state, mutation, first, records), None


def _apply_gathered(tx: Transaction, state: State, mutation: Mutation, records: list[Record]) -> Gathered | None:
    """Applies the records; what is made, and changed before anything else is, is written together.

    What was gathered, if that was all; None if some of it may have changed since it was written.
    """
    gathered, is_all = Gathered(tx.connection), True
    try:
        for number, record in enumerate(records):
            mutation.gathered = gathered if _may_gather(gathered, records, number) else None
            if mutation.gathered is None:
                gathered.write()
                is_all = False
            apply_operation(tx, state, mutation, record.operation)
        gathered.write()
    finally:
        mutation.gathered = None
    return gathered if is_all else None


def _may_gather(gathered: Gathered, records: list[Record], number: int) -> bool:
    """Whether a record looks at nothing that is going to be written, but for inodes."""
    operation = records[number].operation
    if isinstance(operation, Unlink):
        if not gathered.inodes and not gathered.is_removing:
            gathered.expect(_run_of_removals(records, number))
        return gathered.entry(operation.parent, operation.name) is not None
    if gathered.is_removing:
        return False
    if isinstance(operation, Create):
        parent = gathered.inodes.get(operation.parent)
        return parent is None or not parent.marks
    if isinstance(operation, SetAttr):
        row = gathered.inodes.get(operation.ino)
        return row is not None and not row.marks
    return False


def _run_of_removals(records: list[Record], number: int) -> dict[tuple[int, bytes], int]:
    """The names that the records from this one on remove, with the inodes that they expect; none if there are few."""
    run = {}
    for record in records[number:]:
        operation = record.operation
        if not isinstance(operation, Unlink) or not record.expected:
            break
        run[operation.parent, operation.name] = record.expected[0].ino
    return run if len(run) >= GATHERED_MIN else {}


def is_alone_with_all(state: State, mutation: Mutation, records: Iterable[Record]) -> bool:
    """Whether the session is alone with every directory and inode that the records name, or that they make there."""
    leases, session, now = state.leases, mutation.session.number, mutation.began_s
    made: set[int] = set()
    for operation in _operations(records):
        row = OPERATIONS[type(operation)]
        for name in row.known:
            ino = getattr(operation, name)
            if ino not in made and not leases.is_alone(ino, session, now):
                return False
        if row.creates:
            made.add(operation.ino)  # type: ignore[union-attr]
    return True


def _apply_each(tx: Transaction, state: State, mutation: Mutation, first: int, records: list[Record]) -> list[LostRecord]:
    lost = []
    # Undoes all of them when one finds that something must be called back.
    with tx.savepoint():
        for sequence, record in enumerate(records, first):
            try:
                with tx.savepoint():
                    kept_as = _apply_checked(tx, state, mutation, record)
            except HeldElsewhere:
                raise
            except GodwitError as error:
                lost.append(LostRecord(sequence, error.errno, str(error)))
            else:
                if kept_as:
                    lost.append(LostRecord(sequence, errno.EEXIST, "the name was taken", kept_as))
    return lost


def _apply_checked(tx: Transaction, state: State, mutation: Mutation, record: Record) -> bytes:
    """Applies one record; the other name under which what it makes was kept, or empty."""
    operation = record.operation
    if OPERATIONS[type(operation)].creates and find_inode(tx.connection, operation.ino) is not None:  # type: ignore[union-attr]
        raise refused(errno.EEXIST, f"inode {operation.ino}")  # type: ignore[union-attr]
    _check_expected(tx, record)
    kept_as = b""
    try:
        apply_operation(tx, state, mutation, operation)
    except Refused as error:
        if not isinstance(operation, Create) or error.errno != errno.EEXIST:
            raise
        kept_as = free_name(tx.connection, operation.parent, operation.name, mutation.session.server, operation.now_ns)
        apply_operation(tx, state, mutation, msgspec.structs.replace(operation, name=kept_as))
    return kept_as


def _check_expected(tx: Transaction, record: Record) -> None:
    """ESTALE if a name that the record takes away, or gives another meaning, is not that of the inode that was known."""
    match record.operation:
        case Unlink(parent, name) | Rmdir(parent, name):
            names = [(parent, name)]
        case Rename(parent, name, new_parent, new_name):
            names = [(parent, name), (new_parent, new_name)]
        case _:
            return
    expected: list[Expected | None] = [*record.expected[: len(names)]]
    expected += [None] * (len(names) - len(expected))
    for (parent, name), known in zip(names, expected, strict=True):
        row = find_entry(tx.connection, parent, name)
        if (row is None) != (known is None) or (row and known and not _is_as_known(row, known)):
            raise refused(errno.ESTALE, "others have changed the name, or what it means")


def _is_as_known(row: Row[Any], known: Expected) -> bool:
    """Whether an inode is the one that a recorder knew, and nobody else has written it since."""
    # An older version is what is left when the catalog's machine has lost a commit; the recorder's own may have come after all.
    own = known.committed if row.home_epoch == known.home_epoch else 0
    return bool(row.ino == known.ino and row.version <= max(known.version, own))


# ---------------------------------------------------------------------------------------------------------- after it


def _note_progress(tx: Transaction, journal: Journal, mutation: Mutation, last: int, *, final: bool) -> None:
    values = {"last": last, "final": int(final), "changed_ns": file_time_ns() if final else 0}
    if journal.server:
        _ADVANCE.run(tx.connection, {"b_session": journal.session} | {f"to_{name}": value for name, value in values.items()})
    else:
        _ADD.run(tx.connection, {"session": journal.session, "server": mutation.session.server, **values})
    if final:
        tx.execute(_RELEASE_NUMBERS, {"b_session": journal.session})

    def advance() -> None:
        journal.server, journal.last, journal.final = mutation.session.server, last, final

    tx.after(advance)


def describe(connection: Connection, state: State, mutation: Mutation, records: list[Record], outcome: Outcome) -> None:
    """Finds what the records have made, as it is now, and where that is which the session is alone with."""
    rows = find_inodes(connection, numbers_of(records))
    outcome.made = [node_of(row) for row in rows.values() if row.nlink]
    outcome.files = [row.ino for row in rows.values() if stat.S_ISREG(row.mode)]
    born, number = mutation.born or set(), mutation.session.number
    for node in outcome.made:
        if node.ino not in born:
            continue
        is_directory = stat.S_ISDIR(node.mode)
        parents = [node.ino] if is_directory else parents_of(connection, node.ino)
        # With several names it may be in a directory that is not held: others may have found it there.
        if parents and all(place in born or state.leases.is_alone(place, number, mutation.began_s) for place in parents):
            outcome.born.append((parents[0], node))


def _applied(state: State, mutation: Mutation, count: int, lost: list[LostRecord]) -> None:
    """Once committed and before anybody is answered."""
    state.mutations.done(mutation, monotonic_s())
    state.holds.applied.value += count - len(lost)
    state.holds.lost.value += len(lost)
    if lost:
        kept = sum(bool(record.kept_as) for record in lost)
        first = lost[0]
        log.warning(
            "others have been where %s recorded changes: %d are lost, %d kept under another name; the first: record %d: %s",
            mutation.session.server,
            len(lost) - kept,
            kept,
            first.sequence,
            first.reason,
        )
