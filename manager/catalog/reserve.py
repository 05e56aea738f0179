"""Room on the disk of an SQLite catalog that nothing else can take: with a full disk it keeps deleting, and the office, possible.

A file beside the database, filled with nothing. When the disk is full it is given up in slices, each for a change that takes away
from the catalog, the last ones for the office alone; when there is room again it is made whole. All candidates of the machine
share it.
"""

import errno
import logging
import os

from cluster.errors import error_text

log = logging.getLogger(__name__)

RESERVE_BYTES = 8 * 1024 * 1024  # the whole file
OFFICE_BYTES = 2 * 1024 * 1024  # of it: what is left to the office
SLICE_BYTES = 512 * 1024  # given up at once
SPARE_BYTES = 1024 * 1024
"""More than the reserve itself must be free before it is made whole: else the next change fills the disk again."""


class Reserve:
    """The reserve of the database in the file *database*. All methods block, and raise nothing."""

    def __init__(self, database: str) -> None:
        self._path = f"{database}-reserve"  # beside the database, so that it is on the same file system
        self._folder = os.path.dirname(database) or "."

    def give(self, *, to_office: bool) -> bool:
        """Gives up a slice; False if nothing is left for this purpose."""
        kept = 0 if to_office else OFFICE_BYTES
        size = self._size()
        if size <= kept:
            return False
        try:
            os.truncate(self._path, max(kept, size - SLICE_BYTES))
        except OSError as error:
            log.debug("no slice of %s: %s", self._path, error_text(error, with_file=False))
            return False
        return True

    def take(self) -> bool:
        """Makes it whole; False if there is no room for it."""
        missing = RESERVE_BYTES - self._size()
        if missing <= 0:
            return True
        try:
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < missing + SPARE_BYTES:
                return False
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Blocks, not a hole: a sparse file would reserve nothing.
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.debug("no reserve in %s: %s", self._path, error_text(error, with_file=False))
            return False
        return True

    def is_disk_full(self) -> bool:
        """Whether nothing at all can be written beside the database: errors of SQLite do not always say so."""
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < 2 * disk.f_frsize or disk.f_favail == 0 < disk.f_files

    def is_disk_read_only(self) -> bool:
        """Whether the file system takes no changes, as ext4 after an error: SQLite calls that an error of the disk."""
        try:
            os.utime(self._folder)
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0
