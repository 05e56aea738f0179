"""The catalog during a term: every transaction of a manager in office, and reads of what is committed.

Writes go through one queue: what arrives while a transaction runs goes together into the next one, in order of arrival
(group commit); one that finds the queue empty may have a transaction at once (`write_at_once`). Each transaction begins by
checking that the office still has this manager's term; if not, it changes nothing, and the term is deposed for good; so it is
when its time is over. The body of a request must check before it writes, so that a refused one leaves no trace; one with
several operations uses `Transaction.savepoint`. What nobody waits for comes in small parts that give way to the rest, but not
for ever (`write_parts`). Bodies have no effects outside the database: those are queued with `Transaction.after` and run in the
event loop after the commit, in order, before anybody is answered.

On SQLite, reads and transactions run in the event loop: they take tens of microseconds each, while a second thread would
contend with the loop for the interpreter. On PostgreSQL they run in worker threads. Reads see what is committed, whoever is
the manager. A connection that is lost before the commit undoes the transaction, which is run again; one that is lost during
the commit ends the term, since the memory of a new one is made from what is there.

*Durability.* A commit on SQLite is in the write-ahead log at once, so that no death of a process loses it, and on the disk
once the log is synced: a `durable` write is answered only then, and with it all that came before is durable too. Like a
local file system, the catalog may lose what was not synced when the power fails. But whatever others act upon is durable
first: that a file is being written, tasks that are handed out, number ranges. On PostgreSQL every commit is durable.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio
from sqlalchemy import Connection, Engine, bindparam, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from cluster.clock import thread_s
from cluster.counters import Histogram, counter, histogram
from cluster.counters import counters as numbers
from cluster.errors import Fenced, GodwitError, NotManager, error_text
from manager.catalog.engines import READ_THREADS, lock_writes, retrying
from manager.catalog.faults import Fault, answering, fault_of
from manager.catalog.hot import Hot
from manager.catalog.room import Need, Room
from manager.catalog.schema import counters, office
from manager.catalog.urls import shown
from manager.catalog.wal import LOG_LIMITS, LogLimits, WriteAheadLog

log = logging.getLogger(__name__)

T = TypeVar("T")

TRANSACTION_S = histogram("godwit_transaction_seconds", "How long the catalog's transactions took, up to the commit.")
WRITES = counter("godwit_transaction_writes_total", "Changes in the catalog's transactions: what arrives together shares one.")
SYNC_S = histogram("godwit_catalog_sync_seconds", "How long it took to sync the catalog's log, where that is SQLite's.")
READ_S = histogram("godwit_catalog_read_seconds", "How long the catalog took for questions outside of transactions.")

_transactions, _writes = numbers.histogram(TRANSACTION_S), numbers.cell(WRITES)
_syncs, _reads = numbers.histogram(SYNC_S), numbers.histogram(READ_S)

LOOK_S = 1.0  # how often it is looked whether a full disk has room again
# As `Connection.begin_nested`, without what SQLAlchemy keeps for each savepoint.
_SAVEPOINT = Hot(text("SAVEPOINT undoable"))
_ROLL_BACK = Hot(text("ROLLBACK TO SAVEPOINT undoable"))
_RELEASE = Hot(text("RELEASE SAVEPOINT undoable"))
# On PostgreSQL a shared lock of the row: nobody takes the office before this transaction has ended. SQLite has the write lock.
_TERM = Hot(select(office.c.term).where(office.c.id == 1).with_for_update(read=True))
# Adds in the database: nobody has to know the value.
_ADD = Hot(update(counters).where(counters.c.name == bindparam("counter")).values(value=counters.c.value + bindparam("delta")))


@dataclass(frozen=True)
class StoreLimits:
    """How much goes into one transaction, and how long work waits that gives way."""

    batch_max: int = 32  # what arrives meanwhile waits for the whole batch
    give_way_s: float = 0.05  # at most
    log: LogLimits = LOG_LIMITS  # of SQLite's write-ahead log


STORE_LIMITS = StoreLimits()


class _measuring:  # noqa: N801 - used as `contextmanager`'s are, and cheaper
    """Counts in a histogram how long what is inside took. In the event loop only."""

    __slots__ = ("_began_s", "_seconds")

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began_s = thread_s()

    def __exit__(self, *_: object) -> None:
        self._seconds.observe(thread_s() - self._began_s)


class Transaction:
    """What the body of a write request works with. Valid only inside the body."""

    __slots__ = ("connection", "effects", "execute", "inodes_added", "term")

    def __init__(self, connection: Connection, term: int) -> None:
        self.connection = connection  # in the transaction; not to be committed by the body
        self.execute = connection.execute  # for statements that are not `Hot`
        self.term = term  # number, which has been checked
        self.inodes_added = 0  # less those removed: added to the counter once for the batch
        self.effects: list[Callable[[], None]] = []  # of the present item, in order: see `after`

    def after(self, effect: Callable[[], None]) -> None:
        """Has *effect* run in the event loop once the transaction is committed; it must not block or raise."""
        self.effects.append(effect)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes what was done inside when it raises."""
        # What is only in memory is undone by hand.
        effects, inodes = len(self.effects), self.inodes_added
        _SAVEPOINT.run(self.connection, {})
        try:
            yield
        except GodwitError:
            del self.effects[effects:]
            self.inodes_added = inodes
            _ROLL_BACK.run(self.connection, {})
            _RELEASE.run(self.connection, {})
            raise
        _RELEASE.run(self.connection, {})


