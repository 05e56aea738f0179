"""The database goes away: what was not committed is run again, what may have been committed ends the term, nobody gets EIO."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from sqlalchemy import Connection, Engine, select, text, update

from cluster.errors import NotManager
from manager.catalog.engines import POSTGRES_SETTINGS, make_engines
from manager.catalog.office import read_office
from manager.catalog.schema import counters
from manager.catalog.store import Store, Transaction
from tests.manager.office import in_office

SLEEP_LIMIT = POSTGRES_SETTINGS["options"].rpartition("=")[2].replace("000", "s")
NOBODY_LISTENS = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"


@contextmanager
def engines(url: str) -> Iterator[tuple[Engine, Engine]]:
    both = make_engines(url)
    yield both
    for engine in both:
        engine.dispose()


def backend(connection: Connection) -> int:
    """The server's process behind a connection."""
    pid: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return pid


def terminate(engine: Engine, pid: int) -> None:
    """Breaks a connection, and returns when the server has let go of it."""
    with engine.connect() as connection:
        assert connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid}).scalar_one()


def count(tx: Transaction) -> int:
    tx.execute(update(counters).where(counters.c.name == "inodes").values(value=counters.c.value + 1))
    return value(tx.connection)


def value(connection: Connection) -> int:
    number: int = connection.execute(select(counters.c.value).where(counters.c.name == "inodes")).scalar_one()
    return number


async def test_a_transaction_whose_connection_breaks_is_run_again(postgres_url: str) -> None:
    with engines(postgres_url) as (_writer, other):
        async with in_office(postgres_url) as office:
            attempts: list[int] = []
            effects: list[str] = []

            def work(tx: Transaction) -> int:
                tx.after(lambda: effects.append("done"))
                attempts.append(backend(tx.connection))
                count(tx)
                if len(attempts) == 1:
                    terminate(other, attempts[0])
                return count(tx)

            before = await office.store.read(value)
            assert await office.store.write(work) == before + 2
            assert len(set(attempts)) == 2
            assert effects == ["done"]


async def test_a_lost_commit_ends_the_term(postgres_url: str) -> None:
    """The body has run, its COMMIT gets no answer: the memory could miss its effects."""

    deposed: list[int] = []
    with engines(postgres_url) as (writer, other):
        async with in_office(postgres_url) as office, trio.open_nursery() as nursery:
            store = Store(writer, other, office.number, on_deposed=lambda: deposed.append(1))
            nursery.start_soon(store.run)
            effects: list[str] = []

            def work(tx: Transaction) -> None:
                tx.after(lambda: effects.append("done"))
                count(tx)
                terminate(other, backend(tx.connection))

            with pytest.raises(NotManager, match="nobody can tell"):
                await store.write(work)
            with pytest.raises(NotManager):
                await store.write(count)
            assert (deposed, effects) == ([1], [])
            nursery.cancel_scope.cancel()


async def test_a_manager_that_sleeps_in_a_transaction_loses_it_and_its_locks(postgres_url: str) -> None:
    with engines(postgres_url) as (_writer, other):
        async with in_office(postgres_url) as office:
            attempts: list[int] = []

            def work(tx: Transaction) -> int:
                attempts.append(backend(tx.connection))
                if len(attempts) == 1:
                    limit = tx.connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
                    assert limit == SLEEP_LIMIT
                    tx.connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 50")
                    wait_until_gone(other, attempts[0])
                return count(tx)

            before = await office.store.read(value)
            assert await office.store.write(work) == before + 1
            assert len(attempts) == 2


def wait_until_gone(engine: Engine, pid: int) -> None:
    """Returns when the server has ended a process by itself; the test's own time limit is the deadline."""
    with engine.connect() as connection:
        while connection.execute(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}).scalar_one():
            connection.exec_driver_sql("SELECT pg_sleep(0.01)")


async def test_a_question_whose_connection_broke_is_asked_again(postgres_url: str) -> None:
    with engines(postgres_url) as (_writer, other):
        async with in_office(postgres_url) as office:
            pid = await office.store.read(backend)
            terminate(other, pid)
            assert (await office.store.read(read_office)).term == office.number
            assert await office.store.read(backend) != pid


async def test_a_database_that_is_not_there_is_somebody_elses_turn() -> None:
    """Clients go on asking at `NotManager`; any other answer would reach an application."""

    with engines(NOBODY_LISTENS) as (writer, reader):
        async with trio.open_nursery() as nursery:
            store = Store(writer, reader, 1, on_deposed=nursery.cancel_scope.cancel)
            nursery.start_soon(store.run)
            with pytest.raises(NotManager, match="does not answer"):
                await store.read(value)
            with pytest.raises(NotManager, match="does not answer"):
                await store.write(count)
            nursery.cancel_scope.cancel()


def test_settings_in_the_url_go_first(postgres_url: str) -> None:
    own = f"{postgres_url}&application_name=mine&options=-c%20idle_in_transaction_session_timeout%3D7000"
    for url, name, timeout in ((postgres_url, "godwit", SLEEP_LIMIT), (own, "mine", "7s")):
        with engines(url) as both:
            for engine in both:
                with engine.connect() as connection:
                    assert connection.exec_driver_sql("SHOW application_name").scalar_one() == name
                    assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one() == timeout
