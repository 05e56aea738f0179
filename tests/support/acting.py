"""Acting as somebody: the same call as another user, and what came of it."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # of linux/falloc.h

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64


@dataclass(frozen=True)
class User:
    """A user by numbers alone: none of them needs to be in /etc/passwd."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


ROOT = User("root", 0, 0, (0,))
ANNA = User("anna", 4001, 4001, (4001, 5000))
BERT = User("bert", 4002, 4002, (4002,))


@contextmanager
def acting_as(user: User, umask: int = 0o022) -> Iterator[None]:
    """Lets the calling process (all its threads) act as *user* on file systems."""
    old_umask = os.umask(umask)
    old_groups = os.getgroups()
    if user is not ROOT:
        os.setgroups(user.groups)
        os.setegid(user.gid)
        os.seteuid(user.uid)
    try:
        yield
    finally:
        if user is not ROOT:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(old_groups)
        os.umask(old_umask)


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a value, or the name of an errno."""

    error: str
    value: object = None

    def __str__(self) -> str:
        shown = self.error or repr(self.value)
        return shown if len(shown) <= 400 else f"{shown[:300]}… ({len(shown)} characters)"


def outcome(call: Callable[[], object]) -> Outcome:
    """Calls, and tells what came of it."""
    try:
        return Outcome("", call())
    except OSError as error:
        return Outcome(errno.errorcode[error.errno or 0])


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """rename(2) with flags; the Python standard library has it without."""
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


def link_open(descriptor: int, new: bytes, flags: int = AT_SYMLINK_FOLLOW) -> None:
    """linkat(2) of what is open: by its name in /proc, or for root with `AT_EMPTY_PATH` by the descriptor itself."""
    directory, old = (descriptor, b"") if flags == AT_EMPTY_PATH else (AT_FDCWD, b"/proc/self/fd/%d" % descriptor)
    if libc.linkat(directory, old, AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which the Python standard library has only mode 0."""
    if libc.fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
