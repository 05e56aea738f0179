"""What the page shows: the network, as this manager knows it, in one JSON object.

The catalog is asked while somebody looks, by one question at a time, however many look and however long it takes: a database that
hangs holds up one thread, and the page goes on with what was known before, and says so.
"""

import logging
import re
import time
from functools import partial

import msgspec
import trio
from sqlalchemy import Connection

from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.decoding import printable, printable_name
from cluster.errors import GodwitError
from cluster.events import KINDS, sentence
from cluster.faults import faults
from cluster.health import findings, summary
from cluster.membership import ServerState, VolumeCondition, VolumeStanding
from cluster.messages import AskOffice, BelowPolicyRow, EventRow, MigrationRow, OfficeInfo, ServerInfo, Status, Volume
from cluster.progress import Meter, Rate, totals
from cluster.rates import Rates
from cluster.release import RELEASE
from cluster.rpc.wire import parse_address
from manager.catalog.events import read_events
from manager.page.shown import (
    AtRisk,
    Elsewhere,
    Event,
    Finding,
    Migration,
    Network,
    Other,
    Picture,
    Server,
    ShownVolume,
)
from manager.requests.migrations import open_migrations
from manager.requests.routes import Candidate
from manager.requests.shortfalls import below_policy
from manager.requests.status import status_of
from manager.term import Term

log = logging.getLogger(__name__)

FRESH_S = 1.0  # for which an answer is given again
RESTS = 10  # times as long as the catalog took, the same is told again
PATIENCE_S = 3.0  # for the catalog; then what was known before is told
EVENTS, MIGRATIONS, AT_RISK = 50, 20, 5  # of each, at most

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


class Looked(msgspec.Struct, frozen=True):
    """What the catalog and the manager's memory have told at one time."""

    term: int
    at_s: float  # monotonic
    network: Network


class Viewer:
    """What those see who look at this candidate's page. The configuration has an address for it."""

    def __init__(self, candidate: Candidate, config: ServerConfig) -> None:
        self._candidate = candidate
        self._config = config  # of its server
        self._port = parse_address(config.page.listen)[1]
        self._wanted = trio.Event()
        self._taken = trio.Event()  # set when what was wanted is there, or is not to be had; a new one for each time
        self._looked: Looked | None = None
        self._tried = 0  # the term of the last look, whatever came of it
        self._why = ""  # it has failed
        self._fresh_until_s = 0.0  # for which `_looked` is told again
        self._rates: Rates[tuple[str, str]] = Rates()  # by server and what is counted
        self._meters: dict[int, Meter] = {}

    # -------------------------------------------------------------------------------------------------------- telling

    async def tell(self, *, password: bool) -> bytes:
        """The JSON object, within `PATIENCE_S`; *password*: for somebody who has given it."""
        picture = await self._picture()
        return msgspec.json.encode(msgspec.structs.replace(picture, password=password))

    async def _picture(self) -> Picture:
        nothing = Picture(self._config.cluster, self._config.server, RELEASE)
        term = self._term()
        if term is None:
            return msgspec.structs.replace(nothing, elsewhere=self._elsewhere())
        if monotonic_s() >= self._fresh_until_s or self._tried != term.number:
            self._wanted.set()
            with trio.move_on_after(PATIENCE_S):
                await self._taken.wait()
        looked, now = self._looked, monotonic_s()
        if looked is None or looked.term != term.number:
            return msgspec.structs.replace(nothing, why=self._why or "the catalog has not answered yet")
        return msgspec.structs.replace(nothing, age_s=max(0.0, now - looked.at_s), why=self._why, network=looked.network)

    def _term(self) -> Term | None:
        term = self._candidate.term
        return term if term is not None and term.in_office else None

    def _elsewhere(self) -> Elsewhere:
        """Where to look instead."""
        office: OfficeInfo = self._candidate.answer(AskOffice(self._config.cluster))
        addresses = [address for address in office.candidates if address != self._config.manager.listen]
        others = [other for address in addresses if (other := self._page_at(address, "")) is not None]
        manager = self._page_at(office.address, office.manager)
        return Elsewhere(printable(self._candidate.describe_manager()), manager, others)

    def _page_at(self, address: str, server: str) -> Other | None:
        """The page of the candidate at that address, if it is where this one is; None for no address."""
        host = address.rpartition(":")[0]
        if _HOST.fullmatch(host.strip("[]")) is None:
            return None
        return Other(server or host, f"https://{host}:{self._port}/")

    # -------------------------------------------------------------------------------------------------------- looking

    async def look_loop(self) -> None:
        """Looks whenever somebody wants to see something, until cancelled."""
        while True:
            await self._wanted.wait()
            began_s = monotonic_s()
            try:
                await self._look()
            finally:
                ended_s = monotonic_s()
                self._fresh_until_s = ended_s + max(FRESH_S, (ended_s - began_s) * RESTS)
                # In one step: whoever comes from now on may want something newer.
                taken, self._taken, self._wanted = self._taken, trio.Event(), trio.Event()
                taken.set()

    async def _look(self) -> None:
        term = self._term()
        if term is None:
            return
        self._tried, began_s = term.number, monotonic_s()
        try:
            status, events, migrations, at_risk = await term.store.read_slowly(partial(_ask, term=term, now=began_s))
            looked = Looked(term.number, began_s, self._network(status, events, migrations, at_risk))
        except GodwitError as error:
            self._why = printable(str(error))
        except Exception as error:
            faults.unexpected(log, "while the network was looked at for its page", error)
            self._why = "unexpected error, see the manager's log"
        else:
            self._why, self._looked = "", looked

    def _network(
        self, status: Status, events: list[EventRow], migrations: list[MigrationRow], at_risk: list[BelowPolicyRow]
    ) -> Network:
        now = monotonic_s()
        rates = self._rates.add(now, _counted(status))
        self._meters = {row.migration: self._meters.get(row.migration, Meter()) for row in migrations}
        found = findings(status)
        managers = [(info.server, info.manager) for info in status.servers if info.server != self._config.server and info.manager]
        return Network(
            term=status.term,
            at_s=time.time(),
            summary=printable(summary(status)),
            findings=[Finding(printable(one.text), printable(one.look)) for one in found],
            free_bytes=status.space.free_bytes,
            total_bytes=status.space.total_bytes,
            inodes=status.inodes,
            below_policy=status.below_policy,
            damaged=status.damaged,
            waiting_tasks=status.waiting_tasks,
            claimed_tasks=status.claimed_tasks,
            dead_tasks=status.dead_tasks,
            servers=[_server(info, rates, status.manager) for info in status.servers if info.state != ServerState.LEFT],
            migrations=[_migration(row, self._meters[row.migration].add(now, totals(row))) for row in migrations],
            at_risk=[AtRisk(printable_name(row.path), printable(row.reason), row.since_ns / 1e9) for row in at_risk],
            events=[_event(row) for row in reversed(events)],
            others=[other for name, address in managers if (other := self._page_at(address, name)) is not None],
        )


