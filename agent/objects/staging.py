"""Copies that are being received: files in `staging/`, and the step that makes them objects.

A staged file becomes an object only after its bytes and its record are durable; it is reported only after its name is.
What is left in `staging/` by a crash is removed at the next start.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from agent.objects.reflinks import clone
from agent.volumes import LocalVolume
from cluster.messages import Stamp
from cluster.volume.content import stamp_of
from cluster.volume.fence import despite_fence
from cluster.volume.layout import ObjectRecord, sync_directory, write_record

HOLE_BYTES = 64 * 1024
WRITEBACK_BYTES = 32 * 1024 * 1024
BLOCK_BYTES = 4096
_ZEROS = bytes(HOLE_BYTES)


def runs_of_data(data: bytes | memoryview, offset: int) -> list[tuple[int, int]]:
    """The parts (start, end) of *data* to be written when it lies at *offset*; aligned blocks of zeros are left out."""
    view = memoryview(data)
    runs: list[tuple[int, int]] = []
    start = 0
    while start < len(view):
        end = min(len(view), start + HOLE_BYTES - (offset + start) % HOLE_BYTES)
        if not _is_hole(view[start:end]):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        start = end
    return runs


def _is_hole(block: memoryview) -> bool:
    # The ends first: they tell most blocks apart without a copy.
    return len(block) == HOLE_BYTES and block[0] == 0 and block[-1] == 0 and bytes(block) == _ZEROS


class StagedFile:
    """A copy under way. All methods but `discard` block.

    *direct*: what is written in whole blocks goes around the page cache, if the file system can do that. It takes a third of the
    processor time, and pushes nothing out of memory; but each write waits for the disk, so it is for long ones.
    """

    def __init__(self, volume: LocalVolume, ino: int, *, direct: bool = False) -> None:
        self.volume = volume
        self.path = f"{volume.layout.staging}/{ino}.{secrets.token_hex(6)}"
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0
        self._cloned = False
        self._unstarted = 0
        self._direct = direct and self._switch(os.O_DIRECT)

    def _switch(self, flags: int) -> bool:
        """Whether the file system has what *flags* ask for."""
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags)
        except OSError:
            return False
        return True

    def clone(self, source: int, size: int) -> bool:
        """Begins as a reflink of *source*, cut to at most *size* bytes, if the file system can; whether it did."""
        if not clone(source, self.descriptor):
            return False
        self._cloned = True
        self._go_through_cache()
        self.size = min(size, os.fstat(self.descriptor).st_size)
        self._cut()
        return True

    def _cut(self) -> None:
        """Sets the length. Not if it is that: on xfs the last block would be shared no more."""
        if os.fstat(self.descriptor).st_size != self.size:
            os.ftruncate(self.descriptor, self.size)

    def append(self, data: bytes | memoryview) -> None:
        """Adds the next bytes; blocks of zeros stay holes."""
        self.put(data, self.size)

    def put(self, data: bytes | memoryview, offset: int) -> None:
        """Writes at *offset*, where nothing was written yet but what was cloned; the disk begins with it now and then."""
        view = memoryview(data)
        runs = [(0, len(view))] if self._cloned else runs_of_data(view, offset)
        for start, end in runs:
            while start < end:
                start += self._write(view[start:end], offset + start)
        self.size = max(self.size, offset + len(view))
        if self._unstarted >= WRITEBACK_BYTES:
            self.start_writeback()

    def _write(self, data: memoryview, offset: int) -> int:
        """How much of *data* was written."""
        whole = 0 if offset % BLOCK_BYTES else len(data) - len(data) % BLOCK_BYTES
        if self._direct and whole:
            try:
                return os.pwrite(self.descriptor, data[:whole], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # its blocks are longer
                    raise
        self._go_through_cache()
        self._unstarted += len(data)
        return os.pwrite(self.descriptor, data, offset)

    def _go_through_cache(self) -> None:
        if self._direct:
            self._switch(0)
            self._direct = False

    def start_writeback(self) -> None:
        """Lets the disk begin, and gives up the pages that are on it: memory is for those who read and write files here."""
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unstarted = 0

    def complete(self, record: ObjectRecord) -> None:
        """Sets the length, the record and the file's time; nothing may be written any more."""
        self._cut()
        write_record(self.descriptor, record)
        os.utime(self.descriptor, ns=(record.mtime_ns, record.mtime_ns))

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)

    def discard(self) -> None:
        """Removes the file if it has not become an object."""
        os.close(self.descriptor)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return


class Publication(NamedTuple):
    """A verified copy that shall become the object of `record.ino`: a file that is durable already, or a small one's bytes."""

    volume: LocalVolume
    record: ObjectRecord
    content: StagedFile | bytes


def publish(publications: Sequence[Publication]) -> list[Stamp | Exception]:
    """Makes copies objects, all of one volume, and returns their stamps. Takes over the staged files. Blocks.

    One after the other in stages, so that the many syncs share few commits of the file system's journal.
    """
    results: list[Stamp | Exception] = [OSError()] * len(publications)
    staged: dict[int, StagedFile] = {}
    for index, item in enumerate(publications):
        try:
            staged[index] = item.content if isinstance(item.content, StagedFile) else _write_small(item, item.content)
        except OSError as error:
            results[index] = error
    directories: dict[str, list[int]] = {}
    for index, file in list(staged.items()):
        item = publications[index]
        target = item.volume.layout.object_path(item.record.ino)
        try:
            if not isinstance(item.content, StagedFile):
                file.sync()
        except OSError as error:
            results[index] = error
            staged.pop(index).discard()
        else:
            directories.setdefault(os.path.dirname(target), []).append(index)
    for directory, indices in directories.items():
        _rename_all(publications, results, staged, directory, indices)
    return results


def _write_small(item: Publication, data: bytes) -> StagedFile:
    file = StagedFile(item.volume, item.record.ino)
    try:
        file.append(data)
        file.complete(item.record)
        file.start_writeback()
    except BaseException:
        file.discard()
        raise
    return file


def _rename_all(
    publications: Sequence[Publication],
    results: list[Stamp | Exception],
    staged: dict[int, StagedFile],
    directory: str,
    indices: list[int],
) -> None:
    try:
        make_object_directory(directory)
        for index in indices:
            target = f"{directory}/{publications[index].record.ino}"
            despite_fence(target, partial(os.rename, staged[index].path, target))
            results[index] = stamp_of(os.fstat(staged[index].descriptor))
        sync_directory(directory)
    except OSError as error:
        for index in indices:
            results[index] = error
    finally:
        for index in indices:
            staged[index].discard()


def make_object_directory(directory: str) -> None:
    """Makes a directory below `objects/` durably; harmless if it is there."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    sync_directory(os.path.dirname(directory))
