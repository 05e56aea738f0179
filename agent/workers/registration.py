"""Tells the manager which volumes this server has, where they are reached, how full they are, and what is wrong with them."""

from collections.abc import Callable

import trio

from agent.loop import Outcome
from agent.objects.quarantine import Generation
from agent.volumes.opening import VolumeKeeper
from agent.volumes.volume import VolumeTable
from cluster.config import ServerConfig
from cluster.faults import faults
from cluster.messages import RegisterVolumes
from cluster.release import RELEASE
from cluster.rpc.session import ManagerSession

MANAGER_TIMEOUT_S = 15.0  # for one report; the next one comes anyway


class Registration:
    """Worker: one report. `registered` is set after the first one that a manager has taken.

    `on_change` is called when the catalog has changed how this server stands since the last report: it was down, or had left.
    `alarms` gives what else is wrong with volumes; *generation* learns which inode numbers are of the catalog's.
    """

    name = "registration"

    def __init__(
        self,
        *,
        config: ServerConfig,
        volumes: VolumeTable,
        keeper: VolumeKeeper,
        session: ManagerSession,
        on_numbers: Callable[[], None],
        on_change: Callable[[], None],
        alarms: Callable[[], list[str]],
        generation: Generation,
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._keeper = keeper
        self._session = session
        self._on_numbers = on_numbers
        self._on_change = on_change
        self._alarms = alarms
        self._generation = generation
        self._changed_ns: int | None = None  # when its state changed last, as the last reply had it
        self.registered = trio.Event()

    async def run_once(self) -> Outcome:
        # With every report: a disk that is back is noticed within `report_s`.
        await self._keeper.open_missing()
        volumes, reports = await self._keeper.examine()
        request = RegisterVolumes(
            self._config.agent.listen,
            [report.state for report in reports],
            manager=self._config.manager.listen,
            release=RELEASE,
            problems=[
                *(report.problem for report in reports if report.problem),
                *self._keeper.problems(),
                *self._alarms(),
                *faults.problems("agent"),
            ],
        )
        reply = await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        # Of the volumes that were examined: others may have been opened while the manager was asked.
        self._volumes.number(reply.volumes, volumes)
        self._generation.first_ino = reply.first_ino
        # After the numbers and the generation are in place: what it starts uses both.
        self._on_numbers()
        if self._changed_ns not in (None, reply.settled_ns):
            self._on_change()
        self._changed_ns = reply.settled_ns
        self.registered.set()
        return Outcome.IDLE
