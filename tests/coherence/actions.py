"""What a worker does with the files that it shares with others: one method a system call, each logged before and after.

The shared folder has the directories a and b. In both, the names n0 to n3 come and go; what is made under a worker's own
name (`own-3`) is then renamed over one of them. Besides there are files that stay: registers of fixed size (r), registers
that are truncated (g), logs (l), and one whose times are set (t).
"""

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.coherence.records import (
    CELL_BYTES,
    CELLS,
    NEW_MODE,
    RECORD_BYTES,
    Attributes,
    Call,
    Outcome,
    Start,
    cell,
    cells_in,
    encode,
    record,
    records_in,
)
from tests.support.acting import renameat2

DIRECTORIES = ("a", "b")
CHANGING = tuple(f"{directory}/n{number}" for directory in DIRECTORIES for number in range(4))
FIXED = ("a/r0", "b/r1")
GROWING = ("a/g0", "b/g1")
LOGS = ("a/l0", "b/l1")
TIMED = ("a/t0",)
STAYING = FIXED + GROWING + LOGS + TIMED
NUMBERS_EACH = 10_000_000
SETUP_WORKER = 0
DESCRIPTORS = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
OVERLAP = 8  # records that were read before and are read again, with the new ones


def own_name(worker: int) -> str:
    """The name under which a worker makes files before it shows them."""
    return f"a/own-{worker}"


def all_names(workers: int) -> list[str]:
    """Every name that there may be, with *workers* beside the one that makes the files that stay."""
    return [*CHANGING, *STAYING, *(own_name(worker) for worker in range(workers + 1))]


def close(descriptor: int) -> None:
    """Ends a descriptor, also one of a mount that was killed, whose end the kernel cannot tell anybody."""
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise


