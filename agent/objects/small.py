"""Reads small objects for copies, many in one step. Blocks.

They are on the disk before they are read, if that takes them: see `ObjectReader`, which does the same for one that is not small.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from agent.objects.reading import Altered, Unreadable, altered_text
from agent.objects.syncing import sync_files
from cluster.messages import PullObject, Stamp
from cluster.volume.content import stamp_of
from cluster.volume.layout import ObjectRecord, VolumeLayout, read_record
from cluster.volume.regular import open_regular


class Read(NamedTuple):
    """The content of a small object, its digest, and what its record says."""

    content: bytes
    checksum: bytes
    record: ObjectRecord | None


def read_small(layout: VolumeLayout, pulls: Sequence[PullObject]) -> list[Read | Altered | Unreadable]:
    """The objects of these requests, all of one volume, or why one cannot be sent."""
    results: list[Read | Altered | Unreadable] = []
    opened: dict[int, int] = {}  # descriptors by the request's place
    try:
        for at, pull in enumerate(pulls):
            # Replaced below, but where the object cannot be opened.
            results.append(Unreadable())
            try:
                opened[at] = open_regular(layout.object_path(pull.ino), os.O_RDONLY)
            except OSError as error:
                results[at] = _not_opened(layout.object_path(pull.ino), error)
        for (at, descriptor), failure in zip(opened.items(), sync_files([*opened.values()], os.fdatasync), strict=True):
            pull = pulls[at]
            # A disk that fails or has become read-only can be read all the same, and is to be emptied. But where somebody may
            # have pages mapped, only writeback has the next store change the stamp.
            if failure is not None and pull.is_written:
                results[at] = Unreadable(failure.errno, failure.strerror)
            else:
                results[at] = _read(layout.object_path(pull.ino), descriptor, pull.stamp)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return results


def _not_opened(path: str, error: OSError) -> Altered | Unreadable:
    if isinstance(error, FileNotFoundError):
        return Altered(f"{path} does not exist", 0)
    return Unreadable(error.errno, error.strerror)


def _read(path: str, descriptor: int, stamp: Stamp) -> Read | Altered | Unreadable:
    try:
        content = os.pread(descriptor, stamp.size, 0)
    except OSError as error:
        return Unreadable(error.errno, error.strerror)
    # After it was read, and only then: what is of another version has another stamp for good, and is not sent.
    found = stamp_of(os.fstat(descriptor))
    record = read_record(descriptor)
    if found != stamp or len(content) != stamp.size:
        return Altered(altered_text(path, found, stamp), record.version if record else 0)
    return Read(content, blake3(content).digest(), record)
