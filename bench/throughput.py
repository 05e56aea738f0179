"""Bytes per second of one large file, and 4 KiB operations within it. The file is made by `write_synced`."""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.caches import forget_pages, ready_memory
from bench.sample import Ground, Load, Sample, megabytes_per_second, per_second

BLOCK = 1 << 20
PAGE = 4096  # of the page cache
CACHED_TWICE = 2  # a FUSE mount and the file system beneath it each keep the pages
SEED = 1  # content and offsets are the same on both sides and in every run


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(ground: Ground) -> Sample:
    """Sequential write of a new file, up to its close."""
    return write_file(ground.load, ground.directory / "written", synced=False)


def write_synced(ground: Ground) -> Sample:
    """Sequential write of a new file with an fsync at the end."""
    return write_file(ground.load, ground.directory / "large", synced=True)


def write_file(load: Load, path: Path, synced: bool) -> Sample:
    """Sequential write of a new file in blocks of 1 MiB, up to its close."""
    block = random.Random(SEED).randbytes(BLOCK)
    # Dirty pages of earlier measurements would be written within this one.
    os.sync()
    ready_memory(CACHED_TWICE * load.file_bytes)
    # O_EXCL: overwriting would measure something else.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    last = load.file_bytes // BLOCK - 1

    def blocks(chunk: Sequence[int]) -> None:
        for _ in chunk:
            os.write(descriptor, block)
        # Within the clock: close and fsync are part of what a program waits for.
        if chunk[-1] == last:
            finish()

    def finish() -> None:
        if synced:
            os.fsync(descriptor)
        os.close(descriptor)

    sample = per_second(blocks, range(last + 1), load.limit_s)
    # Outside of the clock then: the rate is of the blocks that were written.
    if sample.cut_short:
        finish()
    return megabytes_per_second(sample, BLOCK)


def read_cold(ground: Ground) -> Sample:
    path = ground.directory / "large"
    forget_pages(path)
    ready_memory(CACHED_TWICE * ground.load.file_bytes)
    return read_file(path, ground.load.limit_s)


def read_warm(ground: Ground) -> Sample:
    path = ground.directory / "large"
    # Not counted: it fills the page cache.
    read_file(path, ground.load.limit_s)
    return read_file(path, ground.load.limit_s, ground.load.passes)


def read_file(path: Path, limit_s: float, passes: int = 1) -> Sample:
    """Sequential read in blocks of 1 MiB, *passes* times from beginning to end."""
    buffer = bytearray(BLOCK)
    with opened(path, os.O_RDONLY) as descriptor:

        def blocks(chunk: Sequence[int]) -> None:
            for index in chunk:
                if os.preadv(descriptor, [buffer], index * BLOCK) != BLOCK:
                    raise OSError(f"{path} is shorter than it was written")

        count = os.fstat(descriptor).st_size // BLOCK
        return megabytes_per_second(per_second(blocks, list(range(count)) * passes, limit_s), BLOCK)


def random_read_cold(ground: Ground) -> Sample:
    path = ground.directory / "large"
    forget_pages(path)
    ready_memory(CACHED_TWICE * ground.load.file_bytes)
    return _random_read(path, ground)


def random_read_warm(ground: Ground) -> Sample:
    path = ground.directory / "large"
    read_file(path, ground.load.limit_s)
    return _random_read(path, ground)


def _random_read(path: Path, ground: Ground) -> Sample:
    with opened(path, os.O_RDONLY) as descriptor:

        def pages(chunk: Sequence[int]) -> None:
            for offset in chunk:
                os.pread(descriptor, PAGE, offset)

        return per_second(pages, _offsets(descriptor, ground.load.random_ops), ground.load.limit_s, ground.meter)


def random_overwrite(ground: Ground) -> Sample:
    """4 KiB writes at random places of a file whose pages are in the cache; not synced."""
    page = random.Random(SEED).randbytes(PAGE)
    with opened(ground.directory / "large", os.O_RDWR) as descriptor:

        def pages(chunk: Sequence[int]) -> None:
            for offset in chunk:
                os.pwrite(descriptor, page, offset)

        return per_second(pages, _offsets(descriptor, ground.load.random_ops), ground.load.limit_s, ground.meter)


def _offsets(descriptor: int, count: int) -> list[int]:
    pages = os.fstat(descriptor).st_size // PAGE
    order = random.Random(SEED)
    # With repeats, as a real random access has them.
    return [order.randrange(pages) * PAGE for _ in range(count)]


def append_synced(ground: Ground) -> Sample:
    """200 bytes appended and synced, as a log or a mailbox does."""
    record = random.Random(SEED).randbytes(200)
    with opened(ground.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:

        def records(chunk: Sequence[int]) -> None:
            for _ in chunk:
                os.write(descriptor, record)
                os.fsync(descriptor)

        return per_second(records, range(ground.load.appends), ground.load.limit_s, ground.meter)
