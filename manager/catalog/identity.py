"""Which catalog a database holds, and how an operator makes an older one the present one."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, inspect, select, update
from sqlalchemy.exc import OperationalError

from cluster.catalog_point import CatalogPoint
from cluster.errors import Refused
from cluster.messages import TaskOperation
from manager.catalog.faults import is_damage, unreadable
from manager.catalog.schema import counters, identity, inodes, office, tasks

GENERATION_INODES = 2**32
"""So many numbers are left out after a catalog that was older: more than can have been handed out after it was written."""
GENERATION_TERMS = 1000  # likewise left out of the terms
BUSY_TIMEOUT_S = 5.0  # for a writer that has the file
TABLES = frozenset({"alembic_version", "office", "inodes"})
"""Some that every version of the catalog has."""

# One statement, so that term and beat are of the same moment.
_POINT = (
    select(identity.c.catalog, identity.c.generation, office.c.term, office.c.beat)
    .join(office, office.c.id == identity.c.id)
    .where(identity.c.id == 1)
)
_FIRST_INO = select(identity.c.first_ino).where(identity.c.id == 1)


def has_tables(engine: Engine) -> bool:
    """Whether the database holds a catalog, of whichever version. A file that is missing or empty is left so.

    Raises `SQLAlchemyError` if the database does not answer, `Refused` for a file that is damaged.
    """
    if engine.dialect.name != "sqlite":
        with engine.connect() as connection:
            return all(inspect(connection).has_table(name) for name in TABLES)
    path = Path(engine.url.database or "")
    try:
        # SQLite would make an empty file of it.
        if not path.exists():
            return False
        with closing(open_read_only(path)) as file:
            return tables_in(file) >= TABLES
    except OSError as error:
        raise unreadable(error) from error
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise OperationalError("", {}, error) from error
        raise Refused(f"{path} is damaged ({error}): bring the catalog back with godwit db restore FILE") from error


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that makes no file and changes none."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)


def tables_in(file: sqlite3.Connection) -> set[str]:
    """The names of all tables."""
    return {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def read_point(connection: Connection) -> CatalogPoint:
    """How far the catalog has come. Raises `Refused` for tables without their first rows."""
    row = connection.execute(_POINT).one_or_none()
    if row is None:
        raise Refused("the database has a catalog's tables, but not their first rows: it is damaged, bring a backup back")
    return CatalogPoint(row.catalog, row.generation, row.term, row.beat)


def read_first_ino(connection: Connection) -> int:
    """The first inode number of the present generation."""
    first_ino: int = connection.execute(_FIRST_INO).scalar_one()
    return first_ino


def begin_generation(connection: Connection, known: CatalogPoint | None) -> CatalogPoint:
    """Makes this catalog the newest that there is, although *known* was newer; returns its new point.

    No number that may have been used since it was written is used again: not of terms, not of inodes. All files with content
    count as dirty, since what is on the disks of their homes may be newer: their agents commit what differs. No object of a file
    that is there is deleted before that. The office is vacant.
    """
    found = read_point(connection)
    # Members judge by generation first, then term and beat: all three must be above what anybody has known.
    generation = max(found.generation, known.generation if known else 0) + 1
    term = max(found.term, known.term if known else 0) + GENERATION_TERMS
    beat = max(found.beat, known.beat if known else 0) + 1
    counter = counters.c.name == "next_ino"
    next_ino: int = connection.execute(select(counters.c.value).where(counter)).scalar_one() + GENERATION_INODES
    connection.execute(update(counters).where(counter).values(value=next_ino))
    connection.execute(update(identity).where(identity.c.id == 1).values(generation=generation, first_ino=next_ino))
    connection.execute(update(office).where(office.c.id == 1).values(term=term, beat=beat, stopped=term, server="", address=""))
    # All in the caller's transaction: a crash leaves the older catalog as it was.
    connection.execute(update(inodes).where(inodes.c.home_volume != 0).values(dirty=1))
    # What was surplus then may be the only content now. What still is comes up again when the home's agent has committed.
    connection.execute(delete(tasks).where(tasks.c.operation == TaskOperation.DELETE, tasks.c.ino.in_(select(inodes.c.ino))))
    return CatalogPoint(found.catalog, generation, term, beat)
