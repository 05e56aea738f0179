"""The message stream between the kernel and libfuse, with what Godwit adds to it: see docs/passthrough.md.

`load` must run before pyfuse3 is imported for the first time (importing any module of `fusefs` does it). Where the extension was
not built, or pyfuse3 uses a libfuse that it does not know, nothing is added: the mount works through ordinary reads and writes,
and its locks are not known to others.
"""

import errno
import fcntl
import importlib
import logging
import os
import select
import struct
import sys
from collections.abc import Callable, Iterable
from enum import IntFlag
from types import ModuleType
from typing import NamedTuple

import trio

from cluster.errors import error_text
from cluster.messages import Answerer, DataPath

log = logging.getLogger(__name__)

_BACKING_OPEN = 0x4010E501  # _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iIQ")  # descriptor, flags, padding
_BACKING_ID = struct.Struct("=I")
_OUT_HEADER = struct.Struct("<IiQ")  # length, negative errno, unique


class InitFlag(IntFlag):
    """Flags of FUSE_INIT that libfuse does not ask for."""

    POSIX_LOCKS = 1 << 1  # record locks are asked for here
    DONT_MASK = 1 << 6  # the umask comes with the request, and is not applied before
    FLOCK_LOCKS = 1 << 10  # locks of flock(2), too
    HANDLE_KILLPRIV_V2 = 1 << 28  # set-id bits are taken away here (`fusefs.content.privileges`)
    DIRECT_IO_ALLOW_MMAP = 1 << 36  # what goes around the page cache can be mapped all the same
    PASSTHROUGH = 1 << 37  # the kernel reads and writes objects by itself


class OpenFlag(IntFlag):
    """Flags of the reply to an open."""

    DIRECT_IO = 1 << 0  # each read and write is asked for
    KEEP_CACHE = 1 << 1  # pages, or a listing, from earlier opens are good
    CACHE_DIR = 1 << 3  # the listing may be kept
    PASSTHROUGH = 1 << 7  # by the backing id in the reply


class Whose(NamedTuple):
    """Who waits for the answer to a request. `pid`: its thread, 0 for one of another PID namespace."""

    opcode: int
    pid: int
    ino: int


class Bounds(NamedTuple):
    """How many inodes may be delegated, and how many attributes and names be kept by the extension."""

    delegated: int
    nodes: int
    names: int


NO_BOUNDS = Bounds(0, 0, 0)


class Delegation(NamedTuple):
    """How the extension answers the opens of an inode to read, until *until_ns* of CLOCK_MONOTONIC.

    Passed through by *backing_id*, or with its pages from earlier opens; and as long as the object behind *descriptor* (unless
    that is -1) has this size and change time.
    """

    descriptor: int
    flags: OpenFlag
    backing_id: int
    size: int
    ctime_ns: int
    until_ns: int


def load() -> ModuleType | None:
    """The extension, with its symbols visible to what is loaded later; None if it was not built."""
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | os.RTLD_GLOBAL)
    try:
        return importlib.import_module("fusefs.kernel._channel")
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(before)


_extension = load()