def _ask(
    connection: Connection, term: Term, now: float
) -> tuple[Status, list[EventRow], list[MigrationRow], list[BelowPolicyRow]]:
    events, _newest = read_events(connection, after=-1, since_ns=0, server="", kind="", severity="", limit=EVENTS)
    return (
        status_of(connection, term, now),
        events,
        open_migrations(connection, MIGRATIONS),
        below_policy(connection, AT_RISK).files,
    )


def _counted(status: Status) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for info in status.servers:
        if info.counts is not None:
            found[info.server, "kernel"] = info.counts.kernel_requests
            found[info.server, "manager"] = info.counts.manager_requests
    return found


def _server(info: ServerInfo, rates: dict[tuple[str, str], float], manager: str) -> Server:
    in_use = {volume.device: volume for volume in info.volumes if not _is_bad(volume)}.values()
    return Server(
        name=info.server,
        is_manager=info.server == manager,
        state=info.state,
        since_s=info.since_ns / 1e9,
        seen_s=info.last_seen_s,
        release=printable(info.release),
        free_bytes=sum(volume.free_bytes for volume in in_use),
        total_bytes=sum(volume.total_bytes for volume in in_use),
        volumes=[_volume(volume) for volume in info.volumes],
        kernel_rate=rates.get((info.server, "kernel")),
        manager_rate=rates.get((info.server, "manager")),
        waiting_tasks=info.waiting_tasks,
        dead_tasks=info.dead_tasks,
        oldest_task_s=info.oldest_task_s,
        problems=[printable(problem) for problem in info.problems],
    )


def _is_bad(volume: Volume) -> bool:
    return volume.condition != VolumeCondition.GOOD or volume.standing != VolumeStanding.IN


def _volume(volume: Volume) -> ShownVolume:
    bad = volume.condition if volume.condition != VolumeCondition.GOOD else volume.standing
    return ShownVolume(
        volume.volume, printable(volume.path), volume.free_bytes, volume.total_bytes, bad if _is_bad(volume) else ""
    )


def _migration(row: MigrationRow, rate: Rate) -> Migration:
    done = totals(row)
    return Migration(
        number=row.migration,
        kind=row.kind,
        state=row.state,
        source=row.source,
        target=row.target,
        planned=row.planned,
        files=done.files,
        done_files=done.done_files,
        failed_files=done.failed_files,
        size=done.size,
        done_size=done.done_size,
        rate=rate.size,
        # While it is planned, what is left to do is not known, however fast it goes.
        left_s=rate.left_s if row.planned else None,
        problem=printable(row.problem),
        paths=[printable_name(path) for path in row.paths[:3]],
    )


def _event(row: EventRow) -> Event:
    known = KINDS.get(row.kind)  # type: ignore[call-overload]
    counted = known is not None and "{count" in known.sentence
    return Event(row.time_ns / 1e9, row.severity, sentence(row), 1 if counted else row.count, row.last_ns / 1e9)
