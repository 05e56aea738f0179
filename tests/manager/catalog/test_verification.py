"""Backups that are good, cut off, foreign, made by somebody who means no good, or do not hang together."""

import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from sqlalchemy import delete, func, insert, select, text, update

from cluster.errors import Refused
from cluster.messages import ROOT_INO, SetAttr
from manager.catalog.backup import back_up
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.schema import counters, dentries, inodes, metadata
from manager.catalog.verification import verify
from tests.manager.catalog.random_trees import grow
from tests.manager.office import NOW, in_office

SEED = 20261201
WRITES_MAX = 20_000  # twenty times as many as are made while the catalog of the test is copied once


async def make_tree(url: str) -> None:
    async with in_office(url) as office:
        await office.three_servers()
        await grow(await office.peer(), random.Random(SEED), 40)


@pytest.fixture
def backup(url: str, tmp_path: Path) -> Path:
    """Of a catalog with a random tree."""
    trio.run(make_tree, url)
    back_up(url, tmp_path / "backup")
    return tmp_path / "backup"


def change(url: str, statement: str) -> None:
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.execute(text(statement))
    writer.dispose()


def test_a_good_backup_is_counted(url: str, backup: Path) -> None:
    found = verify(backup)
    writer, reader = make_engines(url)
    with reader.connect() as connection:
        expected = {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }
    writer.dispose()
    reader.dispose()
    assert {name: found.rows.get(name, 0) for name in expected} == expected
    assert all(expected[name] for name in ("symlinks", "xattrs", "dentries"))
    assert (found.kind, found.point.generation) == (make_engines(url)[0].dialect.name, 1)
    assert found.revision == "0015"


def test_one_that_was_cut_off_anywhere_is_refused(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    for part in (0, 3, 17, 100, len(whole) // 3, len(whole) // 2, len(whole) - 4096, len(whole) - 20):
        cut = tmp_path / f"cut-{part}"
        cut.write_bytes(whole[:part])
        with pytest.raises(Refused, match=r"damaged|cut off|no backup|no catalog"):
            verify(cut)
    with pytest.raises(Refused, match="cannot read"):
        verify(tmp_path / "missing")
    (tmp_path / "text").write_text("a letter\n" * 1000)
    with pytest.raises(Refused, match="is no backup of a catalog"):
        verify(tmp_path / "text")


FAULTS: dict[str, str] = {
    "names are of inodes that are not there": "DELETE FROM inodes WHERE ino = (SELECT min(ino) FROM symlinks)",
    "names are in directories that are not there": "UPDATE dentries SET parent = (SELECT min(ino) FROM symlinks)"
    " WHERE ino = (SELECT max(ino) FROM symlinks)",
    "inodes have neither a name": "DELETE FROM dentries WHERE ino = (SELECT min(ino) FROM symlinks)",
    "another number of names": "UPDATE inodes SET nlink = 7 WHERE ino = (SELECT min(ino) FROM symlinks)",
    "symbolic links have no target": "DELETE FROM symlinks",
    "numbers that are still to be given": "UPDATE counters SET value = 5 WHERE name = 'next_ino'",
    "has no root directory": "UPDATE inodes SET mode = 33188 WHERE ino = 1",
    "has the schema 9999": "UPDATE alembic_version SET version_num = '9999'",
}


def test_one_that_does_not_hang_together_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    trio.run(make_tree, sqlite_url)
    back_up(sqlite_url, tmp_path / "good")
    for number, (what, statement) in enumerate(FAULTS.items()):
        wrong = Path(shutil.copy(tmp_path / "good", tmp_path / f"wrong-{number}"))
        with closing(sqlite3.connect(wrong)) as database, database:
            database.execute(statement)
        with pytest.raises(Refused, match=what):
            verify(wrong)


def test_an_archive_is_asked_the_same(postgres_url: str, tmp_path: Path) -> None:
    trio.run(make_tree, postgres_url)
    change(postgres_url, "UPDATE inodes SET nlink = 7 WHERE ino = (SELECT min(ino) FROM symlinks)")
    back_up(postgres_url, tmp_path / "wrong")
    with pytest.raises(Refused, match="1 files have another number of names than they say"):
        verify(tmp_path / "wrong")


def test_names_that_lead_elsewhere_and_directories_in_a_circle_are_refused(url: str, tmp_path: Path) -> None:
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.execute(update(counters).where(counters.c.name == "next_ino").values(value=5000))
        for number in (2000, 2001):
            connection.execute(insert(inodes).values(ino=number, mode=stat.S_IFDIR | 0o755, nlink=3))
        connection.execute(insert(dentries).values(parent=2000, name=b"in", cookie=1, ino=2001))
        connection.execute(insert(dentries).values(parent=2001, name=b"out", cookie=2, ino=2000))
    back_up(url, tmp_path / "circle")
    with pytest.raises(Refused, match="2 directories cannot be reached"):
        verify(tmp_path / "circle")
    for name in (b"..", b"a/b", b"a\0b"):
        with write_transaction(writer) as connection:
            connection.execute(delete(dentries))
            connection.execute(delete(inodes).where(inodes.c.ino == 2001))
            connection.execute(insert(dentries).values(parent=ROOT_INO, name=name, cookie=3, ino=2000))
        target = tmp_path / f"name-{name.hex()}"
        back_up(url, target)
        with pytest.raises(Refused, match="1 names cannot be names"):
            verify(target)
    writer.dispose()


def hostile_postgres(url: str) -> None:
    change(url, "CREATE VIEW shown AS SELECT 1")


def hostile_sqlite(url: str) -> None:
    change(url, "CREATE TRIGGER wrong AFTER INSERT ON inodes BEGIN DELETE FROM inodes; END")


def test_what_would_run_when_it_is_brought_back_is_refused(url: str, tmp_path: Path) -> None:
    kind = make_engines(url)[0].dialect.name
    hostile: dict[str, Callable[[str], None]] = {"sqlite": hostile_sqlite, "postgresql": hostile_postgres}
    hostile[kind](url)
    back_up(url, tmp_path / "hostile")
    with pytest.raises(Refused, match="as no catalog has"):
        verify(tmp_path / "hostile")


def test_another_database_and_one_in_use_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE songs (title)")
    with pytest.raises(Refused, match="is no catalog of Godwit"):
        verify(tmp_path / "other")
    with sqlite3.connect(tmp_path / "used") as used:
        used.execute("PRAGMA journal_mode = WAL")
        used.execute("CREATE TABLE songs (title)")
        used.commit()
        with pytest.raises(Refused, match="is a database in use"):
            verify(tmp_path / "used")


def test_a_backup_ends_while_somebody_writes_without_a_pause(sqlite_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with in_office(sqlite_url) as office, trio.open_nursery() as nursery:
            mount = await office.peer()
            ino = (await mount.mkdir(b"large")).ino
            fill = text(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 400)"
                " INSERT INTO xattrs SELECT :ino, randomblob(16), randomblob(60000) FROM n"
            )
            await office.store.write(lambda tx: tx.execute(fill, {"ino": ino}))
            writes, done = 0, trio.Event()

            async def write() -> None:
                nonlocal writes
                while not done.is_set() and writes < WRITES_MAX:
                    await mount.one(SetAttr(ino, NOW + writes, mtime_ns=writes))
                    writes += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(write)
            await trio.to_thread.run_sync(back_up, sqlite_url, tmp_path / "backup")
            done.set()
            assert 10 < writes < WRITES_MAX

    trio.run(main)
    assert verify(tmp_path / "backup").rows["xattrs"] == 400
