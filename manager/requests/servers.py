"""What people ask about servers: who they are, that one leaves, that one comes. May take milliseconds."""

import errno
import time
from collections.abc import Mapping
from functools import partial

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.config import is_name
from cluster.counters import Numbers, counters
from cluster.errors import Unavailable, refused
from cluster.events import EventKind
from cluster.membership import Event, ServerState
from cluster.messages import (
    Added,
    AddServer,
    Count,
    Done,
    GetServer,
    Holdings,
    RemoveServer,
    RevokeServer,
    ServerDetails,
    ServerInfo,
    TaskState,
)
from cluster.trust.identity import Role
from cluster.trust.tokens import JoinToken, digest_of, new_secret
from manager.catalog.events import note
from manager.catalog.schema import invitations, servers
from manager.catalog.store import Transaction
from manager.changes.authorities import has_shown, read_authorities
from manager.changes.epochs import is_certified, is_revoked, next_epoch, revoke
from manager.changes.fallback import count_abandoned
from manager.changes.holdings import count_holdings, forget_some, forget_tasks, holds_anything
from manager.changes.standing import AWAY, change_standing, stored_standing
from manager.changes.tasks import ages_of_tasks, count_tasks
from manager.memory.members import Member, Members
from manager.memory.sessions import Session
from manager.requests.conflicts import conflict_paths
from manager.requests.join import check_shared
from manager.requests.migrations import cancel_drains
from manager.term import Term

EXPIRES_MIN_S = 1.0  # for how long a token is good, at least
EXPIRES_MAX_S = 30 * 86400.0  # and at most: who has it gets in

INVITED = "invited"  # outcomes of `add_server`: a new server gets a token
READMITTED = "readmitted"  # one that had left, was lost or was revoked gets a token
UNDRAINED = "undrained"  # a member that was being drained stays

Counts = dict[tuple[str, str], int]


def server_info(term: Term, server: str, counts: Counts, ages: Mapping[str, float], now: float) -> ServerInfo:
    """A server as it is seen now; *counts* are the tasks by server and state, *ages* those of the oldest by server."""
    members = term.state.members
    # Of its processes: people who type commands there say nothing about it.
    sessions = [session for session in term.state.sessions.all() if session.server == server and session.role != Role.ADMIN]
    member = members.member(server)
    info = ServerInfo(
        server=server,
        roles=sorted({session.role for session in sessions}),
        volumes=[volume for volume in members.volumes() if volume.server == server],
        waiting_tasks=counts.get((server, TaskState.WAITING), 0) + counts.get((server, TaskState.DEFERRED), 0),
        dead_tasks=counts.get((server, TaskState.DEAD), 0),
        last_seen_s=min((max(0.0, now - session.heard_s) for session in sessions), default=-1.0),
        oldest_task_s=ages.get(server, -1.0),
    )
    if member is None:
        return info
    counts_of_mount = next((session.counts for session in sessions if session.role == Role.MOUNT), None)
    of_mount = [] if counts_of_mount is None else counts_of_mount.problems
    return msgspec.structs.replace(
        info,
        counts=counts_of_mount,
        state=str(member.state),
        since_ns=member.since_ns,
        wanted_empty=member.standing.wanted_empty,
        manager=member.manager,
        release=member.release,
        problems=[*member.problems, *members.troubles(server), *of_mount, *_certificate_problems(term, server, sessions)],
    )


def _certificate_problems(term: Term, server: str, sessions: list[Session]) -> list[str]:
    """What is wrong with the certificates that a server's processes have shown, or have not."""
    unrenewed = _unrenewed(term, server, sessions)
    if server not in term.late:
        return unrenewed
    return [*unrenewed, "holds up the replacement of the certificate authority: see godwit certs rotate-ca --status"]


def _unrenewed(term: Term, server: str, sessions: list[Session]) -> list[str]:
    now_s = time.time()
    shown = [(session.role, session.peer) for session in sessions]
    return [
        f"the certificate of its {role} ends in {max(0.0, peer.ends_s - now_s) / 86400:.1f} days, and was not renewed: "
        "its log says why"
        for role, peer in [*shown, (Role.MANAGER.value, term.candidates.get(server))]
        if peer is not None and peer.missed_s <= now_s
    ]


