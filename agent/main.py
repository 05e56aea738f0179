"""The agent's process: what it consists of, and in which order it starts and stops."""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from agent.checking.damage import Examiner
from agent.checking.fsck import Checker, SelfCheck
from agent.checking.repair import Mender
from agent.checking.review import ObjectReview
from agent.checking.strays import Arrivals, Grace, StrayScan
from agent.copying.attempts import Attempts
from agent.copying.bunches import Bunches
from agent.copying.peers import PeerChannels, SmallPulls, VolumeDirectory
from agent.copying.pulls import PullServer
from agent.copying.receiving import Receiver
from agent.copying.reports import Reporter
from agent.copying.tasks import TaskQueue
from agent.copying.tokens import ReadTokens
from agent.keyed_locks import KeyedLocks
from agent.loop import Worker, run_worker
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import OpenObjects
from agent.objects.quarantine import Generation
from agent.objects.trash import LOOK_EVERY_S, TrashPurger
from agent.serving.connection import AgentConnection
from agent.serving.dataserver import OPEN_OBJECTS, DataServer
from agent.serving.progress import Progress
from agent.serving.volumes import Upkeep
from agent.volumes.health import PATIENCE_S
from agent.volumes.opening import VolumeKeeper
from agent.volumes.volume import TRASH, LocalVolume, VolumeTable
from agent.workers.backups import BackupKeeper
from agent.workers.catalog_marks import Marking
from agent.workers.conflicts import ConflictKeeper
from agent.workers.dead_journals import LOOK_S as JOURNALS_LOOK_S
from agent.workers.dead_journals import DeadJournals
from agent.workers.dead_mount import LOOK_S, DeadMount
from agent.workers.own_content import Comparer
from agent.workers.registration import Registration
from agent.workers.settling import Settler
from cluster.catalog_point import CatalogMemory
from cluster.config import ServerConfig, credentials_of
from cluster.counters import counters
from cluster.decoding import from_msgpack
from cluster.errors import own_error
from cluster.exporter import serve_metrics
from cluster.leases import TokenGate
from cluster.messages import AGENT_UNION, Welcome
from cluster.rpc.renewal import renewal_loop, stand_in_loop
from cluster.rpc.serving import listen
from cluster.rpc.session import REFUSED_RETRY_S, ManagerSession
from cluster.service import SERVICE
from cluster.tending import TendedTasks, tended
from cluster.trust.credentials import Credentials
from cluster.trust.identity import Role

log = logging.getLogger(__name__)

DRAIN_S = 5.0  # for each of two waits; systemd kills after 30 s (TimeoutStopSec)
NICENESS = 5  # copies are background work: applications on the mount come first


@dataclass(frozen=True)
class Pace:
    """How often an agent looks for what nobody tells it, and how long it waits for others, in seconds. Tests hurry it."""

    idle_s: float = 2.0  # between two steps of a worker that has nothing to do
    room_s: float = 1.0  # between looks at the room on a disk: programs write to it past every process of Godwit
    trash_s: float = LOOK_EVERY_S  # between looks whether anything in the trash is old enough
    patience_s: float = PATIENCE_S  # that a disk has for an answer
    backups_s: float = 60.0  # between questions for a new backup of the catalog
    refused_s: float = REFUSED_RETRY_S  # until a manager is asked again that has refused this agent


PACE = Pace()


