"""Requests about locks: from mounts for their processes, and what people see of them."""

import trio
from sqlalchemy import Connection

from cluster.clock import monotonic_s
from cluster.errors import ProtocolError
from cluster.messages import (
    LOCK_END,
    AskConflict,
    AwaitLocks,
    Done,
    HeldLocks,
    ListLocks,
    LockAnswer,
    LockConflict,
    LockRow,
    LockRows,
    LockSpan,
    SetLock,
    Unlock,
    WokenLocks,
)
from cluster.trust.identity import Role
from manager.catalog.inodes import path_of
from manager.memory.sessions import Session
from manager.memory.state import PRESENT
from manager.rules.limits import check_count, check_number
from manager.rules.locks import Owner
from manager.term import Term

SPANS_MAX = 50_000  # presented by one session
AWAIT_MAX_S = 60.0  # in one request
LISTED_MAX = 10_000  # rows for people
OWNER_MAX = 2**64 - 1  # the kernel's lock owners have 64 bits


def set_lock(term: Term, session: Session, request: SetLock) -> LockAnswer:
    """Tries once to set a lock; a session that has to wait is woken through `AwaitLocks`."""
    _check_mount(session, request.owner, request.pid)
    _check_span(request.span)
    check_number(request.ticket, "ticket")
    return LockAnswer(term.state.locks.set(session, request))


def unlock(term: Term, session: Session, request: Unlock) -> Done:
    """Ends locks."""
    _check_mount(session, request.owner)
    _check_span(LockSpan(request.start, request.end, write=False))
    _check_spans(request.kept)
    term.state.locks.unlock(session, request)
    return Done()


async def await_locks(term: Term, session: Session, request: AwaitLocks) -> WokenLocks:
    """Waits until something has become of what the session waits for."""
    _check_mount(session)
    check_number(request.after, "serial")
    locks = term.state.locks
    serial, tickets = locks.woken(session, request.after)
    with trio.move_on_after(max(0.0, min(request.wait_s, AWAIT_MAX_S))):
        while not tickets:
            # Asked for each time: the session may have lost its locks while this waited, which `holder` raises.
            await locks.holder(session).bell.wait()
            term.check_in_office()
            serial, tickets = locks.woken(session, request.after)
    return WokenLocks(serial, tickets)


async def ask_conflict(term: Term, session: Session, request: AskConflict) -> LockConflict:
    """What is in the way; while nothing is known to be, only when all locks are known."""
    _check_mount(session, request.owner)
    _check_span(request.span)
    state = term.state
    owner = Owner(session.number, request.owner)
    while True:
        with state.bells.listening(PRESENT) as bell:
            found = state.locks.find_conflict(request.ino, owner, request.span)
            if found is not None or not state.may_lock:
                break
            await bell.wait()
            term.check_in_office()
    if found is None:
        return LockConflict(None)
    other, held, span = found
    return LockConflict(span, state.locks.server_of(other.session), held.pid)


def check_presented(locks: list[HeldLocks]) -> None:
    """`ProtocolError` for locks that no mount can have."""
    check_count(sum(len(item.spans) for item in locks), SPANS_MAX, "locks")
    for item in locks:
        check_number(item.ino, "inode")
        _check_owner(item.owner, item.pid)
        _check_spans(item.spans)


def _check_mount(session: Session, owner: int = 0, pid: int = 0) -> None:
    if session.role != Role.MOUNT:
        raise ProtocolError(f"a {session.role} asked for locks")
    _check_owner(owner, pid)


def _check_owner(owner: int, pid: int) -> None:
    if not 0 <= owner <= OWNER_MAX or not 0 <= pid < 2**32:
        raise ProtocolError(f"no owner of a lock: {owner}, process {pid}")


def _check_span(span: LockSpan) -> None:
    if not 0 <= span.start <= span.end <= LOCK_END:
        raise ProtocolError(f"no range that can be locked: {span.start} to {span.end}")


def _check_spans(spans: list[LockSpan]) -> None:
    check_count(len(spans), SPANS_MAX, "locks")
    for before, span in zip([None, *spans], spans, strict=False):
        _check_span(span)
        if before is not None and before.end >= span.start:
            raise ProtocolError("locked ranges overlap")


async def list_locks(term: Term, _session: Session, request: ListLocks) -> LockRows:
    """Who has locked what, and who waits for what."""
    locks = term.state.locks
    now = monotonic_s()
    # A list, made in the event loop: the paths are read in a thread.
    listed = [one for one in locks.listed(request.ino) if request.server in ("", locks.server_of(one.owner.session))]
    shown = [(one, locks.server_of(one.owner.session)) for one in listed[: max(0, min(request.limit, LISTED_MAX))]]

    def ask(connection: Connection) -> list[LockRow]:
        return [
            LockRow(
                ino=one.file.ino,
                path=path_of(connection, one.file.ino),
                whole=one.file.whole,
                span=one.span,
                holder=server,
                pid=one.pid,
                waiting=one.waiting,
                since_s=now - one.since_s,
            )
            for one, server in shown
        ]

    return LockRows(await term.store.read_slowly(ask), len(listed))
