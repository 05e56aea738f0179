"""Opening and closing, mutations, and waiting for copies: what a mount asks besides plain questions."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import trio
from sqlalchemy import Connection, bindparam, func, insert, select
from sqlalchemy import delete as sql_delete

from cluster.clock import monotonic_s
from cluster.errors import NotManager, Refused, Unavailable, refused
from cluster.messages import (
    Applied,
    Apply,
    AwaitCopies,
    Close,
    Commit,
    Create,
    CreateUnnamed,
    Done,
    Grant,
    InodeRange,
    Open,
    Opened,
    RemoveXattr,
    Rename,
    SetAttr,
    SetXattr,
    TakeInodes,
)
from manager.catalog.inodes import get_inode, parent_of
from manager.catalog.schema import ranges, replicas
from manager.catalog.store import Transaction
from manager.changes.apply import OPERATIONS_MAX, apply_operations, changed_for_opens
from manager.changes.content import mark_dirty
from manager.memory.members import take_number
from manager.memory.mutations import Held, Mutation, known_before
from manager.memory.policies import COPIES_MAX
from manager.memory.sessions import NOT_WRITING, Session
from manager.memory.state import State
from manager.requests.mutations import await_present, mutate, mutate_at_once
from manager.requests.reads import describe_open
from manager.rules.limits import check_count, check_number
from manager.tasks import draw_home
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
    _check_apply(session, request)
    with _mutation(term, session, request) as mutation:
        work = partial(apply_operations, state=term.state, mutation=mutation, request=request)
        check = partial(_check_still_wanted, term, session, request)
        reply = await mutate(term, mutation, work, known=_known_before(request), check=check)
    return _with_leases(term, mutation, request, reply)


def apply_at_once(term: Term, session: Session, request: Apply) -> Applied | None:
    """As `apply`; None, and nothing has changed, if that has to wait for something."""
    if not term.store.is_idle:
        return None
    _check_apply(session, request)
    with _mutation(term, session, request) as mutation:
        work = partial(apply_operations, state=term.state, mutation=mutation, request=request)
        reply = mutate_at_once(term, mutation, work, known=_known_before(request))
    return None if reply is None else _with_leases(term, mutation, request, reply)


def _check_apply(session: Session, request: Apply) -> None:
    check_count(len(request.operations), OPERATIONS_MAX, "operations")
    check_number(request.request_id, "request_id")
    if not request.operations or not 0 <= request.acknowledged <= request.request_id:
        raise refused(errno.EINVAL, "empty list of operations, or acknowledged too much")
    if request.request_id < session.floor:
        raise Refused(f"request {request.request_id} has been acknowledged already", errno.ESTALE)
    session.floor = max(session.floor, request.acknowledged)


@contextmanager
def _mutation(term: Term, session: Session, request: Apply) -> Iterator[Mutation]:
    """The mutation that is under way while inside."""
    mutation = Mutation(session, monotonic_s())
    try:
        with term.state.changing(session, changed_for_opens(request.operations)):
            yield mutation
    finally:
        term.state.fences.lift(mutation)


def _known_before(request: Apply) -> list[int]:
    return [ino for operation in request.operations for ino in known_before(operation)]


def _check_still_wanted(term: Term, session: Session, request: Apply) -> None:
    """A request that waited may have been sent again meanwhile, over another connection, and be done and acknowledged."""
    if not term.state.sessions.is_live(session):
        raise NotManager("the session of this connection has ended: introduce yourself again")
    if request.request_id < session.floor:
        raise Refused(f"request {request.request_id} has been acknowledged already", errno.ESTALE)


def _with_leases(term: Term, mutation: Mutation, request: Apply, reply: Applied) -> Applied:
    """Leases for what the session has created or changed. They are not part of the stored reply: a repeat gets fresh tokens."""
    session = mutation.session
    now = monotonic_s()
    tokens = [
        term.state.grant(session, node, now)
        for operation, node in zip(request.operations, reply.nodes, strict=True)
        if isinstance(operation, (Create, CreateUnnamed)) and node is not None and node.home_volume
    ]
    grant = None
    if session.watches and mutation.stamp is not None:
        grant = _grant_own(term, mutation, request, reply, now)
    if not tokens and grant is None:
        return reply
    return msgspec.structs.replace(reply, tokens=tokens, grant=grant)


def _grant_own(term: Term, mutation: Mutation, request: Apply, reply: Applied, now: float) -> Grant | None:
    """What the session knows as it is now, since it made it so: the directories that it changed, and the nodes in the reply."""
    session, granting = mutation.session, term.granting
    serial = term.state.leases.next_serial()
    granted: dict[int, None] = {}
    newest = {node.ino: node for node in reply.nodes if node is not None}
    for operation, node in zip(request.operations, reply.nodes, strict=True):
        directory = getattr(operation, "new_parent", getattr(operation, "parent", 0))
        nodes = [node] if node is not None and newest[node.ino] is node else []
        if not directory and nodes:
            directory = granting.directory_of(session, nodes[0])
        names = not isinstance(operation, (SetAttr, SetXattr, RemoveXattr, Commit))
        grant = granting.offer(session, directory, nodes, mutation.began_s, now, names=names, own=mutation, serial=serial)
        if isinstance(operation, Rename) and operation.parent != operation.new_parent:
            left = granting.offer(session, operation.parent, [], mutation.began_s, now, names=True, own=mutation, serial=serial)
            granted |= dict.fromkeys([] if left is None else left.inodes)
        granted |= dict.fromkeys([] if grant is None else grant.inodes)
    return Grant(serial, term.state.leases.access_s, list(granted)) if granted else None


async def open_inode(term: Term, session: Session, request: Open) -> Opened:
    """Registers first and looks then, so that nobody reaps or settles the inode in between.

    For writing, others must stop caching it: from the registration on nobody is granted to.
    """
    check_number(request.sequence, "sequence")
    state = term.state
    if request.ino in state.reaping:
        raise refused(errno.ESTALE, f"inode {request.ino}")
    new = state.sessions.open(session, request.ino, write=request.write, sequence=request.sequence)
    try:
        row = await term.store.read(lambda connection: get_inode(connection, request.ino))
        if request.write and stat.S_ISDIR(row.mode):
            raise refused(errno.EISDIR)
        if request.write:
            await _be_only_writer(term, session, request.ino)
        must_mark = request.write and stat.S_ISREG(row.mode) and not row.dirty
        if must_mark or state.is_changing(request.ino):
            to_write = request.write and bool(stat.S_ISREG(row.mode))
            work = partial(_mark_opened, state=state, session=session, ino=request.ino, write=to_write)
            await term.store.write(work, durable=must_mark)
        return await _describe_opened(term, session, request)
    except Refused:
        if new:
            unused = state.sessions.forget(session, request.ino)
            term.unused([] if unused is None else [unused])
        raise


async def _be_only_writer(term: Term, session: Session, ino: int) -> None:
    """Waits until nobody else caches what the session, which is registered as a writer, is going to write."""
    state = term.state
    while True:
        held = [Held(ino, number) for number in state.leases.caching(ino, monotonic_s(), besides=session)]
        await state.recalls.take_back(held)
        looking = await term.store.read(partial(state.looking_at, inodes=[ino])) if state.absent else frozenset()
        if not looking:
            return
        await await_present(term, looking)


async def _describe_opened(term: Term, session: Session, request: Open) -> Opened:
    """The answer to an `Open`; once everybody whose token names an earlier home knows that they must ask for it."""
    state, granting = term.state, term.granting
    while True:
        began_s = monotonic_s()
        opened, parent = await term.store.read(lambda connection: _describe(connection, term, session, request.ino))
        epoch = opened.node.home_epoch
        now = monotonic_s()
        astray = state.astray(session, request.ino, epoch, now) if request.write else []
        if not astray:
            break
        await state.recalls.take_back([Held(request.ino, number) for number in astray], home_epoch=epoch)
    if granting.must_note(session, [parent]):
        await granting.note(term.store, session, [parent])
        now = monotonic_s()
    token = state.grant(session, opened.node, now)
    grant = granting.offer(session, parent, [opened.node], began_s, now)
    return msgspec.structs.replace(opened, token=token, grant=grant)


def _describe(connection: Connection, term: Term, session: Session, ino: int) -> tuple[Opened, int]:
    """The inode as an `Open` answers it, and the directory under which it is noted, or may be."""
    opened = describe_open(connection, term, ino)
    directory = term.granting.directory_of(session, opened.node) if session.watches else 0
    if session.watches and not directory:
        directory = parent_of(connection, ino) or 0
    return opened, directory


def _mark_opened(tx: Transaction, *, state: State, session: Session, ino: int, write: bool) -> None:
    """Before anybody can write: at a home on the writer's own server, if the file can have it there."""
    if write:
        draw_home(tx, state, session, ino)
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
    """Waits until enough replicas hold the version. A file without a name has no copies: there is nothing to wait for."""
    check_number(request.version, "version")
    if not 0 <= request.copies <= COPIES_MAX:
        raise refused(errno.EINVAL, f"{request.copies} copies")

    def ask(connection: Connection) -> int:
        if get_inode(connection, request.ino).nlink == 0:
            return request.copies
        return connection.execute(_HOLDING, {"ino": request.ino, "version": request.version}).scalar_one()

    timeout_s = max(0.0, min(request.timeout_s, AWAIT_MAX_S))
    with trio.move_on_after(timeout_s), term.courtesy.hurrying():
        while True:
            with term.state.bells.listening(request.ino) as bell:
                if await term.store.read(ask) >= request.copies:
                    return Done()
                await bell.wait()
    raise Unavailable(f"inode {request.ino} has fewer than {request.copies} copies of version {request.version}")
