"""Seconds that ordinary programs take on a tree of small files, which comes out of a tar."""

import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.sample import Ground, Sample

FILES_PER_DIRECTORY = 20
MEAN_BYTES = 4096  # exponentially distributed: many small files, few large ones
# Text that compresses as text does: git deflates what it adds.
WORDS = [bytes(random.Random(4).choices(b"abcdefghijklmnopqrstuvwxyz", k=length)) for length in range(2, 12) for _ in range(20)]
# gc.auto=0: a collection in the background would be measured by what comes next.
GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0", "-c", "init.defaultBranch=main")
# No configuration of whoever runs this.
ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "LC_ALL": "C"}


def make_tar(path: Path, files: int) -> None:
    """Writes a tar of *files* text files, on average 4 KiB, 20 to a directory; the same bytes at every call."""
    order = random.Random(3)
    with tarfile.open(path, "w") as tar:
        for index in range(files):
            folder = f"tree/d{index // FILES_PER_DIRECTORY:03}"
            if index % FILES_PER_DIRECTORY == 0:
                directory = tarfile.TarInfo(folder)
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(directory)
            length = min(65536, int(order.expovariate(1 / MEAN_BYTES)) + 1)
            member = tarfile.TarInfo(f"{folder}/f{index:05}.txt")
            member.size, member.mtime, member.mode = length, 1_700_000_000, 0o644
            tar.addfile(member, io.BytesIO(_text(order, length)))


def _text(order: random.Random, length: int) -> bytes:
    words = b" ".join(order.choices(WORDS, k=length // 5 + 1))
    return (words * (length // len(words) + 1))[:length]


def untar(ground: Ground) -> Sample:
    return _time(ground, ground.directory, ("tar", "xf", str(ground.tar)))


def git_commit(ground: Ground) -> Sample:
    """git init + add + commit of the tree."""
    commands = ((*GIT, "init", "-q"), (*GIT, "add", "."), (*GIT, "commit", "-q", "-m", "all"))
    return _time(ground, ground.directory / "tree", *commands)


def git_status(ground: Ground) -> Sample:
    """The second of two git status: the index is fresh and names are in the cache."""
    tree = ground.directory / "tree"
    # Not counted: the first one refreshes the index.
    _run((*GIT, "status", "--porcelain"), ground, tree)
    return _time(ground, tree, (*GIT, "status", "--porcelain"))


def remove(ground: Ground) -> Sample:
    """rm -rf of the tree with its .git, whose names are in the cache."""
    # Not counted, and finds nothing: it has names and attributes in the cache.
    _run(("find", "tree", "-size", "+1G"), ground, ground.directory)
    return _time(ground, ground.directory, ("rm", "-rf", "tree"))


def _time(ground: Ground, directory: Path, *commands: Sequence[str]) -> Sample:
    """The seconds that programs take, one after the other; an operation is a file of the tree."""
    with ground.meter.counting():
        start = time.monotonic()
        for command in commands:
            _run(command, ground, directory)
        elapsed = time.monotonic() - start
    return Sample(elapsed, ground.load.tree_files, elapsed)


def _run(command: Sequence[str], ground: Ground, directory: Path) -> None:
    done = subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=ground.load.program_s
    )
    if done.returncode != 0:
        first = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise OSError(f"{' '.join(command[-3:])} ended with {done.returncode}: {' '.join(first)}")
