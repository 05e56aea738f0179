"""Backups on every engine: what is brought back is a new generation, in which nothing that was used is used again."""

import sqlite3
from pathlib import Path

import pytest
import trio
from sqlalchemy import delete, insert, select, update

from cluster.catalog_point import CatalogPoint
from cluster.errors import Refused
from manager.catalog.backup import accept_rollback, back_up, restore
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.first_start import open_catalog
from manager.catalog.identity import GENERATION_INODES, has_tables, read_first_ino, read_point
from manager.catalog.postgres_programs import postgres_place
from manager.catalog.room import Room
from manager.catalog.schema import identity, inodes, office, tasks
from manager.catalog.upgrade import upgrade
from manager.term import counter
from tests.manager.office import in_office

TERM_S = 0.05


def point_in(url: str) -> CatalogPoint:
    _writer, reader = make_engines(url)
    with reader.connect() as connection:
        found = read_point(connection)
    reader.dispose()
    return found


def vacate(url: str) -> None:
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.execute(update(office).values(server=""))
    writer.dispose()


async def make_files(url: str, *names: bytes) -> None:
    async with in_office(url) as office_:
        await office_.three_servers()
        mount = await office_.peer()
        for name in names:
            node = await mount.make(name)
            await mount.commit(node.ino, 1)


async def names_in(url: str, *names: bytes) -> list[bytes]:
    found = []
    async with in_office(url) as office_:
        mount = await office_.peer()
        for name in names:
            try:
                await mount.lookup(name)
            except Refused:
                continue
            found.append(name)
    return found


def test_a_backup_is_brought_back_as_a_new_generation(url: str, tmp_path: Path) -> None:
    trio.run(make_files, url, b"old")
    file = tmp_path / "backup"
    saved = back_up(url, file)
    assert saved == point_in(url)
    with pytest.raises(Refused, match="exists"):
        back_up(url, file)
    trio.run(make_files, url, b"new")
    seen = point_in(url)
    vacate(url)
    found, kept = restore(url, file, seen, TERM_S)
    assert found.catalog == seen.catalog
    assert found.generation == 2
    assert found.term > seen.term
    assert found == point_in(url)
    assert trio.run(names_in, url, b"old", b"new") == [b"old"]
    if kept is not None:
        with sqlite3.connect(kept) as before:
            assert before.execute("SELECT count(*) FROM dentries WHERE name = ?", (b"new",)).fetchone() == (1,)


def test_what_may_have_been_used_is_not_used_again_and_homes_are_looked_at(url: str) -> None:
    trio.run(make_files, url, b"file")
    vacate(url)
    writer, reader = make_engines(url)
    with reader.connect() as connection:
        next_ino = counter(connection, "next_ino")
    seen = CatalogPoint(point_in(url).catalog, 4, 70, 900)
    before, after = accept_rollback(url, seen, TERM_S)
    assert before.generation == 1
    assert (after.generation, after.beat) == (5, 901)
    assert after.term > 70
    with reader.connect() as connection:
        assert counter(connection, "next_ino") == read_first_ino(connection) == next_ino + GENERATION_INODES
        assert connection.execute(select(inodes.c.dirty).where(inodes.c.home_volume != 0)).scalars().all() == [1]
        assert connection.execute(select(office.c.server)).scalar_one() == ""
    writer.dispose()
    reader.dispose()


def test_no_deletion_of_an_older_time_is_carried_out_of_a_file_that_is_there(url: str) -> None:
    trio.run(make_files, url, b"file")
    vacate(url)
    writer, reader = make_engines(url)
    with write_transaction(writer) as connection:
        ino = connection.execute(select(inodes.c.ino).where(inodes.c.home_volume != 0)).scalar_one()
        connection.execute(delete(tasks))
        for number, operation in ((ino, "delete"), (ino + 1, "delete"), (ino, "copy")):
            values = {
                "server": "s2",
                "operation": operation,
                "state": "waiting",
                "ino": number,
                "volume": 2 + (operation == "copy"),
            }
            connection.execute(insert(tasks).values(**values, version=1, claim=0, attempts=0, queued_ns=0))
    accept_rollback(url, point_in(url), TERM_S)
    with reader.connect() as connection:
        left = {(row.ino, row.operation) for row in connection.execute(select(tasks.c.ino, tasks.c.operation))}
    assert left == {(ino + 1, "delete"), (ino, "copy")}
    writer.dispose()
    reader.dispose()


