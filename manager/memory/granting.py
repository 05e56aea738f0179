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
                granted.append(directory)
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

    async def note(self, store: Store, session: Session, directories: Iterable[int]) -> None:
        """Has it written down that the session's server caches in *directories*, if it is not."""
        missing = self._missing(session, set(directories))
        if missing and session.watches:
            work = partial(write_notes, notes=self._state.notes, server=session.server, directories=missing)
            with suppress(CatalogFault):  # then nothing may be cached, which is what `offer` finds
                await store.write(work, durable=True, grows=True)

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
