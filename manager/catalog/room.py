"""Whether the disk of the catalog takes more: what is refused while it is full, what goes on, and when all is well again.

- What adds to the catalog is refused as soon as the disk was found full, without asking the database, until there is room.
- What changes or takes away (deleting, commits, reports of agents) goes on: first in the room that SQLite's log has when it is
  folded into the database, then in slices of the reserve (`manager.catalog.reserve`).
- The office's row comes last and may use all of it.

On SQLite there is room again when the reserve could be made whole. On PostgreSQL only a change can tell: one is let through each
`PROBE_S`. Used by the event loop and by the thread that extends the office.
"""

import errno
import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.clock import thread_s
from cluster.errors import CatalogFault, GodwitError
from manager.catalog.faults import Fault, as_answer, catalog_fault, fault_of, reason_of
from manager.catalog.reserve import Reserve
from manager.catalog.wal import WriteAheadLog

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_S = 1.0
CALM_S = 3.0  # without a failure, before a disk that was bad is called good again


class Need(Enum):
    """What a change wants of a full disk."""

    MORE = "it adds to the catalog"
    LESS = "it changes what is there, or takes away"
    OFFICE = "the manager's office depends on it"


class Room:
    """What one process knows of the disk of the database that *writer* writes."""

    def __init__(self, writer: Engine) -> None:
        path = writer.url.database if writer.dialect.name == "sqlite" else None
        # SQLite's log; PostgreSQL syncs each commit itself
        self.log = WriteAheadLog(writer) if writer.dialect.name == "sqlite" else None
        self._writer = writer  # engine of the transactions, of any process that writes the catalog
        self._reserve = Reserve(path) if path and path != ":memory:" else None  # None for PostgreSQL, whose disk is elsewhere
        self._fault: Fault | None = None  # what stands in the way now; None while changes work
        self._reason = ""  # in the database's words
        self._failed_s = 0.0  # when a change failed last, by `thread_s`

    @property
    def fault(self) -> CatalogFault | None:
        """What is wrong with the disk, as far as the last change of each kind could tell."""
        return None if self._fault is None else catalog_fault(self._fault, self._reason)

    def refusal(self) -> CatalogFault | None:
        """The answer to a change that adds to the catalog, if it need not be tried; None if it must be."""
        if self._fault is not Fault.FULL:
            return None
        if self._reserve is None and thread_s() >= self._failed_s + PROBE_S:
            # One is let through now and then: PostgreSQL does not tell how much room its disk has.
            self._failed_s = thread_s()
            return None
        return self.fault

    def failed(self, error: SQLAlchemyError) -> Fault:
        """Takes note of a failure, and says what it means."""
        fault = self._fault_of(error)
        if fault.of_the_disk:
            self._note(fault, reason_of(error))
        return fault

    def not_synced(self, error: OSError) -> CatalogFault:
        """Takes note that SQLite's log could not be synced; the answer to those who wait for that."""
        fault = {errno.ENOSPC: Fault.FULL, errno.EROFS: Fault.READ_ONLY}.get(error.errno or 0, Fault.BROKEN)
        self._note(fault, str(error))
        return catalog_fault(fault, str(error))

    def answer(self, error: SQLAlchemyError) -> GodwitError | None:
        """The answer to a request that failed with *error*; None if Godwit itself is to blame."""
        return as_answer(error, self._fault_of(error))

    def _fault_of(self, error: SQLAlchemyError) -> Fault:
        fault = fault_of(error)
        if fault is not Fault.BROKEN or self._reserve is None:
            return fault
        if self._reserve.is_disk_full():
            return Fault.FULL
        return Fault.READ_ONLY if self._reserve.is_disk_read_only() else fault

    def _note(self, fault: Fault, reason: str) -> None:
        if fault is not self._fault:
            log.error("%s", catalog_fault(fault, reason))
        self._fault, self._reason = fault, reason
        self._failed_s = thread_s()

    def succeeded(self, need: Need) -> None:
        """Takes note of a change that was committed."""
        if self._fault is None:
            return
        if self._fault is Fault.FULL:
            is_over = need is Need.MORE and self._reserve is None
        else:
            is_over = thread_s() >= self._failed_s + CALM_S
        if is_over:
            self._clear()

    def _clear(self) -> None:
        log.warning("the disk of the catalog takes changes again")
        self._fault, self._reason = None, ""

    def others_write(self) -> None:
        """Somebody else could change the office's row: what stood in the way of this process is over."""
        self._fault = None

    def look(self) -> None:
        """Makes the reserve whole if there is room, and with that ends a full disk. Blocks."""
        if self._reserve is not None and self._reserve.take() and self._fault is Fault.FULL:
            self._clear()

    def make(self, need: Need, attempt: int) -> bool:
        """Makes some room for a change that found none; False if there is none to make. *attempt* counts from 0. Blocks."""
        if self._reserve is None or need is Need.MORE:
            return False
        # First without giving anything up: folding the log in may make room enough.
        given = attempt == 0 or self._reserve.give(to_office=need is Need.OFFICE)
        if given:
            self._fold()
        return given

    def _fold(self) -> None:
        """Writes SQLite's log into the database, so that it can begin anew in the room that it has."""
        try:
            with self._writer.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").all()
        except SQLAlchemyError as error:
            log.debug("the log of the catalog could not be folded in: %s", reason_of(error))

    def run(self, body: Callable[[], T], need: Need) -> T:
        """What *body*, a whole transaction, returns; run again while room can be made. Raises `SQLAlchemyError`. Blocks."""
        attempt = 0
        while True:
            try:
                result = body()
            except SQLAlchemyError as error:
                if self.failed(error) is not Fault.FULL or not self.make(need, attempt):
                    raise
                attempt += 1
            else:
                self.succeeded(need)
                return result
