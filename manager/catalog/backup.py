"""Backups of the catalog, and what makes a restored or otherwise older one the present one.

A backup of SQLite is a database file, made and brought back through SQLite's own copying, which respects its locks and logs.
One of PostgreSQL is an archive of `pg_dump`, brought back by `pg_restore`.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import Engine, make_url, update
from sqlalchemy.exc import SQLAlchemyError

from cluster.catalog_point import CatalogPoint, Verdict, judge
from cluster.durable import sync_directory
from cluster.errors import Refused, Unavailable
from manager.catalog.engines import make_engines, retrying, write_transaction
from manager.catalog.identity import TABLES, begin_generation, has_tables, open_read_only, read_point, tables_in
from manager.catalog.office import read_office
from manager.catalog.postgres_programs import run_postgres
from manager.catalog.schema import identity
from manager.catalog.upgrade import upgrade
from manager.catalog.urls import shown

PAGES_AT_ONCE = 1024
PAGE_PAUSE_S = 0.01  # between them the disk is others'
TERMS_STILL = 2.5  # terms without a beat, after which nobody extends the office


@contextmanager
def _engines(url: str) -> Iterator[tuple[Engine, Engine]]:
    writer, reader = make_engines(url)
    try:
        yield writer, reader
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise Unavailable(f"{shown(writer.url)}: {reason}") from error
    finally:
        writer.dispose()
        reader.dispose()


# ------------------------------------------------------------------------------------------------------------ making


def back_up(url: str, target: Path) -> CatalogPoint:
    """Writes a backup of the catalog, which may be in use, and returns the point that it was at before. Blocks.

    Raises `Refused` if *target* exists or the database holds no catalog, `Unavailable` if the database does not answer.
    """
    if target.exists():
        raise Refused(f"{target} exists: a backup replaces nothing")
    with _engines(url) as (writer, reader):
        _require_catalog(writer)
        with reader.connect() as connection:
            # Before the copy, which is at this point or at a later one.
            point = read_point(connection)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            # Before anything is in it: what is in a catalog is nobody else's to read.
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            if writer.dialect.name == "sqlite":
                _copy_sqlite(_sqlite_path(url), temporary)
            else:
                run_postgres(url, "pg_dump", ["--format=custom", "--no-owner", f"--file={temporary}"])
            # Before it gets its name: under that there is never half a backup, whenever the power fails.
            _sync(temporary)
            os.link(temporary, target)  # unlike a rename, it replaces nothing
            sync_directory(target.parent)
        except sqlite3.Error as error:
            raise Unavailable(f"cannot back {url} up: {error}") from error
        except OSError as error:
            raise Refused(f"cannot write {target}: {error.strerror}", error.errno) from error
        finally:
            temporary.unlink(missing_ok=True)
    return point


def _copy_sqlite(source: Path, target: Path) -> None:
    with closing(open_read_only(source)) as present, closing(sqlite3.connect(target)) as copy:
        # While it is empty: what is in a catalog is nobody else's to read.
        os.chmod(target, 0o600)
        # One state of the catalog from the first page to the last: without it the copy begins anew with each commit that it
        # meets, and never ends while a manager works.
        present.execute("BEGIN")
        present.execute("SELECT 1 FROM sqlite_master").fetchone()
        present.backup(copy, pages=PAGES_AT_ONCE, sleep=PAGE_PAUSE_S)
        # A backup is one file, without a log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        _check_sqlite(copy, target)


def _check_sqlite(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise Refused(f"{path} is damaged: {found}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------- bringing back


def restore(url: str, source: Path, remembered: CatalogPoint | None, term_s: float) -> tuple[CatalogPoint, Path | None]:
    """Replaces the catalog by a backup, and begins a new generation with it. Blocks.

    *remembered*: the newest point that this server remembers. Returns the new point, and where the catalog that was there has
    been kept (SQLite). Raises `Refused` if *source* is no backup, or one of another catalog, or if a manager is in office.
    """
    with _engines(url) as (writer, reader):
        if _is_readable(writer):
            require_stopped(reader, term_s)
        if writer.dialect.name == "sqlite":
            kept = _restore_sqlite(_sqlite_path(url), source, remembered)
        else:
            kept = None
            _restore_postgres(url, source)
        writer.dispose()
        return _accept(writer, remembered), kept


def _is_readable(writer: Engine) -> bool:
    """Whether there is a catalog in which somebody may be in office; in one that is damaged nobody can be."""
    try:
        return has_tables(writer)
    except Refused:
        return False


def _restore_sqlite(present: Path, source: Path, remembered: CatalogPoint | None) -> Path | None:
    try:
        with closing(open_read_only(source)) as backup:
            _check_sqlite(backup, source)
            _require_same(_identity_in(backup, source), remembered, source)
            kept = _put_aside(present)
            with closing(sqlite3.connect(present, timeout=5.0)) as target:
                backup.backup(target)
    except sqlite3.Error as error:
        raise Refused(f"cannot bring {source} back: {error}") from error
    os.chmod(present, 0o600)
    _sync(present)
    sync_directory(present.parent)
    return kept


def _identity_in(backup: sqlite3.Connection, source: Path) -> str:
    """The identity of the catalog in a file; empty for one from before catalogs had any."""
    tables = tables_in(backup)
    if not tables >= TABLES:
        raise Refused(f"{source} is no catalog of Godwit")
    if "identity" not in tables:
        return ""
    (found,) = backup.execute("SELECT catalog FROM identity").fetchone()
    return str(found)


def _require_same(catalog: str, remembered: CatalogPoint | None, source: Path) -> None:
    if catalog and remembered is not None and catalog != remembered.catalog:
        raise Refused(f"{source} is of catalog {catalog}, and this server has worked with {remembered.catalog}")


def _put_aside(present: Path) -> Path | None:
    """Keeps a copy of the database that is there; what cannot be read as one is renamed, with its logs."""
    if not present.exists():
        present.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return None
    kept = present.with_name(f"{present.name}.before-restore-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        _copy_sqlite(present, kept)
    except (sqlite3.Error, Refused):
        kept.unlink(missing_ok=True)
        for suffix in ("", "-wal", "-shm"):
            if (path := present.with_name(present.name + suffix)).exists():
                path.rename(kept.with_name(kept.name + suffix))
    return kept


def _restore_postgres(url: str, source: Path) -> None:
    if not source.is_file():
        raise Refused(f"{source} is not a file")
    clean = ["--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error"]
    run_postgres(url, "pg_restore", [*clean, str(source)])


# ----------------------------------------------------------------------------------------------------------- accepting


def accept_rollback(url: str, remembered: CatalogPoint | None, term_s: float) -> tuple[CatalogPoint, CatalogPoint]:
    """Makes the catalog that is there the present one, although somebody has seen a newer one. Blocks.

    Returns its point before and after. Raises `Refused` for another catalog than *remembered*, or if a manager is in office.
    """
    with _engines(url) as (writer, reader):
        _require_catalog(writer)
        require_stopped(reader, term_s)
        retrying(partial(upgrade, writer))
        with reader.connect() as connection:
            found = read_point(connection)
        if remembered is not None and judge(remembered, found) is Verdict.FOREIGN:
            raise Refused(f"this is another catalog ({found}) than the one that this server has worked with ({remembered})")
        return found, _accept(writer, remembered)


def _accept(writer: Engine, remembered: CatalogPoint | None) -> CatalogPoint:
    had_identity = _has_identity(writer)
    retrying(partial(upgrade, writer))
    with write_transaction(writer) as connection:
        if not had_identity and remembered is not None:
            connection.execute(update(identity).where(identity.c.id == 1).values(catalog=remembered.catalog))
        return begin_generation(connection, remembered)


def _has_identity(writer: Engine) -> bool:
    with writer.connect() as connection:
        return connection.dialect.has_table(connection, identity.name)


def require_stopped(reader: Engine, term_s: float) -> None:
    """Raises `Refused` if anybody extends the office: looks for a few terms unless it is vacant. Blocks."""
    with reader.connect() as connection:
        before = read_office(connection)
        if before.vacant:
            return
        time.sleep(TERMS_STILL * term_s)
        after = read_office(connection)
    if (after.term, after.beat) != (before.term, before.beat):
        raise Refused(
            f"{after.server} at {after.address} is the manager: stop the managers of all servers first "
            "(systemctl stop godwit-manager), so that nobody works with the catalog meanwhile"
        )


def _require_catalog(engine: Engine) -> None:
    if not has_tables(engine):
        raise Refused(f"{shown(engine.url)} holds no catalog")


def _sqlite_path(url: str) -> Path:
    return Path(make_url(url).database or "")
