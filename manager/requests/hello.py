"""`Hello`: who a session is, whom it replaces, and what it still holds open."""

import errno
from dataclasses import dataclass
from functools import partial

from sqlalchemy import bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.config import is_name
from cluster.errors import ProtocolError, refused
from cluster.events import EventKind
from cluster.membership import UP, ServerState
from cluster.messages import PROTOCOL, Greeting, Hello, Welcome
from cluster.trust.identity import Role
from manager.catalog.events import note
from manager.catalog.schema import applied, inodes, ranges, servers
from manager.catalog.store import Transaction
from manager.changes.apply import newest_reply
from manager.changes.content import mark_dirty
from manager.changes.tasks import release_claims
from manager.memory.locks import believed_s
from manager.memory.sessions import Session
from manager.requests.locks import check_presented
from manager.rules.limits import check_count
from manager.term import Term

OPENS_MAX = 200_000  # inodes, tokens or cached inodes that one mount may present
_PAGE = 500  # numbers in one statement
_EXISTING = select(inodes.c.ino).where(inodes.c.ino.in_(bindparam("inodes", expanding=True)))


def check_hello(hello: Hello, cluster: str) -> None:
    """`ProtocolError` for a peer of another cluster or another version of the protocol."""
    check_greeting(hello, cluster)
    if not is_name(hello.server) or hello.role not in (Role.MOUNT, Role.AGENT, Role.ADMIN) or not 0 <= hello.session < 2**63:
        raise ProtocolError("malformed introduction")
    check_count(len(hello.opens), OPENS_MAX, "open inodes")
    check_count(len(hello.tokens), OPENS_MAX, "lease tokens")
    check_count(len(hello.caching), OPENS_MAX, "cached inodes")
    check_presented(hello.locks)


def check_greeting(greeting: Greeting | Hello, cluster: str) -> None:
    """As `check_hello`, for the part that both have."""
    if greeting.protocol != PROTOCOL:
        speaks = f"{greeting.server:.100} speaks version {greeting.protocol} of the protocol"
        raise ProtocolError(f"{speaks}, this manager {PROTOCOL}: upgrade")
    if greeting.cluster != cluster:
        theirs = f"{greeting.server:.100} belongs to cluster {greeting.cluster[:100]!r}"
        raise ProtocolError(f"{theirs}, this is a manager of {cluster!r}")


async def introduce(term: Term, hello: Hello) -> tuple[Session, Welcome]:
    """Makes the sender a live session. Raises `Fenced` for one that a newer one has replaced."""
    state = term.state
    if hello.role != Role.ADMIN:
        term.check_catalog(hello.seen, f"the {hello.role} of {hello.server}")
        _admit(term, hello.server)
    # No `await` from here to the transaction: nobody sees a session that has not presented what it holds.
    session, replaced = state.sessions.introduce(hello.session, hello.server, hello.role, monotonic_s())
    if hello.role == Role.AGENT:
        state.members.heard(hello.server, monotonic_s())
    # Their removal is under way and cannot be stopped: the mount is told that they are lost.
    gone = state.reaping & {item.ino for item in hello.opens}
    presented = [(item.ino, item.write) for item in hello.opens if item.ino not in gone]
    term.unused(state.sessions.present(session, presented))
    session.watches = False  # it asks for recalls over this connection next
    state.recalls.presented(session)
    state.adopt_leases(session, hello.tokens, hello.caching if hello.role == Role.MOUNT else [], monotonic_s())
    # After its opens are registered: what the new process presents may be the same that the old one held, and must not be
    # reaped in between.
    for other in replaced:
        term.replaced(other)
    unlocked: list[int] = []
    if session.role == Role.MOUNT:
        unlocked = state.locks.introduced(session, hello.locks, adopt=session.server in state.may_lock)
    work = partial(
        _introduce,
        term=term,
        session=session,
        replaced=[other.number for other in replaced],
        opens=presented,
        unsent=hello.unsent,
    )
    known = await term.store.write(work)
    # Requests of this session over an older connection may have been stored meanwhile: never smaller.
    session.newest = max(session.newest, known.newest)
    session.numbers.extend(given for given in known.numbers if given not in session.numbers)
    lost = gone | known.lost
    for ino in known.lost:
        state.sessions.forget(session, ino)
    if session.role == Role.MOUNT:
        # Only now: what it writes is marked dirty in the catalog, so that the grace time may end.
        term.awaited.pop(session.server, None)
        # What it has recorded comes next: until then nobody may be told what the catalog says there.
        if hello.unsent:
            state.presents(session.server)
        else:
            state.presented(session.server)
    session.told, session.told_revision = term.revocations, term.believed.revision
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
        term.point,
        term.lease_keys.key_of(session.server) if session.role == Role.AGENT else b"",
        term.revoked,
        term.believed.text,
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
    numbers: list[range]


