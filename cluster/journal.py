"""The journal of a mount: changes that programs were told of, and that the manager may not have yet.

It lies below `/run`, so that writing to it waits for no disk: it outlives the mount's process, and no reboot. What stays unsent
is copied to the disk with the server's state (`keep_copy`). Whoever finds the journal of a dead mount sends it (`dead_journals`).

Layout: `HEADER`, then records: `_FRAME` (length of the body, CRC-32 of the rest of the frame and the body, sequence), and the
body, which is MessagePack of a `Record`. Sequences grow by one. Only the tail of what was written last can be damaged; a reader
takes what comes before it.
"""

import errno
import fcntl
import logging
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from cluster.decoding import Decode, from_msgpack
from cluster.durable import replace_file, sync_directory
from cluster.errors import Malformed, error_text
from cluster.messages import LostRecord, Record
from cluster.runtime import PRIVATE, RUNTIME, make_runtime_directory

log = logging.getLogger(__name__)

JOURNALS = RUNTIME / "journals"
COPIES = "journals"  # in the directory with the server's state
HEADER = b"godwit journal 1\n"
UNSENT_MAX = 4096  # records in one journal
BYTES_MAX = 64 * 1024 * 1024  # of a file that is read: more than is ever written
SAID_MAX = 300  # characters of a record in the log
FULL_BYTES = 8 * 1024 * 1024  # of a journal: then it is to be sent as a whole before it takes more

_FRAME = struct.Struct("<IIq")
_CHECKED = struct.Struct("<q")
_NAME = re.compile(r"(?P<owner>[^.].*):(?P<session>[0-9]{1,19})")

_decode: Decode[Record] = from_msgpack(Record)
encode_record = msgspec.msgpack.Encoder().encode


def _framed(sequence: int, body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body, zlib.crc32(_CHECKED.pack(sequence))), sequence) + body


def records_in(content: bytes) -> tuple[list[tuple[int, Record]], int]:
    """The records of a journal with their sequences, and how many bytes behind them are none. Raises `Malformed` for a file
    that is no journal, or one of another version."""
    if not content.startswith(HEADER):
        raise Malformed("it does not begin as a journal of this version does")
    found: list[tuple[int, Record]] = []
    at = len(HEADER)
    while at + _FRAME.size <= len(content):
        length, checksum, sequence = _FRAME.unpack_from(content, at)
        body = content[at + _FRAME.size : at + _FRAME.size + length]
        if len(body) < length or zlib.crc32(body, zlib.crc32(_CHECKED.pack(sequence))) != checksum:
            break
        if found and sequence != found[-1][0] + 1:
            break
        try:
            found.append((sequence, _decode(body)))
        except Malformed:
            break
        at += _FRAME.size + length
    return found, len(content) - at


