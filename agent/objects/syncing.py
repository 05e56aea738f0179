"""Makes many small files durable at once: by one sync of their file system, or each by itself. Everything here blocks.

One by one, each sync of a file waits for a commit of the journal and a flush of the disk's cache, and few of them share one.
syncfs(2) does for all files what fsync does for one (on ext4, xfs and btrfs: all dirty pages are written and waited for, then
the journal or the tree is committed), so a batch costs one commit. But it writes whatever is dirty on that file system: while
an application streams gigabytes to it, a small copy would wait for all of these.

That one file was synced says nothing of others: btrfs has a log for each, and ext4 commits no transaction that began later.
"""

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cluster.volume.extents import start_writeback

FEW = 4  # files that are synced one by one in any case
DIRTY_MAX_BYTES = 64 * 1024 * 1024
"""More than that in the page cache of this machine waits to be written: not all of it is to be waited for."""
TELLS_ERRORS = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (5, 8)
"""Whether syncfs fails if a page of some file could not be written: before Linux 5.8 it says nothing of that."""

_DIRTY = re.compile(rb"^(?:Dirty|Writeback): +(\d+) kB$", re.MULTILINE)
_libc = ctypes.CDLL(None, use_errno=True)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)


def sync_files(
    descriptors: Sequence[int], sync: Callable[[int], None] = os.fsync, *, dirty_max_bytes: int = DIRTY_MAX_BYTES
) -> list[OSError | None]:
    """Makes files of one file system durable; for each None, or why not.

    That is sure for what was written after they were opened. *sync* is for one by itself: `os.fsync`, or `os.fdatasync` where
    attributes need not be durable. They go together if no more than *dirty_max_bytes* wait to be written anyway.
    """
    if len(descriptors) > FEW and TELLS_ERRORS and dirty_bytes() <= dirty_max_bytes and _sync_file_system(descriptors[0]):
        return [None] * len(descriptors)
    # The disk begins with all of them before the first is waited for: so their syncs share few commits.
    for descriptor in descriptors:
        with suppress(OSError):
            start_writeback(descriptor)
    return [_error_of(sync, descriptor) for descriptor in descriptors]


def dirty_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """How much of the page cache waits to be written, or is being written, to whatever disk."""
    return sum(int(kib) for kib in _DIRTY.findall(meminfo.read_bytes())) * 1024


def _sync_file_system(descriptor: int) -> bool:
    """Whether all that was written to the descriptor's file system is on the disk now.

    It fails for any file that has failed since the descriptor was opened; whose that was, only a sync of each can say.
    """
    return bool(_syncfs(descriptor) == 0)


def _error_of(sync: Callable[[int], None], descriptor: int) -> OSError | None:
    try:
        sync(descriptor)
    except OSError as error:
        return error
    return None
