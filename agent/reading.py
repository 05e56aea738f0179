"""Reading whole objects with their digest, sure that they did not change meanwhile. Everything here blocks."""

import os
from typing import NamedTuple

from blake3 import blake3

from cluster.content import stamp_of
from cluster.messages import Stamp
from cluster.volume import ObjectRecord, read_record

CHUNK_BYTES = 1024 * 1024
CHECK_BYTES = 4 * CHUNK_BYTES


class Altered(Exception):
    """The object is not the one that was asked for; `version` is what its record says, 0 without one."""

    def __init__(self, what: str, version: int) -> None:
        super().__init__(what)
        self.version = version


class ObjectReader:
    """Gives the chunks of one object while its stamp stays *stamp*; raises `Altered` as soon as it is another."""

    def __init__(self, path: str, stamp: Stamp) -> None:
        self._path = path
        self._stamp = stamp
        self._offset = 0
        self._checked = 0
        self._hash = blake3()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Altered(f"{path} does not exist", 0) from None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether all bytes were read, and the object was still the same afterwards."""
        return self._offset == self._stamp.size

    def read(self) -> bytes:
        """The next chunk, empty only for an empty object."""
        data = os.pread(self._descriptor, min(CHUNK_BYTES, self._stamp.size - self._offset), self._offset)
        self._hash.update(data)
        self._offset += len(data)
        if self.finished or not data or self._offset - self._checked >= CHECK_BYTES:
            self._check()
        if not data and not self.finished:
            raise Altered(f"{self._path} ends at {self._offset} of {self._stamp.size} bytes", self._version())
        return data

    def digest(self) -> bytes:
        return self._hash.digest()

    def record(self) -> ObjectRecord | None:
        return read_record(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _check(self) -> None:
        self._checked = self._offset
        found = stamp_of(os.fstat(self._descriptor))
        if found != self._stamp:
            raise Altered(f"{self._path} has the stamp {_text(found)} instead of {_text(self._stamp)}", self._version())

    def _version(self) -> int:
        record = self.record()
        return record.version if record else 0


class Verified(NamedTuple):
    """What an object holds."""

    checksum: bytes
    stamp: Stamp


def verify_object(path: str) -> Verified:
    """Reads a whole object; raises `Altered` if it changes meanwhile."""
    stamp = stamp_of(os.stat(path, follow_symlinks=False))
    reader = ObjectReader(path, stamp)
    try:
        while not reader.finished:
            reader.read()
        return Verified(reader.digest(), stamp)
    finally:
        reader.close()


def _text(stamp: Stamp) -> str:
    return f"{stamp.size} bytes, mtime {stamp.mtime_ns}, ctime {stamp.ctime_ns}"