def test_another_catalog_and_a_manager_in_office_are_refused(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with in_office(url) as office_, trio.open_nursery() as nursery:

            async def extend() -> None:
                while True:
                    await office_.store.write(lambda tx: tx.execute(update(office).values(beat=office.c.beat + 1)))
                    await trio.sleep(TERM_S / 4)

            nursery.start_soon(extend)
            with pytest.raises(Refused, match="stop the managers"):
                await trio.to_thread.run_sync(accept_rollback, url, None, TERM_S)
            nursery.cancel_scope.cancel()

    migrated(url)
    trio.run(main)
    vacate(url)
    stranger = CatalogPoint("stranger", 1, 1)
    before = point_in(url)
    with pytest.raises(Refused, match="another catalog"):
        accept_rollback(url, stranger, TERM_S)
    assert point_in(url) == before
    with pytest.raises(Refused):
        restore(url, tmp_path / "missing", None, TERM_S)
    (tmp_path / "text").write_text("no backup")
    with pytest.raises(Refused):
        restore(url, tmp_path / "text", None, TERM_S)
    assert point_in(url) == before


def migrated(url: str) -> None:
    writer, _reader = make_engines(url)
    upgrade(writer)
    writer.dispose()


def test_a_backup_of_another_catalog_is_not_brought_back(sqlite_url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    for each in (sqlite_url, other):
        migrated(each)
    back_up(other, tmp_path / "backup")
    before = point_in(sqlite_url)
    with pytest.raises(Refused, match="has worked with"):
        restore(sqlite_url, tmp_path / "backup", before, TERM_S)
    assert point_in(sqlite_url) == before


def test_a_damaged_database_is_kept_and_replaced(sqlite_url: str, tmp_path: Path) -> None:
    migrated(sqlite_url)
    seen = point_in(sqlite_url)
    back_up(sqlite_url, tmp_path / "backup")
    database = tmp_path / "catalog.db"
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(b"damaged" * 1000)
    with pytest.raises(Refused, match=r"damaged.*godwit db restore"):
        has_tables(make_engines(sqlite_url)[0])
    found, kept = restore(sqlite_url, tmp_path / "backup", seen, TERM_S)
    assert kept is not None
    assert kept.read_bytes() == b"damaged" * 1000
    assert found.catalog == seen.catalog


def test_a_backup_from_before_catalogs_had_an_identity_keeps_the_present_one(sqlite_url: str, tmp_path: Path) -> None:
    migrated(sqlite_url)
    seen = point_in(sqlite_url)
    old = make_engines(f"sqlite:///{tmp_path}/backup")[0]
    upgrade(old, "0004")
    old.dispose()
    found, _kept = restore(sqlite_url, tmp_path / "backup", seen, TERM_S)
    assert (found.catalog, found.generation) == (seen.catalog, 2)


def test_a_database_without_a_catalog_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    writer, reader = make_engines(url)

    async def look() -> None:
        with pytest.raises(Refused, match=r"holds no catalog.*godwit db restore"):
            await open_catalog(writer, Room(writer))

    trio.run(look)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "catalog.db").touch()
    trio.run(look)
    assert (tmp_path / "catalog.db").stat().st_size == 0
    writer.dispose()
    reader.dispose()


def test_every_new_catalog_has_an_identity_of_its_own(url: str, tmp_path: Path) -> None:
    migrated(url)
    other = f"sqlite:///{tmp_path}/another.db"
    migrated(other)
    assert point_in(url).catalog != point_in(other).catalog
    assert point_in(url).generation == 1
    with make_engines(url)[1].connect() as connection:
        assert connection.execute(select(identity.c.first_ino)).scalar_one() == 1024


def test_a_password_is_not_on_the_command_line() -> None:
    database, secret = postgres_place("postgresql+psycopg://godwit:p%40ss@10.0.0.9:5432/catalog?sslmode=require")
    assert database == "postgresql://godwit@10.0.0.9:5432/catalog?sslmode=require"
    assert secret == {"PGPASSWORD": "p@ss"}
    inner = "postgresql+psycopg://godwit@10.0.0.9/catalog?password=p%40ss&sslmode=require"
    assert postgres_place(inner) == ("postgresql://godwit@10.0.0.9/catalog?sslmode=require", {"PGPASSWORD": "p@ss"})
    with pytest.raises(Refused, match="the password of a key") as refused:
        postgres_place("postgresql+psycopg://godwit@10.0.0.9/catalog?sslkey=/key&sslpassword=hidden")
    assert "hidden" not in str(refused.value)
    assert postgres_place("postgresql+psycopg://postgres@/x?host=/run/pg") == ("postgresql://postgres@/x?host=%2Frun%2Fpg", {})
