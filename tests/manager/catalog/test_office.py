"""The office's row on every engine: what is taken, extended, given back; and what a term that is over may still do: nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlalchemy import Connection, insert, update

from cluster.errors import NotManager
from cluster.messages import ROOT_INO, ClaimTasks, GetAttr, StepDown
from manager.candidate import Candidate
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.office import Roll, depose_office, extend_office, read_office, read_roll, resign_office, take_office
from manager.catalog.schema import office, servers
from manager.catalog.store import Store
from manager.rules.election import OfficeRow
from tests.manager.office import Peer, config, in_office, until
from tests.support.trust import credentials

Do = Callable[[Callable[[Connection], object]], object]


@contextmanager
def catalog(url: str) -> Iterator[Do]:
    """Gives a function that does something in a transaction."""
    writer, reader = make_engines(url)

    def do(work: Callable[[Connection], object]) -> object:
        with write_transaction(writer) as connection:
            return work(connection)

    yield do
    writer.dispose()
    reader.dispose()


def test_the_office_is_taken_by_one(url: str) -> None:
    with catalog(url) as do:
        seen = do(read_office)
        assert seen == OfficeRow(0, "", "", 0, 0)
        assert do(lambda connection: take_office(connection, seen, "s1", "s1:1"))
        assert not do(lambda connection: take_office(connection, seen, "s2", "s2:1"))
        assert do(read_office) == OfficeRow(1, "s1", "s1:1", 1, 0)


def test_a_holder_that_extends_is_not_taken_for_dead_but_can_be_deposed(url: str) -> None:
    with catalog(url) as do:
        do(lambda connection: take_office(connection, OfficeRow(0, "", "", 0), "s1", "s1:1"))
        seen = OfficeRow(1, "s1", "s1:1", 1)
        do(lambda connection: extend_office(connection, 1))
        assert not do(lambda connection: take_office(connection, seen, "s2", "s2:1"))
        assert do(lambda connection: depose_office(connection, 1, "s2", "s2:1"))
        assert not do(lambda connection: depose_office(connection, 1, "s3", "s3:1"))
        do(lambda connection: extend_office(connection, 1))
        assert do(read_office) == OfficeRow(2, "s2", "s2:1", 3, 0)


def test_resigning_leaves_the_office_vacant_or_only_says_so(url: str) -> None:
    with catalog(url) as do:
        do(lambda connection: take_office(connection, OfficeRow(0, "", "", 0), "s1", "s1:1"))
        do(lambda connection: resign_office(connection, 1))
        assert do(read_office) == OfficeRow(1, "", "s1:1", 2, 1)
        do(lambda connection: take_office(connection, OfficeRow(1, "", "s1:1", 2), "s2", "s2:1"))
        do(lambda connection: depose_office(connection, 2, "s3", "s3:1"))
        do(lambda connection: resign_office(connection, 2))
        assert do(read_office) == OfficeRow(3, "s3", "s3:1", 4, 2)
        do(lambda connection: resign_office(connection, 1))
        assert do(read_office) == OfficeRow(3, "s3", "s3:1", 4, 2)


def test_members_are_those_with_an_address_who_have_not_left(url: str) -> None:
    rows = [("s1", "s1:1", "up"), ("s2", "s2:1", "left"), ("s3", "", "up"), ("s4", "s4:1", "down")]
    with catalog(url) as do:
        for server, manager, state in rows:
            values = {"server": server, "joined_ns": 0, "manager": manager, "state": state}
            do(lambda connection, values=values: connection.execute(insert(servers), values))  # type: ignore[misc]
        assert do(read_roll) == Roll(frozenset({"s1:1", "s4:1"}), frozenset({"s2:1"}))


async def test_a_store_whose_time_is_over_commits_nothing(url: str) -> None:
    writer, reader = make_engines(url)
    with write_transaction(writer) as connection:
        assert take_office(connection, OfficeRow(0, "", "", 0), "s1", "s1:1")
    acting = True
    async with trio.open_nursery() as nursery:
        store = Store(writer, reader, 1, on_deposed=nursery.cancel_scope.cancel, in_office=lambda: acting)
        nursery.start_soon(store.run)
        await store.write(lambda tx: extend_office(tx.connection, tx.term))
        acting = False
        with pytest.raises(NotManager):
            await store.write(lambda tx: extend_office(tx.connection, tx.term))
    with pytest.raises(NotManager):
        await store.read(read_office)
    with reader.connect() as connection:
        assert read_office(connection).beat == 2
    writer.dispose()
    reader.dispose()


async def test_stepping_down_is_for_one_term_only(url: str) -> None:
    async with in_office(url) as held:
        peer = await held.peer("s9", "admin")
        await peer.ask(StepDown(held.number + 1))
        await peer.ask(StepDown(held.number - 1))
        assert held.term is not None
        assert not held.term.leaving.is_set()
        await peer.ask(StepDown(held.number))
        assert held.term.leaving.is_set()


async def test_a_holder_that_leaves_answers_nobody_any_more(url: str, tmp_path: Path) -> None:
    """A question that waits is sent away, too, so that its sender goes to the next manager."""

    writer, reader = make_engines(url)
    candidate = Candidate(config(url, state=str(tmp_path), term_s=1.0), credentials("s1", "manager"), writer, reader)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(candidate.run)

            async def serves() -> bool:
                return candidate.term is not None

            await until(serves)
            agent, person = Peer(candidate, "s1", "agent", 1), Peer(candidate, "s9", "admin", 2)
            for peer in (agent, person):
                await peer.hello()
            outcomes: list[str] = []

            async def wait_for_work() -> None:
                try:
                    await agent.ask(ClaimTasks(1, 25.0))
                except NotManager:
                    outcomes.append("sent away")

            assert candidate.term is not None
            number = candidate.term.number
            nursery.start_soon(wait_for_work)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await person.ask(StepDown(number))

            async def is_over() -> bool:
                return bool(outcomes) and candidate.term is None

            await until(is_over)
            with pytest.raises(NotManager):
                await agent.ask(GetAttr(ROOT_INO))

            async def is_vacant() -> bool:
                with reader.connect() as connection:
                    row = read_office(connection)
                return row.vacant and row.stopped == number

            await until(is_vacant)
            # Nobody else is there: it stands again itself when it has stood aside for long enough.
            await until(serves)
            assert candidate.term is not None
            assert candidate.term.number == number + 1
            nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()


async def test_who_lost_its_term_says_that_it_has_stopped(url: str, tmp_path: Path) -> None:
    writer, reader = make_engines(url)
    candidate = Candidate(config(url, state=str(tmp_path), term_s=1.0), credentials("s1", "manager"), writer, reader)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(candidate.run)

            async def serves() -> bool:
                return candidate.term is not None

            await until(serves)
            with write_transaction(writer) as connection:
                connection.execute(update(office).values(term=office.c.term + 1, server="s2", address="127.0.0.1:1"))
                term = read_office(connection).term

            async def has_said_so() -> bool:
                with reader.connect() as connection:
                    row = read_office(connection)
                return (row.term, row.server, row.stopped) == (term, "s2", term - 1)

            await until(has_said_so)
            assert candidate.term is None
            nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()
