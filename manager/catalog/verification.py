"""Reads a backup of the catalog whole, and says whether it is good: it can be read, is of a known schema, and hangs together.

A file is believed in nothing. It is read without running anything that stands in it: a database of SQLite by questions of this
module, on a connection that trusts no schema; an archive of `pg_dump` as the text that `pg_restore` makes of it, of which only
rows are taken, into a database of SQLite that is gone afterwards. So both are asked the same questions.
"""

import re
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from alembic.script import ScriptDirectory

from cluster.catalog_point import CatalogPoint
from cluster.errors import Refused
from manager.catalog.identity import TABLES, tables_in
from manager.catalog.postgres_programs import find_program
from manager.catalog.upgrade import alembic_config

SQLITE_HEAD = b"SQLite format 3\0"
POSTGRES_HEAD = b"PGDMP"
LINE_MAX_BYTES = 4 << 20  # of a row as text: the longest value is an extended attribute of 64 KiB
BATCH_ROWS = 10_000

# What the questions below need; of all other tables the rows are only counted.
_COLUMNS = {
    "alembic_version": ("version_num",),
    "office": ("id", "term", "beat"),
    "identity": ("id", "catalog", "generation"),
    "counters": ("name", "value"),
    "inodes": ("ino", "mode", "nlink"),
    "dentries": ("parent", "name", "ino"),
    "symlinks": ("ino",),
    "orphans": ("ino",),
}
_BYTES = frozenset({("dentries", "name")})
_TEXTS = frozenset({("alembic_version", "version_num"), ("identity", "catalog"), ("counters", "name")})


# What may be wrong, and the rows for which it is so. Of a mode, 61440 is the mask of types, 16384 a directory, 40960 a symlink.
_FAULTS = (
    ("names are of inodes that are not there", "dentries d LEFT JOIN inodes i ON i.ino = d.ino WHERE i.ino IS NULL"),
    (
        "names are in directories that are not there",
        "dentries d LEFT JOIN inodes i ON i.ino = d.parent AND i.mode & 61440 = 16384 WHERE i.ino IS NULL",
    ),
    (
        "names cannot be names of files",
        "dentries WHERE typeof(name) <> 'blob' OR length(name) NOT BETWEEN 1 AND 255 OR instr(name, x'2f') OR instr(name, x'00')"
        " OR name IN (x'2e', x'2e2e')",
    ),
    (
        "inodes have neither a name nor are waiting to be removed",
        "inodes i WHERE ino <> 1 AND NOT EXISTS (SELECT 1 FROM dentries d WHERE d.ino = i.ino)"
        " AND NOT EXISTS (SELECT 1 FROM orphans o WHERE o.ino = i.ino)",
    ),
    (
        "files have another number of names than they say",
        "inodes i WHERE mode & 61440 <> 16384 AND nlink <> (SELECT count(*) FROM dentries d WHERE d.ino = i.ino)",
    ),
    (
        "directories have several names",
        "inodes i WHERE mode & 61440 = 16384 AND (SELECT count(*) FROM dentries d WHERE d.ino = i.ino) > 1",
    ),
    (
        "directories cannot be reached from the root",
        "(SELECT i.ino FROM inodes i JOIN dentries d ON d.ino = i.ino WHERE i.mode & 61440 = 16384"
        " EXCEPT SELECT ino FROM reached)",
    ),
    (
        "symbolic links have no target",
        "inodes i WHERE mode & 61440 = 40960 AND NOT EXISTS (SELECT 1 FROM symlinks s WHERE s.ino = i.ino)",
    ),
    (
        "inodes have numbers that are still to be given",
        "inodes WHERE ino >= (SELECT value FROM counters WHERE name = 'next_ino')",
    ),
)
_REACHED = (
    "WITH RECURSIVE reached(ino) AS (SELECT 1 UNION SELECT d.ino FROM reached r JOIN dentries d ON d.parent = r.ino"
    " JOIN inodes i ON i.ino = d.ino WHERE i.mode & 61440 = 16384)"
)
_RUNS = re.compile(r"FUNCTION|PROCEDURE|AGGREGATE|TRIGGER|RULE|VIEW|OPERATOR|CAST|LANGUAGE|CONVERSION|TRANSFORM|PUBLICATION")


