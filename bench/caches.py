"""Puts the machine's memory into a known state before a measurement. Caches are shared by both sides.

A virtual machine with free page reporting gives idle memory back to its host; the first touch of each page then costs some
9 µs, and a native write that fills the page cache shows 0.4 GB/s instead of 5. `ready_memory` takes that out.
"""

import mmap
import os
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")  # see Documentation/admin-guide/sysctl/vm.rst of Linux
PAGES = b"1"  # page cache
PAGES_AND_NAMES = b"3"  # and dentries and inodes


def can_drop() -> bool:
    """Whether this process may drop the machine's caches (root may); without it, cold figures are not cold."""
    return os.access(DROP, os.W_OK)


def forget_pages(path: Path) -> None:
    """File content is read from the disk again, that of *path* even where the machine's caches cannot be dropped."""
    # By fadvise first, which any user may: dropping caches is root's alone.
    forget_pages_of(path)
    _drop(PAGES)


def forget_pages_of(path: Path) -> None:
    """The content of one file is read from the disk again.

    A virtual machine's host is busy for seconds with the memory that all of the machine's caches had, and each page that is
    used meanwhile costs more: that would be measured by what lasts longer than a second.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # DONTNEED and drop_caches both leave dirty pages.
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def forget_names() -> None:
    """Names and attributes are looked up again, too."""
    # Dirty inodes are not dropped.
    os.sync()
    _drop(PAGES_AND_NAMES)


def ready_memory(size: int) -> None:
    """Has the kernel hold *size* bytes of free memory that was touched just now, for the page cache of what comes next."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1  # a write: reading would map the one page of zeros everywhere


def _drop(what: bytes) -> None:
    try:
        descriptor = os.open(DROP, os.O_WRONLY)
    except PermissionError:
        return
    try:
        os.write(descriptor, what)
    finally:
        os.close(descriptor)
