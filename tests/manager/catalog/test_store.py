"""Transactions: one term, one order, all or nothing, once only; and the schema."""

import errno
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, insert, make_url, select, text, update
from sqlalchemy.exc import OperationalError

from cluster.errors import Fenced, GodwitError, NotManager, ProtocolError, Refused, refused
from cluster.messages import PROTOCOL, Applied, Apply, GetAttr, Hello, Unlink
from manager.catalog.engines import make_engines, retrying, write_transaction
from manager.catalog.faults import is_retriable
from manager.catalog.office import extend_office, read_office, take_office
from manager.catalog.schema import applied, counters, metadata
from manager.catalog.store import Store, StoreLimits, Transaction
from manager.catalog.upgrade import upgrade
from manager.catalog.wal import CHECKPOINT_BYTES, LogLimits
from tests.manager.office import NOW, Office, in_office, small_network


def test_the_migrations_make_the_tables_that_the_code_means(url: str) -> None:
    writer, reader = make_engines(url)
    upgrade(writer)
    upgrade(writer)
    with reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        assert compare_metadata(context, metadata) == []
    writer.dispose()
    reader.dispose()


def test_three_candidates_migrate_one_new_database(sqlite_url: str) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        writer, _reader = make_engines(sqlite_url)
        try:
            retrying(partial(upgrade, writer), for_s=10.0)
        except BaseException as error:
            errors.append(error)
        writer.dispose()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def _count(tx: Transaction, name: str = "inodes") -> int:
    tx.execute(update(counters).where(counters.c.name == name).values(value=counters.c.value + 1))
    value: int = tx.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one()
    return value


def _value(connection: Connection, name: str = "inodes") -> int:
    value: int = connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one()
    return value


async def test_what_waits_together_is_committed_together(office: Office) -> None:
    transactions: list[Transaction] = []
    order: list[int] = []

    def work(tx: Transaction, number: int) -> int:
        transactions.append(tx)
        tx.after(lambda: order.append(number))
        return _count(tx)

    results: list[int] = []

    async def write(number: int) -> None:
        results.append(await office.store.write(partial(work, number=number)))

    before = await office.store.read(_value)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(write, number)
    assert sorted(results) == list(range(before + 1, before + 51))
    assert sorted(order) == list(range(50))
    assert len(set(map(id, transactions))) <= 5
    assert await office.store.read(_value) == before + 50


