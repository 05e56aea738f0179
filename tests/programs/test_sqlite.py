"""SQLite with its database on a mount, written by two processes at once."""

import sqlite3
from pathlib import Path

import pytest

from tests.support.modes import both_modes
from tests.support.processes import together

pytestmark = [pytest.mark.programs, both_modes]

WRITERS = 2
TRANSACTIONS = 50

WRITER = f"""
import sqlite3
path, writer = sys.argv[1:]
database = sqlite3.connect(path, timeout=60, isolation_level=None)
ready()
for number in range({TRANSACTIONS}):
    database.execute("BEGIN IMMEDIATE")
    (total,) = database.execute("SELECT total FROM sums").fetchone()
    database.execute("UPDATE sums SET total = ?", (total + 1,))
    database.execute("INSERT INTO words VALUES (?, ?, ?)", (writer, number, "w" * (number * 50)))
    database.execute("COMMIT")
"""


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_two_processes_write_to_one_database(directory: Path, journal: str) -> None:
    path = directory / "words.db"
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    database.execute("CREATE TABLE words (writer, number, text, PRIMARY KEY (writer, number))")
    database.execute("CREATE TABLE sums (total)")
    database.execute("INSERT INTO sums VALUES (0)")
    together(WRITER, *[(path, writer) for writer in range(WRITERS)])
    check(database)
    database.close()
    reopened = sqlite3.connect(path)
    check(reopened)
    reopened.close()
    assert not (directory / "words.db-wal").exists()


def check(database: sqlite3.Connection) -> None:
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("SELECT count(*), sum(length(text)) FROM words").fetchone() == (
        WRITERS * TRANSACTIONS,
        WRITERS * sum(number * 50 for number in range(TRANSACTIONS)),
    )
    assert database.execute("SELECT total FROM sums").fetchone() == (WRITERS * TRANSACTIONS,)


def test_an_interrupted_transaction_is_rolled_back(directory: Path) -> None:
    path = directory / "words.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("CREATE TABLE words (text)")
    database.execute("INSERT INTO words VALUES ('kept')")
    database.close()
    code = """
import signal, sqlite3
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.executemany("INSERT INTO words VALUES (?)", [("lost" * 500,)] * 200)
assert os.path.exists(sys.argv[1] + "-journal")
ready()
"""
    together(code + "os._exit(0)", (path,))
    assert (directory / "words.db-journal").exists()
    database = sqlite3.connect(path)
    assert database.execute("SELECT text FROM words").fetchall() == [("kept",)]
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
