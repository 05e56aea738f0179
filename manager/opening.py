"""Opening and closing, mutations, and waiting for copies: what a mount asks besides plain questions."""

import errno
import stat
from functools import partial

import msgspec
import trio
from sqlalchemy import Connection, bindparam, func, insert, select
from sqlalchemy import delete as sql_delete

from cluster.clock import monotonic_s
from cluster.errors import Refused, Unavailable, refused
from cluster.messages import (
    Applied,
    Apply,
    AwaitCopies,
    Close,
    Create,
    Done,
    InodeRange,
    Open,
    Opened,
    TakeInodes,
)
from manager.apply import OPERATIONS_MAX, apply_operations, changed_for_opens
from manager.content import mark_dirty
from manager.inodes import get_inode
from manager.limits import check_count, check_number
from manager.members import take_number
from manager.policies import COPIES_MAX
from manager.questions import describe_open
from manager.schema import ranges, replicas
from manager.sessions import NOT_WRITING, Session
from manager.store import Transaction
from manager.term import Term

CLOSINGS_MAX = 10_000
TAKE_MAX = 100_000
RANGES_KEPT = 64  # per session; a mount uses its numbers in order, so that older ones are used up
AWAIT_MAX_S = 3600.0

_HOLDING = (
    select(func.count())
    .select_from(replicas)
    .where(
        replicas.c.ino == bindparam("ino"),
        replicas.c.version >= bindparam("version"),
        replicas.c.stamp_ctime_ns.is_not(None),
        replicas.c.fault == "",
    )
)


async def apply(term: Term, session: Session, request: Apply) -> Applied:
    """Applies a list of operations once."""
    check_count(len(request.operations), OPERATIONS_MAX, "operations")
    check_number(request.request_id, "request_id")
    if not request.operations or not 0 <= request.acknowledged <= request.request_id:
        raise refused(errno.EINVAL, "empty list of operations, or acknowledged too much")
    if request.request_id < session.floor:
        raise Refused(f"request {request.request_id} has been acknowledged already", errno.ESTALE)
    session.floor = max(session.floor, request.acknowledged)
    work = partial(apply_operations, state=term.state, session=session, request=request)
    changing = changed_for_opens(request.operations)
    if not changing:
        return _with_tokens(term, session, request, await term.store.write(work))
    with term.state.changing(session, changing):
        return _with_tokens(term, session, request, await term.store.write_uncancelled(work))


def _with_tokens(term: Term, session: Session, request: Apply, reply: Applied) -> Applied:
    """The leases for files that the session has created. They are not part of the stored reply: a repeat gets fresh ones."""
    created = [
        node
        for operation, node in zip(request.operations, reply.nodes, strict=True)
        if type(operation) is Create and node is not None and node.home_volume
    ]
    if not created:
        return reply
    now = monotonic_s()
    return Applied(reply.nodes, [term.state.grant(session, node, now) for node in created])


async def open_inode(term: Term, session: Session, request: Open) -> Opened:
    """Registers first and looks then, so that nobody reaps or settles the inode in between."""
    check_number(request.sequence, "sequence")
    state = term.state
    if request.ino in state.reaping:
        raise refused(errno.ESTALE, f"inode {request.ino}")
    new = state.sessions.open(session, request.ino, write=request.write, sequence=request.sequence)
    try:
        row = await term.store.read(lambda connection: get_inode(connection, request.ino))
        if request.write and stat.S_ISDIR(row.mode):
            raise refused(errno.EISDIR)
        must_mark = request.write and stat.S_ISREG(row.mode) and not row.dirty
        if must_mark or state.is_changing(request.ino):
            await term.store.write(
                partial(_mark_opened, ino=request.ino, write=request.write and bool(stat.S_ISREG(row.mode))), durable=must_mark
            )
        opened = await term.store.read(lambda connection: describe_open(connection, term, request.ino))
        return msgspec.structs.replace(opened, token=state.grant(session, opened.node, monotonic_s()))
    except Refused:
        if new:
            unused = state.sessions.forget(session, request.ino)
            term.unused([] if unused is None else [unused])
        raise


def _mark_opened(tx: Transaction, *, ino: int, write: bool) -> None:
    if write:
        mark_dirty(tx, ino)


async def close(term: Term, session: Session, request: Close) -> Done:
    """Ends registrations; orphans that nobody has open any more may be reaped."""
    check_count(len(request.closings), CLOSINGS_MAX, "closings")
    sessions = term.state.sessions
    for closing in request.closings:
        unused = sessions.close(session, closing.ino, closing.sequence, still_open=closing.still_open)
        if sessions.write_sequence(session, closing.ino) == NOT_WRITING:
            term.state.leases.stops_writing(session, closing.ino)
        if unused is not None:
            term.unused([unused])
    return Done()


async def take_inodes(term: Term, session: Session, request: TakeInodes) -> InodeRange:
    """Numbers for what the session will create. They are noted so that their objects are not taken for strays."""
    if not 1 <= request.count <= TAKE_MAX:
        raise refused(errno.EINVAL, f"{request.count} inode numbers")
    state = term.state

    def work(tx: Transaction) -> int:
        first = take_number(tx, "next_ino", request.count)
        tx.execute(insert(ranges), {"first": first, "count": request.count, "server": session.server, "session": session.number})
        kept = select(ranges.c.first).where(ranges.c.session == session.number).order_by(ranges.c.first.desc())
        oldest = tx.execute(kept.offset(RANGES_KEPT).limit(1)).scalar_one_or_none()
        if oldest is not None:
            tx.execute(sql_delete(ranges).where(ranges.c.session == session.number, ranges.c.first <= oldest))
        tx.after(lambda: state.handed_out(first + request.count))
        return first

    return InodeRange(await term.store.write(work, durable=True), request.count)


async def await_copies(term: Term, _session: Session, request: AwaitCopies) -> Done:
    """Waits until enough replicas hold the version."""
    check_number(request.version, "version")
    if not 0 <= request.copies <= COPIES_MAX:
        raise refused(errno.EINVAL, f"{request.copies} copies")

    def ask(connection: Connection) -> int:
        get_inode(connection, request.ino)
        return connection.execute(_HOLDING, {"ino": request.ino, "version": request.version}).scalar_one()

    timeout_s = max(0.0, min(request.timeout_s, AWAIT_MAX_S))
    with trio.move_on_after(timeout_s):
        while True:
            with term.state.bells.listening(request.ino) as bell:
                if await term.store.read(ask) >= request.copies:
                    return Done()
                await bell.wait()
    raise Unavailable(f"inode {request.ino} has fewer than {request.copies} copies of version {request.version}")