class Agent:
    """All parts of one agent, made in the order in which they need each other."""

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        memory: CatalogMemory,
        compared: CatalogMemory,
        nursery: trio.Nursery,
        pace: Pace,
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._pace = pace
        self._nursery = nursery
        self._volumes = volumes = VolumeTable()
        counters.follow_each(TRASH, lambda: {str(one.layout.root): one.trash.bytes for one in volumes.volumes})
        roots = config.agent.volumes
        # Calls back into parts that are made below: it opens nothing before `start`.
        self._keeper = VolumeKeeper(
            roots,
            config.cluster,
            config.server,
            volumes,
            memory,
            on_open=self._volume_opened,
            on_close=self._volume_closed,
            on_recovery=lambda: self._strays.restart("a disk is good again"),
            patience_s=pace.patience_s,
        )
        self._objects = OpenObjects(OPEN_OBJECTS)
        self._grace = grace = Grace()
        generation = Generation()
        self._session = ManagerSession(
            managers=config.managers,
            state=config.state,
            credentials=credentials,
            counters=counters,
            on_welcome=self._welcomed,
            memory=memory,
            refused_retry_s=pace.refused_s,
        )
        self._journals = DeadJournals(config, self._session)
        self._backups = BackupKeeper(volumes, self._session)
        self._registration = Registration(
            config=config,
            volumes=volumes,
            keeper=self._keeper,
            session=self._session,
            on_numbers=self._volumes_numbered,
            on_change=self._standing_changed,
            alarms=lambda: [*self._strays.alarms.values(), *self._journals.problems, *self._backups.problems],
            generation=generation,
        )
        self._trash = TrashPurger(volumes, config.agent.trash_keep_s, generation, pace.trash_s)
        self._works: dict[LocalVolume, DiskWork] = {}  # of open volumes; made and ended with them
        self._swept: set[LocalVolume] = set()  # volumes that had a number at the last report: a new one may hold strays
        self._gate = gate = TokenGate(self._session.clock)
        # One set of locks for tasks, sweeps and repairs: each of them moves objects.
        locks: KeyedLocks[int] = KeyedLocks()
        mender = Mender(self._work_on, self._session, self._objects)
        examiner = Examiner(
            works=self._work_on,
            session=self._session,
            locks=locks,
            mender=mender,
            nursery=nursery,
            on_damage=self._found_damage,
        )
        pulls = PullServer(volumes, self._session, gate, examiner, plain=config.network.is_plain)
        self._reporter = Reporter(self._session)
        arrivals = Arrivals()
        tasks = TendedTasks(nursery)
        channels = PeerChannels(tasks, credentials)
        small = SmallPulls(channels, tasks)
        directory = VolumeDirectory(self._session)
        bunches = Bunches(
            works=self._work_on,
            volumes=volumes,
            directory=directory,
            small=small,
            objects=self._objects,
            arrivals=arrivals,
        )
        attempts = Attempts(
            works=self._work_on,
            session=self._session,
            volumes=volumes,
            directory=directory,
            receiver=Receiver(channels, small, pulls, ReadTokens(self._session).renewed, plain=config.network.is_plain),
            objects=self._objects,
            trash=self._trash,
            arrivals=arrivals,
        )
        self._queue = TaskQueue(
            session=self._session,
            attempts=attempts,
            bunches=bunches,
            reporter=self._reporter,
            locks=locks,
            copies_at_once=config.agent.copies_at_once,
            # Two turns at least within the claim's time: one that is lost does not lose the claim.
            extend_s=min(10.0, config.manager.claim_timeout_s / 3),
        )
        self._strays = StrayScan(
            server=config.server,
            volumes=volumes,
            works=self._work_on,
            session=self._session,
            locks=locks,
            objects=self._objects,
            arrivals=arrivals,
            grace=grace,
            send_journals=self._journals.send,
        )
        checker = Checker(
            volumes=volumes,
            works=self._work_on,
            session=self._session,
            locks=locks,
            mender=mender,
            strays=self._strays,
            arrivals=arrivals,
            grace=grace,
        )
        self._self_check = SelfCheck(checker, compared)
        self._marking = Marking(volumes, compared)
        upkeep = Upkeep(config, volumes, self._strays, checker, generation, self._trash)
        self._progress = Progress()
        self._data = DataServer(
            volumes,
            self._session,
            self._objects,
            pulls,
            self._trash,
            gate,
            config.cluster,
            config.server,
            upkeep,
            examiner,
            self._progress,
        )
        self._conflicts = ConflictKeeper(
            works=self._work_on,
            session=self._session,
            locks=locks,
            objects=self._objects,
            comparer=Comparer(self._session, VolumeDirectory(self._session), channels),
        )
        self._review = ObjectReview(volumes=volumes, session=self._session, examiner=examiner)

    async def start(self) -> None:
        """Starts everything; returns when the data server listens. The rest follows as soon as a manager is there."""
        # First, so that peers do not meet a port without volumes. A disk that hangs holds it up for its patience only.
        await self._keeper.open_missing()
        # Before the first report: the manager gives this address to others as soon as it has that.
        await self._nursery.start(
            lambda task_status: listen(
                self._config.agent.listen,
                from_msgpack(AGENT_UNION),
                lambda peer: AgentConnection(self._data, peer),
                self._credentials,
                task_status=task_status,
            )
        )
        self._nursery.start_soon(tended, self._session.run)
        self._nursery.start_soon(tended, self._reporter.run)
        self._nursery.start_soon(tended, self._progress.run)
        self._nursery.start_soon(tended, partial(serve_metrics, self._config, self._credentials))
        self._nursery.start_soon(tended, partial(renewal_loop, self._credentials, self._session.certify, self._session.show))
        # Not for the manager, whose key an agent cannot read (`cli.unit_limits`).
        for role in (Role.ADMIN, Role.MOUNT):
            stand_in = partial(stand_in_loop, self._credentials.folder, role, lambda: self._session.manager)
            self._nursery.start_soon(tended, stand_in)
        self._worker(self._registration, self._config.agent.report_s)
        self._worker(DeadMount(self._config), LOOK_S)
        self._nursery.start_soon(self._start_when_registered)

    async def _start_when_registered(self) -> None:
        # Volumes have no numbers before, and tasks and strays are about numbers. Nor are they there for the manager, and files
        # that are still in journals have their homes on them.
        await self._registration.registered.wait()
        self._worker(self._journals, JOURNALS_LOOK_S)
        self._nursery.start_soon(self._queue.run)
        self._worker(Settler(self._volumes, self._session, self._journals), self._pace.idle_s)
        self._worker(self._strays, self._pace.idle_s)
        self._worker(self._conflicts, self._pace.idle_s)
        self._worker(self._self_check, self._pace.idle_s)
        self._worker(self._marking, self._pace.idle_s)
        self._worker(self._review, self._pace.idle_s)
        self._worker(self._trash, self._pace.room_s)
        every_s = self._config.backup.every_s / 4 or self._pace.backups_s
        self._worker(self._backups, min(self._pace.backups_s, every_s))

    async def stop(self) -> None:
        """Claims nothing more, finishes what is under way within a few seconds, and ends."""
        log.info("stopping")
        if self._registration.registered.is_set():
            # Claims first: what is claimed during the drain would only run out.
            self._queue.stop()
            await _within(DRAIN_S, self._queue.finished.wait, "tasks under way are left to the next start")
        # Peers after the queue: copies from this agent go on while its own tasks end.
        await _within(DRAIN_S, self._data.drain, "data requests under way are broken off")
        self._nursery.cancel_scope.cancel()

    @property
    def volume_count(self) -> int:
        """How many volumes are open."""
        return len(self._volumes.volumes)

    def close(self) -> None:
        """Closes all descriptors; the nursery must have ended."""
        # Descriptors before the locks on volumes: with the lock another agent may begin at once.
        self._objects.close()
        self._keeper.close()

    def _worker(self, worker: Worker, interval_s: float) -> None:
        async def run() -> None:
            await run_worker(worker, interval_s=interval_s)

        self._nursery.start_soon(run, name=worker.name)

    def _welcomed(self, welcome: Welcome) -> None:
        self._gate.take_key(welcome.lease_key)
        self._grace.welcomed(welcome)
        self._self_check.welcomed(welcome.point)

    def _standing_changed(self) -> None:
        self._strays.restart()
        self._conflicts.restart()
        self._review.restart()

    def _found_damage(self) -> None:
        self._conflicts.restart()

    def _volume_opened(self, volume: LocalVolume) -> None:
        work = self._works[volume] = DiskWork(volume)
        self._nursery.start_soon(tended, work.run)

    def _volume_closed(self, volume: LocalVolume) -> None:
        # First: no step may begin on a path at which another disk is by now.
        self._works.pop(volume).stop()
        self._objects.forget_volume(volume.number)

    def _volumes_numbered(self) -> None:
        """Starts the searches again when volumes have come: they may hold what the catalog has forgotten meanwhile."""
        numbered = set(self._volumes.volumes)
        if numbered - self._swept:
            self._strays.restart("a volume has come")
            self._conflicts.restart()
            self._review.restart()
        self._swept = numbered

    def _work_on(self, number: int) -> DiskWork:
        return self._works[self._volumes.require(number)]


