"""One term of office: the store, the memory, and what both do together."""

import logging
import math
from collections.abc import Iterable
from functools import partial

import trio
from sqlalchemy import Connection, bindparam, delete, select

from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.errors import NotManager
from cluster.leases import Sealer
from manager.catalog.inodes import find_inode
from manager.catalog.schema import counters, inodes, orphans, servers
from manager.catalog.store import Store, Transaction
from manager.changes.fallback import has_forsaken
from manager.changes.moves import has_open_orders
from manager.changes.tasks import begin_queue
from manager.memory.claims import Claims
from manager.memory.granting import Granting
from manager.memory.leases import Leases
from manager.memory.locks import kept_s
from manager.memory.members import Members
from manager.memory.notes import Notes
from manager.memory.policies import Policies
from manager.memory.sessions import Session, Sessions
from manager.memory.state import State
from manager.memory.throttle import Courtesy
from manager.rules.election import safe_until
from manager.rules.liveness import Delays
from manager.tasks import discard_objects

log = logging.getLogger(__name__)

SWEEP_PAGE = 1000

_ORPHANS = select(orphans.c.ino).where(orphans.c.ino > bindparam("after")).order_by(orphans.c.ino).limit(SWEEP_PAGE)


def counter(connection: Connection, name: str) -> int:
    """A named number of the catalog."""
    value: int = connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one()
    return value


class Term:
    """What request handlers work with. `begin` first; `in_office` is false from the moment another manager may exist."""

    def __init__(self, config: ServerConfig, store: Store, deadline: float) -> None:
        self.config = config
        self.store = store
        self.number = store.term
        self.deadline = deadline
        self.claims = Claims(config.manager.claim_timeout_s)
        self.courtesy = Courtesy(config.manager.give_way_s)
        self.awaited: dict[str, int] = {}
        self.leaving = trio.Event()
        self.grace_until = 0.0
        self.caches_until = 0.0
        self.locks_until = 0.0
        self.state: State
        self.granting: Granting

    async def begin(self) -> None:
        """Loads what the memory starts with."""
        now = monotonic_s()
        sessions = Sessions(self.config.manager.session_timeout_s)
        delays = Delays(self.config.manager.suspect_s, self.config.manager.down_s)
        members = await self.store.read(lambda connection: Members(connection, now, delays))
        leases = Leases(self.number, self.config.manager.access_s, Sealer(self.config.secret), members)
        notes = await self.store.read(lambda connection: Notes(connection, now))
        locks_s = kept_s(self.config.manager)
        self.state = State(self.number, sessions, members, Policies(), leases, locks_s, notes)
        self.granting = Granting(self.state, leases)
        self.state.has_moves = await self.store.read(has_open_orders)
        self.state.has_forsaken = await self.store.read(has_forsaken)
        self.state.next_ino = await self.store.read(lambda connection: counter(connection, "next_ino"))
        for task, claim, server, version in await self.store.write(begin_queue):
            self.claims.begin(task, claim, server, version, now)
        self.awaited = await self.store.read(_mounts)
        self.state.absent = frozenset(self.awaited) | frozenset(notes.servers())
        self.state.may_lock = self.state.absent
        # What was granted in earlier terms was asked for before this one began.
        self.caches_until = monotonic_s() + leases.lasts_s
        self.locks_until = monotonic_s() + locks_s
        self.grace_until = now + max(self.config.manager.session_timeout_s, leases.lasts_s)

    @property
    def in_office(self) -> bool:
        return monotonic_s() < self.deadline

    def check_in_office(self) -> None:
        """Raises `NotManager` when another manager may exist: for whoever has waited."""
        if not self.in_office:
            raise NotManager(f"term {self.number} is over")

    def leave(self) -> None:
        """Asks for the end of the term, in order and soon."""
        self.leaving.set()

    def end(self) -> None:
        """Stops answering for good."""
        self.deadline = -math.inf

    def extended(self, started: float) -> None:
        """The office was extended by a transaction that was asked for at *started*."""
        if self.in_office:
            self.deadline = safe_until(started, self.config.manager.term_s)

    # -------------------------------------------------------------------------------------- what nobody uses any more

    def end_session(self, session: Session) -> None:
        """A session is over: what it wrote stays dirty until an agent has looked at it, orphans may go."""
        self.unused(self.state.sessions.end(session))

    def replaced(self, session: Session) -> None:
        """A session's process is known to be dead: so are its leases and locks, and whoever waits for its answers need not."""
        self.end_session(session)
        self.state.leases.end_session(session.number)
        self.state.recalls.end_session(session.number)
        self.state.locks.end_session(session.number)

    def expire_leases(self, now: float) -> None:
        """Forgets leases, recalls and locks whose time is over, and whom of the mounts before this term nobody need heed."""
        self.state.leases.expire(now)
        self.state.recalls.expire(now)
        self.state.locks.expire()
        if now >= self.caches_until:
            for server in self.state.absent:
                self.state.presented(server)
        if now >= self.locks_until:
            for server in self.state.may_lock:
                self.state.presented_locks(server)

    def unused(self, inodes: Iterable[int]) -> None:
        """Nobody has these open any more: hands the orphans among them to the reaper."""
        for ino in inodes:
            if ino in self.state.unlinked:
                self.state.unlinked.discard(ino)
                self.state.lost_name(ino)

    async def end_grace(self) -> None:
        """Every mount that may hold something has presented it, or has had the time to: orphans may go, dirt may be cleared."""
        self.state.in_grace = False
        after = 0
        while True:
            page = await self.store.read(partial(_orphans, after=after))
            for ino in page:
                if ino not in self.state.reaping and ino not in self.state.unlinked and ino not in self.state.orphaned:
                    self.state.lost_name(ino)
            if len(page) < SWEEP_PAGE:
                return
            after = page[-1]


def _orphans(connection: Connection, after: int) -> list[int]:
    return list(connection.execute(_ORPHANS, {"after": after}).scalars())


def _mounts(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(servers.c.server, servers.c.mount_session).where(servers.c.mount_session != 0))
    return {row.server: row.mount_session for row in rows}


def reap(tx: Transaction, state: State, doomed: list[int]) -> None:
    """Removes orphans that nobody has open, and queues the deletion of their objects."""
    for ino in doomed:
        inode = find_inode(tx.connection, ino)
        if inode is None or inode.nlink:
            continue
        if inode.home_volume:
            discard_objects(tx, state, ino)
        tx.execute(delete(inodes).where(inodes.c.ino == ino))
        tx.inodes_added -= 1
