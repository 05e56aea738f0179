"""What only a network has: a file whose home is another server, and the time until copies are current."""

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.caches import forget_pages_of, ready_memory
from bench.metadata import create_files, read_files
from bench.sample import MB, Elsewhere, Ground, Sample, per_second
from bench.throughput import BLOCK, CACHED_TWICE, opened, read_file, write_file


def remote_read(ground: Ground) -> Sample:
    """Sequential read on s2 of a file that is on s1 only, and in no page cache."""
    elsewhere = _elsewhere(ground)
    near = _without_copies(ground, "remote-large")
    write_file(ground.load, near / "large", synced=True)
    elsewhere.wait_until_current(near, ground.load.copies_s)
    path = elsewhere.path_there(near) / "large"
    # Objects, too: the source's page cache would spare its disk.
    for cached in (*elsewhere.objects_of(near / "large"), path):
        forget_pages_of(cached)
    ready_memory(CACHED_TWICE * ground.load.file_bytes)
    return read_file(path, ground.load.limit_s)


def remote_small_files(ground: Ground) -> Sample:
    """open + read 4 KiB + close on s2 of files that are on s1 only; each is read there for the first time."""
    elsewhere = _elsewhere(ground)
    # A copy on s2 would be read there instead.
    near = _without_copies(ground, "remote-small")
    create_files([f"{near}/f{index:06}" for index in range(ground.load.remote_files)])
    elsewhere.wait_until_current(near, ground.load.copies_s)
    there = elsewhere.path_there(near)
    return per_second(read_files, [f"{there}/{name}" for name in sorted(os.listdir(there))], ground.load.limit_s, ground.meter)


def copies_of_small_files(ground: Ground) -> Sample:
    """From the last close until every file has all its copies; the agents are at work while the files are being written."""
    directory = ground.directory / "copied-small"
    directory.mkdir()
    create_files([f"{directory}/f{index:06}" for index in range(ground.load.copied_files)])
    ground.meter.begin()
    sample = _until_current(ground, directory, ground.load.copied_files, ground.meter.end)
    # A question for each file, which made sure of it.
    ground.meter.skip()
    return sample


def copies_of_large_file(ground: Ground) -> Sample:
    """From the close of one large file until it has all its copies."""
    directory = ground.directory / "copied-large"
    directory.mkdir()
    large = dataclasses.replace(ground.load, file_bytes=ground.load.copied_bytes, limit_s=ground.load.patience_s)
    write_file(large, directory / "large", synced=False)
    return _until_current(ground, directory, ground.load.copied_bytes)


def bulk_copy(ground: Ground) -> Sample:
    """A large file that is durable on s1 gets a copy elsewhere, durable and checked; without a network: cp and sync beside it.

    The file is cut to nothing in the end: that frees the disks at once.
    """
    directory = ground.directory / "bulk"
    directory.mkdir()
    # Written without a copy, so that the copy begins at a moment of ours.
    if ground.elsewhere is not None:
        ground.elsewhere.set_copies(directory, 1)
    source = directory / "large"
    _write_whole(ground, source, ground.load.bulk_bytes)
    if ground.elsewhere is None:
        elapsed = _copied_and_synced(source, directory / "copy")
    else:
        ground.elsewhere.wait_until_current(directory, ground.load.copies_s)
        # The policy is what sets the agents to work.
        start = time.monotonic()
        ground.elsewhere.set_copies(directory, 2)
        elapsed = ground.elsewhere.wait_until_current(directory, ground.load.copies_s) - start
    for path in directory.iterdir():
        # Deleting it would only move its blocks to the trash.
        os.truncate(path, 0)
    return Sample(ground.load.bulk_bytes / MB / elapsed, ground.load.bulk_bytes, elapsed)


def changed_part(ground: Ground) -> Sample:
    """What share of a large file that has a copy is sent when 1 MiB in it was written, in per cent.

    The file is cut to nothing in the end: that frees the disks at once.
    """
    elsewhere = _elsewhere(ground)
    directory = ground.directory / "changed"
    directory.mkdir()
    elsewhere.set_copies(directory, 2)
    path, size = directory / "large", ground.load.bulk_bytes
    _write_whole(ground, path, size)
    elsewhere.wait_until_current(directory, ground.load.copies_s)
    # All that the server sends, so with requests, replies and heartbeats.
    before, start = elsewhere.sent_bytes(), time.monotonic()
    with opened(path, os.O_WRONLY) as descriptor:
        # Not at a boundary of blocks.
        os.pwrite(descriptor, bytes(BLOCK), size // 3)
    elapsed = elsewhere.wait_until_current(directory, ground.load.copies_s) - start
    sent = elsewhere.sent_bytes() - before
    os.truncate(path, 0)
    return Sample(100 * sent / size, sent, elapsed)


def _write_whole(ground: Ground, path: Path, size: int) -> None:
    load = dataclasses.replace(ground.load, file_bytes=size, limit_s=ground.load.patience_s)
    write_file(load, path, synced=True)


def _copied_and_synced(source: Path, target: Path) -> float:
    start = time.monotonic()
    # A reflink would copy nothing.
    subprocess.run(("cp", "--reflink=never", "--", source, target), check=True)
    subprocess.run(("sync", "--", target), check=True)
    return time.monotonic() - start


def _until_current(ground: Ground, directory: Path, count: int, at_rest: Callable[[], object] = bool) -> Sample:
    start = time.monotonic()
    elapsed = _elsewhere(ground).wait_until_current(directory, ground.load.copies_s, at_rest) - start
    return Sample(elapsed, count, elapsed)


def _without_copies(ground: Ground, name: str) -> Path:
    directory = ground.directory / name
    directory.mkdir()
    _elsewhere(ground).set_copies(directory, 1)
    return directory


def _elsewhere(ground: Ground) -> Elsewhere:
    if ground.elsewhere is None:
        raise ValueError("this measurement needs a network")
    return ground.elsewhere
