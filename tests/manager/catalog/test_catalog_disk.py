"""The catalog's disk is full, read-only or fails: no process ends, who asks is told why at once, what can go on does.

On real file systems: a tmpfs of a few MiB, and one statement in the middle that fails as a bad disk makes it.
"""

import errno
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from cluster.errors import CatalogFault
from cluster.messages import ROOT_INO, GetStatus, Rmdir, SetAttr, Unlink
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.faults import Fault, as_answer, fault_of
from manager.catalog.office import read_office, take_office
from manager.catalog.reserve import OFFICE_BYTES, RESERVE_BYTES
from manager.catalog.room import Need, Room
from manager.catalog.store import Transaction
from manager.catalog.upgrade import upgrade
from manager.workers.office import Extender
from tests.manager.office import NOW, Office, Peer, in_office, small_network, until

DISK_MIB = 24
TERM_S = 0.4

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")


class PostgresError(Exception):
    def __init__(self, state: str | None) -> None:
        super().__init__("said by PostgreSQL")
        self.sqlstate = state


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("said by SQLite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("original", "fault"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), Fault.FULL),
        (sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE), Fault.FULL),
        (sqlite_error(sqlite3.SQLITE_READONLY), Fault.READ_ONLY),
        (sqlite_error(sqlite3.SQLITE_IOERR_WRITE), Fault.BROKEN),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), Fault.BROKEN),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), Fault.BROKEN),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), Fault.BROKEN),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), Fault.BUSY),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT), Fault.WRONG),
        (PostgresError("53100"), Fault.FULL),
        (PostgresError("25006"), Fault.READ_ONLY),
        (PostgresError("58030"), Fault.BROKEN),
        (PostgresError("XX001"), Fault.BROKEN),
        (PostgresError("40001"), Fault.BUSY),
        (PostgresError("57P01"), Fault.LOST),
        (PostgresError("08006"), Fault.LOST),
        (PostgresError(None), Fault.LOST),
        (PostgresError("23505"), Fault.WRONG),
    ],
    ids=str,
)
def test_every_error_of_a_database_has_a_meaning(original: Any, fault: Fault) -> None:
    assert fault_of(OperationalError("UPDATE", {}, original)) is fault


def test_errors_of_sqlalchemy_have_a_meaning() -> None:
    assert fault_of(NoConnectionLeft()) is Fault.BUSY
    assert fault_of(SQLAlchemyError()) is Fault.WRONG
    assert as_answer(ProgrammingError("", {}, PostgresError("42601"))) is None
    told = as_answer(OperationalError("", {}, sqlite_error(sqlite3.SQLITE_READONLY)))
    assert isinstance(told, CatalogFault)
    assert told.errno == errno.EROFS


# ------------------------------------------------------------------------------------------------------------- full


class SmallDisk:
    """A disk of a few MiB with a catalog on it."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/catalog.db"
        self.reserve = folder / "catalog.db-reserve"
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}M", "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a test that failed has it open


async def make_until_full(mount: Peer) -> list[bytes]:
    names: list[bytes] = []
    while True:
        name = b"%04d" % len(names) + b"x" * 200
        try:
            await mount.make(name)
        except CatalogFault:
            return names
        names.append(name)


@needs_root
async def test_on_a_full_disk_only_what_needs_room_is_refused(disk: SmallDisk) -> None:
    async with small_network(disk.url) as (_office, mount):

        async def is_reserved() -> bool:
            return disk.reserve.exists() and disk.reserve.stat().st_size == RESERVE_BYTES

        await until(is_reserved)
        directory = await mount.mkdir(b"directory")
        kept = [b"kept%03d" % number for number in range(300)]
        for name in kept:
            await mount.make(name)
        disk.fill()
        made = await make_until_full(mount)
        began_s = trio.current_time()
        for _ in range(100):
            with pytest.raises(CatalogFault) as told:
                await mount.make(b"more")
            assert told.value.errno == errno.ENOSPC
        assert trio.current_time() - began_s < 1.0
        assert "full" in (await mount.ask(GetStatus())).catalog_fault
        for name in (*kept, *made):
            assert (await mount.lookup(name)).nlink == 1
            await mount.one(SetAttr((await mount.lookup(name)).ino, NOW, mode=0o600))
            await mount.apply(Unlink(ROOT_INO, name, NOW))
        await mount.apply(Rmdir(ROOT_INO, b"directory", NOW))
        assert directory.nlink == 2
        disk.free()

        async def has_room() -> bool:
            return not (await mount.ask(GetStatus())).catalog_fault

        await until(has_room)
        assert await is_reserved()
        await mount.make(b"afterwards")


@needs_root
async def test_the_office_is_taken_and_extended_on_a_full_disk(disk: SmallDisk) -> None:
    """All candidates have started anew, so that SQLite's log has no room left from before."""
    writer, reader = make_engines(disk.url)
    upgrade(writer)
    Room(writer).look()
    writer.dispose()
    disk.fill()
    room = Room(writer)
    held = Held()
    assert room.run(lambda: taken(writer), Need.OFFICE)
    assert disk.reserve.stat().st_size >= RESERVE_BYTES - OFFICE_BYTES

    extender = Extender(reader, room, 1, TERM_S, TERM_S, held, held.lost.set)
    extender.start()

    async def is_extended() -> bool:
        extender.went_round()
        return held.extensions >= 5

    await until(is_extended)
    extender.stop()
    writer.dispose()
    reader.dispose()


