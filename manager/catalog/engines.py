"""Engines for the catalog's two databases, prepared the same way for whoever opens them; and transactions outside of a term.

What writes during a term is `manager.catalog.store`.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import Unavailable, error_text
from manager.catalog.faults import is_retriable
from manager.catalog.hot import Hot
from manager.catalog.wal import CHECKPOINT_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

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
    "client_encoding": "utf8",  # else that of the database, and with SQL_ASCII what it says would be bytes
}

_BEGIN = Hot(text("BEGIN IMMEDIATE"))


def retrying(body: Callable[[], T], *, for_s: float = RETRY_FOR_S) -> T:
    """Runs *body*, again after a growing pause while the database says that a repeat may help. Blocks its thread."""
    deadline = time.monotonic() + for_s
    pause = RETRY_FIRST_S
    while True:
        try:
            return body()
        except SQLAlchemyError as error:
            if not is_retriable(error) or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause *= 2


def make_engines(url: str) -> tuple[Engine, Engine]:
    """An engine for write transactions, and one for reads outside of transactions."""
    if make_url(url).get_backend_name() != "sqlite":
        return _postgres_engines(url)
    _keep_to_owner(make_url(url).database)
    writer = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    reader = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, isolation_level="AUTOCOMMIT")
    for engine in (writer, reader):
        event.listen(engine, "connect", _prepare_sqlite)
    return writer, reader


def _keep_to_owner(path: str | None) -> None:
    """Has nobody else read the catalog's file: names, owners and passwords are in it. SQLite gives its log the same mode."""
    if not path:
        return
    try:
        for file in (path, f"{path}-wal", f"{path}-shm"):
            if os.path.exists(file) and os.stat(file).st_mode & 0o077:
                os.chmod(file, 0o600)
    except OSError as error:
        log.warning("cannot make the catalog's file private, going on: %s", error_text(error))


def make_private_file(url: str) -> None:
    """Makes the file of a new catalog, if it is to be in one, so that nobody else can ever read it. Raises `Refused`."""
    place = make_url(url)
    if place.get_backend_name() != "sqlite" or not place.database:
        return
    try:
        os.close(os.open(place.database, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Unavailable(f"cannot open the database {url}: {error.strerror}", error.errno) from error


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
        "mmap_size=0",  # what a bad disk cannot read would be a signal that ends the process, not an error
    ):
        connection.execute(f"PRAGMA {pragma}").close()


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction outside of a term, with the write lock from the beginning on SQLite."""
    with engine.begin() as connection:
        lock_writes(connection)
        yield connection


def lock_writes(connection: Connection) -> None:
    """Takes the write lock at the beginning of a transaction where that is not done by the first change (SQLite)."""
    # Not in an event of the engine: with any listener, SQLAlchemy dispatches events for every statement.
    if connection.dialect.name == "sqlite":
        _BEGIN.run(connection, {})