class Journal:
    """The journal of a mount that lives. Nothing here waits for a disk, but `keep_copy`, which blocks."""

    def __init__(self, owner: str, session: int, state: str, folder: Path = JOURNALS) -> None:
        """*owner*: the cluster and the server; *state*: the directory with the server's state. Raises `OSError`, `Refused`."""
        make_runtime_directory(folder, PRIVATE)
        self.path = folder / f"{owner}:{session}"
        self._copy = Path(state, COPIES, self.path.name)  # on the disk
        unnamed = self.path.with_name(f".{self.path.name}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(unnamed, flags, 0o600)
        # Held as long as the process lives, and before anybody can find the file: who can take it finds a dead mount.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._descriptor, HEADER)
        unnamed.rename(self.path)
        self._size = len(HEADER)  # of what is whole
        self._has_copy = False

    def append(self, sequence: int, record: Record) -> None:
        """Raises `OSError`; then the record is not in the journal."""
        frame = _framed(sequence, encode_record(record))
        written = os.write(self._descriptor, frame)
        if written < len(frame):  # no room in memory: what is half written must not hide what comes later
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
        self._size += written

    @property
    def is_full(self) -> bool:
        """Whether it takes no more before all of it was sent: what was sent is in it until then."""
        return self._size >= FULL_BYTES

    def all_sent(self) -> None:
        """The manager has all of it."""
        if self._descriptor < 0:
            return  # closed with what was not sent then: whoever finds it removes it
        os.ftruncate(self._descriptor, len(HEADER))
        self._size = len(HEADER)

    def keep_copy(self, records: Sequence[tuple[int, Record]]) -> None:
        """Keeps these, which could not be sent for long, on the disk. Blocks; raises `OSError`."""
        self._copy.parent.mkdir(mode=PRIVATE, exist_ok=True)
        self._has_copy = True
        content = HEADER + b"".join(_framed(sequence, encode_record(record)) for sequence, record in records)
        replace_file(self._copy, content)

    def drop_copy(self) -> None:
        """The manager has what was copied. Blocks; raises `OSError`."""
        if self._has_copy:
            self._copy.unlink(missing_ok=True)
            sync_directory(self._copy.parent)
            self._has_copy = False

    def close(self, *, empty: bool) -> None:
        """The mount ends in order; *empty*: the manager has all, so that nothing is left to be found. Blocks."""
        if empty:
            with suppress(OSError):
                self.drop_copy()
            self.path.unlink(missing_ok=True)
        # Its number may mean another file at once, which what is still being sent must not cut off.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class DeadJournal:
    """What a dead mount has left: in `/run`, on the disk, or both."""

    def __init__(self, session: int, path: Path, copy: Path, descriptor: int | None) -> None:
        self.session = session  # of the mount
        self._path = path
        self._copy = copy
        self._descriptor = descriptor  # of the file in `/run`, locked; None if there is none

    @property
    def where(self) -> str:
        """Its files, for people."""
        return " and ".join(str(path) for path in (self._path, self._copy) if os.path.lexists(path))

    def read(self) -> tuple[list[tuple[int, Record]], int]:
        """As `records_in`, of both files. Blocks; raises `OSError`, `Malformed`."""
        merged: dict[int, Record] = {}
        damaged = 0
        for path in (self._copy, self._path):
            with suppress(FileNotFoundError):
                with open(path, "rb", opener=_open_file) as file:
                    content = file.read(BYTES_MAX)
                if not content:
                    continue  # the mount was killed before it had written anything
                records, rest = records_in(content)
                damaged += rest
                merged |= dict(records)
        # The copy was written first, and holds what was not sent then: a gap between the two is what the manager has.
        return sorted(merged.items()), damaged

    def remove(self) -> None:
        """It was sent. Blocks; raises `OSError`."""
        self._path.unlink(missing_ok=True)
        if self._copy.exists():
            self._copy.unlink(missing_ok=True)
            sync_directory(self._copy.parent)

    def close(self) -> None:
        """Lets others look at it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def dead_journals(owner: str, state: str, folder: Path = JOURNALS) -> Iterator[DeadJournal]:
    """The journals of dead mounts of *owner*, locked against others who look, to be closed by the caller. Blocks."""
    copies = Path(state, COPIES)
    names = {path.name for place in (folder, copies) if place.is_dir() for path in place.iterdir()}
    for name in sorted(names):
        matched = _NAME.fullmatch(name)
        if matched is None or matched["owner"] != owner:
            continue
        descriptor = _locked(folder / name)
        if descriptor is not None or not (folder / name).exists():
            yield DeadJournal(int(matched["session"]), folder / name, copies / name, descriptor)


def _open_file(path: str, flags: int) -> int:
    """For `open`, which would wait for whoever writes to a fifo, or fail in a way of its own for a directory."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EBADMSG, "it is not a file", path)
    return descriptor


def _locked(path: Path) -> int | None:
    """A descriptor with the lock of the file; None if there is no file, or its mount lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        log.debug("no journal at %s: %s", path, error_text(error, with_file=False))
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lost_text(lost: LostRecord, record: Record | None) -> str:
    """What became of a record that could not be applied as it was made, for the log."""
    what = "" if record is None else f" {record.operation!r}"[:SAID_MAX]
    kept = f", kept as {lost.kept_as!r}" if lost.kept_as else ""
    return f"change {lost.sequence}{what}: {lost.reason[:SAID_MAX]!r}{kept}"


def lost_problem(count: int, whose: str, since: str) -> str:
    """A sentence for the administrator of a server, where *whose* are the changes, and *since* is the process that counts."""
    kept = "see its log; what could be kept is named NAME.conflict-SERVER-TIME"
    return f"{count} changes {whose} were lost since {since} began: {kept}"


def journal_owner(cluster: str, server: str) -> str:
    """Whose journals they are, for their names."""
    return f"{cluster}:{server}"
