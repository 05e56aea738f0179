"""The servers and their volumes: how each stands, and where. In memory, from the catalog at the start of the term and then
from reports.

Changed in the event loop only, by replacing whole values, so that the store's thread may read. Whether a server is up, suspect
or draining is settled here; that it is down, back or gone is a transaction first (`manager.membership`) and comes here after.
"""

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from cluster.clock import file_time_ns
from cluster.errors import Refused, refused
from cluster.membership import MEANINGS, UP, Event, Meaning, ServerState, Standing, standing_of, stored_state, transition
from cluster.messages import Space, Volume, VolumeState
from manager.catalog.schema import counters, servers, volumes
from manager.catalog.store import Transaction
from manager.rules.limits import clean_text
from manager.rules.liveness import Delays, Hearing, event_now, first_hearing, is_reachable
from manager.rules.placement import Place

SHOWN_MAX = 63  # of a name that is none
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
_SERVERS = select(servers.c.server, servers.c.state, servers.c.draining, servers.c.since_ns, servers.c.manager, servers.c.release)


@dataclass(frozen=True)
class Member:
    """A server. `since_ns`: when it came to stand so, for people. `settled_ns`: when that last changed in the catalog."""

    standing: Standing
    hearing: Hearing
    since_ns: int = 0
    settled_ns: int = 0
    manager: str = ""
    release: str = ""
    problems: tuple[str, ...] = ()

    @property
    def state(self) -> ServerState:
        return self.standing.state

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.standing.state]


