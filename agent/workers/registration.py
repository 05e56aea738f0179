"""Tells the manager which volumes this server has, where they are reached, how full they are, and what is wrong with them."""

from collections.abc import Callable

import trio

from agent.health import PATIENCE_S, Examiner, Report
from agent.loop import Outcome
from agent.volumes import VolumeTable
from cluster.config import ServerConfig
from cluster.messages import RegisterVolumes
from cluster.release import RELEASE
from cluster.rpc.session import ManagerSession

MANAGER_TIMEOUT_S = 15.0


class Registration:
    """Worker: one report. `registered` is set after the first one that a manager has taken.

    `on_settled` is called when the catalog has changed how this server stands since the last report: it was down, or had left.
    """

    name = "registration"

    def __init__(
        self,
        *,
        config: ServerConfig,
        volumes: VolumeTable,
        session: ManagerSession,
        on_numbers: Callable[[], None],
        on_settled: Callable[[], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._session = session
        self._on_numbers = on_numbers
        self._on_settled = on_settled
        self._examiners = [Examiner(volume, patience_s) for volume in volumes.volumes]
        self._settled_ns: int | None = None
        self.registered = trio.Event()

    async def run_once(self) -> Outcome:
        reports = await self._examine()
        request = RegisterVolumes(
            self._config.agent.listen,
            [report.state for report in reports],
            manager=self._config.manager.listen,
            release=RELEASE,
            problems=[report.problem for report in reports if report.problem],
        )
        reply = await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        self._volumes.number(reply.volumes)
        self._on_numbers()
        if self._settled_ns not in (None, reply.settled_ns):
            self._on_settled()
        self._settled_ns = reply.settled_ns
        self.registered.set()
        return Outcome.IDLE

    async def _examine(self) -> list[Report]:
        """All volumes at once, so that the slowest decides how long it takes."""
        reports: dict[int, Report] = {}

        async def examine(index: int) -> None:
            reports[index] = await self._examiners[index].run()

        async with trio.open_nursery() as nursery:
            for index in range(len(self._examiners)):
                nursery.start_soon(examine, index)
        return [reports[index] for index in range(len(self._examiners))]
