"""The one tree of errors that cross a process boundary.

A class says what the caller can do about it; the `errno` says what an application is told when nobody can do anything.
On the wire an error is a `Failure` message (see `cluster.messages`); `to_failure` and `from_failure` translate.
"""

import errno as e
import os


class GodwitError(Exception):
    """Base of all errors that Godwit raises on purpose; `errno` is what an application sees."""

    kind = "error"
    default_errno = e.EIO

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = self.default_errno if errno is None else errno


class Refused(GodwitError):
    """The request is understood and wrong: repeating it unchanged cannot help. `errno` says why (ENOENT, EEXIST …)."""

    kind = "refused"
    default_errno = e.EINVAL


class Unavailable(GodwitError):
    """Nobody could answer in time; the same request may succeed later, and is safe to send again under its id."""

    kind = "unavailable"
    default_errno = e.EIO


class TimedOut(Unavailable):
    """The peer is connected and did not answer in time; it may have done what was asked, or do it yet."""


class Undone(Unavailable):
    """Nobody could answer, and nothing was done: even what must not be done twice may be sent again."""

    kind = "undone"


class NotManager(Unavailable):
    """The process that was asked does not hold the manager's office; ask another candidate."""

    kind = "not-manager"


class CatalogFault(Unavailable):
    """The disk of the catalog is full (ENOSPC), read-only (EROFS) or fails (EIO): nothing was changed; a repeat helps later."""

    kind = "catalog"


class Fenced(GodwitError):
    """The sender's term, session or home epoch has been superseded: it must stop, never retry with the old one."""

    kind = "fenced"
    default_errno = e.EIO


class TokenRefused(GodwitError):
    """The lease token is not good for this: ask the manager for a new one and try again."""

    kind = "token"
    default_errno = e.EIO


class Changed(GodwitError):
    """The source was written while it was being copied: the copy is of no version and must be made again."""

    kind = "changed"
    default_errno = e.EAGAIN


class Corrupt(GodwitError):
    """Bytes on disk are not what the catalog says they are."""

    kind = "corrupt"
    default_errno = e.EIO


class NoSpace(GodwitError):
    """A volume is full."""

    kind = "no-space"
    default_errno = e.ENOSPC


class ProtocolError(GodwitError):
    """The peer sent something that is not a Godwit message, or one that breaks a limit. The connection is closed."""

    kind = "protocol"
    default_errno = e.EIO


class Malformed(ProtocolError):
    """Bytes that are not what they should be: a message, a record, a configuration (`cluster.decoding`)."""


class OutOfRange(Malformed):
    """A message with a number that nothing can have: whoever sent it can be told so, and the connection goes on."""


_KINDS: dict[str, type[GodwitError]] = {
    cls.kind: cls
    for cls in (
        GodwitError,
        Refused,
        Unavailable,
        Undone,
        NotManager,
        CatalogFault,
        Fenced,
        TokenRefused,
        Changed,
        Corrupt,
        NoSpace,
        ProtocolError,
    )
}


MESSAGE_MAX = 1000  # characters of a message from another process that are kept

# ENOENT: the object of a file that went
_CALLERS_FAULT = frozenset({e.EINVAL, e.EFBIG, e.EOPNOTSUPP, e.ENXIO, e.EXDEV, e.ENOENT})


def refused(errno: int, what: str = "") -> Refused:
    """A `Refused` whose message is the system's text for *errno*, with *what* behind it."""
    text = os.strerror(errno)
    return Refused(f"{text}: {what}" if what else text, errno)


def from_failure(kind: str, errno: int, message: str) -> GodwitError:
    """The exception for a `Failure` that came over the wire.

    An unknown kind becomes a plain `GodwitError`, an errno that is none the kind's own: the kernel takes no others.
    """
    return _KINDS.get(kind, GodwitError)(message[:MESSAGE_MAX], errno if errno in e.errorcode else None)


def own_error(group: BaseExceptionGroup[BaseException]) -> GodwitError | None:
    """The error behind *group*, when a nursery ended for nothing but errors of ours (and the cancellations they caused)."""
    own, others = group.split(GodwitError)
    if own is None or others is not None:
        return None
    error: BaseException = own
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GodwitError)
    return error


def error_text(error: BaseException, *, with_file: bool = True) -> str:
    """What is wrong, for people: of a failed system call the file, unless that is named anyway, and the system's words."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    files = " -> ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    return f"{files}: {error.strerror}" if files and with_file else error.strerror


def from_os_error(error: OSError, what: str) -> GodwitError:
    """The Godwit error for a failed system call on a volume.

    What the caller asked for wrongly keeps its errno. That a volume's own files are missing or closed to Godwit is no fault
    of an application: it gets EIO.
    """
    number = error.errno or e.EIO
    message = f"{what}: {error.strerror or os.strerror(number)}"
    if number in (e.ENOSPC, e.EDQUOT):
        return NoSpace(message, number)
    if number in _CALLERS_FAULT:
        return Refused(message, number)
    return GodwitError(message, e.EIO)
