"""What an error of the database means for a manager: one of a few kinds, whatever SQLAlchemy, SQLite or PostgreSQL call it.

No kind ends a process. What a repeat may help is repeated for a while; what the disk of the catalog has is told to who asked, as
`CatalogFault`, and leaves nothing changed.
"""

import errno
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from sqlalchemy.exc import DataError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from cluster.errors import CatalogFault, GodwitError, NotManager, Refused
from cluster.faults import faults

log = logging.getLogger(__name__)


class Fault(Enum):
    """Kinds of errors, each with what an application is told; 0 for those after which it goes on asking."""

    BUSY = 0  # somebody else was at it: a repeat may succeed
    LOST = -1  # the connection broke, or cannot be made
    FULL = errno.ENOSPC
    READ_ONLY = errno.EROFS
    BROKEN = errno.EIO  # the disk, or what is on it
    WRONG = -2  # the statement: an error of Godwit's own

    @property
    def of_the_disk(self) -> bool:
        return self.value > 0


_SQLITE = {
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_PROTOCOL: Fault.BUSY,  # too many took the log's locks at once
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_READONLY: Fault.READ_ONLY,
    sqlite3.SQLITE_PERM: Fault.READ_ONLY,
    sqlite3.SQLITE_IOERR: Fault.BROKEN,
    sqlite3.SQLITE_CORRUPT: Fault.BROKEN,
    sqlite3.SQLITE_NOTADB: Fault.BROKEN,
    sqlite3.SQLITE_CANTOPEN: Fault.BROKEN,
    sqlite3.SQLITE_NOLFS: Fault.BROKEN,
    sqlite3.SQLITE_NOMEM: Fault.BROKEN,
}
# Made longer, the index of SQLite's log finds no room: https://sqlite.org/rescode.html#ioerr_shmsize
_SQLITE_FULL = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE})
_POSTGRES = {
    "40001": Fault.BUSY,
    "40P01": Fault.BUSY,
    "55P03": Fault.BUSY,
    "53300": Fault.BUSY,
    "57014": Fault.BUSY,
    "25P03": Fault.LOST,
    "57P01": Fault.LOST,
    "57P02": Fault.LOST,
    "57P03": Fault.LOST,
    "53100": Fault.FULL,
    "53400": Fault.FULL,
    "25006": Fault.READ_ONLY,
    "53000": Fault.BROKEN,
    "53200": Fault.BROKEN,
}
_POSTGRES_CLASSES = {"08": Fault.LOST, "58": Fault.BROKEN, "XX": Fault.BROKEN}


def fault_of(error: SQLAlchemyError) -> Fault:
    """What *error* means."""
    if isinstance(error, NoConnectionLeft):
        return Fault.BUSY  # all connections are in use
    if not isinstance(error, DBAPIError):
        return Fault.WRONG
    if error.connection_invalidated:
        return Fault.LOST
    original = error.orig
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0)
        return Fault.FULL if code in _SQLITE_FULL else _SQLITE.get(code & 0xFF, Fault.WRONG)
    state = getattr(original, "sqlstate", None)
    if state is None:  # it comes from the client's side
        return Fault.LOST if isinstance(error, OperationalError) else Fault.WRONG
    return _POSTGRES.get(state) or _POSTGRES_CLASSES.get(state[:2], Fault.WRONG)


def is_retriable(error: SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed if it is simply run again: contention or a lost connection."""
    return fault_of(error) in (Fault.BUSY, Fault.LOST)


def is_missing(error: SQLAlchemyError) -> bool:
    """Whether it is no database's fault that there is none: SQLite cannot open the file, nor make it."""
    original = error.orig if isinstance(error, DBAPIError) else None
    return isinstance(original, sqlite3.Error) and getattr(original, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it is the file's content that is wrong, rather than the disk that does not give it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def unreadable(error: OSError) -> OperationalError:
    """What SQLite would say if it met this error of the disk."""
    told = sqlite3.OperationalError(f"disk I/O error: {error.strerror}")
    told.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return OperationalError("", {}, told)


def reason_of(error: SQLAlchemyError) -> str:
    """What the database said, in one line."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def catalog_fault(fault: Fault, reason: str) -> CatalogFault:
    """The answer to a request that the catalog's disk does not allow."""
    what = {Fault.FULL: "is full", Fault.READ_ONLY: "is read-only"}.get(fault, "fails")
    return CatalogFault(f"the disk of the catalog {what}: {reason}", fault.value)


@contextmanager
def answering() -> Iterator[None]:
    """Turns errors of the database that are raised inside into the answer to the request."""
    try:
        yield
    except SQLAlchemyError as error:
        raise as_answer(error) or error from error


def as_answer(error: SQLAlchemyError, fault: Fault | None = None) -> GodwitError | None:
    """The answer to a request that failed with *error*; None if Godwit itself is to blame. *fault*: if it is known already."""
    if isinstance(error, DataError):
        return _not_storable(error)
    fault = fault or fault_of(error)
    if fault is Fault.WRONG:
        return None
    reason = reason_of(error)
    return catalog_fault(fault, reason) if fault.of_the_disk else NotManager(f"the catalog does not answer: {reason}")


def _not_storable(error: DataError) -> Refused:
    """The refusal of a request with values that this database's columns cannot hold."""
    faults.note(log, "values that no column holds", f"the catalog refuses what it was given: {reason_of(error)}")
    return Refused(f"no such value can be in the catalog: {reason_of(error)}")