def _introduce(
    tx: Transaction, term: Term, session: Session, replaced: list[int], opens: list[tuple[int, bool]], *, unsent: bool
) -> _Known:
    # Another process of the agent has none of the tasks that the one before had claimed.
    if session.role != Role.ADMIN and _note_server(tx, term, session) and session.role == Role.AGENT:
        claims = term.claims.of_server(session.server)
        release_claims(tx, term.state, claims)
        tx.after(lambda: term.claims.end_all(claims))
    if session.role == Role.MOUNT and not unsent:
        # A new process makes nothing with the numbers of the one before: what they left on disks may be found to be strays.
        # (A journal that it left is sent with `final`, which does the same.)
        # Commands make objects, too (`godwit import`), and are not replaced by it.
        kept = [session.number, *(other.number for other in term.state.sessions.all() if other.role == Role.ADMIN)]
        tx.execute(delete(ranges).where(ranges.c.server == session.server, ranges.c.session.not_in(kept)))
    # Their processes are gone, so nobody will repeat a request.
    for number in replaced:
        tx.execute(delete(applied).where(applied.c.session == number))
    existing: set[int] = set()
    for start in range(0, len(opens), _PAGE):
        page = [ino for ino, _write in opens[start : start + _PAGE]]
        existing |= set(tx.execute(_EXISTING, {"inodes": page}).scalars())
    for ino, write in opens:
        # Open for writing means dirty; a manager that died may have been about to mark it.
        if write and ino in existing:
            mark_dirty(tx, ino)
    lost = {ino for ino, _write in opens} - existing
    return _Known(newest_reply(tx, session.number), lost, _numbers(tx, session) if session.role != Role.AGENT else [])


def _numbers(tx: Transaction, session: Session) -> list[range]:
    """The ranges of inode numbers that earlier terms have given it, or this one."""
    rows = tx.execute(select(ranges.c.first, ranges.c.count).where(ranges.c.session == session.number).order_by(ranges.c.first))
    return [range(row.first, row.first + row.count) for row in rows]


def _note_server(tx: Transaction, term: Term, session: Session) -> bool:
    """Stores the session of the server's mount or agent; True if it is another process than before."""
    column = servers.c.mount_session if session.role == Role.MOUNT else servers.c.agent_session
    known = tx.execute(select(column).where(servers.c.server == session.server)).scalar_one_or_none()
    if known == session.number:
        return False
    # Its first introduction: `join` has written nothing about it.
    if known is None:
        joined_ns = file_time_ns()
        tx.execute(insert(servers), {"server": session.server, "joined_ns": joined_ns, "since_ns": joined_ns})
        note(tx.connection, EventKind.SERVER_JOINED, server=session.server)
        tx.after(lambda: term.state.members.changed(session.server, UP, joined_ns, monotonic_s()))
    tx.execute(update(servers).where(servers.c.server == session.server).values({column: session.number}))
    return True
