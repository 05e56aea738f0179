"""Digests of an object's blocks: by them a server that has an older version sees which parts of the newer one it lacks.

The source sums its blocks (`BlockSums`); the target looks at its stale object block by block (`Rebuild`), keeps what is the
same and asks for the rest. The digest of the whole decides in the end, as for any copy. Everything here blocks.
"""

import mmap
import os
from functools import lru_cache

from blake3 import blake3

from agent.objects.reading import ObjectReader, forget_read, is_sparse
from agent.objects.staging import StagedFile
from cluster.messages import SUM_BLOCK_BYTES, SUM_BYTES
from cluster.volume.extents import seek

REBUILD_MIN_BYTES = 8 * 1024 * 1024
"""Below that, asking costs about as much as copying."""
UNLIKE_SHARE = 0.25  # of the size; beyond a quarter the round of digests costs more than it spares
BLOCKS_AT_ONCE = 64  # digests in one body of the answer


class Unlike(Exception):
    """So many blocks differ that copying the whole object costs less."""


def is_worth_a_look(old_size: int, new_size: int) -> bool:
    """Whether an object of *old_size* may spare most of a copy of *new_size* bytes."""
    return new_size >= REBUILD_MIN_BYTES and old_size >= (1 - UNLIKE_SHARE) * new_size


class BlockSums:
    """Digests of the blocks that *reader* gives, whose chunks are whole blocks."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader  # owned by the caller, who closes it

    def next_body(self) -> bytes | None:
        """The digests of the next few blocks; None at the end."""
        sums: list[bytes] = []
        while len(sums) < BLOCKS_AT_ONCE and not self._reader.finished:
            # A chunk has whole blocks, except for the last one, and so has a hole: a block never lies across two of them.
            if hole := self._reader.skip_hole():
                sums += (zero_sum(min(SUM_BLOCK_BYTES, hole - start)) for start in range(0, hole, SUM_BLOCK_BYTES))
                continue
            data = self._reader.read()
            sums += (blake3(data[start : start + SUM_BLOCK_BYTES]).digest() for start in range(0, len(data), SUM_BLOCK_BYTES))
        return b"".join(sums) or None


@lru_cache(maxsize=2)  # of whole blocks, and of the last one
def zero_sum(length: int) -> bytes:
    """The digest of a block of zeros."""
    return blake3(bytes(length)).digest()


class Rebuild:
    """Makes *staged* out of the stale object *base*: first the digests of all blocks, then the parts that are `missing`.

    Where the file system can, *staged* begins as a reflink of *base*, and what is the same is never copied.
    """

    def __init__(self, base: int, staged: StagedFile, size: int) -> None:
        self._base = base  # descriptor of the stale object, open for reading; the caller closes it
        self._staged = staged  # what is made; the caller's, too
        self._size = size  # of the new version, in bytes; the base may be longer or shorter
        self._next = 0  # where the block begins that is compared next
        self._lacking = 0  # bytes that are different so far
        self._runs: list[tuple[int, int]] = []  # where they are: (offset, length), adjacent blocks as one
        self._part: tuple[int, int] | None = None  # of the run that is being filled, what is left
        self._buffer = memoryview(mmap.mmap(-1, SUM_BLOCK_BYTES))  # one block of the base; overwritten by the next `compare`
        self._cloned = staged.clone(base, size)  # then what is the same is there already
        self._base_size = os.fstat(base).st_size
        self._data_at = 0 if is_sparse(base) else -1  # where the base has data again, as far as was looked; -1: everywhere

    def compare(self, sums: memoryview) -> None:
        """Takes the digests of the next blocks; raises `Unlike` as soon as it is not worth going on."""
        for start in range(0, len(sums), SUM_BYTES):
            length = min(SUM_BLOCK_BYTES, self._size - self._next)
            if sums[start : start + SUM_BYTES] == zero_sum(length) and self._is_hole(length):
                self._next += length  # in the new version, too
                continue
            data = self._buffer[: self._read(length)]
            if len(data) == length and blake3(data).digest() == sums[start : start + SUM_BYTES]:
                # With a reflink the block is in place already; writing it would unshare it.
                if not self._cloned:
                    self._staged.put(data, self._next)
            else:
                self._note_missing(length)
            # The stale object is read once from end to end: it must not push what programs use out of memory.
            forget_read(self._base, self._next, length)
            self._next += length

    def _is_hole(self, length: int) -> bool:
        """Whether the base has nothing in the next block."""
        if self._data_at < 0 or self._next + length > self._base_size:
            return False
        if self._data_at <= self._next:
            try:
                found = seek(self._base, self._next, os.SEEK_DATA)
            except OSError:
                return False  # what the disk has lost is missing, see `_read`
            self._data_at = self._base_size if found is None else found
        return self._next + length <= self._data_at

    def _read(self, length: int) -> int:
        try:
            return os.preadv(self._base, [self._buffer[:length]], self._next)
        except OSError:
            return 0  # what the disk has lost is missing, too

    def _note_missing(self, length: int) -> None:
        self._lacking += length
        if self._lacking > UNLIKE_SHARE * self._size:
            # Not a failure: the caller throws the staged file away and copies the whole object.
            raise Unlike
        # Adjacent blocks become one range, since the number of ranges in one request is bounded.
        if self._runs and sum(self._runs[-1]) == self._next:
            self._runs[-1] = (self._runs[-1][0], self._runs[-1][1] + length)
        else:
            self._runs.append((self._next, length))

    def missing(self) -> list[tuple[int, int]]:
        """The parts (offset, length) that are different; all blocks must have been compared."""
        return list(self._runs)

    def fill(self, data: memoryview) -> None:
        """Takes the next bytes of the missing parts, in order."""
        while data:
            # A chunk of the answer may end within a run, and may hold the end of one and the beginning of the next.
            offset, length = self._part or self._runs.pop(0)
            taken = data[:length]
            self._staged.put(taken, offset)
            data = data[len(taken) :]
            self._part = (offset + len(taken), length - len(taken)) if len(taken) < length else None

    def end(self) -> None:
        """Ends *staged* at its full size: a hole at the end has not lengthened it."""
        self._staged.set_length(self._size)
