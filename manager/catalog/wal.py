"""SQLite's write-ahead log: synced and folded into the database in threads, so that no disk holds up the event loop.

SQLite begins the log anew with the first write after all of it has been folded in. While writes come without a pause that never
happens by itself: each time some have come meanwhile. So when it has become long they are held up for the little that is left.
That first write syncs the log's head, and so is made here, too: it changes nothing.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import trio
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import error_text
from manager.catalog.faults import reason_of

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 8 * 1024 * 1024
"""What the log is cut back to when it begins anew: overwriting what no memory holds any more means to read it first."""


@dataclass(frozen=True)
class LogLimits:
    """How long the log may become, and how long that may hold up writes."""

    look_s: float = 1.0  # between looks at its length
    fold_bytes: int = CHECKPOINT_BYTES  # from here on it is folded in
    long_bytes: int = 64 * 1024 * 1024  # from here on writes are held up, so that it can begin anew
    # At most: a disk that hangs must not cost the office, which is extended by a write. Where that is too short, the log is let
    # grow to twice its length before the next attempt.
    hold_s: float = 0.5


LOG_LIMITS = LogLimits()


class WriteAheadLog:
    """The log of the database that *engine* writes. One for the whole process, since it knows which syncs have failed.

    It is closed when *engine* is disposed of, and opened again by whoever syncs after that.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine  # of the writer; checkpoints take a connection of their own from it
        self._path = f"{engine.url.database}-wal"  # SQLite's name for the log
        self._doubtful = False  # a sync has failed, or is under way: the next one must fold the log in first
        self._syncing = threading.Lock()  # held by the thread that syncs
        # Kept open: the kernel tells each descriptor once of writes that failed since it was opened, but of what it has told
        # another process before, a new one hears nothing.
        self._descriptor = -1
        event.listen(engine, "engine_disposed", self._close)

    def _close(self, _engine: Engine) -> None:
        # Not under a thread that syncs: it may wait for a disk for ever, and what ends then is the process.
        if not self._syncing.acquire(blocking=False):
            return
        try:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        finally:
            self._syncing.release()

    def sync(self) -> None:
        """Makes all commits so far durable. Raises `OSError`. (The log itself carries no locks that closing it could drop.)

        After a failure the kernel takes pages that it could not write for written: only folding them in makes them durable.
        """
        with self._syncing:
            # In this order: of what failed before it was opened nobody tells, so that is folded in.
            if self._is_opened_anew():
                self._doubtful = True
            if self._doubtful and not self._checkpoint():
                raise OSError(errno.EIO, "an earlier write was lost, and the log could not be folded in")
            # Before the call, so that a sync which raises, or a thread that never comes back, leaves it set.
            self._doubtful = True
            os.fdatasync(self._descriptor)
            self._doubtful = False

    def _is_opened_anew(self) -> bool:
        """Opens the log that is there, unless it is open. Raises `OSError`."""
        found = os.stat(self._path)
        if self._descriptor >= 0:
            if os.path.samestat(found, os.fstat(self._descriptor)):
                return False
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return True

    def sync_if_there(self) -> None:
        """As `sync`, for a process that does not write; without a log all commits are in the database."""
        with suppress(FileNotFoundError):
            self.sync()

    async def checkpoint_loop(self, limits: LogLimits, holding_writes: Callable[[], AbstractContextManager[None]]) -> None:
        """Folds the log into the database whenever it has grown. Nobody is held up by that, unless it has become long."""
        long_bytes = limits.long_bytes
        while True:
            await trio.sleep(limits.look_s)
            if self._size() <= limits.fold_bytes:
                continue
            await trio.to_thread.run_sync(self._checkpoint)
            if self._size() > long_bytes:
                with holding_writes():
                    with trio.move_on_after(limits.hold_s) as folding:
                        # Abandoned after `hold_s`: the thread goes on, and writes go on beside it, as with any passive
                        # checkpoint.
                        await trio.to_thread.run_sync(self._checkpoint, abandon_on_cancel=True)
                    if not folding.cancelled_caught:
                        # Only where folding came to its end: else the log cannot begin anew.
                        await trio.to_thread.run_sync(self._begin_anew)
                long_bytes = max(limits.long_bytes, 2 * self._size())

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except OSError as error:
            log.debug("no log of the catalog: %s", error_text(error))
            return 0

    def _checkpoint(self) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").all()
        except SQLAlchemyError as error:
            log.warning("the log of the catalog could not be folded in, again in a moment: %s", reason_of(error))
            return False
        return True

    def _begin_anew(self) -> None:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA user_version = 0")  # as it is: SQLite leaves rows alone that do not change
        except SQLAlchemyError as error:
            log.warning("the log of the catalog could not be begun anew: %s", reason_of(error))
