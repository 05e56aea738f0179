"""What only a network has: a file whose home is another server, and the time until copies are current."""

import dataclasses
import os
import time
from pathlib import Path

from bench.metadata import create_files, read_files
from bench.sample import Elsewhere, Ground, Sample, per_second
from bench.throughput import read_file, write_file


def remote_read(ground: Ground) -> Sample:
    """Sequential read on s2 of a file that is on s1 only, where it is in the page cache."""
    elsewhere = _elsewhere(ground)
    near = _without_copies(ground, "remote-large")
    write_file(ground.load, near / "large", synced=True)
    elsewhere.wait_until_current(near, ground.load.copies_s)
    return read_file(elsewhere.seen_there(near) / "large", ground.load.limit_s)


def remote_small_files(ground: Ground) -> Sample:
    """open + read 4 KiB + close on s2 of files that are on s1 only; each is read there for the first time."""
    elsewhere = _elsewhere(ground)
    near = _without_copies(ground, "remote-small")
    create_files([f"{near}/f{index:06}" for index in range(ground.load.remote_files)])
    elsewhere.wait_until_current(near, ground.load.copies_s)
    there = elsewhere.seen_there(near)
    return per_second(read_files, [f"{there}/{name}" for name in sorted(os.listdir(there))], ground.load.limit_s)


def copies_of_small_files(ground: Ground) -> Sample:
    """From the last close until every file has all its copies; the agents are at work while the files are being written."""
    directory = ground.directory / "copied-small"
    directory.mkdir()
    create_files([f"{directory}/f{index:06}" for index in range(ground.load.copied_files)])
    return _until_current(ground, directory, ground.load.copied_files)


def copies_of_large_file(ground: Ground) -> Sample:
    """From the close of one large file until it has all its copies."""
    directory = ground.directory / "copied-large"
    directory.mkdir()
    large = dataclasses.replace(ground.load, file_bytes=ground.load.copied_bytes, limit_s=ground.load.patience_s)
    write_file(large, directory / "large", synced=False)
    return _until_current(ground, directory, ground.load.copied_bytes)


def _until_current(ground: Ground, directory: Path, count: int) -> Sample:
    start = time.monotonic()
    elapsed = _elsewhere(ground).wait_until_current(directory, ground.load.copies_s) - start
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
