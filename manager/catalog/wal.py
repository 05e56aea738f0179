"""SQLite's write-ahead log: synced and folded into the database in threads, so that no disk holds up the event loop.

SQLite begins the log anew with the first write after all of it has been folded in. While writes come without a pause that never
happens by itself: each time some have come meanwhile. So when it has become long they are held up for the little that is left.
That first write syncs the log's head, and so is made here, too: it changes nothing.
"""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import trio
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

CHECKPOINT_S = 1.0
CHECKPOINT_BYTES = 8 * 1024 * 1024
"""What the log is cut back to when it begins anew: overwriting what no memory holds any more means to read it first."""
LONG_BYTES = 64 * 1024 * 1024
HOLD_S = 0.5
"""At most: a disk that hangs must not cost the office, which is extended by a write. Where that is too short, the log is let grow
to twice its length before the next attempt."""


class WriteAheadLog:
    """The log of the database that *engine* writes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._path = f"{engine.url.database}-wal"

    def sync(self) -> None:
        """Makes all commits so far durable. Raises `OSError`. (The log itself carries no locks that closing it could drop.)"""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    async def checkpoint_loop(self, holding_writes: Callable[[], AbstractContextManager[None]]) -> None:
        """Folds the log into the database whenever it has grown. Nobody is held up by that, unless it has become long."""
        long_bytes = LONG_BYTES
        while True:
            await trio.sleep(CHECKPOINT_S)
            if self._size() <= CHECKPOINT_BYTES:
                continue
            await trio.to_thread.run_sync(self._checkpoint)
            if self._size() > long_bytes:
                with holding_writes():
                    with trio.move_on_after(HOLD_S) as folding:
                        await trio.to_thread.run_sync(self._checkpoint, abandon_on_cancel=True)
                    if not folding.cancelled_caught:
                        await trio.to_thread.run_sync(self._begin_anew)
                long_bytes = max(LONG_BYTES, 2 * self._size())

    def _size(self) -> int:
        return os.stat(self._path).st_size

    def _checkpoint(self) -> None:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").all()
        except DBAPIError as error:
            log.warning("the log of the catalog could not be folded in, again in a moment: %s", error.orig)

    def _begin_anew(self) -> None:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA user_version = 0")  # as it is: SQLite leaves rows alone that do not change
        except DBAPIError as error:
            log.warning("the log of the catalog could not be begun anew: %s", error.orig)
