"""What a machine that dies at any moment takes with it of a held directory: changes that programs were told of, and the manager
does not have yet (docs/held-directories.md).

A mount's own records, journal and session, and a manager in a process of its own, on SQLite, over TCP; no kernel and no network
between them. Files are made at a steady rate. Of each it is noted when the program would have been answered, and when the
mount heard that the manager has it on its disk. `python -m bench.loss_window` prints milliseconds: DELAY is that delay (the
median, then P99 and MAX), OLDEST the age of the oldest change that is lost with a machine that dies at a random moment; and how
many changes are LOST then on average, and at MOST.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import stat
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import trio

from cli.display.render import print_table
from cluster.clock import file_time_ns
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig, credentials_of
from cluster.counters import Counters
from cluster.journal import Journal, journal_owner
from cluster.messages import (
    ROOT_INO,
    Create,
    NamesPolicy,
    Node,
    Recall,
    RecordsApplied,
    RegisterVolumes,
    SetPolicy,
    TakeInodes,
    VolumeState,
    Welcome,
)
from cluster.rpc.session import ManagerSession
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue_to_candidate
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.caching.held import HeldDirectories
from fusefs.caching.recalls import Recalls
from fusefs.caching.records import Records
from manager.catalog.first_start import prepare_catalog
from manager.main import run_manager

TIMEOUT_S = 30.0
NUMBERS = 10_000  # inodes that are asked for at a time
MOMENTS = 20_000  # at which the machine might die, over a measurement
WARM_UP_S = 1.0
GIB = 2**30


class Window(NamedTuple):
    """When each change was told to its program, and when it was known to be on the manager's disk; both in order."""

    told_s: Sequence[float]
    durable_s: Sequence[float]

    @property
    def delays_s(self) -> list[float]:
        return sorted(durable - told for told, durable in zip(self.told_s, self.durable_s, strict=True))

    def lost_at(self, moment_s: float) -> tuple[int, float]:
        """How many changes are lost with a machine that dies then, and how old the oldest is."""
        told, durable = bisect_right(self.told_s, moment_s), bisect_right(self.durable_s, moment_s)
        return told - durable, moment_s - self.told_s[durable] if durable < told else 0.0

    def lost(self, moments: int = MOMENTS) -> tuple[list[int], list[float]]:
        """The same at evenly spaced moments; both sorted."""
        first_s, length_s = self.told_s[0], self.told_s[-1] - self.told_s[0]
        found = [self.lost_at(first_s + length_s * number / moments) for number in range(moments)]
        return sorted(count for count, _ in found), sorted(age_s for _, age_s in found)


class Mount:
    """What a mount needs to change names by itself."""

    def __init__(self, config: ServerConfig, folder: Path) -> None:
        self.session = ManagerSession(
            managers=config.managers,
            credentials=credentials_of(config, Role.MOUNT),
            on_welcome=self._welcomed,
            on_recall=self._recalled,
            unsent=lambda: self.records.present(),
            before=lambda request, timeout_s: self.records.before(request, timeout_s),
        )
        self.caching = Caching()
        journal = Journal(journal_owner(config.cluster, config.server), self.session.session, str(folder), folder / "run")
        self.records = Records(self.session, journal, self._applied, TIMEOUT_S, Counters())
        self.held = HeldDirectories(self.session, self.caching, Alone(self.caching), self.records, TIMEOUT_S)
        # Only what needs no task is asked of it, which knows of no recall.
        self.changes = Changes(self.session, self.held, self.caching, cast(Recalls, None), TIMEOUT_S)
        self.told_s: list[float] = []
        self.durable_s: list[float] = []
        self._numbers: Iterator[int] = iter(())
        self._directories = 0  # made so far
        self._first = 0  # changes before what is measured

    def _welcomed(self, welcome: Welcome) -> None:
        self.caching.welcomed(welcome.term)
        self.records.welcomed()

    def _recalled(self, recall: Recall) -> None:
        raise RuntimeError(f"nobody else is there: {recall}")

    def _applied(self, reply: RecordsApplied, asked_s: float) -> None:
        now = trio.current_time()
        self.durable_s += [now] * (reply.last - self._first - len(self.durable_s))
        self.held.applied(reply, asked_s)

    async def take_numbers(self) -> None:
        reply = await self.session.call(TakeInodes(NUMBERS), timeout_s=TIMEOUT_S)
        self._numbers = iter(range(reply.first, reply.first + reply.count))

    async def directory(self) -> int:
        """A new directory, in which this mount is alone."""
        await self.take_numbers()
        self._directories += 1
        create = self._create(ROOT_INO, b"directory %d" % self._directories, stat.S_IFDIR | 0o755)
        made: Node = await self.session.apply_one(create, timeout_s=TIMEOUT_S)
        while not await self.held.prepare((made.ino,)):
            await trio.sleep(0.05)
        return made.ino

    def _create(self, parent: int, name: bytes, mode: int) -> Create:
        is_file = stat.S_ISREG(mode)
        return Create(parent, name, next(self._numbers), mode, 0, 0, 0, file_time_ns(), int(is_file))

    async def make(self, directory: int, rate: float, seconds: float) -> None:
        """Makes files at a steady rate: as many as are due whenever the loop comes round."""
        begin_s = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(begin_s + number / rate)
            if number % NUMBERS == 0:
                await self.take_numbers()
            if self.changes.make_known(self._create(directory, b"%x" % number, stat.S_IFREG | 0o644)) is None:
                raise RuntimeError("the mount is not alone any more, or behind by more than a journal holds")
            self.told_s.append(trio.current_time())

    async def measure(self, rate: float, seconds: float) -> tuple[Window, int]:
        """What was seen, and how many messages were sent."""
        await self.make(await self.directory(), rate, WARM_UP_S)
        await self.records.flush()
        self.told_s, self.durable_s, self._first = [], [], self.records.recorded
        sent = self.records.sent
        await self.make(await self.directory(), rate, seconds)
        await self.records.flush()
        return Window(self.told_s, self.durable_s), self.records.sent - sent


