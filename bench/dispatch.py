"""What one request costs the manager, in processor time of its event loop: decoded requests, no network.

`python -m bench.dispatch` prints microseconds for each kind, the least of several rounds: what is beside is other work's doing.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from cli.display.render import print_table
from cluster.clock import monotonic_s
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig, credentials_of
from cluster.messages import (
    PROTOCOL,
    ROOT_INO,
    Apply,
    Create,
    GetAttr,
    Hello,
    Lookup,
    Ping,
    RecallDone,
    RegisterVolumes,
    SetAttr,
    TakeInodes,
    VolumeState,
)
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Peer, Role
from cluster.trust.issue import issue_to_candidate
from manager.candidate import Candidate
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.office import read_office, take_office
from manager.catalog.store import Store
from manager.catalog.upgrade import upgrade
from manager.requests.connection import Connection
from manager.term import Term

NOW_NS = 1_700_000_000_000_000_000  # any time: operations bring their own
MANAGER = "127.0.0.1:7601"
GIB = 2**30

Make = Callable[[int], Any]


async def _measure(store: Store, connection: Connection, make: Make, count: int, rounds: int) -> float:
    """Seconds of processor time for one request."""
    numbers = itertools.count(1)
    best = float("inf")  # the least: other work only ever adds
    for _ in range(rounds):
        # Made before the clock starts: decoding is not measured here.
        requests = [make(next(numbers)) for _ in range(count)]
        began_s = time.process_time()  # of the process: other processes do not count
        for request in requests:
            # None: a task would answer it, outside of what is timed here.
            if connection.at_once(request) is None:
                raise RuntimeError(f"{type(request).__name__} is not answered at once")
        best = min(best, (time.process_time() - began_s) / count)
        # The store commits what the round has queued, outside of the clock; until then nothing is answered at once.
        while not store.is_idle:
            await trio.sleep(0.001)
    return best


def _config(folder: str) -> ServerConfig:
    manager = ManagerConfig(MANAGER, f"sqlite:///{folder}/catalog.db")
    return ServerConfig(
        "bench",
        "s1",
        [MANAGER],
        manager,
        AgentConfig("127.0.0.1:7602"),
        MountConfig("/mnt/godwit"),
        f"{folder}/state",
        f"{folder}/trust",
    )


async def _run(folder: str, count: int, rounds: int) -> list[list[str]]:
    config = _config(folder)
    writer, reader = make_engines(config.manager.database)
    upgrade(writer)
    issue_to_candidate(TrustFolder(config.trust), config.cluster, config.server)
    with write_transaction(writer) as sql:
        before = read_office(sql)
        take_office(sql, before, config.server, MANAGER)
    rows = []
    async with trio.open_nursery() as nursery:
        store = Store(writer, reader, before.term + 1, on_deposed=nursery.cancel_scope.cancel)
        nursery.start_soon(store.run)
        forever_s = monotonic_s() + 1e6  # the office never has to be extended
        term = Term(config, store, forever_s, forever_s, monotonic_s())
        await term.begin()
        candidate = Candidate(config, credentials_of(config, Role.MANAGER), writer, reader)
        candidate.term = term
        agent = Connection(candidate, config.cluster, Peer("", Identity(config.cluster, "s1", Role.AGENT, 1)))
        await agent.handle(Hello(PROTOCOL, config.cluster, config.server, "agent", 1), b"", _never)
        volume = VolumeState("u1", "/srv/v1", 100 * GIB, 90 * GIB, "disk")
        await agent.handle(RegisterVolumes("127.0.0.1:7602", [volume]), b"", _never)
        mount = Connection(candidate, config.cluster, Peer("", Identity(config.cluster, "s1", Role.MOUNT, 1)))
        await mount.handle(Hello(PROTOCOL, config.cluster, config.server, "mount", 2), b"", _never)
        first = (await mount.handle(TakeInodes(100_000), b"", _never)).first
        created = Create(ROOT_INO, b"file", first, 0o100644, 0, 0, 0, NOW_NS, 1)
        await mount.handle(Apply(1, 1, [created]), b"", _never)
        kinds: list[tuple[str, Make]] = [
            ("Ping", lambda _n: Ping(config.cluster)),
            ("RecallDone", lambda n: RecallDone([n])),
            ("GetAttr", lambda _n: GetAttr(first)),
            ("Lookup", lambda _n: Lookup(ROOT_INO, b"file")),
            ("Apply(SetAttr)", lambda n: Apply(n + 1, n + 1, [SetAttr(first, NOW_NS + n)])),
        ]
        for name, make in kinds:
            rows.append([name, f"{1e6 * await _measure(store, mount, make, count, rounds):.2f}"])
        nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()
    return rows


async def _never(_reply: Any, _body: Any) -> None:
    raise RuntimeError("these requests are answered once")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.dispatch", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="requests of each kind in a round (default 2000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts (default 7)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="godwit-dispatch-", dir=Path("/var/tmp")) as folder:
        rows = trio.run(_run, folder, options.count, options.rounds)
    print_table(["REQUEST", "µs"], rows, right=["µs"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
