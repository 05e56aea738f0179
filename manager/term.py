"""One term of office: the store, the memory, and what both do together."""

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial

import trio
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, bindparam, delete, select

from cluster.catalog_point import CatalogPoint, Verdict, judge, refusal
from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.errors import NotManager, Refused
from cluster.leases import ALONE_SHORTEST, LeaseKeys, all_ended_s
from cluster.trust.authority import Authority, load_certificates
from cluster.trust.believed import revision_of
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Peer
from cluster.trust.sealing import seal, unseal
from manager.catalog.backup_folder import BackupFolder
from manager.catalog.identity import read_first_ino, read_point
from manager.catalog.inodes import find_inode
from manager.catalog.schema import FIRST_INO, counters, inodes, orphans, servers, shortfalls
from manager.catalog.store import Store, Transaction
from manager.changes.alignment import discard_objects
from manager.changes.authorities import Believed, reconcile
from manager.changes.epochs import read_revoked
from manager.changes.fallback import has_abandoned
from manager.changes.moves import has_open_orders
from manager.changes.tasks import begin_queue
from manager.memory.bounds import BOUNDS, Bounds
from manager.memory.claims import Claims
from manager.memory.granting import Granting
from manager.memory.leases import Leases
from manager.memory.locks import kept_s
from manager.memory.members import Members
from manager.memory.notes import Notes
from manager.memory.policies import Policies
from manager.memory.sessions import Session, Sessions
from manager.memory.state import State
from manager.memory.throttle import Throttle
from manager.rules.election import safe_until
from manager.rules.liveness import Delays

log = logging.getLogger(__name__)

SWEEP_PAGE = 1000  # orphans that are read at once, in the event loop on SQLite

_ANY_SHORT = select(shortfalls.c.ino).limit(1)
# Goes on after a number: orphans that are reaped meanwhile shift nothing.
_ORPHANS = select(orphans.c.ino).where(orphans.c.ino > bindparam("after")).order_by(orphans.c.ino).limit(SWEEP_PAGE)


def counter(connection: Connection, name: str) -> int:
    """A named number of the catalog."""
    value: int = connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one()
    return value


