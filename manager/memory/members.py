"""The servers and their volumes: how each stands, and where. In memory, from the catalog at the start of the term and then
from reports.

Changed in the event loop only, by replacing whole values, so that the store's thread may read. Whether a server is up, suspect
or draining is settled here; that it is down, back or gone is a transaction first (`manager.changes.standing`) and comes here
after.
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
from cluster.events import EventKind
from cluster.membership import (
    MEANINGS,
    READABLE,
    UP,
    Event,
    Meaning,
    ServerState,
    Standing,
    VolumeCondition,
    VolumeStanding,
    standing_of,
    stored_state,
    transition,
)
from cluster.messages import Space, Volume, VolumeState
from manager.catalog.events import note
from manager.catalog.schema import counters, servers, volumes
from manager.catalog.store import Transaction
from manager.rules.disks import Health, after, condition_of, first_health, standing_now
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
    volumes.c.standing,
)
_SERVERS = select(servers.c.server, servers.c.state, servers.c.draining, servers.c.since_ns, servers.c.manager, servers.c.release)


@dataclass(frozen=True)
class Member:
    """A server."""

    standing: Standing  # its state, and whether it is wanted empty
    hearing: Hearing  # when its agent was heard
    since_ns: int = 0  # when it came to stand so, for people
    changed_ns: int = 0  # when that last changed in the catalog
    manager: str = ""  # its candidate's address
    release: str = ""  # of its agent
    problems: tuple[str, ...] = ()  # sentences of its agent's last report, for people

    @property
    def state(self) -> ServerState:
        return self.standing.state

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.standing.state]


class Members:
    """What is known of servers and volumes during one term."""

    def __init__(self, connection: Connection, now: float, delays: Delays) -> None:
        self._delays = delays  # after which silence a server is suspect, and down
        self._volumes: dict[int, Volume] = {}  # by number; of all servers, also of those that have left
        self._stored_free: dict[int, int] = {}  # free bytes as the catalog has them, which is behind: see `FREE_STEP`
        self._health: dict[int, Health] = {}  # of disks, by volume
        self._members: dict[str, Member] = {}  # by server name
        self._reachable: frozenset[str] = frozenset()  # servers whose agents were heard lately enough
        self._closed: frozenset[str] = frozenset()  # servers that are being removed: nothing is placed there any more
        # With the values that they were made of, which are replaced and never changed.
        self._places_of: tuple[tuple[object, ...], dict[int, Place]] | None = None
        for row in connection.execute(_SERVERS):
            standing = standing_of(row.state, wanted_empty=bool(row.draining))
            hearing = first_hearing(standing, now)
            self._members[row.server] = Member(standing, hearing, row.since_ns, row.since_ns, row.manager, row.release)
        for found in connection.execute(select(*_COLUMNS)):
            self.met(found.server, now)
            self.learn([_volume(found)])
            self._health[found.volume] = first_health(VolumeStanding(found.standing), now)
        self.tick(now)

    # ---------------------------------------------------------------------------------------------- asking

    def get(self, volume: int) -> Volume | None:
        """A volume of a server that is a member, or was declared lost."""
        known = self._volumes.get(volume)
        return known if known is not None and self._meaning(known.server).holds else None

    def find(self, volume: int) -> Volume | None:
        """A volume of any server, with how that stands."""
        known = self._volumes.get(volume)
        return None if known is None else self._described(known)

    def volumes(self) -> list[Volume]:
        """All volumes that may hold what is needed, with how their servers stand."""
        ordered = sorted(self._volumes.items())
        return [self._described(volume) for _number, volume in ordered if self._meaning(volume.server).holds]

    def of_server(self, server: str) -> list[int]:
        return sorted(number for number, volume in self._volumes.items() if volume.server == server)

    def is_there(self, volume: int) -> bool:
        """Whether content of the volume can be had: its server's agent was heard just now, and has the disk."""
        known = self.get(volume)
        return known is not None and known.server in self._reachable and self._condition(volume) in READABLE

    def volume_counts(self, volume: int) -> bool:
        """Whether replicas on the volume count as copies."""
        known = self.get(volume)
        return known is not None and self._meaning(known.server).counts and known.standing == VolumeStanding.IN

    def missing(self, server: str) -> list[int]:
        """The server's volumes for which its agent can do nothing at present."""
        return [number for number in self.of_server(server) if self._condition(number) not in READABLE]

    def outs(self) -> list[int]:
        """The volumes that do not count, whatever their servers do."""
        return [number for number, volume in self._volumes.items() if volume.standing != VolumeStanding.IN]

    def troubles(self, server: str) -> list[str]:
        """What is to be said of the server's volumes beside what its agent says."""
        troubles = []
        for number in self.of_server(server):
            volume, condition = self._volumes[number], self._condition(number)
            if volume.standing == VolumeStanding.LOST:
                troubles.append(f"volume {number} ({volume.path}) was declared lost")
            elif volume.standing == VolumeStanding.OUT:
                troubles.append(f"volume {number} ({volume.path}) is {condition}: out of use, its files are copied from others")
            elif condition is VolumeCondition.AWAY:
                troubles.append(f"volume {number} ({volume.path}) is away: its files are copied from others if it stays so")
        return troubles

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
        """Whether the volume, or its server, was declared lost."""
        known = self._volumes.get(volume)
        if known is not None and known.standing == VolumeStanding.LOST:
            return True
        member = None if known is None else self._members.get(known.server)
        return member is not None and member.state is ServerState.LOST

    def places(self) -> Mapping[int, Place]:
        """The volumes as placement sees them; those of servers that have left are no places."""
        # Values are replaced and never changed, so that identity tells: this is asked for each file that is looked at.
        known = (self._volumes, self._members, self._reachable, self._closed, self._health)
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
                counts = v.standing == VolumeStanding.IN
                condition = self._condition(number)
                places[number] = Place(
                    volume=number,
                    server=v.server,
                    device=v.device,
                    total_bytes=v.total_bytes,
                    free_bytes=v.free_bytes,
                    up=v.server in self._reachable and condition in READABLE,
                    counts=meaning.counts and counts,
                    accepts=meaning.accepts and counts and condition is VolumeCondition.GOOD,
                )
        return places

    def count_storing(self) -> int:
        """How many servers have volumes that count."""
        return len({place.server for place in self.places().values() if place.counts})

    def space(self, copies: int, inodes: int) -> Space:
        """The size of the network if everything is kept *copies* times; volumes on one device count once."""
        devices = {
            volume.device: volume
            for volume in self._volumes.values()
            if self._meaning(volume.server).belongs and volume.standing == VolumeStanding.IN
        }
        total = sum(volume.total_bytes for volume in devices.values())
        free = sum(volume.free_bytes for volume in devices.values())
        return Space(total // copies, free // copies, inodes)

    def _meaning(self, server: str) -> Meaning:
        member = self._members.get(server)
        return MEANINGS[ServerState.UP] if member is None else member.meaning

    def _described(self, volume: Volume) -> Volume:
        member = self._members.get(volume.server)
        state = ServerState.UP if member is None else member.state
        condition = self._condition(volume.volume)
        is_good = condition is VolumeCondition.GOOD and volume.standing == VolumeStanding.IN
        return msgspec.structs.replace(
            volume,
            up=self.is_there(volume.volume),
            state=str(state),
            accepts=self.accepts(volume.server) and is_good,
            condition=str(condition),
        )

    def _condition(self, volume: int) -> VolumeCondition:
        health = self._health.get(volume)
        return VolumeCondition.GOOD if health is None else health.condition

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
        # At once, and not with the next tick: copies may be waiting for it as a source.
        if server not in self._reachable and is_reachable(member.hearing, now, self._delays):
            self._reachable |= {server}

    def reported(self, server: str, problems: Iterable[str]) -> None:
        """What the server's agent says is wrong with its volumes."""
        member = self._members.get(server)
        if member is not None and member.problems != tuple(problems):
            self._put(server, replace(member, problems=tuple(problems)))

    def reported_disks(self, server: str, states: Iterable[VolumeState], now: float) -> bool:
        """How the server's volumes are by its agent's report, which has all that it can use; whether one has come back."""
        known = {volume.uuid: number for number, volume in self._volumes.items() if volume.server == server}
        reported = {known[state.uuid]: condition_of(state.condition) for state in states if state.uuid in known}
        before = self._health
        for number in known.values():
            old = before.get(number) or first_health(VolumeStanding.IN, now)
            new = after(old, reported.get(number, VolumeCondition.AWAY), now)
            if new != before.get(number):
                self._health = self._health | {number: new}
        return any(
            number in before and before[number].condition not in READABLE and reported[number] in READABLE for number in reported
        )

    def due_volumes(self, now: float) -> dict[int, VolumeStanding]:
        """The changes of volumes that the catalog must make now, by volume."""
        due = {}
        for number, volume in self._volumes.items():
            health = self._health.get(number)
            if health is None or volume.server not in self._reachable:
                continue
            before = VolumeStanding(volume.standing)
            following = standing_now(before, health, now, self._delays)
            if following is not before:
                due[number] = following
        return due

    def volume_changed(self, volume: int, standing: VolumeStanding) -> None:
        """Takes over a volume's standing, now that the catalog has it."""
        known = self._volumes.get(volume)
        if known is not None:
            self._volumes = self._volumes | {volume: msgspec.structs.replace(known, standing=str(standing))}

    def forget_volume(self, volume: int) -> None:
        """The catalog has it no more."""
        self._volumes = {number: known for number, known in self._volumes.items() if number != volume}
        self._health = {number: health for number, health in self._health.items() if number != volume}

    def tick(self, now: float) -> dict[str, Event]:
        """Brings each server's state up to date. Returns the events, by server, that need a transaction first."""
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
                # The catalog first: its transaction comes back through `settled`.
                due[server] = event
            elif following != member.standing:
                self._put(server, _standing(member, following))
        self._reachable = frozenset(reachable)
        return due

    def changed(self, server: str, standing: Standing, since_ns: int, now: float) -> None:
        """Takes over a server's state, now that the catalog has it."""
        self.met(server, now)
        member = self._members[server]
        # One that comes back begins like at the start of a term: what it was heard before says nothing.
        hearing = member.hearing if member.meaning.belongs else first_hearing(standing, now)
        member = replace(member, standing=standing, hearing=hearing, since_ns=since_ns, changed_ns=since_ns)
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
            volume = _from_state(known.volume, server, address, state, known.standing)
            moved = abs(volume.free_bytes - self._stored_free[known.volume]) * FREE_STEP > volume.total_bytes
            # Any of the report's volumes: then all are written in one transaction.
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
        standing=row.standing,
    )


