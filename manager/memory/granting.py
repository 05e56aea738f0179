"""Grants to cache: which answers bring one, and for what.

The rules are in `Granting._may_cache`. The grant is made in the event loop, in the same step in which the answer leaves the
handler, from a reading of the catalog that began at a known time: whatever has changed since then is not granted
(`manager.memory.mutations`). Where the catalog does not note yet that the session's server caches in a directory, that is written
first (`manager.memory.notes`).
"""

import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import msgspec

from cluster.errors import CatalogFault
from cluster.messages import Described, Found, GetAttr, Grant, Listing, Lookup, Node, ReadDir
from manager.catalog.store import Store
from manager.memory.leases import Leases
from manager.memory.mutations import Mutation
from manager.memory.notes import write_notes
from manager.memory.sessions import NOT_WRITING, Session
from manager.memory.state import State

Asked: TypeAlias = Lookup | GetAttr | ReadDir
Answered: TypeAlias = Found | Described | Listing


def nodes_in(reply: Answered) -> list[Node]:
    """What the answer brings."""
    if isinstance(reply, Listing):
        return [entry.node for entry in reply.entries]
    return [] if reply.node is None else [reply.node]


def inodes_in(reply: Answered) -> list[int]:
    """The inodes of what the answer brings."""
    return [node.ino for node in nodes_in(reply)]


def directories_in(reply: Answered) -> list[int]:
    """The directories among what the answer brings."""
    return [node.ino for node in nodes_in(reply) if stat.S_ISDIR(node.mode)]


