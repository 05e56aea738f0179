"""Telling the kernel to forget. Besides the adapter and the mount's entry the only module that imports pyfuse3."""

import errno
import logging
import os
import struct

import pyfuse3

from fusefs.kernel.stream import Channel

log = logging.getLogger(__name__)

_INC_EPOCH = struct.pack("<IiQ", 16, 8, 0)  # struct fuse_out_header: length, FUSE_NOTIFY_INC_EPOCH (Linux 6.16), no request


class KernelCache:
    """The kernel's cache of this mount, in which there is nothing while *channel* has no device. All functions block as long as
    they say, and run in threads.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.can_void_names = False

    def mounted(self) -> None:
        """To be called when the channel is mounted."""
        self.can_void_names = self.void_names()

    def drop_inode(self, ino: int) -> bool:
        """Drops attributes and pages; dirty mapped pages are written first. False if the kernel does not know the inode.

        Waits for reads and writes of the inode that are under way.
        """
        if self._channel.device < 0:
            return False
        try:
            pyfuse3.invalidate_inode(ino)
        except FileNotFoundError:
            return False  # also if it is being looked up: the caller waits for that under the directory's lock
        return True

    def drop_name(self, parent: int, name: bytes) -> None:
        """Drops a name, if the kernel has it. Waits for everything that is under way in the directory."""
        if self._channel.device < 0:
            return
        try:
            pyfuse3.invalidate_entry(parent, name)
        except (FileNotFoundError, NotADirectoryError):
            return

    def void_names(self) -> bool:
        """Voids all names of the mount at once and waits for nothing; names that are being looked up at the moment are
        covered. False if the kernel cannot do it."""
        if self._channel.device < 0:
            return True  # there is nothing to forget
        try:
            os.write(self._channel.device, _INC_EPOCH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True
