"""Brings the catalog's schema to this version of Godwit.

Safe when several candidates start at once: the first one holds SQLite's write lock or a PostgreSQL advisory lock while it
works, the others wait and then find nothing to do.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

import manager.catalog.alembic
from manager.catalog.engines import write_transaction

ADVISORY_LOCK = 0x676F64776974  # the letters "godwit"; the same in every version, since candidates of two may start at once


def alembic_config() -> Config:
    """Alembic's configuration without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(manager.catalog.alembic.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Runs the versions that are missing up to a revision, in one transaction."""
    config = alembic_config()
    with write_transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Ends with the transaction: a candidate that dies while it works blocks nobody.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
