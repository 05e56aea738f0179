"""The volumes and which servers' agents are there. In memory, from the catalog at the start of the term and then from reports.

Changed in the event loop only, by replacing whole values, so that the store's thread may read.
"""

import errno
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, insert, select, update

from cluster.errors import refused
from cluster.messages import Space, Volume, VolumeState
from manager.placement import Place
from manager.schema import counters, servers, volumes
from manager.store import Transaction

UP_FOR_S = 7.0  # an agent that was heard within this time is up: three heartbeats
FREE_STEP = 100  # a change of free space by a hundredth of the total is worth a transaction

_COLUMNS = (
    volumes.c.volume,
    volumes.c.uuid,
    volumes.c.server,
    volumes.c.path,
    volumes.c.address,
    volumes.c.device,
    volumes.c.total_bytes,
    volumes.c.free_bytes,
)
_DRAINING = select(servers.c.server).where(servers.c.draining != 0)


class Members:
    """What is known of servers and volumes during one term."""

    def __init__(self, connection: Connection, now: float) -> None:
        self._volumes: dict[int, Volume] = {}
        self._stored_free: dict[int, int] = {}
        self._heard: dict[str, float] = {}
        self._started = now
        self._draining = frozenset(connection.execute(_DRAINING).scalars())
        self._up: frozenset[str] = frozenset()
        for row in connection.execute(select(*_COLUMNS)):
            self.learn([_volume(row)])
        self.tick(now)

    # ---------------------------------------------------------------------------------------------- asking

    def get(self, volume: int) -> Volume | None:
        return self._volumes.get(volume)

    def volumes(self) -> list[Volume]:
        """All volumes, with whether their server is up."""
        ordered = sorted(self._volumes.items())
        return [replace(volume, up=volume.server in self._up, accepts=self.accepts(volume.server)) for _number, volume in ordered]

    def of_server(self, server: str) -> list[int]:
        return sorted(number for number, volume in self._volumes.items() if volume.server == server)

    def is_up(self, server: str) -> bool:
        return server in self._up

    def accepts(self, server: str) -> bool:
        """Whether new files and copies may be put on the server."""
        return server not in self._draining

    def places(self) -> dict[int, Place]:
        """The volumes as placement sees them."""
        return {
            number: Place(
                number, v.server, v.device, v.total_bytes, v.free_bytes, v.server in self._up, accepts=self.accepts(v.server)
            )
            for number, v in self._volumes.items()
        }

    def space(self, copies: int, inodes: int) -> Space:
        """The size of the network if everything is kept *copies* times; volumes on one device count once."""
        devices = {volume.device: volume for volume in self._volumes.values()}
        total = sum(volume.total_bytes for volume in devices.values())
        free = sum(volume.free_bytes for volume in devices.values())
        return Space(total // copies, free // copies, inodes)

    # --------------------------------------------------------------------------------------------- learning

    def heard(self, server: str, now: float) -> None:
        """The server's agent has said something."""
        self._heard[server] = now
        if server not in self._up:
            self._up |= {server}

    def set_draining(self, server: str, draining: bool) -> None:
        """The server is wanted empty from now on, or not any more."""
        self._draining = self._draining | {server} if draining else self._draining - {server}

    def tick(self, now: float) -> None:
        """Finds out who is down. Servers that this manager has not heard yet count as heard when it took office."""
        names = {volume.server for volume in self._volumes.values()}
        self._up = frozenset(name for name in names if now - self._heard.get(name, self._started) <= UP_FOR_S)

    def learn(self, learned: Iterable[Volume]) -> None:
        """Takes volumes as they are stored now."""
        self._volumes = self._volumes | {volume.volume: volume for volume in learned}
        self._stored_free |= {volume.volume: volume.free_bytes for volume in learned}

    def refresh(self, server: str, address: str, states: list[VolumeState]) -> list[int] | None:
        """Takes a report in memory if nothing in it is worth a transaction: the volumes' numbers, else None."""
        by_uuid = {volume.uuid: volume for volume in self._volumes.values()}
        changed: dict[int, Volume] = {}
        for state in states:
            known = by_uuid.get(state.uuid)
            if known is None:
                return None
            volume = _from_state(known.volume, server, address, state)
            moved = abs(volume.free_bytes - self._stored_free[known.volume]) * FREE_STEP > volume.total_bytes
            if moved or _identity(volume) != _identity(known):
                return None
            changed[known.volume] = volume
        self._volumes = self._volumes | changed
        return [by_uuid[state.uuid].volume for state in states]


def _volume(row: Any) -> Volume:
    return Volume(
        row.volume, row.server, row.path, row.address, row.total_bytes, row.free_bytes, row.device, up=True, uuid=row.uuid
    )


def _from_state(number: int, server: str, address: str, state: VolumeState) -> Volume:
    return Volume(
        number, server, state.path, address, state.total_bytes, state.free_bytes, state.device, up=True, uuid=state.uuid
    )


def _identity(volume: Volume) -> tuple[str, str, str, str, int]:
    return volume.server, volume.path, volume.address, volume.device, volume.total_bytes


def store_volumes(tx: Transaction, server: str, address: str, states: list[VolumeState]) -> tuple[list[Volume], bool]:
    """Writes a report; gives new volumes their numbers. The volumes in order, and whether one of them is new.

    A volume that has moved to another server is that server's from now on.
    """
    stored, new = [], False
    for state in states:
        number = tx.execute(select(volumes.c.volume).where(volumes.c.uuid == state.uuid)).scalar_one_or_none()
        if number is None:
            new = True
            number = take_number(tx, "next_volume", 1)
            volume = _from_state(number, server, address, state)
            tx.execute(insert(volumes), _values(volume) | {"volume": number})
        else:
            volume = _from_state(number, server, address, state)
            tx.execute(update(volumes).where(volumes.c.volume == number), _values(volume))
        stored.append(volume)
    return stored, new


def _values(volume: Volume) -> dict[str, Any]:
    return {
        "uuid": volume.uuid,
        "server": volume.server,
        "path": volume.path,
        "address": volume.address,
        "device": volume.device,
        "total_bytes": volume.total_bytes,
        "free_bytes": volume.free_bytes,
    }


def take_number(tx: Transaction, counter: str, count: int) -> int:
    """The first of *count* numbers that nobody else gets."""
    first: int = tx.execute(select(counters.c.value).where(counters.c.name == counter)).scalar_one()
    if first + count >= 2**62:
        raise refused(errno.ENOSPC, f"{counter} is used up")
    tx.execute(update(counters).where(counters.c.name == counter).values(value=first + count))
    return first
