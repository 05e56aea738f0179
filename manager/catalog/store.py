"""The only place with an engine and transactions.

Writes go through one queue: what arrives while a transaction runs goes together into the next one, in order of arrival
(group commit); one that finds the queue empty may have a transaction at once (`write_at_once`). Each transaction begins by
checking that the office still has this manager's term; if not, it changes nothing and the store is fenced for good; so it is
when the term's time is over. The body of a request must check before it writes, so that a refused one leaves no trace; one with
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
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import trio
from sqlalchemy import Connection, Engine, bindparam, create_engine, event, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from cluster.errors import Fenced, GodwitError, NotManager
from manager.catalog.hot import Hot
from manager.catalog.schema import counters, office
from manager.catalog.wal import CHECKPOINT_BYTES, WriteAheadLog

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_MAX = 32  # what arrives meanwhile waits for the whole batch
GIVE_WAY_S = 0.05  # at most
RETRY_FOR_S = 2.0
RETRY_FIRST_S = 0.005
BUSY_TIMEOUT_MS = 5000
READ_THREADS = 8

# How PostgreSQL is asked for a connection; what the URL says goes first. A manager that was stopped, or whose machine is
# gone, must not keep its locks; one that does not reach the database must learn it within its term.
POSTGRES_SETTINGS: dict[str, Any] = {
    "connect_timeout": 2,
    "tcp_user_timeout": 4000,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "options": "-c idle_in_transaction_session_timeout=2000",
    "application_name": "godwit",
}

_CONTENTION_STATES = frozenset({"40001", "40P01", "55P03", "53300"})
_LOST_STATES = frozenset({"25P03", "57P01", "57P02", "57P03"})
_BEGIN = Hot(text("BEGIN IMMEDIATE"))
_SAVEPOINT = Hot(text("SAVEPOINT undoable"))
_ROLL_BACK = Hot(text("ROLLBACK TO SAVEPOINT undoable"))
_RELEASE = Hot(text("RELEASE SAVEPOINT undoable"))
_TERM = Hot(select(office.c.term).where(office.c.id == 1).with_for_update(read=True))
_ADD = Hot(update(counters).where(counters.c.name == bindparam("counter")).values(value=counters.c.value + bindparam("delta")))


def is_retriable(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed if it is simply run again: contention or a lost connection."""
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return is_lost(error) or getattr(original, "sqlstate", None) in _CONTENTION_STATES


def is_lost(error: DBAPIError) -> bool:
    """Whether the connection to the database broke, or could not be made."""
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # it comes from the client's side
        return isinstance(error, OperationalError)
    return state in _LOST_STATES or state.startswith("08")


def retrying(body: Callable[[], T], *, for_s: float = RETRY_FOR_S) -> T:
    """Runs *body*, again after a growing pause while the database says that a repeat may help. Blocks its thread."""
    deadline = time.monotonic() + for_s
    pause = RETRY_FIRST_S
    while True:
        try:
            return body()
        except DBAPIError as error:
            if not is_retriable(error) or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause *= 2


def make_engines(url: str) -> tuple[Engine, Engine]:
    """An engine for write transactions, and one for reads outside of transactions."""
    if make_url(url).get_backend_name() != "sqlite":
        return _postgres_engines(url)
    writer = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    reader = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, isolation_level="AUTOCOMMIT")
    for engine in (writer, reader):
        event.listen(engine, "connect", _prepare_sqlite)
    return writer, reader


