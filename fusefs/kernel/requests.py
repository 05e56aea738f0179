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

from cluster.clock import thread_s
from cluster.counters import Histogram, counters, histogram
from cluster.errors import GodwitError
from cluster.faults import faults
from cluster.tending import Tasks
from fusefs.kernel.interrupts import Interrupts

log = logging.getLogger(__name__)

REQUEST_S = histogram(
    "godwit_kernel_request_seconds", "How long the mount process took for requests of the kernel, up to the answer.", "operation"
)

_IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, inode, uid, gid, pid, length of extensions, padding
_OUT_HEADER = struct.Struct("<IiQ")  # length, negative errno, unique
_INTERRUPT = struct.Struct("<Q")  # the request that is interrupted


class Opcode(IntEnum):
    """Requests that can be taken out."""

    LOOKUP = 1
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    RELEASE = 18
    GETXATTR = 22
    FLUSH = 25
    OPENDIR = 27
    RELEASEDIR = 29
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    CREATE = 35
    INTERRUPT = 36
    FALLOCATE = 43
    RENAME2 = 45
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


_SAME = {Opcode.RENAME2: "rename"}  # operations that are not called as their opcodes are

LOCKING = frozenset({Opcode.FLUSH, Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW})

Handler = Callable[[Raw], Awaitable[bytes]]
"""What follows the header of the reply. A `GodwitError` is answered with its errno; one is cancelled when it is interrupted (by
any signal if it is in `LOCKING`, where the kernel asks again by itself if the program wants to go on)."""

QuickHandler = Callable[[Raw], bytes | None]
"""Likewise, without waiting; None if that cannot be done, for pyfuse3 to get the request."""


def parse(message: bytes) -> Raw:
    """The request. Raises `struct.error` for one that is shorter than its header."""
    length, opcode, unique, ino, uid, gid, pid, extensions, _ = _IN_HEADER.unpack_from(message)
    return Raw(opcode, unique, ino, uid, gid, pid, message[_IN_HEADER.size : length - 8 * extensions])


class RawRequests:
    """Runs a task in *tasks* for each request that is not answered at once, and *reply* with the whole answer."""

    def __init__(
        self,
        quick: Mapping[Opcode, QuickHandler],
        handlers: Mapping[Opcode, Handler],
        tasks: Tasks,
        reply: Callable[[bytes], None],
        interrupts: Interrupts,
    ) -> None:
        self._quick = quick
        self._handlers = handlers
        self._tasks = tasks
        self._reply = reply
        self._interrupts = interrupts
        self._under_way: dict[int, trio.CancelScope] = {}  # requests of `LOCKING`, which any signal ends
        self._seconds: dict[int, Histogram] = {
            opcode: counters.histogram(REQUEST_S, _SAME.get(opcode, opcode.name.lower())) for opcode in (*quick, *handlers)
        }
        self.requests = 0  # so far, for `godwit servers show`

    @property
    def opcodes(self) -> list[Opcode]:
        """What it has handlers for."""
        return [*self._quick, *self._handlers]

    def received(self, message: bytes) -> bool:
        """Takes a message, without blocking; False if pyfuse3 is to get it."""
        request = parse(message)
        if request.opcode == Opcode.INTERRUPT:
            (unique,) = _INTERRUPT.unpack_from(request.body)
            # A lock that is waited for ends at once: the kernel begins anew if the program's handler returns (SA_RESTART).
            if (scope := self._under_way.get(unique)) is not None:
                scope.cancel()
            else:
                self._interrupts.came(unique)
            return True
        quick = self._quick.get(Opcode(request.opcode))
        if quick is not None:
            return self._answer_at_once(quick, request)
        self.requests += 1
        if request.opcode in LOCKING:
            self._under_way[request.unique] = trio.CancelScope()
            self._tasks.start_soon(self._answer_locking, request)
        else:
            self._tasks.start_soon(self._answer, request)
        return True

    def _answer_at_once(self, quick: QuickHandler, request: Raw) -> bool:
        began_s = thread_s()
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
        self._seconds[request.opcode].observe(thread_s() - began_s)
        return True

    async def _answer_locking(self, request: Raw) -> None:
        try:
            await self._answer_in(self._under_way[request.unique], request)
        finally:
            del self._under_way[request.unique]

    async def _answer(self, request: Raw) -> None:
        scope = trio.CancelScope()
        self._interrupts.begin(request.unique).scopes.append(scope)
        try:
            await self._answer_in(scope, request)
        finally:
            self._interrupts.end(request.unique)

    async def _answer_in(self, scope: trio.CancelScope, request: Raw) -> None:
        began_s = thread_s()
        code, payload = errno.EINTR, b""  # what it is if the scope was cancelled
        try:
            with scope:
                payload = await self._handlers[Opcode(request.opcode)](request)
                code = 0
        except Exception as error:
            code = _errno_of(error, request)
        finally:
            # Whatever happens: a request that is never answered leaves its program in a wait that nothing ends.
            self._send(request, code, payload)
            self._seconds[request.opcode].observe(thread_s() - began_s)

    def _send(self, request: Raw, code: int, payload: bytes) -> None:
        self._reply(_OUT_HEADER.pack(_OUT_HEADER.size + len(payload), -code, request.unique) + payload)


def _errno_of(error: Exception, request: Raw) -> int:
    if not isinstance(error, GodwitError):
        faults.unexpected(log, f"in {Opcode(request.opcode).name}", error)
        return errno.EIO
    if error.errno == errno.EIO:
        log.error("%s failed with EIO: %s", Opcode(request.opcode).name, error)
    return error.errno
