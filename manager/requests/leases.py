"""Requests about leases: answers that grant, renewals, recalls, and what people see of them."""

from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy import Connection, bindparam, select

from cluster.clock import monotonic_s
from cluster.errors import NotManager, ProtocolError, Unavailable
from cluster.messages import (
    AskLeases,
    Described,
    Done,
    GetAttr,
    GiveBack,
    Grant,
    LeaseRow,
    LeaseRows,
    LeaseTokens,
    ListLeases,
    Lookup,
    Node,
    RecallDone,
)
from cluster.rpc.serving import SendReply
from cluster.trust.identity import Role
from manager.catalog.inodes import NODE_COLUMNS, find_inode, node_of, parent_of, path_of
from manager.catalog.schema import inodes
from manager.memory.granting import Answered, Asked, directories_in, inodes_in
from manager.memory.leases import Lease
from manager.memory.sessions import Session
from manager.requests.held import is_hidden, reveal
from manager.rules.limits import check_count, check_number
from manager.term import Term

ASKED_MAX = 2000  # inodes in one request
OPENS_MAX = 200_000  # inodes that one mount may have open or give back
LISTED_MAX = 10_000  # rows for people
_PAGE = 500  # numbers in one statement: databases bound its parameters

_NODES = select(*NODE_COLUMNS).where(inodes.c.ino.in_(bindparam("page", expanding=True)))


def _nodes(connection: Connection, wanted: list[int]) -> dict[int, Node]:
    found: dict[int, Node] = {}
    for start in range(0, len(wanted), _PAGE):
        for row in connection.execute(_NODES, {"page": wanted[start : start + _PAGE]}):
            found[row.ino] = node_of(row)
    return found


# ---------------------------------------------------------------------------------------------- questions that grant


def answer_at_once(
    term: Term, session: Session, request: Asked, question: Callable[[Connection, Term, Any], Any], connection: Connection
) -> Answered | None:
    """The answer with its grant; None if something must be noted before."""
    began_s = monotonic_s()
    reply: Answered = question(connection, term, request)
    if term.state.may_hide and is_hidden(term, session, inodes_in(reply)):
        return None
    if not session.watches:
        return reply
    granting = term.granting
    directory = granting.noted_under(session, request, reply)
    if not directory and isinstance(reply, Described):
        directory = parent_of(connection, reply.node.ino) or 0
    # That needs a transaction: `answer` asks again after it.
    if granting.must_note(session, [directory, *directories_in(reply)]):
        return None
    # No `await` since the reading, so no time has passed that matters.
    return granting.with_grant(session, directory, reply, began_s, began_s)


async def answer(term: Term, session: Session, request: Asked, question: Callable[[Connection, Term, Any], Any]) -> Answered:
    """As `answer_at_once`, and writes the note first."""
    granting = term.granting
    if session.watches and not isinstance(request, GetAttr):
        await granting.note(term.store, session, [request.parent if isinstance(request, Lookup) else request.ino])
    while True:
        began_s = monotonic_s()
        reply: Answered = await term.store.read(lambda connection: question(connection, term, request))
        # Who is alone with what was found may have changed it, also what the names mean: all is read again.
        if not (term.state.may_hide and await reveal(term, session, inodes_in(reply))):
            break
    if not session.watches:
        return reply
    directory = granting.noted_under(session, request, reply)
    if not directory and isinstance(reply, Described):
        ino = reply.node.ino
        directory = await term.store.read(lambda connection: parent_of(connection, ino) or 0)
    await granting.note(term.store, session, [directory, *directories_in(reply)])
    return granting.with_grant(session, directory, reply, began_s, monotonic_s())


# -------------------------------------------------------------------------------------------------- grants and renewals


async def ask_leases(term: Term, session: Session, request: AskLeases) -> LeaseTokens:
    """Grants and renewals, or passes. What the session has open for writing it gets a lease to write for."""
    check_count(len(request.inodes), ASKED_MAX, "leases")
    check_number(request.volume, "volume")
    for ino in request.inodes:
        check_number(ino, "inode")
    began_s = monotonic_s()
    nodes = await term.store.read(lambda connection: _nodes(connection, request.inodes))
    # Somebody may have been let alone with one of them while the catalog was read.
    while term.state.may_hide and await reveal(term, session, request.inodes):
        began_s = monotonic_s()
        nodes = await term.store.read(lambda connection: _nodes(connection, request.inodes))
    # Agents only read, to copy: they hold no leases that could be recalled.
    if request.volume or session.role == Role.AGENT:
        now = monotonic_s()
        return LeaseTokens(_tokens(term, request, nodes, lambda node: _pass(term, session, node, request.volume, now)))
    # Notes may be written here: leases may end and inodes change meanwhile, so `_renewed` looks at each again.
    places = await _places(term, session, nodes)
    now = monotonic_s()
    tokens = _tokens(term, request, nodes, lambda node: term.state.grant(session, node, now))
    return LeaseTokens(tokens, _renewed(term, session, places, began_s, now))


def _tokens(term: Term, request: AskLeases, nodes: dict[int, Node], make: Callable[[Node], bytes]) -> list[bytes]:
    """In the order of the request: an empty one for what is not there."""
    found = [nodes.get(ino) for ino in request.inodes]
    term.state.leases.counts.refused.value += found.count(None)
    return [b"" if node is None else make(node) for node in found]


