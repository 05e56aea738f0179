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
from agent.objects.syncing import sync_files
from agent.volumes.volume import LocalVolume
from cluster.durable import sync_directory
from cluster.messages import Stamp
from cluster.volume.content import stamp_of
from cluster.volume.fence import despite_fence
from cluster.volume.layout import ObjectRecord, write_record

HOLE_BYTES = 64 * 1024  # runs of zeros shorter than that are written: a file of many small holes has many extents
WRITEBACK_BYTES = 32 * 1024 * 1024  # of dirty pages before the disk begins: the fsync at the end has no more than that left
BLOCK_BYTES = 4096  # O_DIRECT wants whole logical blocks of the disk: 512 bytes or these
_ZEROS = bytes(HOLE_BYTES)


def runs_of_data(data: bytes | memoryview, offset: int) -> list[tuple[int, int]]:
    """The parts (start, end) of *data* to be written when it lies at *offset*; aligned blocks of zeros are left out."""
    view = memoryview(data)
    runs: list[tuple[int, int]] = []
    start = 0
    while start < len(view):
        # Cut at multiples of HOLE_BYTES of the file, not of the buffer: a hole is found wherever chunks begin.
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
        self.volume = volume  # it becomes an object of this volume, so the rename stays within one file system
        # The random part lets two attempts at one inode have a file each.
        self.path = f"{volume.layout.staging}/{ino}.{secrets.token_hex(6)}"
        # open until `close` or `discard`
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0  # that it is to have: what was written may end earlier, before a hole
        self._cloned = False  # zeros must be written too: what they replace may be something else
        self._unstarted = 0  # bytes in the page cache that the disk was not told to begin with
        # Past the page cache as long as blocks are whole; for good through it after the first that is not.
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
        # Only at the beginning: FICLONE replaces what the file has.
        if not clone(source, self.descriptor):
            return False
        self._cloned = True
        # After a reflink little is written: the parts that differ.
        self._go_through_cache()
        self.size = min(size, os.fstat(self.descriptor).st_size)
        self._cut()
        return True

    def _cut(self) -> None:
        """Sets the length, unless the file has it already: on xfs truncating would unshare the last block."""
        if os.fstat(self.descriptor).st_size != self.size:
            os.ftruncate(self.descriptor, self.size)

    def set_length(self, size: int) -> None:
        """Ends the file at *size*, with a hole if that is beyond what was written: then its digest is that of the whole."""
        self.size = size
        self._cut()

    def append(self, data: bytes | memoryview) -> None:
        """Adds the next bytes; blocks of zeros stay holes."""
        self.put(data, self.size)

    def append_hole(self, length: int) -> None:
        """Adds zeros; not after `clone`."""
        assert not self._cloned
        self.size += length

    def put(self, data: bytes | memoryview, offset: int) -> None:
        """Writes at *offset*, where nothing was written yet but what was cloned; the disk begins with it now and then."""
        view = memoryview(data)
        # In a fresh file what is not written is a hole, and reads as zeros.
        runs = [(0, len(view))] if self._cloned else runs_of_data(view, offset)
        for start, end in runs:
            # pwrite may write less than it was given, and does before ENOSPC.
            while start < end:
                start += self._write(view[start:end], offset + start)
        self.size = max(self.size, offset + len(view))
        if self._unstarted >= WRITEBACK_BYTES:
            self.start_writeback()

    def _write(self, data: memoryview, offset: int) -> int:
        """How much of *data* was written."""
        # The tail of the last block goes through the page cache; the rest of this call has gone around it by then.
        whole = 0 if offset % BLOCK_BYTES else len(data) - len(data) % BLOCK_BYTES
        if self._direct and whole:
            try:
                # O_DIRECT also wants the memory aligned; readers give whole pages of their own for long objects, and EINVAL
                # covers the rest.
                return os.pwrite(self.descriptor, data[:whole], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # its blocks are longer
                    raise
        self._go_through_cache()
        self._unstarted += len(data)
        return os.pwrite(self.descriptor, data, offset)

    def _go_through_cache(self) -> None:
        if self._direct:
            # For good: before each direct write to a file that is cached, too, the kernel flushes and drops its pages.
            self._switch(0)
            self._direct = False

    def start_writeback(self) -> None:
        """Lets the disk begin, and gives up the pages that are on it: memory is for those who read and write files here."""
        # DONTNEED starts the writeback of dirty pages without waiting for it, and drops those that are clean.
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unstarted = 0

    def complete(self, record: ObjectRecord) -> None:
        """Sets the length, the record and the file's time; nothing may be written any more."""
        self._cut()
        write_record(self.descriptor, record)
        # The source's mtime: it is part of the stamp, and by it fsck knows content that has no digest in the catalog.
        os.utime(self.descriptor, ns=(record.mtime_ns, record.mtime_ns))

    def sync(self) -> None:
        # fsync and not fdatasync: the record is an extended attribute, which fdatasync need not write.
        os.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)

    def discard(self) -> None:
        """Removes the file if it has not become an object."""
        os.close(self.descriptor)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            # It was renamed, and is an object now.
            return