def _from_state(number: int, server: str, address: str, state: VolumeState, standing: str) -> Volume:
    return Volume(
        volume=number,
        server=server,
        path=state.path,
        address=address,
        total_bytes=state.total_bytes,
        free_bytes=state.free_bytes,
        device=state.device,
        uuid=state.uuid,
        standing=standing,
        mount=state.mount,
    )


def _identity(volume: Volume) -> tuple[str, str, str, str, int]:
    return volume.server, volume.path, volume.address, volume.device, volume.total_bytes


def store_volumes(tx: Transaction, server: str, address: str, states: list[VolumeState]) -> tuple[list[Volume], bool]:
    """Writes a report; gives new volumes their numbers. The volumes in order, and whether one of them is new.

    A volume that has moved to another server is that server's from now on.
    """
    stored, new = [], False
    for state in states:
        known = tx.execute(select(volumes.c.volume, volumes.c.standing).where(volumes.c.uuid == state.uuid)).one_or_none()
        if known is None:
            new = True
            number = take_number(tx, "next_volume", 1)
            volume = _from_state(number, server, address, state, str(VolumeStanding.IN))
            tx.execute(insert(volumes), _values(volume) | {"volume": number})
            note(tx.connection, EventKind.VOLUME_ADDED, server=server, volume=number, path=state.path)
        else:
            volume = _from_state(known.volume, server, address, state, known.standing)
            tx.execute(update(volumes).where(volumes.c.volume == known.volume), _values(volume))
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
    # Read and written in one transaction: all writes go through one queue, of one manager.
    first: int = tx.execute(select(counters.c.value).where(counters.c.name == counter)).scalar_one()
    if first + count >= 2**62:
        raise refused(errno.ENOSPC, f"{counter} is used up")
    tx.execute(update(counters).where(counters.c.name == counter).values(value=first + count))
    return first