def _config(folder: Path) -> ServerConfig:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return ServerConfig(
        "bench",
        "s1",
        [address],
        ManagerConfig(address, f"sqlite:///{folder}/catalog.db"),
        AgentConfig("127.0.0.1:7602"),
        MountConfig("/mnt/godwit"),
        str(folder / "state"),
        str(folder / "trust"),
    )


def _manage(config: ServerConfig) -> None:
    trio.run(run_manager, config, trio.sleep_forever)


@contextmanager
def managed(config: ServerConfig) -> Iterator[None]:
    """A manager in a process of its own."""
    prepare_catalog(config.manager.database)
    issue_to_candidate(TrustFolder(config.trust), config.cluster, config.server)
    process = multiprocessing.get_context("fork").Process(target=_manage, args=(config,), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


async def _measure(config: ServerConfig, folder: Path, rate: float, seconds: float) -> tuple[Window, int]:
    async with trio.open_nursery() as nursery:
        person, agent = [
            ManagerSession(managers=config.managers, credentials=credentials_of(config, role))
            for role in (Role.ADMIN, Role.AGENT)
        ]
        mount = Mount(config, folder)
        for session in (person, agent, mount.session):
            nursery.start_soon(session.run)
        nursery.start_soon(mount.records.run)
        nursery.start_soon(mount.records.copy_loop)
        volume = VolumeState("u1", "/srv/v1", 100 * GIB, 90 * GIB, "disk")
        await agent.call(RegisterVolumes("127.0.0.1:7602", [volume]), timeout_s=TIMEOUT_S)
        await person.call(SetPolicy(ROOT_INO, 1, 1, names=NamesPolicy.HELD), timeout_s=TIMEOUT_S)
        measured = await mount.measure(rate, seconds)
        await mount.records.end()
        nursery.cancel_scope.cancel()
    return measured


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def row_of(rate: float, window: Window, messages: int) -> list[str]:
    """A line of the table."""
    counts, ages_s = window.lost()
    delays_s = window.delays_s
    times = [_at(values, share) for values in (delays_s, ages_s) for share in (0.5, 0.99, 1.0)]
    shown = [f"{1e3 * value:.1f}" for value in times]
    return [f"{rate:g}", f"{len(delays_s)}", f"{messages}", *shown, f"{sum(counts) / len(counts):.1f}", f"{counts[-1]}"]


COLUMNS = ["RATE/S", "MADE", "MESSAGES", "DELAY", "P99", "MAX", "OLDEST", "P99", "MAX", "LOST", "MOST"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss_window", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[20, 200, 1000, 3000], help="files made a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="for which each rate is measured (default 20)")
    parser.add_argument("--root", type=Path, default=Path("/var/tmp"), help="where the catalog's disk is (default /var/tmp)")
    options = parser.parse_args(arguments)
    rows = []
    for rate in options.rates:
        with tempfile.TemporaryDirectory(prefix="godwit-loss-", dir=options.root) as made:
            folder = Path(made)
            config = _config(folder)
            with managed(config):
                rows.append(row_of(rate, *trio.run(_measure, config, folder, rate, options.seconds)))
    print_table(COLUMNS, rows, right=COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