class Members:
    """What is known of servers and volumes during one term."""

    def __init__(self, connection: Connection, now: float, delays: Delays) -> None:
        self._delays = delays
        self._volumes: dict[int, Volume] = {}
        self._stored_free: dict[int, int] = {}
        self._members: dict[str, Member] = {}
        self._reachable: frozenset[str] = frozenset()
        self._closed: frozenset[str] = frozenset()
        # With the values that they were made of, which are replaced and never changed.
        self._places_of: tuple[tuple[object, ...], dict[int, Place]] | None = None
        for row in connection.execute(_SERVERS):
            standing = standing_of(row.state, wanted_empty=bool(row.draining))
            hearing = first_hearing(standing, now)
            self._members[row.server] = Member(standing, hearing, row.since_ns, row.since_ns, row.manager, row.release)
        for found in connection.execute(select(*_COLUMNS)):
            self.met(found.server, now)
            self.learn([_volume(found)])
        self.tick(now)

    # ---------------------------------------------------------------------------------------------- asking

    def get(self, volume: int) -> Volume | None:
        """A volume of a server that is a member, or was declared lost."""
        known = self._volumes.get(volume)
        return known if known is not None and self._meaning(known.server).holds else None

    def volumes(self) -> list[Volume]:
        """All volumes that may hold what is needed, with how their servers stand."""
        ordered = sorted(self._volumes.items())
        return [self._described(volume) for _number, volume in ordered if self._meaning(volume.server).holds]

    def of_server(self, server: str) -> list[int]:
        return sorted(number for number, volume in self._volumes.items() if volume.server == server)

    def is_up(self, server: str) -> bool:
        """Whether the server's agent was heard just now."""
        return server in self._reachable

    def belongs(self, server: str) -> bool:
        """Whether the server's processes may introduce themselves; one that nobody has heard of may."""
        return self._meaning(server).belongs

    def works(self, server: str) -> bool:
        """Whether the server's agent gets tasks."""
        return self._meaning(server).works

    def accepts(self, server: str) -> bool:
        """Whether new files and copies may be put on the server."""
        return self._meaning(server).accepts and server not in self._closed

    def counts(self, server: str) -> bool:
        """Whether replicas on the server count as copies."""
        return self._meaning(server).counts

    def member(self, server: str) -> Member | None:
        return self._members.get(server)

    def require(self, server: str) -> Member:
        """What is known of a server; a name that nobody has is refused with those that there are."""
        member = self._members.get(server)
        if member is None:
            known = ", ".join(self.servers()) or "none"
            raise Refused(f"there is no server {clean_text(server, SHOWN_MAX)!r}; there are: {known}", errno.ENOENT)
        return member

    def servers(self) -> dict[str, Member]:
        """Everyone who was ever there, by name."""
        return dict(sorted(self._members.items()))

    def managers(self) -> list[str]:
        """The addresses of the candidates of all servers that belong."""
        return sorted({member.manager for member in self._members.values() if member.manager and member.meaning.belongs})

    def may_get_content(self, volume: int) -> bool:
        """Whether a file may be given its home there."""
        known = self.get(volume)
        return known is not None and self.belongs(known.server) and known.server not in self._closed

    def is_lost(self, volume: int) -> bool:
        """Whether the volume's server was declared lost."""
        known = self._volumes.get(volume)
        member = None if known is None else self._members.get(known.server)
        return member is not None and member.state is ServerState.LOST

    def places(self) -> Mapping[int, Place]:
        """The volumes as placement sees them; those of servers that have left are no places."""
        known = (self._volumes, self._members, self._reachable, self._closed)
        if self._places_of is not None and all(map(is_, self._places_of[0], known)):
            return self._places_of[1]
        places = self._make_places()
        self._places_of = (known, places)
        return places

    def _make_places(self) -> dict[int, Place]:
        places = {}
        for number, v in self._volumes.items():
            meaning = self._meaning(v.server)
            if meaning.holds and v.server not in self._closed:
                up = v.server in self._reachable
                places[number] = Place(
                    number, v.server, v.device, v.total_bytes, v.free_bytes, up, counts=meaning.counts, accepts=meaning.accepts
                )
        return places

    def space(self, copies: int, inodes: int) -> Space:
        """The size of the network if everything is kept *copies* times; volumes on one device count once."""
        devices = {volume.device: volume for volume in self._volumes.values() if self._meaning(volume.server).belongs}
        total = sum(volume.total_bytes for volume in devices.values())
        free = sum(volume.free_bytes for volume in devices.values())
        return Space(total // copies, free // copies, inodes)

    def _meaning(self, server: str) -> Meaning:
        member = self._members.get(server)
        return MEANINGS[ServerState.UP] if member is None else member.meaning

    def _described(self, volume: Volume) -> Volume:
        member = self._members.get(volume.server)
        state = ServerState.UP if member is None else member.state
        accepts = self.accepts(volume.server)
        return msgspec.structs.replace(volume, up=volume.server in self._reachable, state=str(state), accepts=accepts)

    # ------------------------------------------------------------------------------------ who is there, and since when

    def met(self, server: str, now: float) -> None:
        """A process of the server has introduced itself, or the server was added: it is a member if it was none."""
        if server not in self._members:
            hearing = first_hearing(UP, now)
            self._put(server, Member(UP, hearing, file_time_ns()))

    def heard(self, server: str, now: float) -> None:
        """The server's agent has said something."""
        self.met(server, now)
        member = self._members[server]
        if not member.meaning.belongs:
            return
        member = replace(member, hearing=member.hearing.heard(now, self._delays))
        if member.state is ServerState.SUSPECT:
            member = _standing(member, transition(member.standing, Event.HEARD))
        self._put(server, member)
        if server not in self._reachable and is_reachable(member.hearing, now, self._delays):
            self._reachable |= {server}

    def reported(self, server: str, problems: Iterable[str]) -> None:
        """What the server's agent says is wrong with its volumes."""
        member = self._members.get(server)
        if member is not None and member.problems != tuple(problems):
            self._put(server, replace(member, problems=tuple(problems)))

    def tick(self, now: float) -> dict[str, Event]:
        """Finds out how everyone stands by now. The changes that the catalog must make first, by server."""
        due: dict[str, Event] = {}
        reachable = set()
        for server, member in self._members.items():
            if not member.meaning.belongs:
                continue
            if is_reachable(member.hearing, now, self._delays):
                reachable.add(server)
            event = event_now(member.standing, member.hearing, now, self._delays)
            following = member.standing if event is None else transition(member.standing, event)
            if event is not None and stored_state(following) != stored_state(member.standing):
                due[server] = event
            elif following != member.standing:
                self._put(server, _standing(member, following))
        self._reachable = frozenset(reachable)
        return due

    def settled(self, server: str, standing: Standing, since_ns: int, now: float) -> None:
        """The catalog says that the server stands so now."""
        self.met(server, now)
        member = self._members[server]
        hearing = member.hearing if member.meaning.belongs else first_hearing(standing, now)
        member = replace(member, standing=standing, hearing=hearing, since_ns=since_ns, settled_ns=since_ns)
        self._put(server, member)
        if not member.meaning.belongs:
            self._reachable -= {server}

    def identified(self, server: str, manager: str, release: str) -> None:
        """Where the server's candidate is and what it runs, as stored now."""
        member = self._members.get(server)
        if member is not None:
            self._put(server, replace(member, manager=manager, release=release))

    def is_identified(self, server: str, manager: str, release: str) -> bool:
        """Whether the catalog has the same."""
        member = self._members.get(server)
        return member is not None and (member.manager, member.release) == (manager, release)

    def close(self, server: str) -> None:
        """From now on nothing is placed on the server: what follows in the queue of transactions finds it closed."""
        self._closed |= {server}

    def is_closed(self, server: str) -> bool:
        """Whether somebody has closed it and not reopened it."""
        return server in self._closed

    def reopen(self, server: str) -> None:
        """Takes `close` back."""
        self._closed -= {server}

    def _put(self, server: str, member: Member) -> None:
        self._members = self._members | {server: member}

    # --------------------------------------------------------------------------------------------- learning volumes

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


def _standing(member: Member, standing: Standing) -> Member:
    return member if member.standing == standing else replace(member, standing=standing, since_ns=file_time_ns())


def _volume(row: Any) -> Volume:
    return Volume(
        volume=row.volume,
        server=row.server,
        path=row.path,
        address=row.address,
        total_bytes=row.total_bytes,
        free_bytes=row.free_bytes,
        device=row.device,
        uuid=row.uuid,
    )


def _from_state(number: int, server: str, address: str, state: VolumeState) -> Volume:
    return Volume(
        volume=number,
        server=server,
        path=state.path,
        address=address,
        total_bytes=state.total_bytes,
        free_bytes=state.free_bytes,
        device=state.device,
        uuid=state.uuid,
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


def identify(tx: Transaction, server: str, manager: str, release: str) -> None:
    """Writes down where the server's candidate is and what it runs."""
    tx.execute(update(servers).where(servers.c.server == server).values(manager=manager, release=release))


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