class Actor:
    """The system calls of one worker on one mount. Methods raise nothing that the file system says: it is in the log."""

    def __init__(self, worker: int, mount: str, folder: Path, log: Path) -> None:
        self.worker = worker
        self.calls = 0
        self.last_errno = 0
        self._folder = str(folder)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._numbers = iter(range(worker * NUMBERS_EACH + 1, (worker + 1) * NUMBERS_EACH))
        os.write(self._log, encode(Start(worker, mount)) + b"\n")

    def path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _do(
        self,
        kind: str,
        work: Callable[[], dict[str, object] | None],
        *,
        name: str = "",
        target: str = "",
        ino: int = 0,
        first: int = 0,
        count: int = 0,
        value: int = 0,
    ) -> bool:
        """Logs, does and logs; whether it succeeded."""
        self.calls += 1
        call = Call(self.calls, time.monotonic_ns(), kind, name, target, ino, first, count, value)
        os.write(self._log, encode(call) + b"\n")
        self.last_errno = 0
        try:
            found = work() or {}
        except OSError as error:
            self.last_errno = error.errno or errno.EIO
            found = {"errno": self.last_errno}
        outcome = Outcome(call.number, time.monotonic_ns(), **found)  # type: ignore[arg-type]
        os.write(self._log, encode(outcome) + b"\n")
        return not self.last_errno

    # --------------------------------------------------------------------------------------------------- looking

    def stat(self, name: str) -> None:
        def work() -> dict[str, object]:
            found = os.lstat(self.path(name))
            return {"ino": found.st_ino, "attributes": attributes(found)}

        self._do("stat", work, name=name)

    def listing(self, directory: str) -> None:
        def work() -> dict[str, object]:
            with os.scandir(self.path(directory)) as entries:
                return {"entries": [(f"{directory}/{entry.name}", entry.inode()) for entry in entries]}

        self._do("list", work, name=directory)

    def open(self, name: str, flags: int) -> "Opened | None":
        """An open file; None if that failed. Its number is asked for within the call: it says what the name led to."""
        opened: list[Opened] = []

        def work() -> dict[str, object]:
            descriptor = os.open(self.path(name), flags | os.O_CLOEXEC, NEW_MODE)
            opened.append(Opened(descriptor, 0, name))
            opened[0].ino = number_of(descriptor)
            return {"ino": opened[0].ino}

        kind = "create" if flags & os.O_CREAT else "open"
        if self._do(kind, work, name=name):
            return opened[0]
        for file in opened:
            close(file.descriptor)
        return None

    def fstat(self, file: "Opened") -> Attributes | None:
        got: list[Attributes] = []

        def work() -> dict[str, object]:
            got.append(attributes(os.fstat(file.descriptor)))
            return {"attributes": got[0]}

        return got[0] if self._do("fstat", work, name=file.name, ino=file.ino) else None

    def read(self, file: "Opened", first: int = 0, count: int = CELLS) -> None:
        def work() -> dict[str, object]:
            content = os.pread(file.descriptor, count * CELL_BYTES, first * CELL_BYTES)
            return {"cells": cells_in(content, first, count)}

        self._do("read", work, name=file.name, ino=file.ino, first=first, count=count)

    def read_log(self, file: "Opened", known: int) -> int:
        """Reads what has come since *known* records were there, and the few before; how many there are now."""
        first = max(0, known - OVERLAP)
        got: list[int] = []

        def work() -> dict[str, object]:
            pieces = []
            at = first * RECORD_BYTES
            while piece := os.pread(file.descriptor, 1 << 17, at):
                pieces.append(piece)
                at += len(piece)
            got.extend(records_in(b"".join(pieces)))
            return {"first": first, "records": got}

        return first + len(got) if self._do("readlog", work, name=file.name, ino=file.ino) else known

    def read_mapped(self, name: str) -> None:
        """Opens, maps and reads a register of fixed size through the mapping, all in one call: a page may have come into
        memory at any time since the file was opened."""

        def work() -> dict[str, object]:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                ino = number_of(descriptor)
                if os.fstat(descriptor).st_size < CELLS * CELL_BYTES:
                    return {"ino": ino}  # just made, and not written yet: beyond the end there is SIGBUS
                with mmap.mmap(descriptor, CELLS * CELL_BYTES, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                    return {"ino": ino, "cells": cells_in(mapped[:], 0, CELLS)}
            finally:
                close(descriptor)

        self._do("readmapped", work, name=name, count=CELLS)

    # -------------------------------------------------------------------------------------------------- changing

    def write(self, file: "Opened", first: int = 0, count: int = CELLS) -> None:
        number = next(self._numbers)

        def work() -> dict[str, object]:
            content = cell(number) * count
            assert os.pwrite(file.descriptor, content, first * CELL_BYTES) == len(content)
            return {}

        self._do("write", work, name=file.name, ino=file.ino, first=first, count=count, value=number)

    def append(self, file: "Opened") -> None:
        number = next(self._numbers)

        def work() -> dict[str, object]:
            assert os.write(file.descriptor, record(number)) == RECORD_BYTES
            return {}

        self._do("append", work, name=file.name, ino=file.ino, value=number)

    def truncate(self, name: str, ino: int, count: int, file: "Opened | None" = None) -> None:
        """Of one of the files that stay, so that the name is that of the inode: by name, or by an open file."""
        where = self.path(name) if file is None else file.descriptor
        self._do("truncate", lambda: os.truncate(where, count * CELL_BYTES), name=name, ino=ino, count=count)

    def chmod(self, file: "Opened", mode: int) -> None:
        self._do("chmod", lambda: os.fchmod(file.descriptor, mode), name=file.name, ino=file.ino, value=mode)

    def set_time(self, name: str, ino: int) -> None:
        """Of one of the files that stay."""
        time_ns = next(self._numbers) * 1_000_000_000
        path = self.path(name)
        self._do("utime", lambda: os.utime(path, ns=(time_ns, time_ns)), name=name, ino=ino, value=time_ns)

    def rename(self, name: str, target: str, flags: int = 0) -> None:
        """`value` of the call are the flags."""
        old, new = os.fsencode(self.path(name)), os.fsencode(self.path(target))
        self._do("rename", lambda: renameat2(old, new, flags), name=name, target=target, value=flags)

    def unlink(self, name: str) -> None:
        self._do("unlink", lambda: os.unlink(self.path(name)), name=name)

    def link(self, file: "Opened", target: str) -> None:
        """By the descriptor, so that it is known which inode gets the name."""

        def work() -> dict[str, object]:
            os.link(str(file.descriptor), self.path(target), src_dir_fd=DESCRIPTORS, follow_symlinks=True)
            return {}

        self._do("link", work, name=file.name, target=target, ino=file.ino)

    @contextmanager
    def opened(self, name: str, flags: int) -> "Iterator[Opened | None]":
        """As `open`, closed in the end."""
        file = self.open(name, flags)
        try:
            yield file
        finally:
            if file is not None:
                file.close()


class Opened:
    """An open file of the shared folder; `name` is the one by which it was opened."""

    def __init__(self, descriptor: int, ino: int, name: str) -> None:
        self.descriptor = descriptor
        self.ino = ino
        self.name = name

    def close(self) -> None:
        """What close(2) says is for nobody: every write has had its own answer."""
        try:
            close(self.descriptor)
        except OSError:
            return


def number_of(descriptor: int) -> int:
    """The inode number of an open file. Fails with EIO only: any other error would seem to be one of opening it."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError as error:
        raise OSError(errno.EIO, f"fstat: {error}") from error


def attributes(found: os.stat_result) -> Attributes:
    return Attributes(found.st_size, found.st_nlink, found.st_mode & 0o7777, found.st_mtime_ns)


def make_shared_files(actor: Actor) -> None:
    """The directories, and the files that stay."""
    for directory in DIRECTORIES:
        os.mkdir(actor.path(directory))
    for name in STAYING:
        with actor.opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            assert file is not None
            if name in FIXED + GROWING:
                actor.write(file)
        if name in TIMED:
            actor.set_time(name, file.ino)
