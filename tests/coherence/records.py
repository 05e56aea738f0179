"""What the checker's workers log, and how the content of the files that they share says who wrote it.

A log is a file of JSON lines in the order in which one process did its calls: a `Start`, then for each system call a `Call`
before it and an `Outcome` after it, each written by one write(2) to a local disk, so that whatever ends the process leaves
whole all that it has done. A `Call` without an `Outcome` may have had its effect at any time since, or never.

Files are of two kinds. *Registers* consist of `CELLS` cells; every write puts its number, which no other write has, into all of
one cell or of all cells. *Logs* consist of records, each with the number of the append that made it. Both sizes divide the page,
so that no cell or record lies across two.
"""

import errno
from pathlib import Path

import msgspec

CELL_BYTES = 2048
CELLS = 6
WORD_BYTES = 16
RECORD_BYTES = 64
NEW_MODE = 0o644

ZERO = 0
"""What a hole reads as; numbers of writes are larger."""
ABSENT = -1
"""A cell beyond the end of the file."""
DAMAGED = -2
"""Bytes that nobody wrote, or that were not wholly there."""

SAYS_NOTHING = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.EINTR, errno.ESTALE, errno.EAGAIN})
"""Errors after which a call may have had its effect."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first line: who does what follows, through which server's mount."""

    worker: int
    mount: str


class Call(msgspec.Struct, frozen=True, tag="call", omit_defaults=True):
    """A system call that is about to be made. Times are CLOCK_MONOTONIC in nanoseconds: one clock for the whole machine.

    `name` and `target` are paths below the shared folder. `first` and `count` are cells; `value` is what the call sets.
    """

    number: int
    at_ns: int
    kind: str
    name: str = ""
    target: str = ""
    ino: int = 0
    first: int = 0
    count: int = 0
    value: int = 0


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    size: int
    nlink: int
    mode: int
    mtime_ns: int


class Outcome(msgspec.Struct, frozen=True, tag="outcome", omit_defaults=True):
    """What came of the call with the same number.

    `cells` has the distinct numbers in each cell that was asked for; `records` those of a log from record `first` on.
    `entries` are names with inode numbers.
    """

    number: int
    at_ns: int
    errno: int = 0
    ino: int = 0
    attributes: Attributes | None = None
    cells: list[list[int]] = []
    first: int = 0
    records: list[int] = []
    entries: list[tuple[str, int]] = []


Line = Start | Call | Outcome

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Line).decode


class Operation(msgspec.Struct, frozen=True):
    """A call with its outcome; None while it is not known."""

    worker: int
    mount: str
    call: Call
    outcome: Outcome | None = None

    def __str__(self) -> str:
        call, outcome = self.call, self.outcome
        said = ", ".join(f"{name}={value!r}" for name, value in _told(call) if name not in ("number", "at_ns", "kind"))
        what = f"{call.kind}({said})"
        if outcome is None:
            return f"{call.at_ns / 1e9:.6f}-…  w{self.worker}@{self.mount} #{call.number} {what} -> not known"
        gave = ", ".join(f"{name}={value!r}" for name, value in _told(outcome) if name not in ("number", "at_ns"))
        times = f"{call.at_ns / 1e9:.6f}-{outcome.at_ns / 1e9:.6f}"
        return f"{times}  w{self.worker}@{self.mount} #{call.number} {what} -> {gave or 'done'}"


def overlap(one: Operation, other: Operation) -> bool:
    """Whether each may have had its effect before the other."""
    return all(
        second.outcome is None or second.outcome.errno in SAYS_NOTHING or first.call.at_ns <= second.outcome.at_ns
        for first, second in ((one, other), (other, one))
    )


def _told(line: Call | Outcome) -> list[tuple[str, object]]:
    """The fields that are not empty."""
    return [(name, value) for name in line.__struct_fields__ if (value := getattr(line, name)) not in (0, "", None, [])]


def parse(log: Path) -> list[Operation]:
    """The operations of one log, in their order. A last line that was cut short is left."""
    lines = log.read_bytes().split(b"\n")[:-1]
    start = decode(lines[0])
    assert isinstance(start, Start)
    calls: dict[int, Call] = {}
    outcomes: dict[int, Outcome] = {}
    for text in lines[1:]:
        line = decode(text)
        if isinstance(line, Call):
            calls[line.number] = line
        elif isinstance(line, Outcome):
            outcomes[line.number] = line
    return [Operation(start.worker, start.mount, call, outcomes.get(number)) for number, call in calls.items()]


# --------------------------------------------------------------------------------------------------------- content


def cell(number: int) -> bytes:
    """A cell as the write *number* fills it."""
    return b"%015d\n" % number * (CELL_BYTES // WORD_BYTES)


def cells_in(content: bytes, first: int, count: int) -> list[list[int]]:
    """The distinct numbers of *count* cells of which *content* begins with cell *first*."""
    found = []
    for number in range(count):
        piece = content[number * CELL_BYTES : (number + 1) * CELL_BYTES]
        if not piece:
            found.append([ABSENT])
        elif len(piece) == CELL_BYTES and piece == piece[:WORD_BYTES] * (CELL_BYTES // WORD_BYTES):
            found.append([_word(piece[:WORD_BYTES])])
        else:
            words = (piece[at : at + WORD_BYTES] for at in range(0, len(piece), WORD_BYTES))
            found.append(list(dict.fromkeys(_word(word) for word in words)))
            if len(piece) < CELL_BYTES:
                found[-1].append(DAMAGED)
    return found


def _word(word: bytes) -> int:
    if word == bytes(WORD_BYTES):
        return ZERO
    return int(word) if len(word) == WORD_BYTES and word[:15].isdigit() and word[15:] == b"\n" else DAMAGED


def record(number: int) -> bytes:
    """A record as the append *number* makes it."""
    return b"%015d " % number + b"." * (RECORD_BYTES - 17) + b"\n"


def records_in(content: bytes) -> list[int]:
    """The numbers of the records; `DAMAGED` for what is none, `ZERO` for a hole."""
    pieces = (content[at : at + RECORD_BYTES] for at in range(0, len(content), RECORD_BYTES))
    return [_record_number(piece) for piece in pieces]


def _record_number(piece: bytes) -> int:
    digits = piece[:15]
    if piece == bytes(RECORD_BYTES):
        return ZERO
    return int(digits) if digits.isdigit() and piece == record(int(digits)) else DAMAGED
