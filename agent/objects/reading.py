"""Reading objects with their digest, sure that they did not change meanwhile. Everything here blocks."""

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from blake3 import blake3

from agent.objects.reflinks import snapshot
from cluster.messages import Stamp
from cluster.volume.content import stamp_of
from cluster.volume.extents import seek
from cluster.volume.layout import ObjectRecord, read_record
from cluster.volume.regular import open_regular

CHUNK_BYTES = 1024 * 1024
"""Whole blocks of `SumBlocks`; long enough to be written to a disk in one step, without a cache that would gather them."""
HOLE_MAX_BYTES = 32 * CHUNK_BYTES  # skipped in one step, since zeros have their part in the digest
CHECK_BYTES = 4 * 1024 * 1024  # read between two comparisons of the stamp: a copy of what has changed ends early
FORGET_BYTES = 16 * 1024 * 1024  # so much of a file read once stays in the page cache before it is given up


_ZEROS = bytes(CHUNK_BYTES)


class Altered(Exception):
    """The object is not the one that was asked for; `version` is what its record says, 0 without one."""

    def __init__(self, what: str, version: int) -> None:
        super().__init__(what)
        self.version = version  # higher than asked for: a newer version was committed; else it was touched or damaged


class Unreadable(OSError):
    """The disk does not give the object."""


class ObjectReader:
    """Gives the chunks of one object while its stamp stays *stamp*; raises `Altered` as soon as it is another, or `Unreadable`.

    *ranges* (offset, length) are what is read of it, by default all. *snapshots* is a directory of the same file system: if
    that makes reflinks, `content`, the descriptor that is read, is a snapshot, and the object may be written meanwhile.

    *is_written*: somebody may have it mapped, and have written to some pages already. More that is stored in these leaves no
    trace in the stamp until they have been on their way to the disk: so they are sent there first.

    *durable*: what is read is on the disk before, if that takes it. Else, if its power failed now, the object could have the
    stamp of this version, which the journal has kept, with the content of the one before: and whoever got this one would differ.
    """

    def __init__(
        self,
        path: str,
        stamp: Stamp,
        *,
        ranges: Sequence[tuple[int, int]] = (),
        snapshots: str = "",
        is_written: bool = False,
        durable: bool = False,
    ) -> None:
        self._path = path  # for messages, and opened once only
        self._stamp = stamp  # size and times that the catalog has; every check compares with it
        self._ranges = list(ranges or [(0, stamp.size)])  # (offset, length), ascending; never empty
        self.bytes = sum(length for _, length in self._ranges)  # of all ranges: what `read` gives in the end
        self._range = 0  # the number of the range that is read
        self._within = 0  # bytes of it that were read
        self._left = self.bytes  # to be read of all ranges
        self._unchecked = 0  # bytes that were read since the stamp was compared last
        self._hash = blake3()  # of what was read so far, over all ranges
        # Pages of their own are worth it for long reads.
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES) if self.bytes > CHUNK_BYTES else bytearray(self.bytes))
        try:
            # Through one descriptor for all of it: a rename of a new version over the path changes nothing of what is read here.
            self._descriptor = open_regular(path, os.O_RDONLY)
        except FileNotFoundError:
            raise Altered(f"{path} does not exist", 0) from None
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error
        self.content = self._descriptor  # what is read: the object, or a snapshot of it
        try:
            if is_written:
                # Before the stamp is compared: a store into a page that is dirty already would not change it.
                self._catch_stores()
            elif durable:
                # A disk that fails or has become read-only can be read all the same, and is to be emptied.
                with suppress(OSError):
                    os.fdatasync(self._descriptor)
            self.check()
            if snapshots:
                self._take_snapshot(snapshots)
            self._is_sparse = is_sparse(self.content)
        except BaseException:
            self.close()
            raise

    def _catch_stores(self) -> None:
        """Writes dirty pages to the disk, so that the next store into a mapped page changes the object's times."""
        try:
            # Writeback makes mapped pages read-only again: the next store faults, and the fault sets mtime and ctime.
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error

    def _take_snapshot(self, directory: str) -> None:
        taken = snapshot(self._descriptor, directory)
        # ext4, or no room: the object itself is read, and checked all the way.
        if taken is None:
            return
        # A snapshot of what was changed before it was taken is found out here; what changes later is not in it.
        try:
            self.check()
        except BaseException:
            os.close(taken)
            raise
        self.content = taken

    @property
    def finished(self) -> bool:
        """Whether all bytes were read, and the object was still the same afterwards."""
        return self._left == 0

    def read(self) -> memoryview:
        """The next chunk, which is good until the next call; not to be called when all is `finished`."""
        start, length = self._ranges[self._range]
        offset = start + self._within
        # A view of the one buffer: who keeps it beyond the next call has the next chunk's bytes.
        data = self._buffer[: self._read_at(offset, min(CHUNK_BYTES, length - self._within))]
        self._hash.update(data)
        self._advance(len(data))
        if not data and not self.finished:
            raise Altered(f"{self._path} ends at {offset} of {self._stamp.size} bytes", self._version())
        return data

    def skip_hole(self) -> int:
        """The length of the hole that comes next, which counts as read, as zeros; 0 if there is none of at least a chunk.

        Like `read` not to be called when all is `finished`. Chunks that are read behind it begin where they would have without.
        """
        if not self._is_sparse:
            return 0
        start, length = self._ranges[self._range]
        offset, left = start + self._within, length - self._within
        try:
            data = seek(self.content, offset, os.SEEK_DATA)
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error
        hole = left if data is None else min(left, data - offset)
        hole = min(HOLE_MAX_BYTES, hole if hole == left else hole - hole % CHUNK_BYTES)
        if hole:
            add_zeros(self._hash, hole)
            self._advance(hole)
        return hole

    def _advance(self, count: int) -> None:
        """So many bytes more were read; none, if the object ends there."""
        self._left -= count
        self._within += count
        self._unchecked += count
        if self._within == self._ranges[self._range][1] and self._range + 1 < len(self._ranges):
            self._range, self._within = self._range + 1, 0
        # The last chunk is always checked: `finished` promises that nothing changed up to the end.
        if self.finished or not count or self._unchecked >= CHECK_BYTES:
            self.check()

    def _read_at(self, offset: int, length: int) -> int:
        try:
            return os.preadv(self.content, [self._buffer[:length]], offset)
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error

    def digest(self) -> bytes:
        return self._hash.digest()

    def record(self) -> ObjectRecord | None:
        return read_record(self._descriptor)

    def check(self) -> None:
        """Raises `Altered` if what is read is not what it was."""
        self._unchecked = 0
        # A snapshot cannot change, and that it is of the right version was checked when it was taken.
        if self.content != self._descriptor:
            return
        found = stamp_of(os.fstat(self._descriptor))
        if found != self._stamp:
            raise Altered(altered_text(self._path, found, self._stamp), self._version())

    def close(self) -> None:
        os.close(self._descriptor)
        if self.content != self._descriptor:
            os.close(self.content)

    def _version(self) -> int:
        record = self.record()
        return record.version if record else 0