class Term:
    """What request handlers work with. `begin` first; `in_office` is false from the moment another manager may exist.

    The office, taken by what began at *extended_s*, lasts until *deadline*. The last extension of an earlier term began before
    *before_s*.
    """

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        deadline: float,
        extended_s: float,
        before_s: float,
        bounds: Bounds = BOUNDS,
        on_revoked: Callable[[dict[str, int]], None] = lambda _revoked: None,
    ) -> None:
        self.config = config  # of this server
        self.store = store  # of this term; deposed when the term is over
        self.number = store.term  # of the term
        self.deadline = deadline  # when it stops acting if the office is not extended
        self.extended_s = extended_s  # when the last extension of the office began
        self._bounds = bounds  # of its memory
        self._before_s = before_s  # the last extension of an earlier term began before that
        self.revoked: dict[str, int] = {}  # servers of which certificates are void, with the least epoch that is not
        self.revocations = 0  # how often that has changed
        self._on_revoked = on_revoked  # told of it: this process believes them no more
        self.believed: Believed  # the authorities; made by `begin`, as are the next two
        self.authority: Authority  # the one of them that signs
        self.master: bytes  # the network's secret
        self.late: frozenset[str] = frozenset()  # servers that have held up a rotation of the authority for long
        self.candidates: dict[str, Peer] = {}  # of other servers, as they were connected last
        self.only_reads = False  # the catalog's disk takes no changes: the office goes on, for reading
        self._over = False  # ended for good
        self.backups = BackupFolder(config)  # that managers of this server have made
        self.claims = Claims(config.manager.claim_timeout_s)  # of agents to tasks
        self.throttle = Throttle(config.manager.give_way_s)  # of background work
        self.awaited: dict[str, int] = {}  # servers whose mounts were there, and have not presented themselves: their sessions
        self.leaving = trio.Event()  # set by who wants the term to end in order
        self.refusal: Refused | None = None  # why this catalog must not be worked with
        self.grace_until = 0.0  # until when mounts may present what they hold
        self.caches_until = 0.0  # until when anything that was granted in earlier terms may be cached
        self.locks_until = 0.0  # the same for locks of processes
        self.lease_keys: LeaseKeys  # of all agents; made by `begin`, as are the next three
        self.state: State
        self.granting: Granting  # decides what mounts may cache
        self.point: CatalogPoint  # how far the catalog has come
        self.first_ino = FIRST_INO  # the catalog's generation gave numbers from here on

    async def begin(self) -> None:
        """Loads what the memory starts with."""
        # Before anything is read: silence and claims count from then.
        now = monotonic_s()
        sessions = Sessions(self.config.manager.session_timeout_s)
        delays = Delays(self.config.manager.suspect_s, self.config.manager.down_s)
        members = await self.store.read(lambda connection: Members(connection, now, delays))
        access_s = self.config.manager.access_s
        self.master = await trio.to_thread.run_sync(TrustFolder(self.config.trust).read_master)
        self.lease_keys = LeaseKeys(self.master)
        leases = Leases(self.number, access_s, self.lease_keys, members, lambda: self.extended_s, self._bounds)
        # Nobody is answered yet, and no earlier term writes any more: what has been read stays true until the rest is.
        notes = await self.store.read(lambda connection: Notes(connection, now))
        locks_s = kept_s(self.config.manager)
        self.state = State(self.number, sessions, members, Policies(), leases, locks_s, notes, self._bounds)
        self.granting = Granting(self.state, leases)
        # The flags must be there before the first transaction of a request: what they deny is never looked for.
        self.state.has_moves = await self.store.read(has_open_orders)
        self.state.has_shortfalls = await self.store.read(lambda connection: connection.execute(_ANY_SHORT).first() is not None)
        self.state.has_abandoned = await self.store.read(has_abandoned)
        # Each claim gets a whole time: when it began was known only to the manager before.
        for task, claim, server, version in await self.store.write(begin_queue):
            self.claims.begin(task, claim, server, version, now)
        self.have_revoked(await self.store.read(read_revoked))
        await self._begin_signing()
        self.awaited = await self.store.read(_mounts)
        self.point = await self.store.read(read_point)
        self.first_ino = await self.store.read(read_first_ino)
        # Who was there, and who left notes of what it caches, though its session may have ended.
        self.state.absent = frozenset(self.awaited) | frozenset(notes.servers())
        self.state.may_lock = self.state.may_hold = self.state.absent
        self.caches_until = all_ended_s(leases.access_s, self._before_s, now)
        self.holds_until = all_ended_s(leases.alone_s, self._before_s, now, ALONE_SHORTEST)
        # From now, which is later than any manager before can have heard a mount.
        self.locks_until = monotonic_s() + locks_s
        self.grace_until = max(now + self.config.manager.session_timeout_s, self.caches_until)

    async def _begin_signing(self) -> None:
        """Raises `Refused` if the catalog's authority cannot be used here."""
        folder = TrustFolder(self.config.trust)
        text, authority = await trio.to_thread.run_sync(lambda: (folder.read_authorities(), folder.read_authority()))
        listed = [one.public_bytes(Encoding.PEM) for one in load_certificates(text)]
        seal_it = partial(seal, master=self.master, cluster=self.config.cluster)
        work = partial(reconcile, believed=listed, revision=revision_of(text), authority=authority, seal=seal_it)
        # Not durable: what it writes is in the files, and is written again by the next term if it is lost.
        believed = await self.store.write(work)
        self.have_authorities(believed, self.opened(believed))

    def opened(self, believed: Believed) -> Authority:
        """The one of these that signs, with its key. Raises `Refused` if that was sealed with another secret."""
        row = believed.signing
        return unseal(row.sealed, row.certificate, row.number, self.master, self.config.cluster)

    def have_authorities(self, believed: Believed, authority: Authority) -> None:
        """These are believed, and *authority* signs: every session is told with its next heartbeat."""
        self.believed, self.authority = believed, authority

    @property
    def in_office(self) -> bool:
        """Whether nobody else can be. While the beat cannot be raised, the row itself says so each time."""
        # The clock is asked each time: the thread that extends may hang with all the rest.
        if self._over or monotonic_s() >= self.deadline:
            return False
        return not self.only_reads or self.store.is_its_row()

    def check_in_office(self) -> None:
        """Raises `NotManager` if another manager may exist by now; called after a wait."""
        if not self.in_office:
            raise NotManager(f"term {self.number} is over")

    def leave(self) -> None:
        """Asks for the end of the term, in order and soon."""
        self.leaving.set()

    def check_catalog(self, known: CatalogPoint | None, whose: str) -> None:
        """Raises `Refused` for a member that has worked with another catalog; ends the office if it knows a newer one."""
        if known is None or (error := refusal(known, self.point, whose)) is None:
            return
        if judge(known, self.point) is Verdict.OLDER:
            # Set before the term is asked to end: who ends it asks for the reason.
            self.refusal = error
            self.leave()
        raise error

    def saw(self, point: CatalogPoint) -> None:
        """The catalog has come this far."""
        self.point = point

    def have_revoked(self, revoked: dict[str, int]) -> None:
        """These certificates are void: who showed one is cut off here at once, and elsewhere with the next heartbeat."""
        self.revoked = revoked
        self.revocations += 1
        self._on_revoked(revoked)

    def met_candidate(self, peer: Peer) -> None:
        """Another server's candidate looks whether this one is there."""
        if peer.identity is not None:
            self.candidates[peer.identity.server] = peer

    def end(self) -> None:
        """Stops answering for good."""
        self._over = True
        self.deadline = -math.inf

    def extending(self, began_s: float, lasts_s: float) -> None:
        """An extension begins after which the office lasts *lasts_s*: as long at most, even if its outcome stays unknown."""
        # Only ever shortens: the new beat may already be in the row, and candidates go by it.
        self.deadline = min(self.deadline, safe_until(began_s, lasts_s))

    def extended(self, began_s: float, lasts_s: float, now: float, *, only_reads: bool) -> None:
        """The office lasts *lasts_s* from *began_s*, when its extension began. Called by another thread.

        *only_reads*: it was not extended, since the catalog on this machine takes no changes from anybody, but read.
        """
        # An extension that was answered too late does not bring a term back that has stopped acting.
        if not self._over and now < self.deadline:
            self.only_reads = only_reads
            self.deadline = safe_until(began_s, lasts_s)
            if not only_reads:
                self.extended_s = began_s

    # -------------------------------------------------------------------------------------- what nobody uses any more

    def end_session(self, session: Session) -> None:
        """A session is over: what it wrote stays dirty until an agent has looked at it, orphans may go."""
        self.unused(self.state.sessions.end(session))

    def replaced(self, session: Session) -> None:
        """Ends a session whose process is known to be dead, with most leases, its locks, and every wait for its answers."""
        self.end_session(session)
        # Its journal may still come: what it was alone with stays so for the rest of the lease, or until the journal is there.
        self.state.leases.end_session(session.number, keep_alone_at=monotonic_s())
        self.state.recalls.end_session(session.number)
        self.state.locks.end_session(session.number)

    def expire_leases(self, now: float) -> None:
        """Forgets leases, recalls and locks whose time is over; stops waiting for mounts that have not presented themselves."""
        self.state.leases.expire(now)
        self.state.recalls.expire(now)
        self.state.locks.expire()
        if now >= self.holds_until:
            self.state.holds_ended(self.state.may_hold)
        if now >= self.caches_until:
            # A frozenset: `presented` replaces it, and does not change the one that is walked here.
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
        # First: orphans that are made or closed from now on are handed to the reaper by themselves.
        self.state.in_grace = False
        after = 0
        while True:
            page = await self.store.read(partial(_orphans, after=after))
            for ino in page:
                # Known already: it has been decided or is waiting for its last close.
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
        # It may have got its first name since it was chosen (`namespace.link`).
        if inode is None or inode.nlink:
            continue
        # Before the row goes: the queue is all that knows of the objects afterwards.
        if inode.home_volume:
            discard_objects(tx, state, ino)
        # Everything with a foreign key goes with it; replicas stay until their objects are gone.
        tx.execute(delete(inodes).where(inodes.c.ino == ino))
        tx.inodes_added -= 1
