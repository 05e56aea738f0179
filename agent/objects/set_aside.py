"""Moves objects out of `objects/` without removing them: into the trash, or into `unknown/`.

There a file is called `<ino>.<when it came, in wall-clock nanoseconds>`.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.volumes.volume import LocalVolume
from cluster.clock import file_time_ns
from cluster.durable import sync_directory
from cluster.volume.fence import despite_fence

INO_MAX = 2**63 - 1  # inode numbers are signed 64-bit integers in the catalog


class Parts(NamedTuple):
    """What a name says."""

    ino: int
    when_ns: int  # wall clock, when it was moved; a little later if the name was taken


def parts_of(name: str) -> Parts | None:
    """What the name of a file that was set aside says; None for what Godwit did not put there."""
    ino, dot, when = name.partition(".")
    # `isdigit` alone accepts digits of other scripts, and int() of a name of kilobytes takes long: both are refused before.
    if dot and all(part.isascii() and part.isdigit() and len(part) <= len(str(INO_MAX)) for part in (ino, when)):
        return Parts(int(ino), int(when))
    return None


def set_aside(volume: LocalVolume, inodes: Sequence[int], folder: Path) -> list[bool | Exception]:
    """Moves objects into *folder*, durably; False for those that were not there. Blocks."""
    results: list[bool | Exception] = []
    directories = set()
    for ino in inodes:
        source = volume.layout.object_path(ino)
        try:
            # rename of an immutable file is EPERM: the flag is lifted for it, since an object that is set aside may be fenced.
            despite_fence(source, partial(os.rename, source, _free_name(folder, ino)))
        except FileNotFoundError:
            results.append(False)
        except OSError as error:
            results.append(error)
        else:
            results.append(True)
            directories.add(os.path.dirname(source))
    # The new name first: a crash between the two leaves a file under both names or the new one, never under none.
    if directories:
        sync_directory(folder)
    for directory in directories:
        sync_directory(directory)
    return results


def _free_name(folder: Path, ino: int) -> str:
    when = file_time_ns()
    # rename would replace what is there. Two moves of one inode in one tick of the clock would meet here.
    while os.path.lexists(name := f"{folder}/{ino}.{when}"):
        when += 1
    return name
