"""Looks at a catalog's database from outside, as `godwit doctor` does: what it is, and whether what it commits is durable.

Changes nothing, and makes no file. Knows no manager.
"""

import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import Refused, Unavailable
from manager.catalog.engines import make_engines
from manager.catalog.faults import reason_of
from manager.catalog.identity import TABLES, open_read_only, tables_in
from manager.catalog.upgrade import alembic_config
from manager.catalog.urls import parse_url, shown

SETTINGS = ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")
"""Of PostgreSQL: what decides whether a commit can be lost."""


class Examined(NamedTuple):
    """What a database says of itself."""

    place: str  # its URL, without a password
    file: str  # of SQLite; empty for PostgreSQL
    version: str  # of the database's program
    revision: str  # of the schema; empty: it holds no catalog
    newest: str  # the revision that this release of Godwit knows
    answered_s: float  # how long it took for a question
    settings: dict[str, str]  # PostgreSQL's, and its encoding; SQLite's journal mode


def examine(url: str) -> Examined:
    """What is there. Blocks; raises `Unavailable` if it does not answer, `Refused` for a URL that is none."""
    place = parse_url(url)
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head() or ""
    try:
        if place.get_backend_name() == "sqlite":
            return _examine_file(shown(place), Path(place.database or ""), newest)
        return _examine_server(url, shown(place), newest)
    except ImportError as error:
        text = f"it needs a Python package that is missing here ({error.name}): pip install 'godwit[postgres]'"
        raise Refused(text) from error
    except SQLAlchemyError as error:
        raise Unavailable(f"it does not answer: {reason_of(error)}") from error


def _examine_file(place: str, path: Path, newest: str) -> Examined:
    if not path.exists():
        raise Unavailable(f"{path} is missing")
    began_s = time.monotonic()
    with closing(open_read_only(path)) as file:
        has_catalog = tables_in(file) >= TABLES
        (revision,) = file.execute("SELECT version_num FROM alembic_version").fetchone() if has_catalog else ("",)
        (version,) = file.execute("SELECT sqlite_version()").fetchone()
        (mode,) = file.execute("PRAGMA journal_mode").fetchone()
    return Examined(place, str(path), version, revision, newest, time.monotonic() - began_s, {"journal_mode": mode})


def _examine_server(url: str, place: str, newest: str) -> Examined:
    writer, reader = make_engines(url)
    try:
        with reader.connect() as connection:
            began_s = time.monotonic()
            connection.exec_driver_sql("SELECT 1").scalar_one()
            answered_s = time.monotonic() - began_s
            settings = {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in SETTINGS}
            version = str(connection.exec_driver_sql("SHOW server_version").scalar_one())
            encoding = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()"
            settings["encoding"] = str(connection.exec_driver_sql(encoding).scalar_one())
            settings["standby"] = str(connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one()).lower()
            return Examined(place, "", version, _revision(connection), newest, answered_s, settings)
    finally:
        writer.dispose()
        reader.dispose()


def _revision(connection: Connection) -> str:
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is None:
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
