"""Operations per second on many small files in one directory. `create` makes them; the others use what it made.

Names are relative to the directory, as in `tar`, `git` or `rm -r`: a measurement changes into it, which it may do since it
runs in a process of its own. With absolute names a mount that caches nothing would be measured by the depth of its path.
"""

import os
import random
from collections.abc import Sequence

from bench.caches import forget_names
from bench.sample import Ground, Sample, per_second

CONTENT = random.Random(2).randbytes(4096)  # incompressible, and the same in every run


def create(ground: Ground) -> Sample:
    """create + write 4 KiB + close."""
    (ground.directory / "files").mkdir()
    work_in(ground, "files")
    return per_second(create_files, [f"f{index:06}" for index in range(ground.load.files)], ground.load.limit_s, ground.meter)


def create_files(paths: Sequence[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(descriptor, CONTENT)
        finally:
            os.close(descriptor)


def stat_first(ground: Ground) -> Sample:
    """stat of each file, with neither name nor attributes in any cache."""
    paths = file_names(ground)
    forget_names()
    return per_second(_stat, paths, ground.load.limit_s, ground.meter)


def stat_second(ground: Ground) -> Sample:
    paths = file_names(ground)
    # Not counted: it fills the caches.
    per_second(_stat, paths, ground.load.limit_s)
    return per_second(_stat, paths * ground.load.passes, ground.load.limit_s, ground.meter)


def _stat(paths: Sequence[str]) -> None:
    for path in paths:
        os.stat(path)


def open_read_close(ground: Ground) -> Sample:
    """open + read 4 KiB + close of files that were read just before."""
    paths = file_names(ground)
    per_second(read_files, paths, ground.load.limit_s)
    return per_second(read_files, paths, ground.load.limit_s, ground.meter)


def read_files(paths: Sequence[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # More than the file has: one read also finds its end.
            if len(os.read(descriptor, 8192)) != len(CONTENT):
                raise OSError(f"{path} is shorter than it was written")
        finally:
            os.close(descriptor)


def list_cold(ground: Ground) -> Sample:
    """readdir and stat of each entry, as `ls -l` does; files per second."""
    forget_names()
    return _list(ground)


def list_warm(ground: Ground) -> Sample:
    _list(ground)
    return _list(ground)


def _list(ground: Ground) -> Sample:
    def listed(directories: Sequence[str]) -> None:
        for directory in directories:
            for name in os.listdir(directory):
                os.lstat(name)

    work_in(ground, "files")
    # One listing in all; the rate is made of its files below.
    once = per_second(listed, ["."], ground.load.limit_s, ground.meter)
    count = len(os.listdir("."))
    return Sample(count / once.seconds, count, once.seconds)


def rename(ground: Ground) -> Sample:
    """Each file gets a new name in its directory."""

    def renamed(paths: Sequence[str]) -> None:
        for path in paths:
            os.rename(path, f"{path}.new")

    return per_second(renamed, file_names(ground), ground.load.limit_s, ground.meter)


def unlink(ground: Ground) -> Sample:
    """unlink of each file; its name and attributes are in the cache."""

    def unlinked(paths: Sequence[str]) -> None:
        for path in paths:
            os.unlink(path)

    paths = file_names(ground)
    per_second(_stat, paths, ground.load.limit_s)
    return per_second(unlinked, paths, ground.load.limit_s, ground.meter)


def make_directories(ground: Ground) -> Sample:
    (ground.directory / "directories").mkdir()
    work_in(ground, "directories")

    def made(paths: Sequence[str]) -> None:
        for path in paths:
            os.mkdir(path)

    return per_second(made, [f"d{index:06}" for index in range(ground.load.directories)], ground.load.limit_s, ground.meter)


def work_in(ground: Ground, name: str) -> None:
    """Changes into a folder of the ground."""
    os.chdir(ground.directory / name)


def file_names(ground: Ground) -> list[str]:
    """Changes into the directory of the files and gives their names in the order in which they were made."""
    work_in(ground, "files")
    # By name, which is the order of their creation, as most programs go through a directory.
    return sorted(os.listdir("."))
