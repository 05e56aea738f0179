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
from cluster.errors import NotManager, ProtocolError, Refused, Unavailable, refused
from cluster.messages import (
    Applied,
    Apply,
    AwaitCopies,
    Close,
    Commit,
    Done,
    Grant,
    InodeRange,
    Open,
    Opened,
    TakeInodes,
)
from cluster.trust.identity import Role
from manager.catalog.inodes import get_inode, parent_of
from manager.catalog.schema import ranges, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import draw_home
from manager.changes.apply import OPERATIONS_MAX, apply_operations
from manager.changes.content import mark_dirty
from manager.changes.operations import OPERATIONS, changed_for_opens, directories_of, grows, known_before
from manager.memory.members import take_number
from manager.memory.mutations import Held, Mutation
from manager.memory.policies import COPIES_MAX
from manager.memory.sessions import NOT_WRITING, RANGES_KEPT, Session
from manager.memory.state import State
from manager.requests.mutations import await_present, mutate, mutate_at_once
from manager.requests.reads import describe_open
from manager.rules.limits import check_count, check_number
from manager.term import Term

CLOSINGS_MAX = 10_000  # in one request
TAKE_MAX = 100_000  # numbers in one request
AWAIT_MAX_S = 3600.0  # for copies; who wants to wait longer asks again

# Replicas with this version or a newer one; by the primary key (ino, volume).
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
        # What can be told from the request alone is called back before the first attempt: it saves most second ones.
        known, more = known_before(request.operations), grows(request.operations)
        reply = await mutate(term, mutation, work, known=known, check=check, grows=more)
    return _with_leases(term, mutation, request, reply)


def apply_at_once(term: Term, session: Session, request: Apply) -> Applied | None:
    """As `apply`; None, and nothing has changed, if that has to wait for something."""
    # Else it would overtake what is queued.
    if not term.store.is_idle:
        return None
    _check_apply(session, request)
    with _mutation(term, session, request) as mutation:
        work = partial(apply_operations, state=term.state, mutation=mutation, request=request)
        reply = mutate_at_once(term, mutation, work, known=known_before(request.operations), grows=grows(request.operations))
    return None if reply is None else _with_leases(term, mutation, request, reply)


def _check_apply(session: Session, request: Apply) -> None:
    check_count(len(request.operations), OPERATIONS_MAX, "operations")
    check_number(request.request_id, "request_id")
    if not request.operations or not 0 <= request.acknowledged <= request.request_id:
        raise refused(errno.EINVAL, "empty list of operations, or acknowledged too much")
    if request.request_id < session.floor:
        raise Refused(f"request {request.request_id} has been acknowledged already", errno.ESTALE)
    if session.role != Role.MOUNT and not all(OPERATIONS[type(operation)].of_agents for operation in request.operations):
        kinds = ", ".join(sorted({type(operation).__name__ for operation in request.operations}))
        raise refused(errno.EPERM, f"the {session.role} of {session.server} asked {kinds}, which is for: mount")
    # The client has these replies: from now on none of them is stored for it.
    session.floor = max(session.floor, request.acknowledged)


@contextmanager
def _mutation(term: Term, session: Session, request: Apply) -> Iterator[Mutation]:
    """The mutation that is under way while inside."""
    mutation = Mutation(session, monotonic_s())
    try:
        with term.state.changing(session, changed_for_opens(request.operations)):
            yield mutation
    finally:
        # After the effects have run: until then an answer that was read before might still be granted.
        term.state.mutations.release(mutation)


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
    if len(reply.nodes) != len(request.operations):  # the stored one of another request
        raise ProtocolError(f"request {request.request_id} came again with other operations")
    tokens = [
        term.state.grant(session, node, now)
        for operation, node in zip(request.operations, reply.nodes, strict=True)
        if OPERATIONS[type(operation)].creates and node is not None and node.home_volume
    ]
    grant = None
    # What is committed, the mount knows no more of than it did.
    if (
        session.watches
        and mutation.stamp is not None
        and not all(isinstance(operation, Commit) for operation in request.operations)
    ):
        grant = _grant_own(term, mutation, request, reply, now)
    if not tokens and grant is None:
        return reply
    return msgspec.structs.replace(reply, tokens=tokens, grant=grant)


def _grant_own(term: Term, mutation: Mutation, request: Apply, reply: Applied, now: float) -> Grant | None:
    """What the session knows as it is now, since it made it so: the directories that it changed, and the nodes in the reply."""
    session, granting = mutation.session, term.granting
    serial = term.state.leases.next_serial()
    granted: dict[int, None] = {}
    # Of several nodes of one inode only the last is what it is now.
    newest = {node.ino: node for node in reply.nodes if node is not None}
    for operation, node in zip(request.operations, reply.nodes, strict=True):
        changed = directories_of(operation)
        nodes = [node] if node is not None and newest[node.ino] is node else []
        directory = changed[-1] if changed else granting.directory_of(session, nodes[0]) if nodes else 0
        offers = [(directory, nodes), *((left, []) for left in changed[:-1] if left != directory)]
        for place, brought in offers:
            grant = granting.offer(
                session, place, brought, mutation.began_s, now, names=bool(changed), own=mutation, serial=serial
            )
            granted |= dict.fromkeys([] if grant is None else grant.inodes)
    return Grant(serial, term.state.leases.granted_s(now), list(granted)) if granted else None