Work = Callable[[Transaction], T]


class _Item(Generic[T]):
    __slots__ = ("done", "durable", "error", "need", "result", "since_s", "work")

    def __init__(self, work: Work[T], durable: bool, need: Need) -> None:
        self.work = work  # the body; may run more than once
        self.durable = durable  # answered only when the log is synced
        self.need = need  # decides what a full disk lets it do
        self.since_s = trio.current_time()  # when it was queued: see `StoreLimits.give_way_s`
        self.done = trio.Event()  # set once there is an outcome
        self.result: T | None = None  # of the newest attempt
        self.error: BaseException | None = None  # raised instead by `outcome`

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Store:
    """The catalog's database during one term. `run` must be running for `write` to return."""

    def __init__(
        self,
        writer: Engine,
        reader: Engine,
        term: int,
        *,
        on_deposed: Callable[[], None],
        in_office: Callable[[], bool] = lambda: True,
        room: Room | None = None,
        limits: StoreLimits = STORE_LIMITS,
    ) -> None:
        self.term = term  # number; the office's row must have it at each transaction
        self.room = Room(writer) if room is None else room  # what is known of the database's disk
        self._limits = limits
        self._in_office = in_office  # whether the term's time is not over, asked before each transaction
        self._writer = writer  # engine of the transactions
        self._reader = reader  # engine of reads outside of them
        self._on_deposed = on_deposed  # called when the term is found to be over
        self._inline = reader.dialect.name == "sqlite"  # statements run in the event loop
        self._queue: deque[_Item[Any]] = deque()  # what somebody waits for, in order of arrival
        self._giving_way: deque[_Item[Any]] = deque()  # parts of what nobody waits for: see `_take_batch`
        self._work_came = trio.Event()  # set while there is anything to commit, or an end to notice
        self._may_write = trio.Event()  # not set while a checkpoint of the log holds writes back
        self._may_write.set()
        self._closed: BaseException | None = None  # why nothing is written any more
        self._connection: Connection | None = None  # of the transactions; made anew after a failure
        self._read_connection = reader.connect() if self._inline else None  # for questions in the event loop
        self._threads = trio.CapacityLimiter(READ_THREADS)  # for reads alone: the transactions' thread is none of them
        self._log = self.room.log  # None on PostgreSQL, which syncs each commit itself
        self._to_sync: list[_Item[Any]] = []  # committed, to be answered when the log is synced
        self._sync_wanted = trio.Event()  # a new one with each sync; set by the first commit that waits for it

    @property
    def display_url(self) -> str:
        """The database's URL without its password."""
        return shown(self._writer.url)

    # ------------------------------------------------------------------------------------------------- reading

    @property
    def read_connection(self) -> Connection | None:
        """What questions can be asked of without waiting; None where they need a thread."""
        return self._read_connection

    async def read(self, question: Callable[[Connection], T]) -> T:
        """The answer to a quick *question*, on what is committed now. Raises `NotManager` when the term is over."""
        if self._closed is not None:
            raise self._ended()
        if self._read_connection is not None:
            with _measuring(_reads), answering():
                return question(self._read_connection)
        return await self.read_slowly(question)

    async def read_slowly(self, question: Callable[[Connection], T]) -> T:
        """As `read`, for questions that take long enough to hold up the event loop."""
        with _measuring(_reads):
            return await trio.to_thread.run_sync(self._ask, question, limiter=self._threads)

    def _ask(self, question: Callable[[Connection], T]) -> T:
        def ask() -> T:
            with self._reader.connect() as connection:
                return question(connection)

        with answering():
            return retrying(ask)

    def is_its_row(self) -> bool:
        """Whether the office's row says so now: for when it cannot be changed. Only where reading needs no thread."""
        connection = self._read_connection
        try:
            return connection is not None and _TERM.one_or_none(connection, {}).term == self.term
        except SQLAlchemyError as error:
            log.debug("the office's row cannot be read: %s", error)
            return False

    # ------------------------------------------------------------------------------------------------- writing

    async def sync(self) -> None:
        """Returns when all that was answered before is durable."""
        await self.write(lambda _tx: None, durable=True)

    async def write(self, work: Work[T], *, durable: bool = False, grows: bool = False) -> T:
        """Runs *work* in the next transaction and returns its result after the commit; raises the `GodwitError` it raised.

        *grows*: it adds to the catalog, and is refused while the disk is full. Cancellation ends the waiting, not the work.
        Raises `NotManager` when the term is over, `CatalogFault` when the catalog's disk does not allow it.
        """
        item = self._submit(work, durable, grows)
        await item.done.wait()
        return item.outcome()

    async def write_uncancelled(self, work: Work[T], *, durable: bool = False, grows: bool = False) -> T:
        """As `write`, but waits for the end of the work even when cancelled."""
        item = self._submit(work, durable, grows)
        with trio.CancelScope(shield=True):
            await item.done.wait()
        return item.outcome()

    async def write_parts(self, parts: Iterable[Work[T]], *, durable: bool = False) -> list[T]:
        """As `write`, for work that gives way to other work: each part may be in a transaction of its own.

        Waits for the end of the work even when cancelled. When a part fails, the others may have been done.
        """
        items = [self._submit(part, durable, False, self._giving_way) for part in parts]
        with trio.CancelScope(shield=True):
            for item in items:
                await item.done.wait()
        return [item.outcome() for item in items]

    @property
    def is_idle(self) -> bool:
        """Whether `write_at_once` may be used: no work is queued but what gives way, and transactions need no thread."""
        return self._inline and not self._queue and self._may_write.is_set() and self._closed is None

    def write_at_once(self, work: Work[T], *, grows: bool = False) -> T:
        """As `write`, in a transaction of its own that is over when this returns; only while the store `is_idle`."""
        item = _Item(work, False, Need.MORE if grows else Need.LESS)
        try:
            self._check_office()
            _writes.value += 1
            with _measuring(_transactions):
                effects = self._commit([item])
        except Fenced as error:
            self._end(error)
            raise self._ended() from error
        try:
            for effect in effects:
                effect()
        except Exception as error:
            self._end(Fenced(f"the manager's memory is behind the catalog: {error!r}"))
            raise
        return item.outcome()

    def _submit(self, work: Work[T], durable: bool, grows: bool = False, queue: deque[_Item[Any]] | None = None) -> _Item[T]:
        if self._closed is not None:
            raise self._ended()
        item = _Item(work, durable, Need.MORE if grows else Need.LESS)
        (self._queue if queue is None else queue).append(item)
        self._work_came.set()
        return item

    @contextmanager
    def _holding_writes(self) -> Iterator[None]:
        """While inside, no transaction begins; where they run in the event loop, none is under way either."""
        self._may_write = trio.Event()
        try:
            yield
        finally:
            self._may_write.set()

    def _take_batch(self) -> list[_Item[Any]]:
        """What waits, up to a bound; of what gives way one if it has waited for too long, and more if nothing else waits."""
        batch_max = self._limits.batch_max
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), batch_max))]
        later = self._giving_way
        if later and not batch:
            batch = [later.popleft() for _ in range(1 if self._inline else min(len(later), batch_max))]
        elif later and later[0].since_s + self._limits.give_way_s <= trio.current_time():
            batch.append(later.popleft())
        if not self._queue and not self._giving_way:
            self._work_came = trio.Event()
        return batch

    def _ended(self) -> NotManager:
        return NotManager(f"term {self.term} is over: {self._closed}")

    async def run(self) -> None:
        """Commits batches until cancelled, or until a transaction finds that the term is over."""
        try:
            async with trio.open_nursery() as nursery:
                if self._log is not None:
                    nursery.start_soon(self._look_loop)
                    nursery.start_soon(self._sync_loop, self._log)
                    nursery.start_soon(self._log.checkpoint_loop, self._limits.log, self._holding_writes)
                await self._commit_loop()
                nursery.cancel_scope.cancel()
        finally:
            self._close()

    async def _commit_loop(self) -> None:
        while True:
            await self._work_came.wait()
            await trio.lowlevel.checkpoint()
            # Asked again: another checkpoint may hold writes back by the time this task runs.
            while not self._may_write.is_set():
                await self._may_write.wait()
            if self._closed is not None:
                return
            # No `await` since the checks above: where transactions run in the loop, none begins while writes are held back.
            batch = self._take_batch()
            try:
                effects = await self._commit_batch(batch)
            except Fenced as error:
                self._queue.extendleft(reversed(batch))  # `_close` answers them
                self._end(error)
                return
            # The memory follows the catalog before anybody is answered: a reply never tells of what the memory does not know.
            for effect in effects:
                effect()
            for item in batch:
                # The effects have run, and others may see the change; only this answer waits for the disk.
                if item.durable and item.error is None and self._log is not None:
                    self._to_sync.append(item)
                    self._sync_wanted.set()
                else:
                    item.done.set()

    def _end(self, error: Fenced) -> None:
        """Another manager may exist: nothing is written any more."""
        self._closed = error
        self._work_came.set()
        self._on_deposed()

    def _check_office(self) -> None:
        if not self._in_office():
            raise Fenced("its time was over")

    async def _commit_batch(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        self._check_office()
        _writes.value += len(batch)
        if self._inline:
            with _measuring(_transactions):
                return self._commit(batch)
        effects: list[Callable[[], None]] = []
        with _measuring(_transactions), trio.CancelScope(shield=True):  # a batch that was taken is always answered
            effects += await trio.to_thread.run_sync(self._commit, batch)
        return effects

    async def _look_loop(self) -> None:
        while True:
            await trio.to_thread.run_sync(self.room.look)
            await trio.sleep(LOOK_S)

    async def _sync_loop(self, write_ahead: WriteAheadLog) -> None:
        while True:
            await self._sync_wanted.wait()
            # Before the list is read: what comes later rings again.
            self._sync_wanted = trio.Event()
            # What is committed while the log is synced may be in that sync or not: it waits for the next one.
            waiting = self._to_sync[:]
            failure = None
            with trio.CancelScope(shield=True):
                try:
                    with _measuring(_syncs):
                        await trio.to_thread.run_sync(write_ahead.sync)
                except OSError as error:
                    log.error("the log of the catalog could not be synced: %s", error_text(error))
                    failure = self.room.not_synced(error)
            # By number, since more may have come to the end of the list while the thread synced.
            del self._to_sync[: len(waiting)]
            for item in waiting:
                item.error = failure
                item.done.set()

    def _close(self) -> None:
        if self._closed is None:
            self._closed = Fenced("the manager stops")
        for item in (*self._to_sync, *self._queue, *self._giving_way):
            item.error = self._ended()
            item.done.set()
        self._to_sync.clear()
        self._queue.clear()
        self._giving_way.clear()
        for connection in (self._connection, self._read_connection):
            if connection is not None:
                with suppress(SQLAlchemyError):
                    connection.close()
        self._read_connection = self._connection = None

    def _commit(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        try:
            effects = retrying(lambda: self._attempt(batch))
        except Fenced:
            raise
        except Exception as error:
            return self._failed(batch, error)
        self._succeeded(batch)
        return effects

    def _succeeded(self, batch: list[_Item[Any]]) -> None:
        if self.room.fault is not None:
            for item in batch:
                if item.error is None:
                    self.room.succeeded(item.need)

    def _failed(self, batch: list[_Item[Any]], error: Exception) -> list[Callable[[], None]]:
        """Has the culprit alone fail; or all, if it is the database that fails. On a full disk some may go on."""
        fault = self.room.failed(error) if isinstance(error, SQLAlchemyError) else Fault.WRONG
        if fault in (Fault.BUSY, Fault.LOST, Fault.READ_ONLY):
            for item in batch:
                item.error = self._answer(error)
            log.error("%s", batch[0].error)
            return []
        if len(batch) > 1:
            # Each in a transaction of its own, so that only the culprit fails. Bodies may run again: they have no effects
            # outside the database.
            return [effect for item in batch for effect in self._commit([item])]
        (item,) = batch
        if fault is Fault.FULL:
            return self._commit_on_full_disk(item, error)
        item.error = self._answer(error)
        return []

    def _commit_on_full_disk(self, item: _Item[Any], error: Exception) -> list[Callable[[], None]]:
        attempt = 0
        while self.room.make(item.need, attempt):
            attempt += 1
            try:
                return self._attempt([item])
            except SQLAlchemyError as again:
                error = again
                if self.room.failed(again) is not Fault.FULL:
                    break
        item.error = self._answer(error)
        return []

    def _answer(self, error: Exception) -> Exception:
        return (self.room.answer(error) if isinstance(error, SQLAlchemyError) else None) or error

    def _attempt(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        committing = False
        try:
            if self._connection is None:
                self._connection = self._writer.connect()
            with self._connection.begin():
                lock_writes(self._connection)
                effects = self._run_batch(self._connection, batch)
                # What fails after this fails in the COMMIT, whose outcome a lost connection leaves unknown.
                committing = True
        except SQLAlchemyError as error:
            self._drop_connection()
            if committing and fault_of(error) is Fault.LOST:
                # Run again it might do nothing, as it is done already, and its effects on the memory would be missing.
                raise Fenced("the database was lost in the middle of a commit: nobody can tell whether it is done") from error
            raise
        return effects

    def _run_batch(self, connection: Connection, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        term = _TERM.one_or_none(connection, {}).term
        if term != self.term:
            raise Fenced(f"term {term} has begun")
        transaction = Transaction(connection, self.term)
        effects: list[Callable[[], None]] = []
        for item in batch:
            # An earlier attempt of the batch may have left something.
            item.result, item.error = None, self.room.refusal() if item.need is Need.MORE else None
            if item.error is not None:
                continue
            try:
                item.result = item.work(transaction)
            except GodwitError as error:
                item.error = error
                transaction.effects.clear()
            effects += transaction.effects
            transaction.effects.clear()
        if transaction.inodes_added:
            _ADD.run(connection, {"counter": "inodes", "delta": transaction.inodes_added})
        return effects

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:  # a disk that fails may fail at the rollback, too
                connection.invalidate()
