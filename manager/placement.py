"""Where the copies of a file belong. Pure.

The home always holds one copy. Further ones go to other servers first, stay where they are if they can, and new ones go
to volumes in proportion to their free space. Volumes that are down get new copies only when nobody else is left to take
one: the task then waits in the queue of the server until it is back.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

RESERVE_BYTES = 64 * 1024 * 1024  # what a volume keeps free, or a twentieth of it if that is less


@dataclass(frozen=True)
class Place:
    """A volume as placement sees it. `device` tells volumes of one server that share a disk.

    `counts`: a replica on it counts as a copy. `accepts`: new copies may be placed on it.
    """

    volume: int
    server: str
    device: str
    total_bytes: int
    free_bytes: int
    up: bool
    counts: bool = True
    accepts: bool = True


@dataclass(frozen=True)
class Holding:
    """A replica, or a copy that is queued for a volume without one: then neither `stored` nor `current`."""

    volume: int
    current: bool
    stored: bool = True


@dataclass(frozen=True)
class Copy:
    """Bring the current version to the volume."""

    volume: int


@dataclass(frozen=True)
class Drop:
    """Delete the surplus replica on the volume."""

    volume: int


Action = Copy | Drop


def place(
    *, ino: int, size: int, home: int, copies: int, holdings: Iterable[Holding], places: Mapping[int, Place]
) -> list[Action]:
    """What has to be queued so that *copies* volumes, the home among them, hold the current version.

    A volume that gets no action needs no task. Surplus replicas are dropped only once enough current ones remain.
    """
    held = {holding.volume: holding for holding in holdings if holding.volume != home}
    chosen = _choose(ino, size, home, copies, held, places)
    actions: list[Action] = [Copy(volume) for volume in chosen if volume not in held or not held[volume].current]
    current = 1 + sum(1 for volume in chosen if volume in held and held[volume].current)
    if current >= copies:
        actions += [Drop(volume) for volume, holding in sorted(held.items()) if holding.stored and volume not in chosen]
    return actions


def _choose(ino: int, size: int, home: int, copies: int, held: Mapping[int, Holding], places: Mapping[int, Place]) -> list[int]:
    chosen: list[int] = []
    used_servers = {places[home].server} if home in places else set()
    used_devices = {(places[home].server, places[home].device)} if home in places else set()
    candidates = {volume: place for volume, place in places.items() if volume != home and _fits(place, size, held.get(volume))}
    while len(chosen) < copies - 1:
        free = [place for place in candidates.values() if (place.server, place.device) not in used_devices]
        if not free:
            break
        best = min(free, key=lambda place: _rank(ino, place, held.get(place.volume), used_servers))
        chosen.append(best.volume)
        used_servers.add(best.server)
        used_devices.add((best.server, best.device))
        del candidates[best.volume]
    return chosen


def _fits(place: Place, size: int, holding: Holding | None) -> bool:
    if holding is not None and holding.stored:
        return True
    return place.free_bytes - size >= min(RESERVE_BYTES, place.total_bytes // 20)


def _rank(ino: int, place: Place, holding: Holding | None, used_servers: set[str]) -> tuple[bool, bool, int, float]:
    """Smaller is better: a server of its own; not a new copy on a server that is down; what is there; then the draw."""
    if holding is None:
        kept = 3
    elif not holding.stored:
        kept = 2
    else:
        kept = 0 if holding.current else 1
    stored = holding is not None and holding.stored
    return place.server in used_servers, not place.up and not stored, kept, _draw(ino, place)


def _draw(ino: int, place: Place) -> float:
    """Weighted rendezvous hashing: each volume wins a share of the inodes that is in proportion to its free space."""
    digest = blake2b(b"%d/%d" % (ino, place.volume), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -math.log(uniform) / max(place.free_bytes, 1)
