"""Candidates on one database, with real connections: who answers, and what happens when the holder goes or stalls."""

import socket
from pathlib import Path

import msgspec
import trio

from cluster.config import ServerConfig
from cluster.messages import ROOT_INO, GetAttr, GetStatus, Status
from cluster.session import ManagerSession
from manager.main import run_manager
from manager.migrate import migrate
from manager.office import read_office, take_office
from manager.store import make_engines, write_transaction
from tests.manager.office import config, until

TERM_S = 1.0


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


def test_another_candidate_follows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"

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
                assert (await session.call(GetAttr(ROOT_INO), timeout_s=5.0)).ino == ROOT_INO
                nursery.cancel_scope.cancel()

    trio.run(main)


async def _supersede(url: str) -> None:
    """Takes the office as somebody who then does nothing."""
    writer, _reader = make_engines(url)
    migrate(writer)
    taken = False
    while not taken:
        with write_transaction(writer) as connection:
            taken = take_office(connection, read_office(connection), "ghost", "127.0.0.1:1")
    writer.dispose()
