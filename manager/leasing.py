"""Requests about leases: grants, renewals, and what people see of them."""

from sqlalchemy import Connection, bindparam, select

from cluster.clock import monotonic_s
from cluster.messages import AskLeases, LeaseRow, LeaseRows, LeaseTokens, ListLeases, Node
from manager.inodes import NODE_COLUMNS, node_of, path_of
from manager.leases import Lease
from manager.limits import check_count, check_number
from manager.schema import inodes
from manager.sessions import AGENT, Session
from manager.term import Term

ASKED_MAX = 2000
LISTED_MAX = 10_000
_PAGE = 500

_NODES = select(*NODE_COLUMNS).where(inodes.c.ino.in_(bindparam("page", expanding=True)))


def _nodes(connection: Connection, wanted: list[int]) -> dict[int, Node]:
    found: dict[int, Node] = {}
    for start in range(0, len(wanted), _PAGE):
        for row in connection.execute(_NODES, {"page": wanted[start : start + _PAGE]}):
            found[row.ino] = node_of(row)
    return found


async def ask_leases(term: Term, session: Session, request: AskLeases) -> LeaseTokens:
    """Grants and renewals. What the session has open for writing it gets a lease to write for."""
    check_count(len(request.inodes), ASKED_MAX, "leases")
    for ino in request.inodes:
        check_number(ino, "inode")
    nodes = await term.store.read(lambda connection: _nodes(connection, request.inodes))
    now = monotonic_s()
    tokens = []
    for ino in request.inodes:
        node = nodes.get(ino)
        if node is None:
            term.state.leases.counts.refused += 1
            tokens.append(b"")
        elif session.role == AGENT:
            tokens.append(term.state.leases.pass_for(session.server, ino, node.version, node.home_epoch, now))
        else:
            tokens.append(term.state.grant(session, node, now))
    return LeaseTokens(tokens)


async def list_leases(term: Term, _session: Session, request: ListLeases) -> LeaseRows:
    """Who may use what for how long."""
    state = term.state
    now = monotonic_s()
    chosen = list(state.leases.ending_first(request.server, request.ino))
    shown = chosen[: max(0, min(request.limit, LISTED_MAX))]

    def ask(connection: Connection) -> list[LeaseRow]:
        return [_row(connection, term, lease, now) for lease in shown]

    rows = await term.store.read_slowly(ask)
    return LeaseRows(rows, len(chosen), state.leases.access_s, state.leases.counts.message())


def _row(connection: Connection, term: Term, lease: Lease, now: float) -> LeaseRow:
    token = lease.token
    home = term.state.members.get(token.home_volume)
    return LeaseRow(
        ino=token.ino,
        path=path_of(connection, token.ino),
        mode=lease.mode,
        holder=token.holder,
        home="" if home is None else home.server,
        home_volume=token.home_volume,
        home_epoch=token.home_epoch,
        version=token.version,
        serial=token.serial,
        term=token.term,
        renewals=lease.renewals,
        held_s=now - lease.since_s,
        left_s=lease.ends_s - now,
        is_open=term.state.sessions.has_open(lease.session, token.ino),
    )
