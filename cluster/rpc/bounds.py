"""Bounds on what the peers of one listener may take: bytes, connections and time.

A peer is a *stranger* until it has proved who it is, and stays one if it has no certificate: it may send little at a time, has
little time, and there are few strangers from one address. What anybody else sends is bounded by the bytes that are held for it,
on one connection, for one address, and in all: who has sent more than that waits until something of it has been answered.

Whoever is answered without waiting takes the event loop's time. All connections share one slice; when it is used up, each
gives way to everything else, one behind the other, before it goes on: so however many peers ask however much, whatever
else the process has to do (extending its office above all) comes after one slice.

A *guest* is who is no mount and no agent of the network. The guests from one address rest several times as long as they have kept
the event loop, so that the network's own work goes on at nearly its speed while they ask without end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from cluster.errors import ProtocolError
from cluster.rpc.frames import Limits

STRANGERS_PER_ADDRESS = 64
CONNECTIONS_PER_ADDRESS = 1024

OF_STRANGERS = Limits(64 * 1024, 64 * 1024)
PER_CONNECTION_BYTES = 64 * 1024 * 1024
PER_ADDRESS_BYTES = 128 * 1024 * 1024
IN_ALL_BYTES = 256 * 1024 * 1024

SLICE_S = 0.005
TASK_S = SLICE_S / 16  # what a request that is handled by a task of its own is taken to cost the loop
REST = 5.0  # how many times what they used the guests from one address leave to everybody else


@dataclass(frozen=True)
class Patience:
    """How long a peer may be silent where something has to come."""

    preface_s: float = 5.0  # from the connection to the preface
    stranger_s: float = 5.0  # from one request of a stranger to the next
    frame_s: float = 30.0  # for one request of anybody, from its first byte to its last


PATIENCE = Patience()


class Room:
    """Bytes that may be held. One within others has to find room in all of them."""

    def __init__(self, limit: int, outer: "Room | None" = None) -> None:
        self.held = 0
        self._limit = limit
        self._outer = outer
        self._waiting: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot() if outer is None else outer._waiting

    async def take(self, size: int) -> None:
        """Waits until there is room for *size* bytes, or, if nothing else is held, for whatever it is."""
        while not self.has(size):
            await self._waiting.park()
        for room in self._chain():
            room.held += size

    def give(self, size: int) -> None:
        """These bytes are not held any more."""
        for room in self._chain():
            room.held -= size
        if self._waiting:
            self._waiting.unpark_all()

    def has(self, size: int) -> bool:
        """Whether `take` would not wait."""
        return all(not room.held or room.held + size <= room._limit for room in self._chain())

    def _chain(self) -> "Iterable[Room]":
        room: Room | None = self
        while room is not None:
            yield room
            room = room._outer


@dataclass(eq=False)
class Address:
    """What is connected from one address."""

    name: str
    room: Room
    connections: int = 0
    strangers: int = 0
    used_s: float = 0.0  # of the event loop's time, by guests, since they rested
    turn: trio.Lock = field(default_factory=trio.Lock)


class Door:
    """Who is connected to one listener."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self.patience = patience
        self._addresses: dict[str, Address] = {}
        self._room = Room(IN_ALL_BYTES)
        self._used_s = 0.0
        self._turn = trio.Lock()

    def enter(self, name: str) -> "Visit":
        """Lets a stranger in; raises `ProtocolError` if there are too many from the address of that name."""
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = Address(name, Room(PER_ADDRESS_BYTES, self._room))
        if address.strangers >= STRANGERS_PER_ADDRESS or address.connections >= CONNECTIONS_PER_ADDRESS:
            raise ProtocolError(f"too many connections from {name} at once")
        address.connections += 1
        address.strangers += 1
        return Visit(self, address)

    def left(self, address: Address) -> None:
        """A connection from there has ended."""
        address.connections -= 1
        if not address.connections:
            del self._addresses[address.name]

    def used(self, seconds: float) -> None:
        """The event loop was kept for so long."""
        self._used_s += seconds

    @property
    def must_give_way(self) -> bool:
        return self._used_s > SLICE_S

    async def give_way(self) -> None:
        """Returns after everything else that can run, and everybody who gave way before."""
        async with self._turn:
            await trio.lowlevel.checkpoint()
            self._used_s = 0.0


class Visit:
    """One connection, from its acceptance to its end."""

    def __init__(self, door: Door, address: Address) -> None:
        self.is_stranger = True
        self.is_guest = True
        self.room = Room(PER_CONNECTION_BYTES, address.room)
        self.patience = door.patience
        self._door = door
        self._address = address

    def introduced(self) -> None:
        """The peer is no stranger any more. May be repeated."""
        if self.is_stranger:
            self.is_stranger = False
            self._address.strangers -= 1

    def left(self) -> None:
        """The connection has ended."""
        self.introduced()
        self._door.left(self._address)

    def used(self, seconds: float) -> None:
        """The event loop was kept for so long by what the peer asked."""
        self._door.used(seconds)
        if self.is_guest:
            self._address.used_s += seconds

    @property
    def must_give_way(self) -> bool:
        return self._door.must_give_way or self._must_rest

    async def give_way(self) -> None:
        """Returns after everything else that can run, and everybody who gave way before; a guest rests first."""
        if self._must_rest:
            async with self._address.turn:
                rest_s, self._address.used_s = self._address.used_s * REST, 0.0
                await trio.sleep(rest_s)
        await self._door.give_way()

    @property
    def _must_rest(self) -> bool:
        return self.is_guest and self._address.used_s > SLICE_S

    def limits(self, introduced: Limits) -> Limits:
        """What a frame may have: *introduced* for who is no stranger."""
        if not self.is_stranger:
            return introduced
        return Limits(min(OF_STRANGERS.head, introduced.head), min(OF_STRANGERS.body, introduced.body))
