"""Logs: no record is lost, doubled or torn, and nobody sees less than was there before.

The order of the records is in the file itself, so no search is needed. An append that made record *n* shows that the log
had *n* records before it and more after it; a read, or a `stat`, that there were so many at some time while it was under way.
Since a log only grows, some order explains all of it iff no operation that began after another had ended shows less than
that one.

A read of the end of a log to which another server appends meanwhile may give zeros for what is not there yet: see `checker`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from msgspec.structs import replace

from tests.coherence.records import DAMAGED, RECORD_BYTES, ZERO, Operation, overlap


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the operations that show it."""

    what: str
    operations: list[Operation]


@dataclass(frozen=True)
class _Shown:
    """An operation found, or left, so many records."""

    operation: Operation
    before: int
    after: int


def check_log(operations: Sequence[Operation]) -> Iterable[Finding]:
    """What cannot be in the operations on one log."""
    appended = {operation.call.value: operation for operation in operations if operation.call.kind == "append"}
    operations = [_without_zeros(operation, appended.values()) for operation in operations]
    reads = [operation for operation in operations if operation.call.kind == "readlog" and _count(operation) >= 0]
    places: dict[int, tuple[int, Operation]] = {}
    contents: dict[int, tuple[int, Operation]] = {}
    wrong: list[Finding] = []
    for read in reads:
        wrong += _place(read, appended, places, contents)
    if wrong:
        return wrong
    shown = [_Shown(appended[number], place, place + 1) for number, (place, _read) in places.items()]
    shown += [_Shown(operation, count, count) for operation in operations if (count := _count(operation)) >= 0]
    return [*_lost(appended, places, reads), *_backwards(shown)]


def _without_zeros(read: Operation, appends: Collection[Operation]) -> Operation:
    """The read without the zeros at its end, if another server was appending meanwhile."""
    if read.outcome is None or not read.outcome.records or read.outcome.records[-1] != ZERO:
        return read
    if not any(append.mount != read.mount and overlap(append, read) for append in appends):
        return read
    whole = list(dropwhile(lambda number: number == ZERO, reversed(read.outcome.records)))[::-1]
    return replace(read, outcome=replace(read.outcome, records=whole))


def _place(
    read: Operation,
    appended: dict[int, Operation],
    places: dict[int, tuple[int, Operation]],
    contents: dict[int, tuple[int, Operation]],
) -> Iterable[Finding]:
    """Notes where each record is; what cannot be."""
    assert read.outcome is not None
    for place, number in enumerate(read.outcome.records, read.outcome.first):
        if number in (DAMAGED, ZERO) or number not in appended:
            yield Finding(f"record {place} is torn, or nobody appended it", [read])
            return
        other_place, other = places.setdefault(number, (place, read))
        if other_place != place:
            yield Finding(f"a record is at {other_place} and at {place}: doubled or moved", [appended[number], other, read])
            return
        other_number, other = contents.setdefault(place, (number, read))
        if other_number != number:
            yield Finding(f"record {place} is not always the same", [appended[other_number], appended[number], other, read])
            return


def _count(operation: Operation) -> int:
    """How many records a read or a `stat` found; -1 if it failed, or is neither."""
    outcome = operation.outcome
    if outcome is None or outcome.errno:
        return -1
    if operation.call.kind == "readlog":
        return outcome.first + len(outcome.records)
    return -1 if outcome.attributes is None else outcome.attributes.size // RECORD_BYTES


def _lost(
    appended: dict[int, Operation], places: dict[int, tuple[int, Operation]], reads: Sequence[Operation]
) -> Iterable[Finding]:
    """An append that had ended before a read began must have a place in that read or before it."""
    if not reads:
        return
    last = max(reads, key=lambda read: read.call.at_ns)
    for number, append in appended.items():
        outcome = append.outcome
        if number not in places and outcome is not None and not outcome.errno and outcome.at_ns < last.call.at_ns:
            yield Finding("a record is lost", [append, last])


def _backwards(shown: Sequence[_Shown]) -> Iterable[Finding]:
    """Operations that found less than was there before they began."""
    events = [(one.operation.call.at_ns, 0, number) for number, one in enumerate(shown)]
    for number, one in enumerate(shown):
        if one.operation.outcome is not None and not one.operation.outcome.errno:
            events.append((one.operation.outcome.at_ns, 1, number))
    most = _Shown(shown[0].operation, 0, 0) if shown else None
    for _time, ended, number in sorted(events):
        one = shown[number]
        assert most is not None
        if ended:
            most = max(most, one, key=lambda each: each.after)
        elif one.before < most.after:
            yield Finding(f"a log had {most.after} records, and then {one.before}", [most.operation, one.operation])
            return
