"""Connections to the agents of other servers, by volume number."""

import logging
from typing import Any, TypeVar

import trio

from cluster.errors import NoSpace, Unavailable, Undone
from cluster.messages import ListVolumes, Request, Volume
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

R = TypeVar("R")

CONNECT_TIMEOUT_S = 3.0
DOWN_S = 2.0
REFRESH_S = 2.0


class Peers:
    """The volumes of the network and a connection to each server's agent.

    An agent that could not be reached is not tried again for `DOWN_S`: callers that have another way take it at once.
    """

    def __init__(self, session: ManagerSession, server: str, nursery: trio.Nursery, request_timeout_s: float) -> None:
        self._session = session
        self._server = server
        self._nursery = nursery
        self._request_timeout_s = request_timeout_s
        self._volumes: dict[int, Volume] = {}
        self._channels: dict[str, Channel] = {}
        self._connecting: dict[str, trio.Lock] = {}
        self._down_until: dict[str, float] = {}

    async def refresh_loop(self) -> None:
        """Keeps the list of volumes up to date."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                log.warning("the list of volumes is not up to date: %s", error)
            await trio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        reply = await self._session.call(ListVolumes(), timeout_s=self._request_timeout_s)
        self._volumes = {volume.volume: volume for volume in reply.volumes}

    async def volume(self, number: int) -> Volume:
        """A volume by its number; raises `Unavailable` for one that the manager does not know."""
        if number not in self._volumes:
            await self.refresh()
        try:
            return self._volumes[number]
        except KeyError:
            raise Unavailable(f"volume {number} is not known to the manager") from None

    def is_local(self, volume: Volume) -> bool:
        """Whether its objects are on this server's own disks."""
        return volume.server == self._server

    async def same_server(self, one: int, other: int) -> bool:
        """Whether two volumes, by their numbers, are of one server."""
        return (await self.volume(one)).server == (await self.volume(other)).server

    async def home_for_new_file(self) -> Volume:
        """The volume on which a new file gets its home; raises `NoSpace` if there is none.

        That no own volume takes files is asked anew each time: a server that was taken back is to write locally at once.
        """
        if not any(self.is_local(volume) and volume.accepts for volume in self._volumes.values()):
            await self.refresh()
        return pick_home(self._server, list(self._volumes.values()))

    async def call(self, number: int, request: Request[R], *, body: bytes = b"") -> R:
        """Asks the agent that has volume *number*; raises what it answers, or `Unavailable`."""
        reply: R = (await self.exchange(number, request, body=body)).reply
        return reply

    async def exchange(self, number: int, request: Request[Any], *, body: bytes = b"", once: bool = False) -> Answer:
        """As `call`, with the body of the reply; *once* as in `Channel.exchange`."""
        volume = await self.volume(number)
        channel = await self._channel(volume.address)
        return await channel.exchange(request, timeout_s=self._request_timeout_s, body=body, once=once)

    async def _channel(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is not None and not channel.broken.is_set():
            return channel
        async with self._connecting.setdefault(address, trio.Lock()):
            channel = self._channels.get(address)
            if channel is not None and not channel.broken.is_set():
                return channel
            if trio.current_time() < self._down_until.get(address, 0.0):
                raise Undone(f"{address} could not be reached a moment ago")
            try:
                channel = await connect(address, self._nursery, timeout_s=CONNECT_TIMEOUT_S)
            except Unavailable:
                self._down_until[address] = trio.current_time() + DOWN_S
                raise
            self._channels[address] = channel
            return channel


def pick_home(server: str, volumes: list[Volume]) -> Volume:
    """The volume with the most space of *server*; if none of its takes new files, of those whose agents are up.

    Raises `NoSpace` if there is none at all.
    """
    accepting = [volume for volume in volumes if volume.accepts]
    own = [volume for volume in accepting if volume.server == server]
    candidates = own or [volume for volume in accepting if volume.up]
    if not candidates:
        raise NoSpace("no volume that takes new files is up: a new file has nowhere to go")
    return max(candidates, key=lambda volume: (volume.free_bytes, -volume.volume))