async def open_inode(term: Term, session: Session, request: Open) -> Opened:
    """Opens an inode: registers the open, then reads the inode, so that nobody reaps or settles it in between.

    Before an open for writing is answered, all others have stopped caching the inode; from the registration on no grant is made.
    """
    check_number(request.sequence, "sequence")
    state = term.state
    if request.ino in state.reaping:
        raise refused(errno.ESTALE, f"there is no inode {request.ino}")
    new = state.sessions.open(session, request.ino, write=request.write, sequence=request.sequence)
    try:
        # It is registered already: whoever reaps or settles in between sees that it is open.
        row = await term.store.read(lambda connection: get_inode(connection, request.ino))
        if request.write and stat.S_ISDIR(row.mode):
            raise refused(errno.EISDIR)
        if request.write:
            await _be_only_writer(term, session, request.ino)
        # The flag was read after the registration: who may clear it sees the writer, unless it is in the queue already
        # (`is_changing`).
        must_mark = request.write and stat.S_ISREG(row.mode) and not row.dirty
        if must_mark or state.is_changing(request.ino):
            to_write = request.write and bool(stat.S_ISREG(row.mode))
            work = partial(_mark_opened, state=state, session=session, ino=request.ino, write=to_write)
            # Durable before the first byte is written: after a power failure an agent looks at the object only if it is marked.
            await term.store.write(work, durable=must_mark)
        return await _describe_opened(term, session, request)
    except Refused:
        # One that was open before stays: other opens of the session still count on it.
        if new:
            unused = state.sessions.forget(session, request.ino)
            term.unused([] if unused is None else [unused])
        raise


async def _be_only_writer(term: Term, session: Session, ino: int) -> None:
    """Waits until nobody else caches what the session, which is registered as a writer, is going to write."""
    state = term.state
    while True:
        held = [Held(ino, number) for number in state.leases.caching(ino, monotonic_s(), besides=session)]
        # Nobody is granted to cache it meanwhile, since the session is registered as a writer: the list can only get shorter.
        await state.recalls.take_back(held)
        # Mounts that have not presented themselves cannot be asked; the catalog's notes tell whether they may be caching it.
        looking = await term.store.read(partial(state.looking_at, inodes=[ino])) if state.absent else frozenset()
        # Its own records are still to come, perhaps: they do not concern what it opens, or it would have sent them before.
        looking -= {session.server}
        if not looking:
            return
        await await_present(term, looking)


async def _describe_opened(term: Term, session: Session, request: Open) -> Opened:
    """The answer to an `Open`, once all holders of tokens for an earlier home know that they must ask for the new one."""
    state, granting = term.state, term.granting
    while True:
        began_s = monotonic_s()
        # The home may move until this is read; afterwards the registration keeps it where it is.
        opened, parent = await term.store.read(lambda connection: _describe(connection, term, session, request.ino))
        epoch = opened.node.home_epoch
        now = monotonic_s()
        holders = state.holders_of_old_home(session, request.ino, epoch, now) if request.write else []
        if not holders:
            break
        # When it returns the home may have moved again, or been opened by others: all is read anew.
        await state.recalls.take_back([Held(request.ino, number) for number in holders], home_epoch=epoch)
    # The note is there before the grant, or a new manager would not know that anybody caches it.
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
    """Marks the file dirty before the first write; first moves its home to the writer's server if it can."""
    if write:
        draw_home(tx, state, session, ino)
        mark_dirty(tx, ino)


async def close(term: Term, session: Session, request: Close) -> Done:
    """Ends registrations; orphans that nobody has open any more may be reaped."""
    check_count(len(request.closings), CLOSINGS_MAX, "closings")
    sessions = term.state.sessions
    for closing in request.closings:
        unused = sessions.close(session, closing.ino, closing.sequence, still_open=closing.still_open)
        # A close may be overtaken by a newer open for writing, which then goes on.
        if sessions.write_sequence(session, closing.ino) == NOT_WRITING:
            term.state.leases.stops_writing(session, closing.ino)
        if unused is not None:
            term.unused([unused])
    return Done()


async def take_inodes(term: Term, session: Session, request: TakeInodes) -> InodeRange:
    """Numbers for what the session will create. They are noted so that their objects are not taken for strays."""
    if not 1 <= request.count <= TAKE_MAX:
        raise refused(errno.EINVAL, f"{request.count} inode numbers")

    def work(tx: Transaction) -> int:
        first = take_number(tx, "next_ino", request.count)
        tx.execute(insert(ranges), {"first": first, "count": request.count, "server": session.server, "session": session.number})
        kept = select(ranges.c.first).where(ranges.c.session == session.number).order_by(ranges.c.first.desc())
        # The newest `RANGES_KEPT` stay, as in the memory (`Session.numbers`).
        oldest = tx.execute(kept.offset(RANGES_KEPT).limit(1)).scalar_one_or_none()
        if oldest is not None:
            tx.execute(sql_delete(ranges).where(ranges.c.session == session.number, ranges.c.first <= oldest))
        # After the commit: numbers that were rolled back are given to somebody else.
        tx.after(lambda: session.numbers.append(range(first, first + request.count)))
        return first

    # Durable: a number that came again after a power failure would name two files.
    return InodeRange(await term.store.write(work, durable=True, grows=True), request.count)


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
    with trio.move_on_after(timeout_s), term.throttle.hurrying():
        while True:
            # Listening before looking: what arrives in between rings.
            with term.state.bells.listening(request.ino) as bell:
                if await term.store.read(ask) >= request.copies:
                    return Done()
                await bell.wait()
    raise Unavailable(f"inode {request.ino} has fewer than {request.copies} copies of version {request.version}")