class Verified(NamedTuple):
    """What an object holds."""

    checksum: bytes
    stamp: Stamp


def verify_object(path: str) -> Verified:
    """Reads a whole object; raises `Altered` if it changes meanwhile, or `OSError`."""
    stamp = stamp_of(os.stat(path, follow_symlinks=False))
    reader = ObjectReader(path, stamp)
    try:
        while not reader.finished:
            if not reader.skip_hole():
                reader.read()
        return Verified(reader.digest(), stamp)
    finally:
        reader.close()


def digest_of(descriptor: int) -> bytes:
    """The digest of a whole file that nobody changes, and that nobody is about to read again."""
    hasher = blake3()
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    offset, has_holes = 0, is_sparse(descriptor)
    # Whoever has a file that may be written compares its stamp before and after (`inspection.look_at`).
    while True:
        if has_holes:
            data = seek(descriptor, offset, os.SEEK_DATA)
            end = os.fstat(descriptor).st_size if data is None else data
            add_zeros(hasher, max(0, end - offset))
            offset = max(offset, end)
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            return hasher.digest()
        hasher.update(buffer[:count])
        forget_read(descriptor, offset, count)
        offset += count


def is_sparse(descriptor: int) -> bool:
    """Whether the file takes less than its length: then it is worth looking for holes."""
    status = os.fstat(descriptor)
    return status.st_blocks * 512 < status.st_size


def add_zeros(hasher: blake3, length: int) -> None:
    """As if so many zeros had been read."""
    while length:
        hasher.update(_ZEROS[:length] if length < len(_ZEROS) else _ZEROS)
        length -= min(length, len(_ZEROS))


def forget_read(descriptor: int, offset: int, count: int) -> None:
    """Now and then gives up the pages of what was read up to *offset* + *count*: the next ones take their memory."""
    end = offset + count
    # One call for each 16 MiB that was crossed, not one for each chunk.
    if offset // FORGET_BYTES != end // FORGET_BYTES:
        os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)


def altered_text(path: str, found: Stamp, wanted: Stamp) -> str:
    """Why an object is not sent that is not the one that was asked for."""
    return f"{path} has the stamp {_text(found)} instead of {_text(wanted)}"


def _text(stamp: Stamp) -> str:
    return f"{stamp.size} bytes, mtime {stamp.mtime_ns}, ctime {stamp.ctime_ns}"