def _pass(term: Term, session: Session, node: Node, volume: int, now: float) -> bytes:
    """For the agent that has the volume; 0 means the inode's home."""
    number = volume or node.home_volume
    there = term.state.members.get(number)
    if there is None:
        raise Unavailable(f"volume {number} is of no server of this network")
    return term.state.leases.pass_for(session.server, node.ino, node.version, node.home_epoch, now, checked_by=there.server)


async def _places(term: Term, session: Session, nodes: dict[int, Node]) -> dict[int, list[Node]]:
    """What the session may go on caching, or may cache as the only writer, by the directory under which it is noted.

    Nothing else: the answer does not say what there would be to cache, and a lease that has ended in between vouches for nothing.
    """
    if not session.watches:
        return {}
    granting, now = term.granting, monotonic_s()
    wanted = [
        node
        for node in nodes.values()
        if term.state.leases.may_cache(node.ino, session, now) or granting.writes_alone_at_home(session, node)
    ]
    if not wanted:
        return {}
    known = {node.ino: granting.directory_of(session, node) for node in wanted}
    unknown = [ino for ino, directory in known.items() if not directory]
    if unknown:
        known |= await term.store.read(lambda connection: {ino: parent_of(connection, ino) or 0 for ino in unknown})
    await granting.note(term.store, session, known.values())
    places: dict[int, list[Node]] = {}
    for node in wanted:
        places.setdefault(known[node.ino], []).append(node)
    return places


def _renewed(term: Term, session: Session, places: dict[int, list[Node]], began_s: float, now: float) -> Grant | None:
    granting, leases = term.granting, term.state.leases
    serial = leases.next_serial()
    granted: list[int] = []
    for directory, nodes in places.items():
        kept = [
            node for node in nodes if leases.may_cache(node.ino, session, now) or granting.writes_alone_at_home(session, node)
        ]
        grant = granting.offer(session, directory, kept, began_s, now, serial=serial)
        granted += [] if grant is None else grant.inodes
    return Grant(serial, leases.granted_s(now), granted) if granted else None


# ------------------------------------------------------------------------------------------------------------- recalls


async def watch_recalls(term: Term, session: Session, check: Callable[[], object], send: SendReply) -> NoReturn:
    """Tells the session what it must stop caching, beginning with what it has not answered, until *check* refuses."""
    if session.role != Role.MOUNT:
        raise ProtocolError(f"a {session.role} asked for recalls")
    line = term.state.recalls.line(session.number)
    # The stream over the mount's older connection finds another number, and ends.
    line.watcher += 1
    watcher = line.watcher
    line.ring()
    session.watches = True
    try:
        # What the mount has not answered it may never have got. A list: answers come while these are sent.
        for recall in list(line.sent.values()):
            await send(recall, b"")
        while True:
            # Before it is looked what there is: a ring in between sets this very event.
            bell = line.bell
            check()
            if line.watcher != watcher or not term.in_office:
                raise NotManager("these recalls are told over another connection")
            recall_now = term.state.recalls.next_for(line)
            if recall_now is None:
                await bell.wait()
            else:
                await send(recall_now, b"")
    finally:
        # Else a newer stream is there already.
        if line.watcher == watcher:
            session.watches = False


def recall_done(term: Term, session: Session, request: RecallDone) -> Done:
    """What was called back is not cached any more."""
    check_count(len(request.numbers), ASKED_MAX, "recalls")
    check_count(len(request.opens), OPENS_MAX, "open inodes")
    check_number(request.sequence, "sequence")
    term.unused(term.state.recalls.answered(session, request.numbers, request.opens, request.sequence))
    return Done()


def give_back(term: Term, session: Session, request: GiveBack) -> Done:
    """Ends grants unasked."""
    check_count(len(request.inodes), OPENS_MAX, "inodes")
    term.state.recalls.given_back(session, request.inodes, request.serial)
    return Done()


# ------------------------------------------------------------------------------------------------------ what people see


async def list_leases(term: Term, _session: Session, request: ListLeases) -> LeaseRows:
    """Who may use what for how long."""
    state = term.state
    now = monotonic_s()
    # A list: leases come and go while the paths are read in a thread.
    chosen = list(state.leases.ending_first(request.server, request.ino))
    shown = chosen[: max(0, min(request.limit, LISTED_MAX))]

    def ask(connection: Connection) -> list[LeaseRow]:
        return [_row(connection, term, lease, now) for lease in shown]

    rows = await term.store.read_slowly(ask)
    return LeaseRows(rows, len(chosen), state.leases.access_s, state.leases.counts.message())


def _row(connection: Connection, term: Term, lease: Lease, now: float) -> LeaseRow:
    token = lease.token
    if token is None:
        row = find_inode(connection, lease.ino)
        home_volume, home_epoch, version = (0, 0, 0) if row is None else (row.home_volume, row.home_epoch, row.version)
    else:
        home_volume, home_epoch, version = token.home_volume, token.home_epoch, token.version
    home = term.state.members.get(home_volume)
    return LeaseRow(
        ino=lease.ino,
        path=path_of(connection, lease.ino),
        mode=lease.mode(now),
        holder=lease.server,
        home="" if home is None else home.server,
        home_volume=home_volume,
        home_epoch=home_epoch,
        version=version,
        serial=lease.serial,
        term=term.number,
        renewals=lease.renewals,
        held_s=now - lease.since_s,
        left_s=lease.ends_s - now,
        is_open=term.state.sessions.has_open(lease.session, lease.ino),
    )
