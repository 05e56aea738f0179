"""Candidates on one database, with real connections: who answers, and what happens when the holder goes or stalls."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from sqlalchemy import Engine, insert

from cluster.config import ServerConfig
from cluster.errors import ProtocolError, Unavailable
from cluster.messages import ROOT_INO, AskHearing, AskOffice, GetAttr, GetStatus, Hearing, OfficeInfo, Ping, Request, Status
from cluster.rpc.connection import connect
from cluster.rpc.session import ManagerSession
from manager.catalog.office import extend_office, read_office, take_office
from manager.catalog.schema import servers
from manager.catalog.store import make_engines, write_transaction
from manager.catalog.upgrade import migrate
from manager.main import run_manager
from manager.rules.election import OfficeRow
from tests.manager.office import config, until

TERM_S = 1.0
NOWHERE = "127.0.0.1:1"


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def candidates(url: str, count: int) -> list[ServerConfig]:
    addresses = [free_address() for _ in range(count)]
    made = []
    for number, address in enumerate(addresses, 1):
        base = config(url, f"s{number}")
        manager = msgspec.structs.replace(base.manager, listen=address, term_s=TERM_S)
        made.append(msgspec.structs.replace(base, managers=addresses, manager=manager))
    return made


async def run_until(config: ServerConfig, stop: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_manager, config, trio.sleep_forever)
        await stop.wait()
        nursery.cancel_scope.cancel()


async def status(session: ManagerSession) -> Status:
    return await session.call(GetStatus(), timeout_s=20.0)


def test_another_candidate_follows(url: str) -> None:
    async def main() -> None:
        configs = candidates(url, 3)
        stops = {item.server: trio.Event() for item in configs}
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for item in configs:
                    nursery.start_soon(run_until, item, stops[item.server])
                session = ManagerSession(managers=configs[0].managers, cluster="test", server="s1", role="cli")
                nursery.start_soon(session.run)
                first = await status(session)
                stops[first.manager].set()
                second = await status(session)
                while second.term == first.term:
                    second = await status(session)
                assert second.manager != first.manager
                assert second.term == first.term + 1
                await _supersede(url)

                async def is_newer() -> bool:
                    return (await status(session)).term > second.term + 1

                await until(is_newer, 20.0)
                assert (await session.call(GetAttr(ROOT_INO), timeout_s=5.0)).node.ino == ROOT_INO
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_candidate_of_a_server_that_has_left_does_not_stand(url: str) -> None:
    async def main() -> None:
        configs = candidates(url, 2)
        writer, reader = make_engines(url)
        migrate(writer)
        with write_transaction(writer) as connection:
            address = configs[0].manager.listen
            connection.execute(insert(servers), {"server": "s1", "joined_ns": 0, "state": "left", "manager": address})
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_manager, configs[0], trio.sleep_forever)
                await trio.sleep(3 * TERM_S)
                assert _read(reader) == OfficeRow(0, "", "", 0)
                nursery.start_soon(run_manager, configs[1], trio.sleep_forever)

                async def is_taken() -> bool:
                    return _read(reader).server == "s2"

                await until(is_taken, 20.0)
                nursery.cancel_scope.cancel()
        writer.dispose()
        reader.dispose()

    trio.run(main)


async def _supersede(url: str) -> None:
    """Takes the office as somebody who then does nothing."""
    writer, _reader = make_engines(url)
    migrate(writer)
    taken = False
    while not taken:
        with write_transaction(writer) as connection:
            taken = take_office(connection, read_office(connection), "ghost", NOWHERE)
    writer.dispose()


@asynccontextmanager
async def held_by_a_ghost(url: str) -> AsyncIterator[Callable[[], OfficeRow]]:
    """Somebody whom nobody reaches has the office, and extends it. Gives a function that reads the row."""
    await _supersede(url)
    writer, reader = make_engines(url)
    ghost = _read(reader).term

    async def extend() -> None:
        while True:
            with write_transaction(writer) as connection:
                extend_office(connection, ghost)
            await trio.sleep(TERM_S / 4)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(extend)
            yield lambda: _read(reader)
            nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()


def _read(reader: Engine) -> OfficeRow:
    with reader.connect() as connection:
        return read_office(connection)


async def ask_office(config: ServerConfig, nursery: trio.Nursery) -> OfficeInfo:
    channel = await connect(config.manager.listen, nursery, timeout_s=5.0)
    try:
        return await channel.call(AskOffice("test"), timeout_s=5.0)
    finally:
        channel.close()


def test_a_holder_whom_most_members_do_not_reach_is_deposed(url: str) -> None:
    """And its successor acts only when it must have noticed: the ghost never says that it has stopped."""

    async def main() -> None:
        configs = candidates(url, 3)
        async with held_by_a_ghost(url) as row, trio.open_nursery() as nursery:
            ghost = row().term
            for item in configs[:2]:
                nursery.start_soon(run_until, item, trio.Event())

            async def is_deposed() -> bool:
                return row().term > ghost

            await until(is_deposed, 20.0)
            deposed_at = trio.current_time()
            session = ManagerSession(managers=configs[0].managers, cluster="test", server="s9", role="cli")
            nursery.start_soon(session.run)
            assert (await status(session)).term == ghost + 1
            assert trio.current_time() - deposed_at > TERM_S / 2
            assert row().stopped < ghost
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_single_candidate_deposes_nobody(url: str) -> None:
    async def main() -> None:
        configs = candidates(url, 3)
        async with held_by_a_ghost(url) as row, trio.open_nursery() as nursery:
            ghost = row().term
            nursery.start_soon(run_until, configs[0], trio.Event())

            async def is_deaf() -> bool:
                try:
                    info = await ask_office(configs[0], nursery)
                except Unavailable:
                    return False
                return info.hears is False

            await until(is_deaf, 20.0)
            stood = trio.current_time() + 3 * TERM_S
            while trio.current_time() < stood:
                assert row().term == ghost
                await trio.sleep(TERM_S / 8)
            info = await ask_office(configs[0], nursery)
            assert (info.in_office, info.manager, info.term, info.address) == (False, "ghost", ghost, NOWHERE)
            assert info.candidates == sorted(configs[0].managers)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_candidates_answer_their_own_cluster_only(url: str) -> None:
    async def main() -> None:
        (only,) = candidates(url, 1)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_until, only, trio.Event())
                session = ManagerSession(managers=only.managers, cluster="test", server="s9", role="cli")
                nursery.start_soon(session.run)
                await status(session)
                channel = await connect(only.manager.listen, nursery, timeout_s=5.0)
                assert await channel.call(AskHearing("test", 1), timeout_s=5.0) == Hearing("s1", True)
                strangers: list[Request[Any]] = [Ping("other"), AskHearing("other", 1), AskOffice("other")]
                for request in strangers:
                    with pytest.raises(ProtocolError):
                        await channel.call(request, timeout_s=5.0)
                nursery.cancel_scope.cancel()

    trio.run(main)
