"""`Hello`: who a session is, whom it replaces, and what it still holds open."""

import errno
from dataclasses import dataclass
from functools import partial

from sqlalchemy import bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.config import is_name
from cluster.errors import ProtocolError, refused
from cluster.membership import UP, ServerState
from cluster.messages import PROTOCOL, Hello, Welcome
from manager.catalog.schema import applied, inodes, ranges, servers
from manager.catalog.store import Transaction
from manager.changes.apply import newest_reply
from manager.changes.content import mark_dirty
from manager.changes.tasks import release_claims
from manager.memory.locks import believed_s
from manager.memory.sessions import AGENT, CLI, MOUNT, Session
from manager.requests.locks import check_presented
from manager.rules.limits import check_count
from manager.term import Term

OPENS_MAX = 200_000
_PAGE = 500
_EXISTING = select(inodes.c.ino).where(inodes.c.ino.in_(bindparam("inodes", expanding=True)))


def check_hello(hello: Hello, cluster: str) -> None:
    """`ProtocolError` for a peer of another cluster or another version of the protocol."""
    if hello.protocol != PROTOCOL:
        raise ProtocolError(f"{hello.server} speaks version {hello.protocol} of the protocol, this manager {PROTOCOL}: upgrade")
    if hello.cluster != cluster:
        raise ProtocolError(f"{hello.server} belongs to cluster {hello.cluster!r}, this is a manager of {cluster!r}")
    if not is_name(hello.server) or hello.role not in (MOUNT, AGENT, CLI) or not 0 <= hello.session < 2**63:
        raise ProtocolError("malformed introduction")
    check_count(len(hello.opens), OPENS_MAX, "open inodes")
    check_count(len(hello.tokens), OPENS_MAX, "lease tokens")
    check_count(len(hello.caching), OPENS_MAX, "cached inodes")
    check_presented(hello.locks)


async def introduce(term: Term, hello: Hello) -> tuple[Session, Welcome]:
    """Makes the sender a live session. Raises `Fenced` for one that a newer one has replaced."""
    state = term.state
    if hello.role != CLI:
        _admit(term, hello.server)
    session, replaced = state.sessions.introduce(hello.session, hello.server, hello.role, monotonic_s())
    if hello.role == AGENT:
        state.members.heard(hello.server, monotonic_s())
    gone = state.reaping & {item.ino for item in hello.opens}
    presented = [(item.ino, item.write) for item in hello.opens if item.ino not in gone]
    term.unused(state.sessions.present(session, presented))
    session.watches = False  # it asks for recalls over this connection next
    state.recalls.presented(session)
    state.adopt_leases(session, hello.tokens, hello.caching if hello.role == MOUNT else [], monotonic_s())
    for other in replaced:
        term.replaced(other)
    unlocked: list[int] = []
    if session.role == MOUNT:
        unlocked = state.locks.introduced(session, hello.locks, adopt=session.server in state.may_lock)
    work = partial(_introduce, term=term, session=session, replaced=[other.number for other in replaced], opens=presented)
    known = await term.store.write(work)
    session.newest = max(session.newest, known.newest)
    lost = gone | known.lost
    for ino in known.lost:
        state.sessions.forget(session, ino)
    if session.role == MOUNT:
        term.awaited.pop(session.server, None)
        state.presented(session.server)
    config, managers = term.config, state.members.managers()
    return session, Welcome(
        term.number,
        config.server,
        config.manager.session_timeout_s,
        sorted(lost),
        monotonic_s(),
        managers,
        unlocked,
        believed_s(config.manager),
    )


def _admit(term: Term, server: str) -> None:
    """Refuses a server that has left, until somebody adds it again."""
    if not term.state.members.belongs(server):
        member = term.state.members.member(server)
        how = "was declared lost" if member is not None and member.state is ServerState.LOST else "has left the network"
        raise refused(errno.EPERM, f"{server} {how} (to take it back: godwit servers add {server})")
    term.state.members.met(server, monotonic_s())


@dataclass(frozen=True)
class _Known:
    newest: int
    lost: set[int]


def _introduce(tx: Transaction, term: Term, session: Session, replaced: list[int], opens: list[tuple[int, bool]]) -> _Known:
    if session.role != CLI and _note_server(tx, term, session) and session.role == AGENT:
        claims = term.claims.of_server(session.server)
        release_claims(tx, term.state, claims)
        tx.after(lambda: term.claims.end_all(claims))
    if session.role == MOUNT:
        tx.execute(delete(ranges).where(ranges.c.server == session.server, ranges.c.session != session.number))
    for number in replaced:
        tx.execute(delete(applied).where(applied.c.session == number))
    existing: set[int] = set()
    for start in range(0, len(opens), _PAGE):
        page = [ino for ino, _write in opens[start : start + _PAGE]]
        existing |= set(tx.execute(_EXISTING, {"inodes": page}).scalars())
    for ino, write in opens:
        if write and ino in existing:
            mark_dirty(tx, ino)
    return _Known(newest_reply(tx, session.number), {ino for ino, _write in opens} - existing)


def _note_server(tx: Transaction, term: Term, session: Session) -> bool:
    """Writes down who the server's mount or agent is; True if it is another than before."""
    column = servers.c.mount_session if session.role == MOUNT else servers.c.agent_session
    known = tx.execute(select(column).where(servers.c.server == session.server)).scalar_one_or_none()
    if known == session.number:
        return False
    if known is None:
        joined_ns = file_time_ns()
        tx.execute(insert(servers), {"server": session.server, "joined_ns": joined_ns, "since_ns": joined_ns})
        tx.after(lambda: term.state.members.settled(session.server, UP, joined_ns, monotonic_s()))
    tx.execute(update(servers).where(servers.c.server == session.server).values({column: session.number}))
    return True


def forget_mount(tx: Transaction, session: Session) -> None:
    """A mount's session has ended without a successor: the next manager need not wait for it."""
    tx.execute(update(servers).where(servers.c.mount_session == session.number).values(mount_session=0))