async def _within(seconds: float, wait: Callable[[], Awaitable[None]], else_what: str) -> None:
    with trio.move_on_after(seconds) as scope:
        await wait()
    if scope.cancelled_caught:
        log.warning("not idle after %g s: %s", seconds, else_what)


async def serve_agent(
    config: ServerConfig,
    until: Callable[[], Awaitable[None]],
    pace: Pace = PACE,
    *,
    task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs an agent until *until* returns, then stops it in order. Raises the `GodwitError` that ended it otherwise."""
    credentials = credentials_of(config, Role.AGENT)
    memory, compared = CatalogMemory(config.state, "agent"), CatalogMemory(config.state, "compared")
    # Before the first connection: a manager with an older catalog must be refused.
    for each in (memory, compared):
        each.load()
    agent: Agent | None = None
    try:
        async with trio.open_nursery() as nursery:
            agent = Agent(config, credentials, memory, compared, nursery, pace)
            await agent.start()
            log.info("agent of %s listens on %s, %d volumes", config.server, config.agent.listen, agent.volume_count)
            SERVICE.ready()
            task_status.started(agent)
            await until()
            await agent.stop()
    except BaseExceptionGroup as group:
        raise own_error(group) or group from None
    finally:
        if agent is not None:
            agent.close()


async def run_agent(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """The process: runs until *until* returns, and stops in order. Raises `GodwitError` for what makes going on pointless."""
    # Here and not in `serve_agent`, which tests run in their own process.
    os.nice(NICENESS)
    await serve_agent(config, until)