def _postgres_engines(url: str) -> tuple[Engine, Engine]:
    given = make_url(url).query
    settings = {name: value for name, value in POSTGRES_SETTINGS.items() if name not in given}
    writer = create_engine(url, connect_args=settings, pool_pre_ping=True)
    # Without a ping, which would double what a question costs: it is simply asked again when its connection was lost.
    reader = create_engine(url, connect_args=settings, isolation_level="AUTOCOMMIT", pool_size=READ_THREADS)
    return writer, reader


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",  # `Store` syncs the log itself
        "wal_autocheckpoint=0",  # and checkpoints in a thread
        f"journal_size_limit={CHECKPOINT_BYTES}",
        "foreign_keys=ON",
        "cache_size=-65536",
        "mmap_size=268435456",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction outside of a term, with the write lock from the beginning on SQLite."""
    with engine.begin() as connection:
        _lock(connection)
        yield connection


def _lock(connection: Connection) -> None:
    # Not in an event of the engine: with any listener, SQLAlchemy dispatches events for every statement.
    if connection.dialect.name == "sqlite":
        _BEGIN.run(connection, {})


class Transaction:
    """What the body of a write request works with. Valid only inside the body."""

    __slots__ = ("connection", "effects", "execute", "inodes_added", "term")

    def __init__(self, connection: Connection, term: int) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.term = term
        self.inodes_added = 0
        self.effects: list[Callable[[], None]] = []

    def after(self, effect: Callable[[], None]) -> None:
        """Has *effect* run in the event loop once the transaction is committed; it must not block or raise."""
        self.effects.append(effect)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes what was done inside when it raises."""
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
    __slots__ = ("done", "durable", "error", "result", "since_s", "work")

    def __init__(self, work: Work[T], durable: bool) -> None:
        self.work = work
        self.durable = durable
        self.since_s = trio.current_time()
        self.done = trio.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


def _no_answer(error: DBAPIError) -> NotManager:
    reason = str(error.orig).strip().partition("\n")[0]
    return NotManager(f"the catalog does not answer: {reason}")


