"""Telling the kernel to forget. Besides the adapter and the mount's entry the only module that imports pyfuse3."""

import errno
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import pyfuse3

from cluster.errors import error_text
from cluster.messages import ROOT_INO
from fusefs.kernel.stream import Channel

log = logging.getLogger(__name__)

TRIES = 3  # a name may have left the kernel's cache for lack of memory just when it is asked for
PROBE_S = 30.0  # for how long the kernel is told that a name is absent; also how long looking it up may take
_LOOK = "import os, sys; os.path.lexists(sys.argv[1])"
_INC_EPOCH = struct.pack("<IiQ", 16, 8, 0)  # struct fuse_out_header: length, FUSE_NOTIFY_INC_EPOCH (Linux 6.16), no request


class KernelCache:
    """The kernel's cache of this mount, in which there is nothing while *channel* has no device. All functions block as long as
    they say, and run in threads.
    """

    def __init__(self, channel: Channel, invalidate_entry: Callable[[int, bytes], None] = pyfuse3.invalidate_entry) -> None:
        self._channel = channel
        self._invalidate_entry = invalidate_entry
        self.can_void_names = False
        self.drops_absent_names = False  # true once it has been seen to

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

    def drop_name(self, parent: int, name: bytes) -> bool:
        """Drops a name. False if the kernel says that it has none of that name; before that is believed of one that it was told
        to be absent, see `drops_absent_names`. Waits for everything that is under way in the directory."""
        if self._channel.device < 0:
            return False
        try:
            self._invalidate_entry(parent, name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def try_absent_names(self, mountpoint: str) -> None:
        """Finds out whether this kernel drops names that it was told to be absent: Linux 6.19 to 7.1 says ENOENT, and keeps them.

        Another process looks one up: this one would wait for itself if it were killed meanwhile.
        """
        for number in range(TRIES):
            name = f".godwit-absent-{os.getpid()}-{number}".encode()
            self._channel.put_name(ROOT_INO, name, 0, time.monotonic_ns() + int(PROBE_S * 1e9))
            command = [sys.executable, "-I", "-S", "-c", _LOOK, f"{mountpoint}/{os.fsdecode(name)}"]
            try:
                subprocess.run(command, timeout=PROBE_S, check=False, capture_output=True)
                self.drops_absent_names = self.drop_name(ROOT_INO, name)
            except (OSError, subprocess.TimeoutExpired) as error:
                log.info("whether this kernel forgets absent names is not known: %s", error_text(error))
            finally:
                self._channel.drop_name(ROOT_INO, name)
            if self.drops_absent_names:
                return
        log.info("this kernel may not forget single absent names (Linux 6.19 to 7.1 does not): all names are voided instead")

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
