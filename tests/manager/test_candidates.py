"""Candidates on one database, with real connections: who answers, and what happens when the holder goes or stalls."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from sqlalchemy import Engine, insert, update

from cluster.catalog_point import CatalogPoint, remembered
from cluster.config import ServerConfig
from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, ProtocolError, Refused, Unavailable
from cluster.messages import (
    MANAGER_UNION,
    PROTOCOL,
    ROOT_INO,
    AskCatalog,
    AskHearing,
    AskOffice,
    CatalogSeen,
    GetStatus,
    Hearing,
    Hello,
    Lookup,
    OfficeInfo,
    Ping,
    Request,
    Status,
)
from cluster.rpc.connection import connect
from cluster.rpc.serving import Handler, SendReply, listen
from cluster.rpc.session import ManagerSession
from cluster.rpc.wire import ANYBODY
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.identity import read_point
from manager.catalog.office import extend_office, read_office, take_office
from manager.catalog.schema import office, servers
from manager.main import run_manager
from manager.rules.election import OfficeRow
from tests.manager.office import config, until
from tests.support.trust import credentials

TERM_S = 1.0
NOWHERE = "127.0.0.1:1"


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def candidates(url: str, count: int, folder: Path) -> list[ServerConfig]:
    """Candidates on a new catalog; each remembers in a folder of its own."""
    addresses = [free_address() for _ in range(count)]
    made = []
    for number, address in enumerate(addresses, 1):
        base = config(url, f"s{number}")
        manager = msgspec.structs.replace(base.manager, listen=address, term_s=TERM_S)
        made.append(msgspec.structs.replace(base, managers=addresses, manager=manager, state=str(folder / base.server)))
    return made


async def run_until(config: ServerConfig, stop: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_manager, config, trio.sleep_forever)
        await stop.wait()
        nursery.cancel_scope.cancel()


async def status(session: ManagerSession) -> Status:
    return await session.call(GetStatus(), timeout_s=20.0)


async def test_another_candidate_follows(url: str, tmp_path: Path) -> None:
    configs = candidates(url, 3, tmp_path)
    stops = {item.server: trio.Event() for item in configs}
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for item in configs:
                nursery.start_soon(run_until, item, stops[item.server])
            session = ManagerSession(managers=configs[0].managers, credentials=credentials("s1", "admin"))
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
            assert (await session.call(Lookup(ROOT_INO, b"absent"), timeout_s=5.0)).node is None
            nursery.cancel_scope.cancel()


async def test_the_candidate_of_a_server_that_has_left_does_not_stand(url: str, tmp_path: Path) -> None:
    configs = candidates(url, 2, tmp_path)
    writer, reader = make_engines(url)
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


async def _supersede(url: str) -> None:
    """Takes the office as somebody who then does nothing."""
    writer, _reader = make_engines(url)
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
    channel = await connect(config.manager.listen, nursery, credentials("s9", "admin"), ANYBODY, timeout_s=5.0)
    try:
        return await channel.call(AskOffice("test"), timeout_s=5.0)
    finally:
        channel.close()


async def test_a_holder_whom_most_members_do_not_reach_is_deposed(url: str, tmp_path: Path) -> None:
    """And its successor acts only when it must have noticed: the ghost never says that it has stopped."""

    configs = candidates(url, 3, tmp_path)
    async with held_by_a_ghost(url) as row, trio.open_nursery() as nursery:
        ghost = row().term
        for item in configs[:2]:
            nursery.start_soon(run_until, item, trio.Event())

        async def is_deposed() -> bool:
            return row().term > ghost

        await until(is_deposed, 20.0)
        deposed_at = trio.current_time()
        session = ManagerSession(managers=configs[0].managers, credentials=credentials("s9", "admin"))
        nursery.start_soon(session.run)
        assert (await status(session)).term == ghost + 1
        assert trio.current_time() - deposed_at > TERM_S / 2
        assert row().stopped < ghost
        nursery.cancel_scope.cancel()


async def test_a_single_candidate_deposes_nobody(url: str, tmp_path: Path) -> None:
    configs = candidates(url, 3, tmp_path)
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


async def test_candidates_answer_their_own_cluster_only(url: str, tmp_path: Path) -> None:
    (only,) = candidates(url, 1, tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until, only, trio.Event())
            session = ManagerSession(managers=only.managers, credentials=credentials("s9", "admin"))
            nursery.start_soon(session.run)
            await status(session)
            channel = await connect(only.manager.listen, nursery, credentials("s9", "manager"), ANYBODY, timeout_s=5.0)
            assert await channel.call(AskHearing("test", 1), timeout_s=5.0) == Hearing("s1", True)
            strangers: list[Request[Any]] = [Ping("other"), AskHearing("other", 1), AskCatalog("other")]
            for request in strangers:
                with pytest.raises(ProtocolError):
                    await channel.call(request, timeout_s=5.0)
            nursery.cancel_scope.cancel()


def _roll_back(url: str) -> None:
    """What a restored backup shows: the office as it was long ago."""
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.execute(update(office).values(term=1, beat=1, stopped=1, server="", address=""))
    writer.dispose()


async def _ended_with(config: ServerConfig) -> str:
    """What a candidate says when it ends by itself."""
    try:
        await run_manager(config, trio.sleep_forever)
    except Refused as error:
        return str(error)
    raise AssertionError("it ended without an error")


async def _reach_term(term: int, configs: list[ServerConfig]) -> None:
    """Managers are in office for long enough that all servers remember it."""
    async with trio.open_nursery() as nursery:
        for item in configs:
            nursery.start_soon(run_until, item, trio.Event())

        async def remembers() -> bool:
            points = [remembered(item.state) for item in configs]
            return all(point is not None and point.term >= term for point in points)

        await until(remembers, 20.0)
        nursery.cancel_scope.cancel()


async def test_an_older_catalog_gets_no_manager_and_is_not_written_to(url: str, tmp_path: Path) -> None:
    """Neither from who has seen a newer one, nor from a new server that any of them answers."""

    configs = candidates(url, 2, tmp_path)
    with trio.fail_after(60):
        await _reach_term(1, configs)
        await _reach_term(2, configs)
        _roll_back(url)
        assert "older than what s1 has seen" in await _ended_with(configs[0])
        reader = make_engines(url)[1]
        assert replace(_read(reader), lasts_s=0.0) == OfficeRow(1, "", "", 1, 1)
        reader.dispose()


class Witness(Handler):
    """The connection of a candidate that says of the catalog what *point* gives."""

    def __init__(self, point: Callable[[], CatalogPoint]) -> None:
        self._point = point

    def at_once(self, request: Any) -> Any:
        return CatalogSeen("s2", self._point()) if request == AskCatalog("test") else Hearing("s2", True)

    async def handle(self, request: Any, _body: bytes, _send: SendReply) -> None:
        raise AssertionError(f"not asked at once: {request}")

    def closed(self) -> None:
        pass


async def test_a_server_that_has_seen_nothing_asks_the_others_first(url: str, tmp_path: Path) -> None:
    def newer() -> CatalogPoint:
        _writer, reader = make_engines(url)
        with reader.connect() as connection:
            return msgspec.structs.replace(read_point(connection), term=9)

    configs = candidates(url, 2, tmp_path)
    with trio.fail_after(60):
        _roll_back(url)
        async with trio.open_nursery() as nursery:
            decoder: Decode[Any] = from_msgpack(MANAGER_UNION)
            await nursery.start(
                partial(listen, configs[1].manager.listen, decoder, lambda _peer: Witness(newer), credentials("s2", "manager"))
            )
            assert "older than what s2 has seen" in await _ended_with(configs[0])
            nursery.cancel_scope.cancel()


async def test_another_that_takes_the_office_at_that_moment_makes_no_catalog_older(url: str, tmp_path: Path) -> None:
    """What it says of the catalog is newer than what was read before it was asked."""

    def take_office() -> CatalogPoint:
        writer, reader = make_engines(url)
        with write_transaction(writer) as connection:
            connection.execute(update(office).values(term=9, beat=9, server="s2", address=NOWHERE))
        with reader.connect() as connection:
            return read_point(connection)

    configs = candidates(url, 2, tmp_path)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            decoder: Decode[Any] = from_msgpack(MANAGER_UNION)
            await nursery.start(
                partial(
                    listen, configs[1].manager.listen, decoder, lambda _peer: Witness(take_office), credentials("s2", "manager")
                )
            )
            nursery.start_soon(run_manager, configs[0], trio.sleep_forever)

            async def goes_on() -> bool:
                point = remembered(configs[0].state)
                return point is not None and point.term >= 9

            await until(goes_on, 20.0)
            nursery.cancel_scope.cancel()


async def test_a_holder_beneath_whom_the_catalog_becomes_older_stops(url: str, tmp_path: Path) -> None:
    """In the same term, so that no transaction would notice."""

    (only,) = candidates(url, 1, tmp_path)
    with trio.fail_after(60):
        outcome: list[str] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                outcome.append(await _ended_with(only))

            nursery.start_soon(run)
            writer, reader = make_engines(url)

            async def has_extended() -> bool:
                return _read(reader).beat > 3

            await until(has_extended, 20.0)
            with write_transaction(writer) as connection:
                connection.execute(update(office).values(beat=1))
        assert "older than what s1 has seen" in outcome[0]
        assert _read(reader).beat <= 2
        writer.dispose()
        reader.dispose()


async def test_a_member_that_has_seen_more_ends_the_office_and_a_stranger_is_refused(url: str, tmp_path: Path) -> None:
    (only,) = candidates(url, 1, tmp_path)
    with trio.fail_after(60):
        outcome: list[str] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                outcome.append(await _ended_with(only))

            nursery.start_soon(run)
            session = ManagerSession(managers=only.managers, credentials=credentials("s1", "admin"))
            async with trio.open_nursery() as asking:
                asking.start_soon(session.run)
                await status(session)
                asking.cancel_scope.cancel()
            channel = await connect(only.manager.listen, nursery, credentials("s7", "agent"), ANYBODY, timeout_s=5.0)
            point = remembered(only.state)
            assert point is not None
            stranger = msgspec.structs.replace(point, catalog="another")
            with pytest.raises(Refused, match="another network's catalog"):
                await channel.call(_hello(stranger), timeout_s=5.0)
            newer = msgspec.structs.replace(point, term=point.term + 5)
            with pytest.raises(GodwitError):
                await channel.call(_hello(newer), timeout_s=5.0)
            channel.close()
        assert "older than what the agent of s7 has seen" in outcome[0]


def _hello(seen: CatalogPoint) -> Hello:
    return Hello(PROTOCOL, "test", "s7", "agent", 77, seen=seen)
