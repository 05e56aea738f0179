"""Where the copies of a file belong. Pure.

The home always holds one copy. Further ones go to other servers first, stay where they are if they can, and new ones go
to volumes in proportion to their free space. Volumes that are down get new copies only when nobody else is left to take
one: the task then waits in the queue of the server until it is back.

A volume that does not count holds no copy as far as placement is concerned; what is on it is neither refreshed nor dropped.
A replica that is there is kept in preference to a new copy, so that a server that comes and goes causes no storm of copies.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

RESERVE_BYTES = 64 * 1024 * 1024  # what a volume keeps free, or a twentieth of it if that is less


@dataclass(frozen=True)
class Place:
    """A volume as placement sees it. `device` tells volumes of one server that share a disk.

    `counts`: a replica on it counts as a copy. `accepts`: new copies may be placed on it.
    """

    volume: int
    server: str  # whose disk it is: copies go to different servers first
    device: str  # names the disk within the server
    total_bytes: int  # of its file system
    free_bytes: int  # as reported last
    up: bool  # its server's agent was heard lately and the disk can be read
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


@dataclass(frozen=True)
class Layout:
    """Where a file's copies belong, and what must be queued for it.

    `wanted`: the volumes that are to hold a copy, the home first if it is one of them. `secured`: how many of these hold
    the current version now.
    """

    wanted: tuple[int, ...]
    secured: int
    actions: tuple[Action, ...]


def lay_out(
    *,
    ino: int,  # for the draw
    size: int,  # bytes that a copy needs
    home: int,  # volume; never chosen for a further copy
    copies: int,
    holdings: Iterable[Holding],
    places: Mapping[int, Place],
    leaving: Collection[int] = frozenset(),
    pinned: Collection[int] = frozenset(),
) -> Layout:
    """What has to be queued so that *copies* volumes hold the current version, the home among them if it counts.

    A volume that gets no action needs no task. Surplus replicas are dropped only once enough current ones remain; the home
    never is, nor a replica on a volume that the file is *leaving* (its move does that) or that does not count (when its
    server is back, the file is looked at again). Copies to *pinned* volumes come first.
    """
    listed = {holding.volume: holding for holding in holdings}
    held = {volume: holding for volume, holding in listed.items() if volume != home}
    home_stays = home not in leaving and (home not in places or places[home].counts)
    kept = [home] if home_stays else []
    chosen = _choose(_File(ino, size, home, frozenset(leaving), frozenset(pinned)), copies, kept, held, places)
    actions: list[Action] = [Copy(volume) for volume in chosen if volume not in held or not held[volume].current]
    secured = sum(1 for volume in chosen if volume in held and held[volume].current)
    if home_stays and (home not in listed or listed[home].current):
        secured += 1
    # Until then a surplus replica may be needed as a source.
    if secured >= copies:
        kept_back = {volume for volume in held if volume in leaving or (volume in places and not places[volume].counts)}
        spare = set(held) - set(chosen) - kept_back
        actions += [Drop(volume) for volume in sorted(spare) if held[volume].stored]
    return Layout((*kept, *chosen), secured, tuple(actions))


def first_places(*, ino: int, size: int, home: int, copies: int, places: Mapping[int, Place]) -> list[int] | None:
    """The volumes for which `lay_out` wants copies of a file of which there is only the home's object, current and to stay.

    None if that takes more than a draw. It takes a third of the time, and each file that is made is looked at so.
    """
    at_home = places.get(home)
    if at_home is None or not at_home.counts:
        return None
    fit = [
        place
        for place in places.values()
        if place.counts and place.accepts and place.up and place.server != at_home.server and has_room(place, size)
    ]
    if len({place.server for place in fit}) < copies - 1:
        return None
    if copies == 2:
        return [min(fit, key=lambda place: draw(ino, place)).volume]
    chosen: list[int] = []
    servers: set[str] = set()
    for place in sorted(fit, key=lambda place: draw(ino, place)):
        if len(chosen) + 1 < copies and place.server not in servers:
            chosen.append(place.volume)
            servers.add(place.server)
    return chosen


@dataclass(frozen=True)
class _File:
    ino: int  # for the draw
    size: int  # bytes that a copy needs
    home: int  # volume; never chosen for a further copy
    leaving: frozenset[int]  # volumes that it is to leave
    pinned: frozenset[int]  # volumes that are to get a copy first


def _choose(file: _File, copies: int, kept: list[int], held: Mapping[int, Holding], places: Mapping[int, Place]) -> list[int]:
    """The volumes besides those in *kept*, best first."""
    chosen: list[int] = []
    used = [places[volume] for volume in kept if volume in places]
    used_servers = {place.server for place in used}
    used_devices = {(place.server, place.device) for place in used}
    left_servers = {places[volume].server for volume in file.leaving if volume in places}
    candidates = {
        volume: place
        for volume, place in places.items()
        if volume != file.home and volume not in file.leaving and _can_hold(place, file.size, held.get(volume), left_servers)
    }
    while len(kept) + len(chosen) < copies:
        free = [place for place in candidates.values() if (place.server, place.device) not in used_devices]
        if not free:
            break
        best = min(free, key=lambda place: _rank(file, place, held.get(place.volume), used_servers))
        chosen.append(best.volume)
        used_servers.add(best.server)
        # Never two copies on one disk: both would be lost together.
        used_devices.add((best.server, best.device))
        del candidates[best.volume]
    return chosen


def _can_hold(place: Place, size: int, holding: Holding | None, left_servers: Collection[str]) -> bool:
    """Whether the volume may be one of those that keep the file: a replica that is there may stay where nothing new goes."""
    if not place.counts:
        return False
    if holding is not None and holding.stored:
        return True
    return place.accepts and place.server not in left_servers and has_room(place, size)


def has_room(place: Place, size: int) -> bool:
    """Whether a new copy of *size* bytes leaves the volume its reserve."""
    return place.free_bytes - size >= reserve_bytes(place)


def reserve_bytes(place: Place) -> int:
    """How much is left free on a volume."""
    return min(RESERVE_BYTES, place.total_bytes // 20)


def why_short(lacking: int, size: int, layout: Layout, places: Mapping[int, Place]) -> str:
    """Why *lacking* copies of *size* bytes have no place."""
    used = {(places[volume].server, places[volume].device) for volume in layout.wanted if volume in places}
    others = [place for place in places.values() if place.counts and (place.server, place.device) not in used]
    taking = [place for place in others if place.accepts]
    if not others:
        why = "there are not enough volumes that count"
    elif not taking:
        why = "no other volume takes new copies"
    elif not any(has_room(place, size) for place in taking):
        why = "no other volume has room"
    else:
        why = "no other volume is fit for it"
    return f"{lacking} {'copy has' if lacking == 1 else 'copies have'} no place: {why}"


def _rank(file: _File, place: Place, holding: Holding | None, used_servers: set[str]) -> tuple[bool, bool, bool, int, float]:
    """Smaller is better: pinned; a server of its own; not a new copy on a server that is down; what is there; then the draw."""
    if holding is None:
        kept = 3
    elif not holding.stored:
        kept = 2
    else:
        kept = 0 if holding.current else 1
    new = holding is None or not holding.stored
    return place.volume not in file.pinned, place.server in used_servers, not place.up and new, kept, draw(file.ino, place)


def draw(ino: int, place: Place) -> float:
    """Weighted rendezvous hashing: each volume wins a share of the inodes that is in proportion to its free space."""
    digest = blake2b(b"%d/%d" % (ino, place.volume), digest_size=8).digest()
    # Never 0, which has no logarithm.
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -math.log(uniform) / max(place.free_bytes, 1)