def taken(writer: Engine) -> bool:
    with write_transaction(writer) as connection:
        return take_office(connection, read_office(connection), "s1", "127.0.0.1:1")


# ------------------------------------------------------------------------------------------------ read-only, failing


def test_a_log_of_which_a_sync_may_have_failed_before_is_folded_in_first(sqlite_url: str, tmp_path: Path) -> None:
    """The kernel takes pages that it could not write for written: a sync that succeeds afterwards says nothing of them."""
    writer, reader = make_engines(sqlite_url)
    upgrade(writer)
    assert taken(writer)
    log = Room(writer).log
    assert log is not None
    log.sync_if_there()
    shutil.copy(str(writer.url.database), tmp_path / "without the log")
    with closing(sqlite3.connect(tmp_path / "without the log")) as copy:
        assert copy.execute("SELECT term FROM office").fetchone() == (1,)
    writer.dispose()
    reader.dispose()


def test_the_log_is_closed_with_the_database_and_opened_by_who_goes_on(sqlite_url: str) -> None:
    """Who opens and closes databases for a long time must not run out of descriptors."""
    writer, reader = make_engines(sqlite_url)
    upgrade(writer)
    log = Room(writer).log
    assert log is not None

    def opened() -> int:
        with os.scandir("/proc/self/fd") as found:
            return [os.readlink(entry.path) for entry in found].count(f"{writer.url.database}-wal")

    assert taken(writer)
    before = opened()
    log.sync()
    assert opened() == before + 1
    writer.dispose()
    reader.dispose()
    assert opened() == 0
    assert taken(writer)
    log.sync()
    assert opened() == before + 1
    writer.dispose()
    assert opened() == 0


class Held:
    """Whose office is extended."""

    def __init__(self) -> None:
        self.extensions = self.reads = 0
        self.lost = threading.Event()

    def extending(self, began_s: float, lasts_s: float) -> None:
        pass

    def extended(self, began_s: float, lasts_s: float, now: float, *, only_reads: bool) -> None:
        if only_reads:
            self.reads += 1
        else:
            self.extensions += 1


BAD = [(sqlite3.SQLITE_READONLY, errno.EROFS), (sqlite3.SQLITE_IOERR_WRITE, errno.EIO), (sqlite3.SQLITE_CORRUPT, errno.EIO)]


@pytest.mark.parametrize(("code", "number"), BAD)
async def test_what_a_bad_disk_does_not_take_fails_at_once_and_alone(sqlite_url: str, code: int, number: int) -> None:
    async with small_network(sqlite_url) as (office, mount):
        await mount.make(b"file")

        def fail(_tx: Transaction) -> None:
            raise OperationalError("UPDATE", {}, sqlite_error(code))

        began_s = trio.current_time()
        with pytest.raises(CatalogFault) as told:
            await office.store.write(fail)
        assert trio.current_time() - began_s < 1.0
        assert told.value.errno == number
        assert (await mount.lookup(b"file")).nlink == 1
        assert (await mount.ask(GetStatus())).catalog_fault == str(told.value)
        await mount.make(b"another")


def read_only(url: str) -> tuple[Engine, Engine]:
    """Engines on a catalog that takes no change, as on a disk that has become read-only."""
    writer, reader = make_engines(url)
    for engine in (writer, reader):
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA query_only = ON").close())
    return writer, reader


async def test_the_office_is_held_as_long_as_its_row_can_be_read(sqlite_url: str) -> None:
    """Nobody else can take it, where nobody can write; the row says at each answer whose it is."""

    async with in_office(sqlite_url) as office:
        writer, reader = read_only(sqlite_url)
        held = Held()
        extender = Extender(reader, Room(writer), office.number, TERM_S, TERM_S, held, held.lost.set)
        extender.start()

        async def is_read() -> bool:
            extender.went_round()
            return held.reads >= 5

        await until(is_read)
        extender.stop()
        assert held.extensions == 0
        assert office.term is not None
        office.term.extended(trio.current_time(), TERM_S, trio.current_time(), only_reads=True)
        assert office.term.in_office
        others, other_reader = make_engines(sqlite_url)
        with write_transaction(others) as connection:
            assert take_office(connection, read_office(connection), "s2", "127.0.0.1:1")
        assert not office.term.in_office
        for engine in (writer, reader, others, other_reader):
            engine.dispose()


async def test_an_event_loop_that_stands_still_is_not_vouched_for(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        writer, reader = make_engines(sqlite_url)
        held = Held()
        extender = Extender(reader, Room(writer), office.number, TERM_S, TERM_S, held, held.lost.set)
        extender.start()
        until_s = time.thread_time() + 2 * TERM_S
        while time.thread_time() < until_s:
            pass
        before = held.extensions
        assert not held.lost.wait(TERM_S)
        assert 0 < before == held.extensions
        extender.stop()
        writer.dispose()
        reader.dispose()


async def test_the_office_that_another_has_taken_is_lost(office: Office, url: str) -> None:
    writer, reader = make_engines(url)
    held = Held()
    extender = Extender(reader, Room(writer), office.number, TERM_S, TERM_S, held, held.lost.set)
    with write_transaction(writer) as connection:
        assert take_office(connection, read_office(connection), "s2", "127.0.0.1:1")
    extender.start()
    assert await trio.to_thread.run_sync(held.lost.wait, 10.0)
    assert held.extensions == 0
    writer.dispose()
    reader.dispose()
