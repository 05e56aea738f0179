"""Extends the office in a thread of its own, over a connection of its own, so that it waits behind no other work.

On a busy machine an extension that comes late costs the office, and an election costs more work than it took away. So the thread
asks for a real-time scheduling class, or else for a better nice value; it has nothing to do but one statement every quarter of a
term. It vouches for the event loop, which must go round for it: see `manager.rules.election.is_stuck`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.clock import monotonic_s, thread_s
from cluster.errors import error_text
from cluster.faults import faults
from manager.catalog.faults import reason_of
from manager.catalog.office import extend_office, read_office
from manager.catalog.room import Need, Room
from manager.rules.election import EXTEND_PART, is_stuck, lasts_from_now

log = logging.getLogger(__name__)

AGAIN_PART = 0.05  # of `term_s`, after a failure
NICE = -10  # where real-time scheduling is not permitted


class Extended(Protocol):
    """Whose office is extended; called by the thread, with times of the event loop's clock."""

    def extending(self, began_s: float, lasts_s: float) -> None:
        """An extension begins: whatever becomes of it, the office may last no longer than it says."""

    def extended(self, began_s: float, lasts_s: float, now: float, *, only_reads: bool) -> None:
        """It is done; or, *only_reads*, the row cannot be changed by anybody, but still says who is in office."""


class LoopTime:
    """Measures an event loop's thread: the time since it last went round, and the processor time that it has had since then."""

    def __init__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self.went_round()

    def went_round(self) -> None:
        """Called by the event loop."""
        self._passed_s, self._processor_s = thread_s(), time.clock_gettime(self._clock)

    def since(self) -> tuple[float, float]:
        """Seconds that have passed, and seconds of the processor, since it went round."""
        return thread_s() - self._passed_s, time.clock_gettime(self._clock) - self._processor_s


class Extender:
    """Extends term *number* until it is stopped, or lost: then *on_lost* is called, once, by the thread."""

    def __init__(
        self, engine: Engine, room: Room, number: int, term_s: float, lasts_s: float, held: Extended, on_lost: Callable[[], None]
    ) -> None:
        self._engine, self._room, self._number, self._held, self._on_lost = engine, room, number, held, on_lost
        self._term_s, self._lasts_s = term_s, lasts_s
        self._loop = LoopTime()  # of the thread that made this
        self._ahead_s = monotonic_s() - thread_s()  # of the event loop's clock
        self._may_shrink = False  # the office may be made shorter than it was before this term
        self._stopped = threading.Event()  # by its owner, or since the office is lost
        self._connection: Connection | None = None  # of the thread alone
        self._failing = ""  # the kind of failure that was logged last
        self._took_s = 0.0  # from when the last extension was due until it was done
        self._beat: int | None = None  # that was tried last; None until the row was read

    def start(self) -> None:
        """Starts the thread; it never keeps the process from ending."""
        threading.Thread(target=self._run, name=f"office-{self._number}", daemon=True).start()

    def stop(self) -> None:
        """Has the thread end after the statement that may be under way; that cannot bring the office back."""
        self._stopped.set()

    def went_round(self) -> None:
        """Called by the event loop again and again."""
        self._loop.went_round()

    def began(self) -> None:
        """Nobody else acts any more: from now on the row need not remember for how long the holder before may."""
        self._may_shrink = True

    def _run(self) -> None:
        _hurry()
        due_s = thread_s() + EXTEND_PART * self._term_s
        while not self._stopped.wait(max(0.0, due_s - thread_s())):
            if self._extend_once(due_s):
                due_s = max(due_s, thread_s() - self._took_s) + EXTEND_PART * self._term_s
            elif self._stopped.wait(AGAIN_PART * self._term_s):
                break
        self._drop_connection()

    def _extend_once(self, due_s: float) -> bool:
        passed_s, processor_s = self._loop.since()
        if is_stuck(passed_s, processor_s, self._term_s):
            what = f"it has not gone round for {passed_s:.1f} s, {processor_s:.1f} s of the processor"
            self._note("the manager's event loop is stuck", what)
            return False
        # Before the statement: candidates may have read the new beat at any time after this.
        began_s = thread_s()
        wanted_s = lasts_from_now(self._lasts_s, max(self._took_s, began_s - due_s), self._term_s)
        lasts_s = wanted_s if self._may_shrink else max(wanted_s, self._lasts_s)
        # Before the row can change: if the office gets shorter, the holder must not act by the longer time.
        self._held.extending(began_s + self._ahead_s, lasts_s)
        try:
            is_mine = self._room.run(lambda: self._raise_beat(lasts_s), Need.OFFICE)
        except SQLAlchemyError as error:
            return self._failed(error, began_s)
        except Exception as error:
            faults.unexpected(log, "while the office was extended", error)
            return False
        if not is_mine:
            # The office is lost: nothing that is tried later could bring it back.
            self._stopped.set()
            self._on_lost()
            return False
        self._lasts_s, self._took_s, self._failing = lasts_s, thread_s() - due_s, ""
        self._held.extended(began_s + self._ahead_s, lasts_s, thread_s() + self._ahead_s, only_reads=False)
        return True

    def _raise_beat(self, lasts_s: float) -> bool:
        """Whether it is raised; each attempt to a number of its own, so that a late one cannot undo what came after it."""
        connection = self._connected()
        self._beat = (read_office(connection).beat if self._beat is None else self._beat) + 1
        return extend_office(connection, self._number, lasts_s, self._beat)

    def _failed(self, error: SQLAlchemyError, began_s: float) -> bool:
        self._note("the office was not extended", reason_of(error))
        self._drop_connection()
        # SQLite's file is on this machine's disk: if it takes no changes from here, it takes none from another candidate.
        if self._room.fault is not None and self._engine.dialect.name == "sqlite" and self._is_its_row():
            self._held.extended(began_s + self._ahead_s, self._lasts_s, thread_s() + self._ahead_s, only_reads=True)
        return False

    def _is_its_row(self) -> bool:
        try:
            return read_office(self._connected()).term == self._number
        except SQLAlchemyError as error:
            log.debug("the office's row cannot be read: %s", error)
            self._drop_connection()
            return False

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:
                connection.invalidate()

    def _note(self, failure: str, why: str) -> None:
        """Logs a failure that is another than that of the attempt before."""
        if self._failing != failure:
            self._failing = failure
            log.warning("%s: %s", failure, why)


def _hurry() -> None:
    """Has this thread run before ordinary ones, if that is permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError as error:
            log.debug("the office is extended with ordinary priority: %s", error_text(error))
