"""Brings the catalog's schema to this version of Godwit.

Safe when several candidates start at once: the first one holds SQLite's write lock or a PostgreSQL advisory lock while it
works, the others wait and then find nothing to do.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

import manager.catalog.alembic
from manager.catalog.store import write_transaction

ADVISORY_LOCK = 0x676F64776974


def alembic_config() -> Config:
    """Alembic's configuration without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(manager.catalog.alembic.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(engine: Engine) -> None:
    """Runs the missing migrations in one transaction."""
    config = alembic_config()
    with write_transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
