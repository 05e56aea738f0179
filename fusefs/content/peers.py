"""Connections to the agents of other servers, by volume number."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from cluster.errors import GodwitError, Unavailable, Undone
from cluster.membership import VolumeCondition
from cluster.messages import ListVolumes, Request, Volume
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.session import ManagerSession
from cluster.rpc.waiters import check_wanted
from cluster.rpc.wire import AgentAt
from cluster.tending import Tasks
from cluster.volume.layout import VolumeLayout
from cluster.volume.room import is_nearly_full
from fusefs.content.disk_threads import threads_of
from fusefs.content.new_homes import homes_in_order

log = logging.getLogger(__name__)

R = TypeVar("R")

CONNECT_TIMEOUT_S = 3.0
DOWN_S = 2.0  # an agent that could not be reached is not tried again for so long
REFRESH_S = 2.0  # how old the list of volumes, with their room and condition, gets
AVOID_S = 10.0  # its agent probes a disk as often, and the manager knows then
SOUND = frozenset({VolumeCondition.GOOD, VolumeCondition.READ_ONLY})


class Peers:
    """The volumes of the network and a connection to each server's agent.

    An agent that could not be reached is not tried again for `DOWN_S`: callers that have an alternative take it at once.
    """

    def __init__(
        self,
        session: ManagerSession,
        server: str,
        tasks: Tasks,
        request_timeout_s: float,
        on_mount: Callable[[int], None] = lambda _volume: None,
    ) -> None:
        """*on_mount* is called with a volume whose file system was mounted anew, as far as can be said."""
        self._session = session
        self._server = server
        self._tasks = tasks
        self._request_timeout_s = request_timeout_s
        self._on_mount = on_mount
        self._volumes: dict[int, Volume] = {}  # as the manager said last
        self._mounts: dict[int, str] = {}  # of volumes' file systems, by number, as somebody knew them last
        self._channels: dict[AgentAt, Channel] = {}  # one that is broken stays until it is needed again
        self._connecting: dict[AgentAt, trio.Lock] = {}  # whoever comes second waits for the same connection
        self._down_until: dict[AgentAt, float] = {}  # agents that could not be reached
        self._avoided: dict[int, float] = {}  # volumes that have just failed, and until when others are taken
        self._not_mounted: frozenset[int] = frozenset()  # own volumes that are not in their directories
        self._own_disks = trio.CapacityLimiter(1)  # a disk that hangs keeps one thread, not one at each refresh

    async def refresh_loop(self) -> None:
        """Keeps the list of volumes up to date."""
        while True:
            try:
                await self.refresh()
            except GodwitError as error:
                log.warning("the list of volumes is not up to date: %s", error)
            with trio.move_on_after(REFRESH_S):
                await self._look_at_own_disks()
            await trio.sleep(REFRESH_S)

    async def _look_at_own_disks(self) -> None:
        """Another volume, or none, may be mounted where an own one was: its objects are not this one's."""
        own = [volume for volume in self._volumes.values() if self.is_local(volume)]
        look = partial(_not_mounted, own)
        self._not_mounted = await trio.to_thread.run_sync(look, limiter=self._own_disks, abandon_on_cancel=True)

    async def refresh(self) -> None:
        reply = await self._session.call(ListVolumes(), timeout_s=self._request_timeout_s)
        self._volumes = {volume.volume: self._as_found_here(volume) for volume in reply.volumes}
        for volume in reply.volumes:
            if volume.mount and volume.mount != self.mount(volume.volume):
                self._mounts[volume.volume] = volume.mount
                self._on_mount(volume.volume)

    def _as_found_here(self, volume: Volume) -> Volume:
        return msgspec.structs.replace(volume, accepts=False) if volume.volume in self._not_mounted else volume

    async def volume(self, number: int) -> Volume:
        """A volume by its number; raises `Unavailable` for one that the manager does not know."""
        if number not in self._volumes:
            await self.refresh()
        try:
            return self._volumes[number]
        except KeyError:
            raise Unavailable(f"volume {number} is not known to the manager") from None

    def mount(self, number: int) -> str:
        """Names the mount of the volume's file system; empty while nobody has known it."""
        return self._mounts.get(number, "")

    def is_local(self, volume: Volume) -> bool:
        """Whether its objects are on this server's own disks."""
        return volume.server == self._server

    async def same_server(self, one: int, other: int) -> bool:
        """Whether two volumes, by their numbers, are of one server."""
        return (await self.volume(one)).server == (await self.volume(other)).server

    async def homes_for_new_file(self) -> list[Volume]:
        """The volumes on which a new file may get its home, best first; raises `NoSpace` if there is none.

        That no own volume takes files is asked anew each time: a server that was taken back is to write locally at once.
        """
        if not any(self.is_local(volume) and volume.accepts for volume in self._volumes.values()):
            await self.refresh()
        now = trio.current_time()
        avoided = {number for number, until_s in self._avoided.items() if now < until_s}
        avoided |= {volume.volume for volume in self._volumes.values() if self._is_failing_here(volume)}
        return homes_in_order(self._server, self._volumes.values(), avoided)

    def takes_new_files(self, number: int) -> bool:
        """Whether new files may get their homes on a volume of this server at present, as far as it is known here."""
        volume = self._volumes.get(number)
        if volume is None or not volume.accepts or not self.is_local(volume) or not self.is_sound(volume):
            return False
        return not is_nearly_full(volume.total_bytes, volume.free_bytes)

    def avoid(self, volume: int) -> None:
        """The volume has just failed: for a while others are used if there are any."""
        self._avoided[volume] = trio.current_time() + AVOID_S

    def is_sound(self, volume: Volume) -> bool:
        """Whether reading there is worth an attempt before others."""
        has_just_failed = trio.current_time() < self._avoided.get(volume.volume, 0.0)
        is_silent = self.is_local(volume) and threads_of(volume.path).is_silent
        if has_just_failed or is_silent or self._is_failing_here(volume):
            return False
        return volume.condition in SOUND and volume.volume not in self._not_mounted

    def is_known_sound(self, number: int) -> bool:
        """As `is_sound`, of a volume by its number, as far as it is known here."""
        volume = self._volumes.get(number)
        return volume is not None and self.is_sound(volume)

    def _is_failing_here(self, volume: Volume) -> bool:
        """Whether it is on a disk of this server that gives errors: this mount may know before the manager does."""
        return self.is_local(volume) and threads_of(volume.path).is_failing

    async def call(self, number: int, request: Request[R], *, body: bytes = b"") -> R:
        """Asks the agent that has volume *number*; raises what it answers, or `Unavailable`."""
        reply: R = (await self.exchange(number, request, body=body)).reply
        return reply

    async def exchange(
        self,
        number: int,
        request: Request[Any],
        *,
        body: bytes = b"",
        once: bool = False,
        works: Callable[[], None] | None = None,
    ) -> Answer:
        """As `call`, with the body of the reply; *once* and *works* as in `Channel.exchange`."""
        volume = await self.volume(number)
        channel = await self._channel(AgentAt.of(volume))
        check_wanted()  # connecting may have taken longer than whoever asks wants to wait
        return await channel.exchange(request, timeout_s=self._request_timeout_s, body=body, once=once, works=works)

    async def _channel(self, agent: AgentAt) -> Channel:
        channel = self._channels.get(agent)
        if channel is not None and channel.is_stale and not channel.broken.is_set():
            # What is under way over it goes on.
            del self._channels[agent]
            channel.retire()
            channel = None
        if channel is not None and not channel.broken.is_set():
            return channel
        async with self._connecting.setdefault(agent, trio.Lock()):
            channel = self._channels.get(agent)  # somebody else may have connected, or failed to, while the lock was waited for
            if channel is not None and not channel.broken.is_set():
                return channel
            if trio.current_time() < self._down_until.get(agent, 0.0):
                raise Undone(f"{agent.address} could not be reached a moment ago")
            try:
                channel = await connect(
                    agent.address,
                    self._tasks,
                    self._session.credentials,
                    agent.party,
                    timeout_s=CONNECT_TIMEOUT_S,
                )
            except Unavailable:
                self._down_until[agent] = trio.current_time() + DOWN_S
                raise
            self._channels[agent] = channel
            return channel


def _not_mounted(volumes: Sequence[Volume]) -> frozenset[int]:
    """Those of this server's volumes that are not in their directories. Blocks."""
    missing = set()
    for volume in volumes:
        try:
            if VolumeLayout(Path(volume.path)).identity().uuid != volume.uuid:
                missing.add(volume.volume)
        except (GodwitError, OSError):
            missing.add(volume.volume)
    return frozenset(missing)