def _find_device() -> int:
    """The descriptor of /dev/fuse that pyfuse3 uses: it does not tell."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == "/dev/fuse":
                return int(descriptor)
        except FileNotFoundError:
            continue  # the listing's own
    raise RuntimeError("nothing is mounted by this process")


_OF_VOLUME = {
    errno.ELOOP: "the volume is on a stacked file system",
    errno.EOPNOTSUPP: "the volume's file system cannot do it",
    errno.EINVAL: "the volume's file system cannot do it",
}


class Channel:
    """One mount's stream. `prepare` comes before pyfuse3 mounts, `mounted` after it, `begun` when the kernel's FUSE_INIT has been
    answered, `unmounting` before it unmounts.

    `device`: the descriptor of /dev/fuse while something is mounted, else -1.
    """

    def __init__(self, extension: ModuleType | None = _extension, find_device: Callable[[], int] = _find_device) -> None:
        self._extension = extension  # None: it was not built
        self._find_device = find_device  # what `device` is once something is mounted
        self.device = -1
        self.begun = trio.Event()  # FUSE_INIT has been answered
        self._why_unchanged = ""  # why the stream is as libfuse makes it
        self._why_not = "nothing is mounted"
        self._volumes: dict[str, str] = {}  # why the files of each are not passed through, as far as that has been tried
        self._refused: dict[int, str] = {}  # the same by the file system's device number
        self._errors: set[int | None] = set()  # refusals that were logged: each is said once
        self._granted = InitFlag(0)  # 0 until it is known
        self._wanted = InitFlag(0)

    def prepare(
        self,
        wanted: InitFlag,
        taken: Iterable[int],
        on_request: Callable[[bytes], bool],
        on_dropped: Callable[[bool, int], None],
        bounds: Bounds = NO_BOUNDS,
    ) -> None:
        """*wanted*: what the kernel is asked for; *taken*: the opcodes of requests that go to *on_request* as whole messages. It
        returns False for those that libfuse is to get all the same. *on_dropped* is told of what was opened by an abandoned
        request: whether it is a directory, and its handle. *bounds*: of what is answered without asking anybody."""
        self._wanted = wanted
        if self._extension is not None:
            opcodes = sum(1 << opcode for opcode in taken)
            self._extension.prepare(on_request, on_dropped, int(wanted), opcodes, tuple(bounds))

    def mounted(self) -> None:
        """To be called when pyfuse3 has mounted."""
        self.device = self._find_device()
        self._why_not = ""
        if not self._wanted & InitFlag.PASSTHROUGH:
            self._cannot_pass("it is turned off in the configuration")
        if self._extension is None:
            self._is_unchanged("the extension fusefs.kernel._channel was not built")
        elif self._extension.state()[0] < 0:
            self._is_unchanged("this libfuse is not known to the extension")

    def _is_unchanged(self, why: str) -> None:
        """Says it once."""
        if not self._why_unchanged:
            self._why_unchanged = why
            self._cannot_pass(why)
            log.warning("locks of this mount's files hold on this server only: %s", why)

    def _cannot_pass(self, why_not: str) -> None:
        """Says it once: the first reason is the one that counts."""
        if not self._why_not:
            self._why_not = why_not
            log.warning("files go through the mount process: %s", why_not)

    @property
    def why_not(self) -> str:
        """Why files are not passed through, or those of some volumes; empty if they are, or while nobody knows."""
        return self._why_not or "; ".join(f"{volume}: {why}" for volume, why in self._volumes.items() if why)

    @property
    def files(self) -> str:
        """`DataPath.PASSED`, `DataPath.PARTLY_PASSED` or `DataPath.FALLBACK`; empty while it has not been tried with any
        volume.
        """
        reasons = self._volumes.values()
        if self._why_not or (reasons and all(reasons)):
            return DataPath.FALLBACK
        if not reasons:
            return ""
        return DataPath.PARTLY_PASSED if any(reasons) else DataPath.PASSED

    @property
    def answerer(self) -> str:
        """`Answerer.EXTENSION` or `Answerer.PYTHON`; empty until FUSE_INIT has been answered."""
        # Asked for first: that is where a pyfuse3 that the extension does not know is found out.
        known = self.begun.is_set() and bool(self.granted)
        if self._why_unchanged:
            return Answerer.PYTHON
        return Answerer.EXTENSION if known else ""

    @property
    def problems(self) -> list[str]:
        """Faults for the administrator of this server."""
        return [f"locks of its mount's files hold on this server only: {self._why_unchanged}"] if self._why_unchanged else []

    def unmounting(self) -> bool:
        """To be called before pyfuse3 unmounts; whether the kernel has the file system still."""
        device, self.device = self.device, -1
        if device < 0:
            return False
        poll = select.poll()
        poll.register(device, 0)  # POLLERR is always told
        return not poll.poll(0)

    @property
    def granted(self) -> InitFlag:
        """What the kernel grants. To be asked while a request is handled: FUSE_INIT, which comes before, has been seen by then,
        if it is ever seen."""
        if not self._granted and self.device >= 0 and self._extension is not None:
            _, offered, granted = self._extension.state()
            self._granted = InitFlag(granted)
            if not offered:
                self._is_unchanged("this pyfuse3 is not known to the extension")
            elif InitFlag.PASSTHROUGH in self._wanted and InitFlag.PASSTHROUGH not in self._granted:
                self._cannot_pass("this kernel cannot do it (Linux 6.9 and later can)")
        return self._granted

    # -------------------------------------------------------------------------------------------------- replies

    def open_backing(self, descriptor: int, volume: int) -> int:
        """A backing id for the file behind *descriptor*, on the file system with the device number *volume*.

        0 if there can be none, which is said once.
        """
        device = self.device
        if self._why_not or volume in self._refused or InitFlag.PASSTHROUGH not in self.granted or device < 0:
            return 0
        request = bytearray(_BACKING_MAP.pack(descriptor, 0, 0))
        try:
            backing_id: int = fcntl.ioctl(device, _BACKING_OPEN, request, True)
        except OSError as error:
            self._note_refusal(volume, error)
            return 0
        return backing_id

    def _note_refusal(self, volume: int, error: OSError) -> None:
        if error.errno == errno.EPERM:
            self._cannot_pass("this process may not do it (it needs CAP_SYS_ADMIN)")
        elif error.errno in _OF_VOLUME:
            self.refuse(volume, _OF_VOLUME[error.errno])
        elif error.errno not in self._errors:
            self._errors.add(error.errno)
            log.warning("some files go through the mount process: %s", error)

    def refuse(self, volume: int, why: str) -> None:
        """Files of this file system are not to be passed through."""
        if volume not in self._refused:
            self._refused[volume] = why
            log.warning("files of one volume go through the mount process: %s", why)

    def close_backing(self, backing_id: int) -> None:
        """Gives an id back; files that are open by it stay so. Raises nothing: nobody could do anything about it at a close."""
        device = self.device
        if device < 0:
            return
        try:
            fcntl.ioctl(device, _BACKING_CLOSE, _BACKING_ID.pack(backing_id))
        except OSError as error:
            log.warning("the kernel keeps backing id %d: %s", backing_id, error_text(error))

    def tried(self, root: str, volume: int) -> None:
        """What became of opening a file of this volume is known."""
        self._volumes[root] = self._refused.get(volume, "")

    def will_open(self, handle: int, flags: OpenFlag, backing_id: int = 0, *, directory: bool = False) -> None:
        """What to add to the reply that returns *handle*, which follows at once."""
        if self._extension is not None and flags:
            self._extension.will_open(directory, handle, int(flags), backing_id)

    # --------------------------------------------------------------------------------------------- delegated opens

    def delegate(self, ino: int, answer: Delegation) -> bool:
        """Has opens of an inode to read answered, or answered otherwise, by the extension; False if it cannot be."""
        if self._extension is None:
            return False
        return bool(self._extension.delegate(ino, *answer))

    def suspend(self, ino: int) -> None:
        """The opens of a delegated inode come here until it is delegated anew; closes of what is open do not."""
        if self._extension is not None:
            self._extension.suspend(ino)

    def take_back(self, ino: int) -> list[int]:
        """Ends a delegation; the handles that the kernel has by it, which are released here from now on."""
        return [] if self._extension is None else list(self._extension.take_back(ino))

    def delegated_inode(self, handle: int) -> int:
        """What a handle is of that `take_back` would return; 0 for another."""
        return 0 if self._extension is None else int(self._extension.delegated_inode(handle))

    def used_inodes(self) -> list[int]:
        """The delegated inodes that are open, or were since this was asked last."""
        return [] if self._extension is None else list(self._extension.used_inodes())

    # ------------------------------------------------------------------------------------------ names and attributes

    def put_attributes(self, ino: int, attributes: bytes, xattrs: int, until_ns: int) -> None:
        """Has `stat` of an inode answered by the extension, until a time of CLOCK_MONOTONIC, and questions for extended
        attributes of which *xattrs* (as in `Node`) says that there are none."""
        if self._extension is not None:
            self._extension.put_attributes(ino, attributes, xattrs, until_ns)

    def put_name(self, parent: int, name: bytes, ino: int, until_ns: int) -> None:
        """Likewise lookups of a name, with the attributes of its inode; inode 0: there is none of that name."""
        if self._extension is not None:
            self._extension.put_name(parent, name, ino, until_ns)

    def drop(self, ino: int) -> None:
        """The attributes of an inode, and the names in it, are asked for here."""
        if self._extension is not None:
            self._extension.drop(ino)

    def drop_name(self, parent: int, name: bytes) -> None:
        """A name is."""
        if self._extension is not None:
            self._extension.drop_name(parent, name)

    def drop_names(self) -> None:
        """All names are."""
        if self._extension is not None:
            self._extension.drop_names()

    def answered_alone(self) -> tuple[int, int]:
        """How many opens the extension has answered, and how many questions for names and attributes."""
        if self._extension is None:
            return 0, 0
        opens, names = self._extension.answered_alone()
        return int(opens), int(names)

    # ------------------------------------------------------------------------------------------------------- requests

    def watch_flush(self, ino: int, wanted: bool) -> None:
        """Whether closes of this inode's descriptors are handed over."""
        if self._extension is not None:
            self._extension.watch_flush(ino, wanted)

    def kills_set_id(self, ino: int) -> bool:
        """Whether a write of this inode that was received since the last question is to take the set-id bits away."""
        return self._extension is not None and self._extension.kills_set_id(ino)

    def passed(self) -> int:
        """The number of the request that pyfuse3 got last, 0 if it is not known: of the one whose handler begins."""
        return 0 if self._extension is None else int(self._extension.passed())

    def whose(self, unique: int) -> Whose | None:
        """Who waits for the answer to a request; None if nobody does any more."""
        found = None if self._extension is None else self._extension.whose(unique)
        return None if found is None else Whose(*found)

    def abandon(self, unique: int) -> bool:
        """Answers a request with EINTR, and drops its later answer. False if it has been answered already."""
        if self._extension is None or not self._extension.abandon(unique):
            return False
        self._write(_OUT_HEADER.pack(_OUT_HEADER.size, -errno.EINTR, unique))
        return True

    def reply(self, message: bytes) -> None:
        """Answers a request that was handed over."""
        assert self._extension is not None
        if self._extension.answered(int.from_bytes(message[8:16], "little")):
            self._write(message)

    def _write(self, message: bytes) -> None:
        if self.device < 0:
            return
        try:
            os.write(self.device, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # it does not wait any more, or there is no mount any more
                raise
