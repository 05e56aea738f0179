"""Requests that pyfuse3 has no handlers for, taken out of the kernel's message stream and answered here.

`fusefs.kernel.stream` hands over whole messages. The layouts are those of the kernel's `include/uapi/linux/fuse.h`.
"""

import errno
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import NamedTuple

import trio

from cluster.errors import GodwitError

log = logging.getLogger(__name__)

_IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, inode, uid, gid, pid, length of extensions, padding
_OUT_HEADER = struct.Struct("<IiQ")  # length, negative errno, unique
_INTERRUPT = struct.Struct("<Q")  # the request that is interrupted


class Opcode(IntEnum):
    """Requests that can be taken out."""

    LOOKUP = 1
    GETATTR = 3
    RELEASE = 18
    GETXATTR = 22
    FLUSH = 25
    OPENDIR = 27
    RELEASEDIR = 29
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    INTERRUPT = 36
    FALLOCATE = 43
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


class Raw(NamedTuple):
    """One request: its body is what follows the header, without extensions."""

    opcode: int
    unique: int
    ino: int
    uid: int
    gid: int
    pid: int
    body: bytes


Handler = Callable[[Raw], Awaitable[bytes]]
"""What follows the header of the reply. A `GodwitError` is answered with its errno; one is cancelled when it is interrupted."""

QuickHandler = Callable[[Raw], bytes | None]
"""Likewise, without waiting; None if that cannot be done, for pyfuse3 to get the request."""


def parse(message: bytes) -> Raw:
    """The request. Raises `struct.error` for one that is shorter than its header."""
    length, opcode, unique, ino, uid, gid, pid, extensions, _ = _IN_HEADER.unpack_from(message)
    return Raw(opcode, unique, ino, uid, gid, pid, message[_IN_HEADER.size : length - 8 * extensions])


class RawRequests:
    """Runs a task in *nursery* for each request that is not answered at once, and *reply* with the whole answer."""

    def __init__(
        self,
        quick: Mapping[Opcode, QuickHandler],
        handlers: Mapping[Opcode, Handler],
        nursery: trio.Nursery,
        reply: Callable[[bytes], None],
    ) -> None:
        self._quick = quick
        self._handlers = handlers
        self._nursery = nursery
        self._reply = reply
        self._under_way: dict[int, trio.CancelScope] = {}
        self.requests = 0

    @property
    def opcodes(self) -> list[Opcode]:
        """What it has handlers for."""
        return [*self._quick, *self._handlers]

    def received(self, message: bytes) -> bool:
        """Takes a message, without blocking; False if pyfuse3 is to get it."""
        request = parse(message)
        if request.opcode == Opcode.INTERRUPT:
            (unique,) = _INTERRUPT.unpack_from(request.body)
            if (scope := self._under_way.get(unique)) is not None:
                scope.cancel()
            return True
        quick = self._quick.get(Opcode(request.opcode))
        if quick is not None:
            return self._answer_at_once(quick, request)
        self.requests += 1
        self._under_way[request.unique] = trio.CancelScope()
        self._nursery.start_soon(self._answer, request)
        return True

    def _answer_at_once(self, quick: QuickHandler, request: Raw) -> bool:
        code, payload = 0, b""
        try:
            answer = quick(request)
            if answer is None:
                return False
            payload = answer
        except Exception as error:
            code = _errno_of(error, request)
        self.requests += 1
        self._send(request, code, payload)
        return True

    async def _answer(self, request: Raw) -> None:
        code, payload = errno.EINTR, b""
        try:
            with self._under_way[request.unique]:
                payload = await self._handlers[Opcode(request.opcode)](request)
                code = 0
        except Exception as error:
            code = _errno_of(error, request)
        finally:
            del self._under_way[request.unique]
            self._send(request, code, payload)

    def _send(self, request: Raw, code: int, payload: bytes) -> None:
        self._reply(_OUT_HEADER.pack(_OUT_HEADER.size + len(payload), -code, request.unique) + payload)


def _errno_of(error: Exception, request: Raw) -> int:
    if not isinstance(error, GodwitError):
        log.error("unexpected error in %s", Opcode(request.opcode).name, exc_info=error)
        return errno.EIO
    if error.errno == errno.EIO:
        log.error("%s failed with EIO: %s", Opcode(request.opcode).name, error)
    return error.errno