async def get_server(term: Term, _session: Session, request: GetServer) -> ServerDetails:
    """Everything about one server."""
    term.state.members.require(request.server)
    now = monotonic_s()
    leases = sum(1 for _lease in term.state.leases.ending_first(request.server))
    metrics = _metrics(term, request.server)

    def ask(connection: Connection) -> ServerDetails:
        counts = count_tasks(connection)
        return ServerDetails(
            info=server_info(term, request.server, counts, ages_of_tasks(connection, file_time_ns()), now),
            holdings=_holdings(connection, term.state.members, request.server),
            tasks={
                state: counts.get((request.server, state), 0)
                for state in (TaskState.WAITING, TaskState.CLAIMED, TaskState.DEFERRED, TaskState.DEAD)
            },
            is_manager=request.server == term.config.server,
            leases=leases,
            forsaken=count_abandoned(connection, term.state.members.of_server(request.server)),
            conflicts=conflict_paths(connection, request.server),
            metrics=metrics,
        )

    return await term.store.read_slowly(ask)


def _metrics(term: Term, server: str) -> dict[str, Numbers]:
    """What the processes of a server have counted, by role; the manager's are those of its process and of its term."""
    sessions = [session for session in term.state.sessions.all() if session.server == server and session.metrics]
    metrics: dict[str, Numbers] = {session.role: session.metrics for session in sessions}
    if server == term.config.server:
        metrics["manager"] = counters.numbers() | term.state.leases.counters.numbers()
    return metrics


def _holdings(connection: Connection, members: Members, server: str) -> Holdings:
    return count_holdings(connection, members.of_server(server), _safe_volumes(members, server))


def _safe_volumes(members: Members, but: str) -> list[int]:
    """The volumes on which a replica counts as a copy, besides those of one server."""
    return [volume.volume for volume in members.volumes() if volume.server != but and members.volume_counts(volume.volume)]


# ---------------------------------------------------------------------------------------------------------- leaving


async def remove_server(term: Term, session: Session, request: RemoveServer) -> Count:
    """Removes a server that no file needs; that is checked before anything is changed, and again in each transaction."""
    members, server = term.state.members, request.server
    member = members.require(server)
    if member.state is ServerState.LEFT:
        return Count(0)
    require_another(session, server)
    if server == term.config.server:
        raise refused(errno.EBUSY, f"{server} is the manager: godwit manager step-down first")
    if members.is_closed(server):
        raise refused(errno.EBUSY, f"{server} is being removed already")
    # While it is counted files may come and go: this only refuses early, each transaction below looks again.
    holdings = await term.store.read_slowly(lambda connection: _holdings(connection, members, server))
    _check_leaving(server, member, holdings)
    # From here on nothing new is placed there, so that what follows comes to an end.
    members.close(server)
    try:
        forgotten = await _forget(term, server) if member.state in AWAY else 0
        while await term.store.write_uncancelled(partial(forget_tasks, state=term.state, server=server)):
            pass
        await term.store.write_uncancelled(partial(_leave, term=term, server=server), durable=True)
    finally:
        # Also if it was refused half-way: then the server stays a member with what it has left.
        members.reopen(server)
    return Count(forgotten)


def _check_leaving(server: str, member: Member, held: Holdings) -> None:
    if member.state not in AWAY and held.replicas:
        raise refused(
            errno.EBUSY,
            f"{server} is {member.state} and holds {held.replicas} replicas, {held.homes} of them as the home: "
            f"godwit drain {server} first (or wait until it is down, if it will not come back)",
        )
    if held.homes or held.sole:
        raise refused(
            errno.EBUSY,
            f"{server} is {member.state}, and files need it: {held.homes} have their home there ({held.dirty} with changes that "
            f"may be nowhere else), {held.sole} have no other current replica. Bring it back and godwit drain {server}, or wait "
            "until healing has moved them",
        )


async def _forget(term: Term, server: str) -> int:
    """Forgets the replicas on a server that is down."""
    members = term.state.members
    forgotten = 0
    for volume in members.of_server(server):
        more = True
        while more:
            # A batch at a time; between two of them the server may come back, which the next one finds.
            work = partial(_forget_some, term=term, server=server, volume=volume)
            count = await term.store.write_uncancelled(work)
            forgotten += count
            more = count > 0
    return forgotten


def _forget_some(tx: Transaction, term: Term, server: str, volume: int) -> int:
    standing = stored_standing(tx, server)
    if standing.state not in AWAY:
        raise refused(errno.EBUSY, f"{server} has come back")
    count, needed = forget_some(tx, volume, _safe_volumes(term.state.members, server))
    if needed and not count:
        raise refused(errno.EBUSY, f"files on {server} are needed after all: see godwit servers show {server}")
    return count


def _leave(tx: Transaction, term: Term, server: str) -> None:
    """The last step: the server holds nothing, and is no member any more."""
    state = term.state
    if holds_anything(tx.connection, state.members.of_server(server)):
        raise refused(errno.EBUSY, f"{server} holds files again: see godwit servers show {server}")
    change_standing(tx, term.state, term.claims, server, Event.REMOVE)
    tx.execute(update(servers).where(servers.c.server == server).values(mount_session=0, agent_session=0))
    tx.execute(delete(invitations).where(invitations.c.server == server))
    cancel_drains(tx, term, server)
    revoke(tx, server, term.have_revoked)
    tx.after(lambda: end_sessions(term, server))