class Store:
    """The catalog's database during one term. `run` must be running for `write` to return."""

    def __init__(
        self,
        writer: Engine,
        reader: Engine,
        term: int,
        *,
        on_fenced: Callable[[], None],
        in_office: Callable[[], bool] = lambda: True,
    ) -> None:
        self.term = term
        self._in_office = in_office
        self._writer = writer
        self._reader = reader
        self._on_fenced = on_fenced
        self._inline = reader.dialect.name == "sqlite"
        self._queue: deque[_Item[Any]] = deque()
        self._giving_way: deque[_Item[Any]] = deque()
        self._work_came = trio.Event()
        self._may_write = trio.Event()
        self._may_write.set()
        self._closed: BaseException | None = None
        self._connection: Connection | None = None
        self._read_connection = reader.connect() if self._inline else None
        self._threads = trio.CapacityLimiter(READ_THREADS)
        self._log = WriteAheadLog(writer) if self._inline else None
        self._to_sync: list[_Item[Any]] = []
        self._sync_wanted = trio.Event()

    @property
    def display_url(self) -> str:
        """The database's URL without its password."""
        return self._writer.url.render_as_string(hide_password=True)

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
            return question(self._read_connection)
        return await trio.to_thread.run_sync(self._ask, question, limiter=self._threads)

    async def read_slowly(self, question: Callable[[Connection], T]) -> T:
        """As `read`, for questions that take long enough to hold up the event loop."""
        return await trio.to_thread.run_sync(self._ask, question, limiter=self._threads)

    def _ask(self, question: Callable[[Connection], T]) -> T:
        def ask() -> T:
            with self._reader.connect() as connection:
                return question(connection)

        try:
            return retrying(ask)
        except DBAPIError as error:
            if not is_retriable(error):
                raise
            raise _no_answer(error) from error

    # ------------------------------------------------------------------------------------------------- writing

    async def sync(self) -> None:
        """Returns when all that was answered before is durable."""
        await self.write(lambda _tx: None, durable=True)

    async def write(self, work: Work[T], *, durable: bool = False) -> T:
        """Runs *work* in the next transaction and returns its result after the commit; raises the `GodwitError` it raised.

        Cancellation ends the waiting, not the work. Raises `NotManager` when the term is over.
        """
        item = self._submit(work, durable)
        await item.done.wait()
        return item.outcome()

    async def write_uncancelled(self, work: Work[T], *, durable: bool = False) -> T:
        """As `write`, but waits for the end of the work even when cancelled."""
        item = self._submit(work, durable)
        with trio.CancelScope(shield=True):
            await item.done.wait()
        return item.outcome()

    async def write_parts(self, parts: Iterable[Work[T]], *, durable: bool = False) -> list[T]:
        """As `write`, for work that gives way to other work: each part may be in a transaction of its own.

        Waits for the end of the work even when cancelled. When a part fails, the others may have been done.
        """
        items = [self._submit(part, durable, self._giving_way) for part in parts]
        with trio.CancelScope(shield=True):
            for item in items:
                await item.done.wait()
        return [item.outcome() for item in items]

    @property
    def is_idle(self) -> bool:
        """Whether `write_at_once` may be used: no work is queued but what gives way, and transactions need no thread."""
        return self._inline and not self._queue and self._may_write.is_set() and self._closed is None

    def write_at_once(self, work: Work[T]) -> T:
        """As `write`, in a transaction of its own that is over when this returns; only while the store `is_idle`."""
        item = _Item(work, durable=False)
        try:
            self._check_office()
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

    def _submit(self, work: Work[T], durable: bool, queue: deque[_Item[Any]] | None = None) -> _Item[T]:
        if self._closed is not None:
            raise self._ended()
        item = _Item(work, durable)
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
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]
        later = self._giving_way
        if later and not batch:
            batch = [later.popleft() for _ in range(1 if self._inline else min(len(later), BATCH_MAX))]
        elif later and later[0].since_s + GIVE_WAY_S <= trio.current_time():
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
                    nursery.start_soon(self._sync_loop, self._log)
                    nursery.start_soon(self._log.checkpoint_loop, self._holding_writes)
                await self._commit_loop()
                nursery.cancel_scope.cancel()
        finally:
            self._close()

    async def _commit_loop(self) -> None:
        while True:
            await self._work_came.wait()
            await trio.lowlevel.checkpoint()
            while not self._may_write.is_set():
                await self._may_write.wait()
            if self._closed is not None:
                return
            batch = self._take_batch()
            try:
                effects = await self._commit_batch(batch)
            except Fenced as error:
                self._queue.extendleft(reversed(batch))
                self._end(error)
                return
            for effect in effects:
                effect()
            for item in batch:
                if item.durable and item.error is None and self._log is not None:
                    self._to_sync.append(item)
                    self._sync_wanted.set()
                else:
                    item.done.set()

    def _end(self, error: Fenced) -> None:
        """Another manager may exist: nothing is written any more."""
        self._closed = error
        self._work_came.set()
        self._on_fenced()

    def _check_office(self) -> None:
        if not self._in_office():
            raise Fenced("its time was over")

    async def _commit_batch(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        self._check_office()
        if self._inline:
            return self._commit(batch)
        effects: list[Callable[[], None]] = []
        with trio.CancelScope(shield=True):  # a batch that was taken is always answered
            effects += await trio.to_thread.run_sync(self._commit, batch)
        return effects

    async def _sync_loop(self, write_ahead: WriteAheadLog) -> None:
        while True:
            await self._sync_wanted.wait()
            self._sync_wanted = trio.Event()
            waiting = self._to_sync[:]
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(write_ahead.sync)
            del self._to_sync[: len(waiting)]
            for item in waiting:
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
                connection.close()
        self._read_connection = self._connection = None

    def _commit(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        try:
            return retrying(lambda: self._attempt(batch))
        except Fenced:
            raise
        except Exception as error:
            if isinstance(error, DBAPIError) and is_retriable(error):
                log.error("%s", _no_answer(error))
                for item in batch:
                    item.error = _no_answer(error)
                return []
            if len(batch) == 1:
                batch[0].error = error
                return []
            return [effect for item in batch for effect in self._commit([item])]

    def _attempt(self, batch: list[_Item[Any]]) -> list[Callable[[], None]]:
        committing = False
        try:
            if self._connection is None:
                self._connection = self._writer.connect()
            with self._connection.begin():
                _lock(self._connection)
                effects = self._run_batch(self._connection, batch)
                committing = True
        except DBAPIError as error:
            self._drop_connection()
            if committing and is_lost(error):
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
            item.result = item.error = None
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
        if self._connection is not None:
            self._connection.close()
            self._connection = None
