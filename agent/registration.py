"""Tells the manager which volumes this server has, where they are reached, and how full they are."""

from collections.abc import Callable

import trio

from agent.volumes import VolumeTable
from agent.workers import Outcome
from cluster.messages import RegisterVolumes, VolumeState
from cluster.session import ManagerSession

MANAGER_TIMEOUT_S = 15.0


class Registration:
    """Worker: one report. `registered` is set after the first one that a manager has taken."""

    name = "registration"

    def __init__(self, address: str, volumes: VolumeTable, session: ManagerSession, on_numbers: Callable[[], None]) -> None:
        self._address = address
        self._volumes = volumes
        self._session = session
        self._on_numbers = on_numbers
        self.registered = trio.Event()

    async def run_once(self) -> Outcome:
        states = await trio.to_thread.run_sync(self._states)
        reply = await self._session.call(RegisterVolumes(self._address, states), timeout_s=MANAGER_TIMEOUT_S)
        self._volumes.number(reply.volumes)
        self._on_numbers()
        self.registered.set()
        return Outcome.IDLE

    def _states(self) -> list[VolumeState]:
        return [volume.state() for volume in self._volumes.volumes]