class Verified(NamedTuple):
    """A backup that is good."""

    kind: str  # sqlite, postgresql
    point: CatalogPoint  # without an identity, if it is from before catalogs had any
    revision: str  # of its schema
    rows: dict[str, int]  # by table


def kind_of(file: Path) -> str:
    """What a file is: sqlite or postgresql. Raises `Refused` if it is neither, or cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(SQLITE_HEAD))
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}", error.errno) from error
    if head.startswith(SQLITE_HEAD):
        log = file.with_name(f"{file.name}-wal")
        if log.exists() and log.stat().st_size:
            raise Refused(f"{file} is a database in use ({log.name} belongs to it), not a backup: godwit db backup makes one")
        return "sqlite"
    if head.startswith(POSTGRES_HEAD):
        return "postgresql"
    raise Refused(f"{file} is no backup of a catalog: neither a database of SQLite nor an archive of pg_dump")


def verify(file: Path) -> Verified:
    """Reads a backup whole. Raises `Refused` with what is wrong with it. Blocks."""
    kind = kind_of(file)
    try:
        with _opened(file) if kind == "sqlite" else _loaded(file) as (rows, counts):
            return _judged(file, kind, rows, counts)
    except sqlite3.Error as error:
        raise Refused(f"{file} is damaged, or was cut off: {error}") from error


def _judged(file: Path, kind: str, rows: sqlite3.Connection, counts: dict[str, int]) -> Verified:
    if not set(counts) >= TABLES:
        raise Refused(f"{file} is no catalog of Godwit")
    revisions = [str(row[0]) for row in rows.execute("SELECT version_num FROM alembic_version LIMIT 2")]
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if len(revisions) != 1 or revisions[0] not in known:
        found = ", ".join(revisions)[:100] or "none"
        raise Refused(f"{file} has the schema {found}, which this release does not know: it may be of a newer one")
    if rows.execute("SELECT count(*) FROM inodes WHERE ino = 1 AND mode & 61440 = 16384").fetchone() != (1,):
        raise Refused(f"{file} has no root directory")
    for what, where in _FAULTS:
        (number,) = rows.execute(f"{_REACHED} SELECT count(*) FROM {where}").fetchone()  # noqa: S608 - constants
        if number:
            raise Refused(f"{file} does not hang together: {number} {what}")
    return Verified(kind, _point_in(file, rows, counts), revisions[0], counts)


def _point_in(file: Path, rows: sqlite3.Connection, counts: dict[str, int]) -> CatalogPoint:
    office = rows.execute("SELECT term, beat FROM office WHERE id = 1").fetchone()
    which = ("", 0)
    if "identity" in counts:
        which = rows.execute("SELECT catalog, generation FROM identity WHERE id = 1").fetchone()
    if office is None or which is None or not all(isinstance(value, int) for value in (*office, which[1])):
        raise Refused(f"{file} does not say which catalog it is of, and how far that had come")
    return CatalogPoint(str(which[0]), which[1], *office)


# -------------------------------------------------------------------------------------------------------------- SQLite


@contextmanager
def _opened(file: Path) -> Iterator[tuple[sqlite3.Connection, dict[str, int]]]:
    # Immutable: no lock, and no file beside it, wherever it is.
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as rows:
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            rows.execute(f"PRAGMA {pragma}")
        for kind, name, text in rows.execute("SELECT type, name, sql FROM sqlite_master"):
            if kind not in ("table", "index") or "VIRTUAL" in (text or "").upper():
                raise Refused(f"{file} has a {kind} {str(name)[:100]!r}, as no catalog has")
        (page_bytes,), (pages,) = (rows.execute(f"PRAGMA {what}").fetchone() for what in ("page_size", "page_count"))
        # SQLite takes the rest of a page that was cut off for zeros, which may do no harm to it.
        if pages * page_bytes > file.stat().st_size:
            raise Refused(f"{file} was cut off: it has {file.stat().st_size:,} of {pages * page_bytes:,} bytes")
        (found,) = rows.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise Refused(f"{file} is damaged: {found}")
        counts = {}
        for table in sorted(tables_in(rows)):
            quoted = table.replace('"', '""')
            (counts[table],) = rows.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()  # noqa: S608 - constants
        yield rows, counts


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


@contextmanager
def _loaded(file: Path) -> Iterator[tuple[sqlite3.Connection, dict[str, int]]]:
    """The rows of an archive in a database of SQLite, and how many each table has."""
    _require_only_tables(file)
    counts: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile(prefix="godwit-verify-") as place, closing(sqlite3.connect(place.name)) as rows:
        rows.execute("PRAGMA journal_mode = OFF")
        rows.execute("PRAGMA synchronous = OFF")
        for table, columns in _COLUMNS.items():
            # Without types: values stay what they are.
            rows.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        with _text_of(file) as lines:
            for table, names, values in _copies(file, lines):
                counts[table] += len(values)
                _insert(rows, file, table, names, values)
        for table in ("inodes", "symlinks", "orphans", "dentries"):
            rows.execute(f"CREATE INDEX by_ino_{table} ON {table} (ino)")
        rows.execute("CREATE INDEX by_parent ON dentries (parent)")
        yield rows, dict(counts)


def _require_only_tables(file: Path) -> None:
    """Raises `Refused` for an archive that cannot be read, or has what would run when it is brought back."""
    listed = subprocess.run([find_program("pg_restore"), "--list", str(file)], capture_output=True, check=False)
    if listed.returncode != 0:
        raise Refused(f"{file} is damaged, or was cut off: {_complaint(listed.stderr)}")
    for line in listed.stdout.decode(errors="replace").splitlines():
        # number; catalog oid, oid, type, schema, name, owner
        what = "" if line.startswith(";") else line.partition("; ")[2].partition(" ")[2].partition(" ")[2]
        if found := _RUNS.match(what):
            raise Refused(f"{file} has a {found[0].lower()}, as no catalog has")


@contextmanager
def _text_of(file: Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            [find_program("pg_restore"), "--file=-", str(file)], stdout=subprocess.PIPE, stderr=said
        ) as restoring:
            assert restoring.stdout is not None
            try:
                yield restoring.stdout
            except BaseException:
                restoring.kill()
                raise
        if restoring.returncode != 0:
            said.seek(0)
            raise Refused(f"{file} is damaged, or was cut off: {_complaint(said.read(4096))}")


def _complaint(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[0][:300] if lines else "pg_restore says nothing"


_COPY = re.compile(rb'COPY (?:\w+\.)?"?(\w+)"? \(([\w", ]*)\) FROM stdin;\n')


def _copies(file: Path, lines: IO[bytes]) -> Iterator[tuple[str, list[str], list[bytes]]]:
    """Tables with the names of their columns, and lines of their rows, many at a time."""
    while line := lines.readline(LINE_MAX_BYTES):
        if (head := _COPY.fullmatch(line)) is None:
            continue
        table, columns = head[1].decode(), [name.strip().strip('"') for name in head[2].decode().split(",")]
        found: list[bytes] = []
        while (line := lines.readline(LINE_MAX_BYTES)) != b"\\.\n":
            if not line.endswith(b"\n"):
                raise Refused(f"{file} was cut off in the table {table}")
            found.append(line[:-1])
            if len(found) == BATCH_ROWS:
                yield table, columns, found
                found = []
        yield table, columns, found


def _insert(rows: sqlite3.Connection, file: Path, table: str, columns: Sequence[str], lines: Sequence[bytes]) -> None:
    wanted = _COLUMNS.get(table)
    if wanted is None or not lines:
        return
    try:
        places = [columns.index(name) for name in wanted]
        values = [
            [_value(table, name, line.split(b"\t")[place]) for name, place in zip(wanted, places, strict=True)] for line in lines
        ]
    except (ValueError, IndexError) as error:
        raise Refused(f"{file} has rows of the table {table} that are none: {error}") from error
    rows.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(wanted))})", values)  # noqa: S608 - constants


def _value(table: str, column: str, text: bytes) -> int | str | bytes:
    """A value as COPY writes it; raises `ValueError`."""
    if (table, column) in _BYTES:
        if not text.startswith(b"\\\\x"):
            raise ValueError(f"{column} is not in hexadecimal")
        return bytes.fromhex(text[3:].decode("ascii"))
    return text.decode() if (table, column) in _TEXTS else int(text)