class Publication(NamedTuple):
    """A verified copy that shall become the object of `record.ino`: a file that is durable already, or a small one's bytes."""

    volume: LocalVolume  # where it becomes an object
    record: ObjectRecord  # written into the object before it gets its name
    content: StagedFile | bytes


def publish(publications: Sequence[Publication]) -> list[Stamp | Exception]:
    """Makes copies objects, all of one volume, and returns their stamps. Takes over the staged files. Blocks.

    In stages, so that all of them share few commits of the file system's journal.
    """
    # Each entry is replaced below, by a stamp or by what went wrong.
    results: list[Stamp | Exception] = [OSError()] * len(publications)
    staged: dict[int, StagedFile] = {}
    for index, item in enumerate(publications):
        try:
            staged[index] = item.content if isinstance(item.content, StagedFile) else _write_small(item, item.content)
        except OSError as error:
            results[index] = error
    # Long files were synced as they were finished. fsync: the record is an attribute.
    written = [index for index in staged if not isinstance(publications[index].content, StagedFile)]
    failures = sync_files([staged[index].descriptor for index in written])
    for index, failure in zip(written, failures, strict=True):
        if failure is not None:
            results[index] = failure
            # One that is not durable never gets the name of an object; the others go on.
            staged.pop(index).discard()
    directories: dict[str, list[int]] = {}
    for index in staged:
        # By directory: one sync of a directory makes all names in it durable.
        directories.setdefault(os.path.dirname(_target(publications[index])), []).append(index)
    for directory, indices in directories.items():
        _rename_all(publications, results, staged, directory, indices)
    return results


def _target(item: Publication) -> str:
    return item.volume.layout.object_path(item.record.ino)


def _write_small(item: Publication, data: bytes) -> StagedFile:
    file = StagedFile(item.volume, item.record.ino)
    try:
        file.append(data)
        file.complete(item.record)
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
    renamed = set()
    try:
        make_object_directory(directory)
        for index in indices:
            target = _target(publications[index])
            # The content is durable before it gets the name: a crash leaves the old object or the whole new one.
            despite_fence(target, partial(os.rename, staged[index].path, target))
            renamed.add(index)
            results[index] = stamp_of(os.fstat(staged[index].descriptor))
        # Only now are they reported: a name that a crash could take back would be a copy that is not there.
        sync_directory(directory)
    except OSError as error:
        # Objects that were renamed already stay: the report says failed, and the next attempt finds and confirms them.
        for index in indices:
            results[index] = error
    finally:
        for index in indices:
            if index in renamed:
                staged[index].close()
            else:
                staged[index].discard()


def make_object_directory(directory: str) -> None:
    """Makes a directory below `objects/` durably; harmless if it is there."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    # The directory's own name: an object in a directory that a crash takes back would be lost with it.
    sync_directory(os.path.dirname(directory))
