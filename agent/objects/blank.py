"""Blank objects: empty ones without a record.

A mount makes some in advance for new files (`fusefs.content.prepared`). What one that was killed has left of them never was a
file, and holds nothing.
"""

import os
from collections.abc import Iterable, Sequence

from agent.volumes.volume import LocalVolume
from cluster.volume.layout import has_record


def blank_among(volume: LocalVolume, inodes: Iterable[int]) -> set[int]:
    """Those of *inodes* whose objects are blank. Blocks; raises `OSError` for one that cannot be looked at."""
    return {ino for ino in inodes if _is_blank(volume, ino)}


def remove_blank(volume: LocalVolume, inodes: Sequence[int]) -> int:
    """Removes those objects that are blank, and returns how many those are. Blocks; raises `OSError`."""
    blank = blank_among(volume, inodes)
    volume.layout.remove_objects(sorted(blank))
    return len(blank)


def _is_blank(volume: LocalVolume, ino: int) -> bool:
    try:
        descriptor = volume.layout.open_object(ino, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(descriptor).st_size == 0 and not has_record(descriptor)
    finally:
        os.close(descriptor)