async def revoke_server(term: Term, session: Session, request: RevokeServer) -> Done:
    """Makes the server's certificates void: its processes are cut off, and let in again with others."""
    server = request.server
    require_another(session, server)
    if server == term.config.server:
        raise refused(errno.EBUSY, f"{server} is the manager: godwit manager step-down first")
    await term.store.write(partial(_revoke, term=term, server=server), durable=True, grows=True)
    return Done()


def _revoke(tx: Transaction, term: Term, server: str) -> None:
    known = tx.execute(select(servers.c.server).where(servers.c.server == server)).first()
    # One that has joined, and has not come yet, is no member; nor is a workstation with commands.
    if known is None and not is_certified(tx, server) and not has_shown(tx, server):
        term.state.members.require(server)
    tx.execute(delete(invitations).where(invitations.c.server == server))
    if revoke(tx, server, term.have_revoked):
        note(tx.connection, EventKind.SERVER_REVOKED, server=server)
        tx.after(lambda: end_sessions(term, server))


def require_another(session: Session, server: str) -> None:
    """Raises `Refused` if *server*'s own command asks: with its certificates the connection would end before the answer."""
    if session.server == server:
        raise refused(errno.EBUSY, f"{server} would make its own certificates void: type it on another server")


def end_sessions(term: Term, server: str) -> None:
    """Its processes are no members any more. The leases of its mount last until they end."""
    term.awaited.pop(server, None)
    term.candidates.pop(server, None)
    for session in term.state.sessions.all():
        if session.server == server and session.role != Role.ADMIN:
            term.end_session(session)


# ----------------------------------------------------------------------------------------------------------- coming


async def add_server(term: Term, _session: Session, request: AddServer) -> Added:
    """Invites a new server, takes back one that has left, or takes a drain back."""
    server = request.server
    if not is_name(server):
        raise refused(errno.EINVAL, f"{server!r} is no name for a server: letters, digits, dots, dashes, at most 63")
    if not EXPIRES_MIN_S <= request.expires_s <= EXPIRES_MAX_S:
        raise refused(errno.EINVAL, f"a token expires after {EXPIRES_MIN_S:g} to {EXPIRES_MAX_S:g} seconds")
    # Outside of the transaction, whose body may run again.
    authority, secret = term.authority, new_secret()
    work = partial(_add, term=term, request=request, digest=digest_of(secret), authority=authority.number)
    outcome = await term.store.write(work, durable=True, grows=True)
    token = JoinToken(authority.pin, secret)
    managers = list(dict.fromkeys([term.config.manager.listen, *term.state.members.managers()]))
    if outcome == UNDRAINED:
        return Added(server, outcome, term.config.cluster, managers)
    return Added(server, outcome, term.config.cluster, managers, str(token), request.expires_s)


def _add(tx: Transaction, term: Term, request: AddServer, digest: bytes, authority: int) -> str:
    server = request.server
    if read_authorities(tx.connection).signing.number != authority:
        raise Unavailable("another authority signs since a moment ago: ask again")  # the token would name the one before
    # Its row is written when it introduces itself: an invitation alone makes no member.
    if tx.execute(select(servers.c.server).where(servers.c.server == server)).first() is None:
        if request.candidate:
            check_shared(term.config.manager.database)
        _invite(tx, request, digest)
        return INVITED
    standing = stored_standing(tx, server)
    if standing.state in (ServerState.LEFT, ServerState.LOST):
        change_standing(tx, term.state, term.claims, server, Event.ADD)
        _invite(tx, request, digest)
        return READMITTED
    if is_revoked(tx, server):
        _invite(tx, request, digest)
        return READMITTED
    if not standing.wanted_empty:
        raise refused(errno.EEXIST, f"{server} is a member already, it is {standing}")
    change_standing(tx, term.state, term.claims, server, Event.UNDRAIN)
    cancel_drains(tx, term, server)
    return UNDRAINED


def _invite(tx: Transaction, request: AddServer, digest: bytes) -> None:
    """Only the newest token for a name is good."""
    now_ns, server = file_time_ns(), request.server
    tx.execute(delete(invitations).where((invitations.c.server == server) | (invitations.c.expires_ns <= now_ns)))
    values = {
        "digest": digest,
        "server": server,
        "expires_ns": now_ns + int(request.expires_s * 1e9),
        "candidate": int(request.candidate),
        "epoch": next_epoch(tx, server),
    }
    tx.execute(insert(invitations), values)
