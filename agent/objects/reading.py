"""Reading objects with their digest, sure that they did not change meanwhile. Everything here blocks."""

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from agent.objects.reflinks import snapshot
from cluster.messages import Stamp
from cluster.volume.content import stamp_of
from cluster.volume.layout import ObjectRecord, read_record

CHUNK_BYTES = 1024 * 1024
"""Whole blocks of `SumBlocks`; long enough to be written to a disk in one step, without a cache that would gather them."""
CHECK_BYTES = 4 * 1024 * 1024
FORGET_BYTES = 16 * 1024 * 1024


class Altered(Exception):
    """The object is not the one that was asked for; `version` is what its record says, 0 without one."""

    def __init__(self, what: str, version: int) -> None:
        super().__init__(what)
        self.version = version


class Unreadable(OSError):
    """The disk does not give the object."""


class ObjectReader:
    """Gives the chunks of one object while its stamp stays *stamp*; raises `Altered` as soon as it is another, or `Unreadable`.

    *ranges* (offset, length) are what is read of it, by default all. *snapshots* is a directory of the same file system: if
    that makes reflinks, `content`, the descriptor that is read, is a snapshot, and the object may be written meanwhile.

    *is_written*: somebody may have it mapped, and have written to some pages already. More that is stored in these leaves no
    trace in the stamp until they have been on their way to the disk: so they are sent there first.
    """

    def __init__(
        self,
        path: str,
        stamp: Stamp,
        *,
        ranges: Sequence[tuple[int, int]] = (),
        snapshots: str = "",
        is_written: bool = False,
    ) -> None:
        self._path = path
        self._stamp = stamp
        self._ranges = list(ranges or [(0, stamp.size)])
        self.bytes = sum(length for _, length in self._ranges)
        self._range = 0
        self._within = 0
        self._left = self.bytes
        self._unchecked = 0
        self._hash = blake3()
        # Pages of their own are worth it for long reads.
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES) if self.bytes > CHUNK_BYTES else bytearray(self.bytes))
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Altered(f"{path} does not exist", 0) from None
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error
        self.content = self._descriptor
        try:
            if is_written:
                self._catch_stores()
            self.check()
            if snapshots:
                self._take_snapshot(snapshots)
        except BaseException:
            self.close()
            raise

    def _catch_stores(self) -> None:
        """The next store into any page is to change the object's times."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise Unreadable(error.errno, error.strerror) from error

    def _take_snapshot(self, directory: str) -> None:
        taken = snapshot(self._descriptor, directory)
        if taken is None:
            return
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
        data = self._buffer[: self._read_at(offset, min(CHUNK_BYTES, length - self._within))]
        self._hash.update(data)
        self._left -= len(data)
        self._within += len(data)
        self._unchecked += len(data)
        if self._within == length and self._range + 1 < len(self._ranges):
            self._range, self._within = self._range + 1, 0
        if self.finished or not data or self._unchecked >= CHECK_BYTES:
            self.check()
        if not data and not self.finished:
            raise Altered(f"{self._path} ends at {offset} of {self._stamp.size} bytes", self._version())
        return data

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
        if self.content != self._descriptor:
            return
        found = stamp_of(os.fstat(self._descriptor))
        if found != self._stamp:
            raise Altered(f"{self._path} has the stamp {_text(found)} instead of {_text(self._stamp)}", self._version())

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
            reader.read()
        return Verified(reader.digest(), stamp)
    finally:
        reader.close()


def digest_of(descriptor: int) -> bytes:
    """The digest of a whole file that nobody changes, and that nobody is about to read again."""
    hasher = blake3()
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        hasher.update(buffer[:count])
        forget_read(descriptor, offset, count)
        offset += count
    return hasher.digest()


def forget_read(descriptor: int, offset: int, count: int) -> None:
    """Now and then gives up the pages of what was read up to *offset* + *count*: the next ones take their memory."""
    end = offset + count
    if offset // FORGET_BYTES != end // FORGET_BYTES:
        os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)


def _text(stamp: Stamp) -> str:
    return f"{stamp.size} bytes, mtime {stamp.mtime_ns}, ctime {stamp.ctime_ns}"