@pytest.mark.parametrize(("give_way_s", "places"), [(60.0, [96, 97]), (0.0, [32, 65])], ids=["gives way", "not for ever"])
async def test_parts_give_way_to_other_work(url: str, give_way_s: float, places: list[int]) -> None:
    """The places of two parts among 96 writes that wait with them, of which 32 go into one transaction."""
    async with in_office(url, limits=StoreLimits(batch_max=32, give_way_s=give_way_s)) as office:
        order: list[str] = []
        together: list[list[None]] = []

        def part(_tx: Transaction) -> None:
            order.append("part")

        async def write_parts() -> None:
            together.append(await office.store.write_parts([part, part]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_parts)
            for _ in range(96):
                nursery.start_soon(office.store.write, lambda _tx: order.append("write"))
        assert [place for place, what in enumerate(order) if what == "part"] == places
        assert together == [[None, None]]


async def test_a_part_that_fails_does_not_undo_the_others(url: str) -> None:
    def fail(_tx: Transaction) -> int:
        raise refused(errno.ENOENT)

    async with in_office(url) as office:
        before = await office.store.read(_value)
        parts: list[Callable[[Transaction], int]] = [_count, fail, _count]
        with pytest.raises(Refused):
            await office.store.write_parts(parts)
        assert await office.store.read(_value) == before + 2


async def test_a_failure_in_a_batch_is_its_own(office: Office) -> None:
    before = await office.store.read(_value)
    effects: list[str] = []
    outcomes: dict[str, object] = {}

    def good(tx: Transaction) -> None:
        tx.after(lambda: effects.append("good"))
        _count(tx)

    def no(tx: Transaction) -> None:
        tx.after(lambda: effects.append("no"))
        raise refused(errno.ENOENT)

    def broken(tx: Transaction) -> None:
        _count(tx)
        tx.execute(insert(counters), {"name": "inodes", "value": 1})

    async def write(name: str, work: object) -> None:
        try:
            outcomes[name] = await office.store.write(work)  # type: ignore[arg-type]
        except Exception as error:
            outcomes[name] = type(error).__name__

    async with trio.open_nursery() as nursery:
        for name, work in (("a", good), ("b", no), ("c", broken), ("d", good)):
            nursery.start_soon(write, name, work)
    assert outcomes == {"a": None, "b": "Refused", "c": "IntegrityError", "d": None}
    assert effects == ["good", "good"]
    assert await office.store.read(_value) == before + 2


async def test_a_late_transaction_of_an_older_term_changes_nothing(url: str) -> None:
    deposed: list[int] = []
    async with in_office(url, "s1") as old, trio.open_nursery() as nursery:
        writer, reader = make_engines(url)
        store = Store(writer, reader, old.number, on_deposed=lambda: deposed.append(1))
        nursery.start_soon(store.run)
        before = await store.write(_count)
        async with in_office(url, "s2") as new:
            assert new.number == old.number + 1
            for late in (store, old.store):
                with pytest.raises(NotManager):
                    await late.write(_count)
            with pytest.raises(NotManager):
                await store.write(lambda tx: extend_office(tx.connection, tx.term))
            assert await new.store.write(_count) == before + 1
        assert deposed == [1]
        nursery.cancel_scope.cancel()
        writer.dispose()
        reader.dispose()


async def test_what_need_not_wait_is_committed_at_once(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        effects: list[int] = []

        def work(tx: Transaction) -> int:
            tx.after(lambda: effects.append(1))
            return _count(tx)

        def fail(tx: Transaction) -> int:
            tx.after(lambda: effects.append(2))
            raise refused(errno.ENOENT)

        before = await office.store.read(_value)
        assert office.store.is_idle
        assert office.store.write_at_once(work) == before + 1
        with pytest.raises(Refused):
            office.store.write_at_once(fail)
        assert effects == [1]
        assert await office.store.read(_value) == before + 1
        earlier = office.store._submit(_count, durable=False)
        assert not office.store.is_idle, "it would overtake what was asked for before it"
        await earlier.done.wait()
        assert office.store.is_idle


async def test_nothing_is_committed_at_once_in_an_older_term(sqlite_url: str) -> None:
    deposed: list[int] = []
    async with in_office(sqlite_url, "s1") as old, trio.open_nursery() as nursery:
        writer, reader = make_engines(sqlite_url)
        store = Store(writer, reader, old.number, on_deposed=lambda: deposed.append(1))
        nursery.start_soon(store.run)
        before = store.write_at_once(_count)
        async with in_office(sqlite_url, "s2") as new:
            with pytest.raises(NotManager):
                store.write_at_once(_count)
            assert not store.is_idle
            with pytest.raises(NotManager):
                await store.write(_count)
            assert new.store.write_at_once(_count) == before + 1
        assert deposed == [1]
        writer.dispose()
        reader.dispose()


async def test_an_effect_that_fails_ends_the_term(sqlite_url: str) -> None:
    """What the manager has in memory is not what is in the catalog any more."""

    async with in_office(sqlite_url) as office:

        def fail() -> None:
            raise RuntimeError("a mistake")

        with pytest.raises(RuntimeError):
            office.store.write_at_once(lambda tx: tx.after(fail))
        assert not office.store.is_idle
        with pytest.raises(NotManager):
            await office.store.write(_count)


SHORT_LOG = StoreLimits(log=LogLimits(look_s=0.02, long_bytes=CHECKPOINT_BYTES))
ANY_LOG_IS_LONG = StoreLimits(log=LogLimits(look_s=0.01, fold_bytes=0, long_bytes=0, hold_s=0.05))


async def test_the_log_begins_anew_before_the_next_write(sqlite_url: str) -> None:
    """The first write into a new log waits for the disk: not in the event loop."""
    path = Path(f"{make_url(sqlite_url).database}-wal")

    def write_much(tx: Transaction) -> None:
        tx.execute(insert(applied), {"session": 1, "request_id": 1, "reply": os.urandom(2 * CHECKPOINT_BYTES)})

    async with in_office(sqlite_url, limits=SHORT_LOG) as office:
        await office.store.write(write_much)
        with trio.fail_after(10.0):
            while path.stat().st_size > CHECKPOINT_BYTES:
                await trio.sleep(0.01)


class HangingDisk:
    """What SQLite is told, on a disk that hangs when a log is folded in for which writes are held up."""

    def __init__(self) -> None:
        self.hung, self.recovered = trio.Event(), threading.Event()
        self.folded = self.begun_anew = 0

    def executes(self, _connection: Connection, _cursor: Any, statement: str, *_how: Any) -> None:
        if statement.startswith("PRAGMA user_version"):
            self.begun_anew += 1
        elif statement.startswith("PRAGMA wal_checkpoint"):
            self.folded += 1
            if self.folded == 2:  # the first one is tried before writes are held up
                trio.from_thread.run_sync(self.hung.set)
                self.recovered.wait()


@pytest.fixture
def hanging_disk() -> Iterator[HangingDisk]:
    disk = HangingDisk()
    event.listen(Engine, "before_cursor_execute", disk.executes)
    yield disk
    disk.recovered.set()
    event.remove(Engine, "before_cursor_execute", disk.executes)


async def test_a_log_that_could_not_begin_anew_is_let_grow(sqlite_url: str, hanging_disk: HangingDisk) -> None:
    async with in_office(sqlite_url, limits=ANY_LOG_IS_LONG) as office:
        await office.store.write(_count)
        with trio.fail_after(10.0):
            while hanging_disk.folded < 10:
                await trio.sleep(0.01)
        assert hanging_disk.begun_anew == 0


async def test_the_log_begins_anew_though_writes_never_pause(sqlite_url: str) -> None:
    path = Path(f"{make_url(sqlite_url).database}-wal")
    numbers = itertools.count()

    def write_much(tx: Transaction) -> None:
        tx.execute(insert(applied), {"session": 1, "request_id": next(numbers), "reply": os.urandom(64 * 1024)})

    async with in_office(sqlite_url, limits=SHORT_LOG) as office:
        begun, size = 0, 0
        while begun < 3:
            if office.store.is_idle and begun % 2:
                office.store.write_at_once(write_much)
                await trio.lowlevel.checkpoint()
            else:
                await office.store.write(write_much)
            before, size = size, path.stat().st_size
            begun += size < before
            assert size < 64 * CHECKPOINT_BYTES
        assert size <= 2 * CHECKPOINT_BYTES


async def test_a_disk_that_hangs_holds_up_no_write_for_long(sqlite_url: str, hanging_disk: HangingDisk) -> None:
    async with in_office(sqlite_url, limits=ANY_LOG_IS_LONG) as office:
        await office.store.write(_count)
        await hanging_disk.hung.wait()
        with trio.fail_after(10.0):
            await office.store.write(_count)


def test_only_one_candidate_takes_a_term(url: str) -> None:
    writer, reader = make_engines(url)
    with write_transaction(writer) as connection:
        seen = read_office(connection)
        assert seen.vacant
        assert take_office(connection, seen, "s1", "a:1")
    with write_transaction(writer) as connection:
        assert not take_office(connection, seen, "s2", "b:1")
        assert read_office(connection).server == "s1"
    writer.dispose()
    reader.dispose()


async def test_a_busy_database_is_asked_again(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        attempts: list[int] = []

        def work(tx: Transaction) -> int:
            attempts.append(1)
            if len(attempts) < 3:
                busy = sqlite3.OperationalError("database is locked")
                busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise OperationalError("UPDATE", {}, busy)
            return _count(tx)

        before = await office.store.read(_value)
        assert await office.store.write(work) == before + 1
        assert len(attempts) == 3


def test_which_errors_are_worth_a_repeat() -> None:
    class PostgresError(Exception):
        def __init__(self, state: str) -> None:
            self.sqlstate = state

    states = {"40001": True, "40P01": True, "08006": True, "57P01": True, "25P03": True, "23505": False, "42601": False}
    for state, expected in states.items():
        assert is_retriable(OperationalError("", {}, PostgresError(state))) == expected


async def test_mutations_are_applied_once(url: str) -> None:
    async with small_network(url) as (_office, mount):
        node = await mount.make(b"a")
        await mount.make(b"b")
        request = Apply(100, 50, [Unlink(1, b"a", NOW)])
        first: Applied = await mount.ask(request)
        again: Applied = await mount.ask(request)
        assert first == again == Applied([None], touched=[1, node.ino])
        with pytest.raises(Refused):
            await mount.ask(Apply(101, 50, [Unlink(1, b"a", NOW)]))
        with pytest.raises(Refused):
            await mount.ask(Apply(49, 10, [Unlink(1, b"b", NOW)]))
        assert (await mount.ask(GetAttr(node.ino))).node.nlink == 0


async def test_a_new_manager_knows_what_was_applied(url: str) -> None:
    async with small_network(url) as (_office, mount):
        node = await mount.make(b"a")
        request = Apply(100, 99, [Unlink(1, b"a", NOW)])
        await mount.ask(request)
    async with in_office(url, "s2") as office:
        same = await office.peer()
        same.number = mount.number
        await same.hello()
        assert await same.ask(request) == Applied([None], touched=[1, node.ino])


async def test_acknowledged_replies_are_forgotten(url: str) -> None:
    async with small_network(url) as (office, mount):
        for number in range(200):
            await mount.mkdir(b"%d" % number)
        stored = await office.store.read(lambda connection: connection.execute(text("SELECT count(*) FROM applied")).scalar_one())
        assert stored < 130


async def test_strangers_are_refused(office: Office) -> None:
    peer = await office.peer()
    for hello in (
        Hello(PROTOCOL + 1, "test", "s1", "mount", 1),
        Hello(PROTOCOL, "other", "s1", "mount", 1),
        Hello(PROTOCOL, "test", "s1", "king", 1),
        Hello(PROTOCOL, "test", "../s1", "mount", 1),
        Hello(PROTOCOL, "test", "s1", "mount", -1),
    ):
        with pytest.raises(ProtocolError):
            await peer.ask(hello)
    with pytest.raises(ProtocolError):
        await peer.ask(GetAttr(-1))
    with pytest.raises(Refused, match="ClaimTasks, which is for: agent"):
        await peer.claim()
    newer = await office.peer()
    with pytest.raises(NotManager):
        await peer.ask(GetAttr(1))
    with pytest.raises(Fenced):
        await peer.hello()
    assert (await newer.attr(1)).ino == 1
    assert office.term is not None
    office.term.end()
    with pytest.raises(NotManager):
        await newer.attr(1)


async def test_a_request_before_hello_is_refused(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        peer = await office.peer()
        peer.connection.closed()
        with pytest.raises(GodwitError, match="before Hello"):
            await peer.attr(1)