class Granting:
    """Grants of one term."""

    def __init__(self, state: State, leases: Leases) -> None:
        self._state = state  # sessions, mutations, members and notes decide
        self._leases = leases  # where what is granted is written down

    def directory_of(self, session: Session, node: Node) -> int:
        """Under which directory the inode is noted, or may be; 0 if only the catalog can tell."""
        if self._state.notes.has(session.server, node.ino) or stat.S_ISDIR(node.mode):
            return node.ino
        lease = self._leases.get(node.ino, session.number)
        return lease.directory if lease is not None and lease.cached_until_s else 0

    def must_note(self, session: Session, directories: Iterable[int]) -> bool:
        """Whether a note has to be written before everything there can be granted."""
        return session.watches and bool(self._missing(session, directories))

    def _missing(self, session: Session, directories: Iterable[int]) -> list[int]:
        notes = self._state.notes
        return [directory for directory in directories if directory and not notes.has(session.server, directory)]

    def offer(
        self,
        session: Session,
        directory: int,
        nodes: Iterable[Node],
        began_s: float,
        now: float,
        *,
        names: bool = False,
        own: Mutation | None = None,
        serial: int = 0,
    ) -> Grant | None:
        """A grant for those of *nodes*, which are in the directory or are it, that may be cached; with *names* for the directory.

        Directories among them are noted under themselves. They were read since *began_s*, or brought by *own*. *serial*: of an
        answer with several grants. None if there is nothing to grant.
        """
        # Who cannot be told of recalls is granted nothing; and a new manager must find the note of it.
        if not (directory and session.watches and self._state.notes.has(session.server, directory)):
            return None
        if not self._leases.has_room(session):
            return None
        mutations = self._state.mutations
        # Checked and granted in one step: on PostgreSQL a mutation may claim an inode in the store's thread in between.
        with mutations.lock:
            granted: list[int] = []
            themselves: list[int] = []
            for node in nodes:
                if self._may_cache(session, node, began_s, now, own):
                    (themselves if stat.S_ISDIR(node.mode) and node.ino != directory else granted).append(node.ino)
            # A directory without a note of its own is not granted: a new manager would not find it.
            themselves = [ino for ino in themselves if self._state.notes.has(session.server, ino)]
            if names and directory not in granted and mutations.is_at_rest(directory, session, began_s, now, own):
                granted += [directory] if self._may_be_told(session, directory, now) else []
            if not granted and not themselves:
                return None
            serial = serial or self._leases.next_serial()
            self._leases.let_cache(session, granted, directory, serial, now)
            for ino in themselves:
                self._leases.let_cache(session, [ino], ino, serial, now)
        for noted in (directory, *themselves):
            self._state.notes.used(session.server, noted, now)
        return Grant(serial, self._leases.granted_s(now), granted + themselves)

    def _may_cache(self, session: Session, node: Node, began_s: float, now: float, own: Mutation | None) -> bool:
        """Nobody is changing it, and nobody has since it was read; and nobody else can be writing its content."""
        if not self._state.mutations.is_at_rest(node.ino, session, began_s, now, own) or not node.nlink:
            return False
        return self._may_be_told(session, node.ino, now) and self._may_cache_content(session, node)

    def _may_be_told(self, session: Session, ino: int, now: float) -> bool:
        """Nobody else is alone with it; and it was not asked back from the session, whose answer would mean this grant, too."""
        if self._state.recalls.is_asked(ino, session.number):
            return False
        return self._leases.alone_elsewhere(ino, session.number, now) is None

    def _may_cache_content(self, session: Session, node: Node) -> bool:
        if not stat.S_ISREG(node.mode):
            return True
        state = self._state
        if state.members.is_lost(node.home_volume):
            return False  # it falls back to what others have, as soon as nobody caches it
        if state.sessions.is_written(node.ino, besides=session) or self._leases.is_written(node.ino, besides=session):
            return False
        return not node.dirty or self.writes_alone_at_home(session, node)

    def writes_alone_at_home(self, session: Session, node: Node) -> bool:
        """Whether what is not committed is the session's own, and at hand (if nobody else is writing)."""
        if self._state.in_grace or self._state.sessions.write_sequence(session, node.ino) == NOT_WRITING:
            return False
        home = self._state.members.get(node.home_volume)
        return home is not None and home.server == session.server

    async def note(self, store: Store, session: Session, directories: Iterable[int], *, held: bool = False) -> None:
        """Has it written down that the session's server caches in *directories* (or holds them), if it is not."""
        wanted = set(directories)
        missing = [one for one in wanted if not self._state.notes.holds(session.server, one)] if held else []
        missing = missing or self._missing(session, wanted)
        if missing and session.watches:
            work = partial(write_notes, notes=self._state.notes, server=session.server, directories=missing, held=held)
            with suppress(CatalogFault):  # then nothing may be cached, which is what `offer` finds
                await store.write(work, durable=True, grows=True)

    # --------------------------------------------------------------------------------------------- held directories

    def hold(
        self, session: Session, directory: Node, children: Iterable[Node], mutation: Mutation, began_s: float, now: float
    ) -> Grant | None:
        """The session is alone with the directory, which *mutation* has claimed, and with those of *children* that it may be.

        They were read since *began_s*, and have no names but in directories that the session holds. None if somebody else has
        been there meanwhile.
        """
        state, leases, ino = self._state, self._leases, directory.ino
        chosen = list(children)
        if not state.notes.holds(session.server, ino) or not leases.has_room(session, len(chosen) + 1):
            return None
        with state.mutations.lock:
            if not self._may_be_alone(session, directory, mutation, began_s, now):
                return None
            granted = [ino, *(node.ino for node in chosen if self._may_be_alone(session, node, mutation, began_s, now))]
            serial = leases.next_serial()
            leases.let_alone(session, granted, ino, serial, now)
        state.notes.used(session.server, ino, now)
        return Grant(serial, leases.granted_s(now), granted, leases.granted_alone_s(now))

    def _may_be_alone(self, session: Session, node: Node, mutation: Mutation, began_s: float, now: float) -> bool:
        state = self._state
        if not state.mutations.is_only_claim(node.ino, mutation, began_s) or not self._may_be_told(session, node.ino, now):
            return False
        # A directory that others have open is no obstacle: reading it asks the manager, unless they may cache it.
        if stat.S_ISDIR(node.mode):
            return bool(node.nlink) and not self._leases.caching(node.ino, now, besides=session)
        if state.sessions.is_open(node.ino, besides=session) or self._leases.others(node.ino, session, now):
            return False
        return bool(node.nlink) and self._may_cache_content(session, node)

    def stay_alone(
        self,
        session: Session,
        named: Iterable[int],
        born: Iterable[tuple[int, Node]],
        own: Mutation,
        now: float,
        *,
        renews: bool,
    ) -> Grant | None:
        """The session is alone with *born*, made by its own records: each with the directory under which it is noted.

        The grant is for those of them that may be cached and, if it *renews*, for more time with those of *named* with which the
        session still is alone. Without a grant it is alone, too: so it believes since it made them, and nobody else reached them.
        """
        state, leases, made = self._state, self._leases, list(born)
        serial = leases.next_serial()
        with state.mutations.lock:

            def may(ino: int) -> bool:
                return state.mutations.is_at_rest(ino, session, own.began_s, now, own) and self._may_be_told(session, ino, now)

            renews = renews and session.watches and leases.has_room(session, len(made))
            kept = [ino for ino in named if renews and leases.is_alone(ino, session.number, now) and may(ino)]
            new = [node.ino for _place, node in made if renews and may(node.ino) and self._may_cache_content(session, node)]
            for ino in kept:
                lease = leases.get(ino, session.number)
                assert lease is not None, "the session is alone with it"
                leases.let_alone(session, [ino], lease.directory, serial, now)
            for directory, node in made:
                leases.let_alone(session, [node.ino], directory, serial, now)
        places = {lease.directory for ino in kept if (lease := leases.get(ino, session.number))}
        for directory in places.union(directory for directory, _node in made):
            if state.notes.has(session.server, directory):
                state.notes.used(session.server, directory, now)
        granted = dict.fromkeys([*kept, *new])
        return Grant(serial, leases.granted_s(now), list(granted), leases.granted_alone_s(now)) if granted else None

    # ---------------------------------------------------------------------------------------------------- questions

    def noted_under(self, session: Session, request: Asked, reply: Answered) -> int:
        """The directory under which what the answer brings is noted, or may be; 0 if only the catalog can tell."""
        if isinstance(request, Lookup):
            return request.parent
        if isinstance(request, ReadDir):
            return request.ino
        assert isinstance(reply, Described)
        return self.directory_of(session, reply.node)

    def with_grant(self, session: Session, directory: int, reply: Answered, began_s: float, now: float) -> Answered:
        """The answer, with a grant for what it brings if there is one."""
        nodes = nodes_in(reply)
        names = not isinstance(reply, Described)
        grant = self.offer(session, directory, nodes, began_s, now, names=names)
        return reply if grant is None else msgspec.structs.replace(reply, grant=grant)
