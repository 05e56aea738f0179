"""The agent's process: what it consists of, and in which order it starts and stops."""

import logging
import os
from collections.abc import Awaitable, Callable

import msgspec
import trio

from agent.copying.attempts import Attempts
from agent.copying.peers import PeerChannels, SmallPulls, VolumeDirectory
from agent.copying.pulls import PullServer
from agent.copying.receiving import Receiver
from agent.copying.reports import Reporter
from agent.copying.tasks import TaskQueue
from agent.keyed_locks import KeyedLocks
from agent.loop import run_worker
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import OpenObjects
from agent.serving.dataserver import OPEN_OBJECTS, DataServer
from agent.strays import Arrivals, Grace, StrayScan
from agent.trash import TrashPurger
from agent.volumes import VolumeTable, open_volumes
from agent.workers.conflicts import ForsakenKeeper
from agent.workers.registration import Registration
from agent.workers.settling import Settler
from cluster.config import ServerConfig
from cluster.errors import own_error
from cluster.leases import Sealer, TokenGate
from cluster.messages import AgentRequest
from cluster.rpc.connection import listen
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

SETTLE_S = 2.0
PURGE_S = 10.0
DRAIN_S = 5.0
NICENESS = 5  # copies are background work: applications on the mount come first


class Agent:
    """All parts of one agent, made in the order in which they need each other."""

    def __init__(self, config: ServerConfig, volumes: VolumeTable, nursery: trio.Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._volumes = volumes
        self._objects = OpenObjects(OPEN_OBJECTS)
        grace = Grace()
        self._session = ManagerSession(
            managers=config.managers,
            cluster=config.cluster,
            server=config.server,
            role="agent",
            on_welcome=grace.welcomed,
        )
        self._registration = Registration(
            config=config,
            volumes=volumes,
            session=self._session,
            on_numbers=self._number_works,
            on_settled=self._standing_changed,
        )
        self._trash = TrashPurger(volumes, config.agent.trash_keep_s)
        self._works_list = [DiskWork(volume) for volume in volumes.volumes]
        self._works: dict[int, DiskWork] = {}
        gate = TokenGate(Sealer(config.secret), self._session.clock)
        pulls = PullServer(volumes, self._session, gate)
        self._data = DataServer(volumes, self._session, self._objects, pulls, self._trash, gate)
        self._reporter = Reporter(self._session)
        locks: KeyedLocks[int] = KeyedLocks()
        arrivals = Arrivals()
        channels = PeerChannels(nursery)
        attempts = Attempts(
            works=self._work_on,
            session=self._session,
            volumes=volumes,
            directory=VolumeDirectory(self._session),
            receiver=Receiver(channels, SmallPulls(channels, nursery), pulls),
            objects=self._objects,
            trash=self._trash,
            arrivals=arrivals,
        )
        self._queue = TaskQueue(
            session=self._session,
            attempts=attempts,
            reporter=self._reporter,
            locks=locks,
            copies_at_once=config.agent.copies_at_once,
            extend_s=min(10.0, config.manager.claim_timeout_s / 3),
        )
        self._strays = StrayScan(
            volumes=volumes,
            works=self._work_on,
            session=self._session,
            locks=locks,
            objects=self._objects,
            arrivals=arrivals,
            grace=grace,
        )

        self._forsaken = ForsakenKeeper(works=self._work_on, session=self._session, locks=locks, objects=self._objects)

    async def start(self) -> None:
        """Starts everything; returns when the data server listens. The rest follows as soon as a manager is there."""
        await self._nursery.start(
            lambda task_status: listen(
                self._config.agent.listen,
                msgspec.msgpack.Decoder(AgentRequest),
                lambda _peer: self._data,
                task_status=task_status,
            )
        )
        for work in self._works_list:
            self._nursery.start_soon(work.run)
        self._nursery.start_soon(self._session.run)
        self._nursery.start_soon(self._reporter.run)
        self._worker(self._registration, self._config.agent.report_s)
        self._nursery.start_soon(self._start_when_registered)

    async def _start_when_registered(self) -> None:
        await self._registration.registered.wait()
        self._nursery.start_soon(self._queue.run)
        self._worker(Settler(self._volumes, self._session), SETTLE_S)
        self._worker(self._strays, SETTLE_S)
        self._worker(self._forsaken, SETTLE_S)
        self._worker(self._trash, PURGE_S)

    async def stop(self) -> None:
        """Claims nothing more, finishes what is under way within a few seconds, and ends."""
        log.info("stopping")
        if self._registration.registered.is_set():
            self._queue.stop()
            await _within(DRAIN_S, self._queue.finished.wait, "tasks under way are left to the next start")
        await _within(DRAIN_S, self._data.drain, "data requests under way are broken off")
        self._nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Closes all descriptors; the nursery must have ended."""
        self._objects.close()

    def _worker(self, worker: Registration | Settler | StrayScan | ForsakenKeeper | TrashPurger, interval_s: float) -> None:
        async def run() -> None:
            await run_worker(worker, interval_s=interval_s)

        self._nursery.start_soon(run, name=worker.name)

    def _standing_changed(self) -> None:
        self._strays.restart()
        self._forsaken.restart()

    def _number_works(self) -> None:
        self._works = {work.volume.number: work for work in self._works_list}

    def _work_on(self, number: int) -> DiskWork:
        return self._works[self._volumes.require(number).number]


async def _within(seconds: float, wait: Callable[[], Awaitable[None]], else_what: str) -> None:
    with trio.move_on_after(seconds) as scope:
        await wait()
    if scope.cancelled_caught:
        log.warning("not idle after %g s: %s", seconds, else_what)


async def serve_agent(
    config: ServerConfig, until: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED
) -> None:
    """Runs an agent until *until* returns, then stops it in order. Raises the `GodwitError` that ended it otherwise."""
    volumes = open_volumes(config.agent.volumes, config.cluster, config.server)
    agent: Agent | None = None
    try:
        async with trio.open_nursery() as nursery:
            agent = Agent(config, volumes, nursery)
            await agent.start()
            log.info("agent of %s listens on %s, %d volumes", config.server, config.agent.listen, len(volumes.volumes))
            task_status.started(agent)
            await until()
            await agent.stop()
    except BaseExceptionGroup as group:
        raise own_error(group) or group from None
    finally:
        if agent is not None:
            agent.close()
        volumes.close()


async def run_agent(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """The process: runs until *until* returns, and stops in order. Raises `GodwitError` for what makes going on pointless."""
    os.nice(NICENESS)
    await serve_agent(config, until)
