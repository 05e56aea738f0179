"""`ApplyRecords`: the next records of a mount's journal.

The mount sends them itself; after its death, the agent or the next mount of its server does.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, select

from cluster.clock import monotonic_s
from cluster.errors import NotManager, refused
from cluster.messages import ApplyRecords, Grant, RecordsApplied
from cluster.trust.identity import Role
from manager.catalog.schema import FIRST_INO, counters, ranges
from manager.changes.apply import OPERATIONS_MAX
from manager.changes.operations import changed_for_opens, directories_of, known_before
from manager.changes.records import Outcome, apply_records, describe, find_journal, numbers_of
from manager.memory.journals import Journal
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.requests.mutations import mutate
from manager.rules.limits import check_count, check_number, check_session
from manager.term import Term

EXPECTED_MAX = 2  # inodes that one record takes names from


@dataclass(frozen=True)
class _Known:
    """What the catalog has of a journal, and of whom it is."""

    server: str
    numbers: list[range]  # that its mount was given


async def apply_mount_records(term: Term, session: Session, request: ApplyRecords) -> RecordsApplied:
    """Applies what the catalog does not have yet, or passes it over."""
    _check_records(request)
    journal = term.state.journals.of(request.session)
    # One message of a journal after the other: the next one begins where this one has ended.
    with term.state.leases.recording(request.session):
        async with journal.lock:
            owner = await _owner(term, session, request, journal)
            _check_sequence(request, journal)
            with _mutation(term, owner, request) as mutation:
                outcome = await _apply(term, session, mutation, journal, request)
    if request.final:
        _end(term, session, request.session)
    if not request.more:
        _presented(term, session, request)
    return _reply(term, session, mutation, journal, request, outcome)


def _check_records(request: ApplyRecords) -> None:
    check_session(request.session)
    check_number(request.first, "sequence")
    check_count(len(request.records), OPERATIONS_MAX, "records")
    for record in request.records:
        check_count(len(record.expected), EXPECTED_MAX, "expected inodes")
    if request.first < 1:
        raise refused(errno.EINVAL, "records are counted from 1")


def _check_sequence(request: ApplyRecords, journal: Journal) -> None:
    """ESTALE if there is a gap: this catalog is older than what the sender was told, or the mount was given up."""
    if request.first > journal.last + 1:
        raise refused(errno.ESTALE, f"the catalog has the journal up to {journal.last}, not to {request.first - 1}")
    if journal.final and request.first + len(request.records) > journal.last + 1:
        raise refused(errno.ESTALE, f"the journal was closed at {journal.last}")


async def _owner(term: Term, session: Session, request: ApplyRecords, journal: Journal) -> Session:
    """The session whose journal it is; EPERM if the sender has no business with it."""
    own = request.session == session.number and session.role == Role.MOUNT
    if own and journal.is_read:
        return session
    known = await term.store.read(partial(_find, journal=journal))
    if own:
        return session
    live = term.state.sessions.get(request.session)
    server = known.server or ("" if live is None else live.server)
    if server not in ("", session.server) or (live is not None and live.role != Role.MOUNT):
        raise refused(errno.EPERM, f"the journal is not one of {session.server}")
    # As the mount that it is of, so that what that held is in nobody's way; it is no live session.
    owner = Session(request.session, session.server, Role.MOUNT, monotonic_s())
    owner.numbers.extend(known.numbers)
    return owner


def _find(connection: Connection, journal: Journal) -> _Known:
    find_journal(connection, journal)
    rows = connection.execute(select(ranges).where(ranges.c.session == journal.session).order_by(ranges.c.first)).all()
    # Without a range that is known, whatever has been given out, if nothing has the number (`apply_records` looks).
    end = connection.execute(select(counters.c.value).where(counters.c.name == "next_ino")).scalar_one()
    numbers = [range(row.first, row.first + row.count) for row in rows] or [range(FIRST_INO, end)]
    return _Known(journal.server or (rows[0].server if rows else ""), numbers)


@contextmanager
def _mutation(term: Term, owner: Session, request: ApplyRecords) -> Iterator[Mutation]:
    """The mutation that is under way while inside."""
    mutation = Mutation(owner, monotonic_s(), is_recorded=True)
    try:
        with term.state.changing(owner, changed_for_opens(record.operation for record in request.records)):
            yield mutation
    finally:
        term.state.mutations.release(mutation)


async def _apply(term: Term, session: Session, mutation: Mutation, journal: Journal, request: ApplyRecords) -> Outcome:
    if request.first + len(request.records) <= journal.last + 1 and request.final <= journal.final:
        if request.durable:
            await term.store.sync()
        outcome = Outcome()
        await term.store.read(lambda connection: describe(connection, term.state, mutation, request.records, outcome))
        return outcome
    work = partial(
        apply_records,
        state=term.state,
        mutation=mutation,
        journal=journal,
        request=request,
        recovered=mutation.session is not session,
    )
    known = known_before(record.operation for record in request.records)
    check = partial(_check_live, term, session)
    # Also on a full disk, as what removes: the mount has acknowledged them to programs, as long as it was let.
    return await mutate(term, mutation, work, known=known, check=check, durable=request.durable)


def _check_live(term: Term, session: Session) -> None:
    if not term.state.sessions.is_live(session):
        raise NotManager("the session of this connection has ended: introduce yourself again")


def _end(term: Term, session: Session, number: int) -> None:
    """Nothing follows from a mount: what it held is free."""
    state = term.state
    now = monotonic_s()
    if number == session.number:
        alone = [lease.ino for lease in state.leases.held(now) if lease.session == number]
        state.recalls.given_back(session, alone, state.leases.next_serial())
    elif state.sessions.get(number) is None:
        state.leases.end_session(number)
        state.recalls.end_session(number)
    else:
        # Its process is dead, but its kernel answers programs from what it was told, until that has run out.
        state.leases.ends_alone(number)
        state.recalls.ends_alone(number)
    state.journals.forget(number)


def _presented(term: Term, session: Session, request: ApplyRecords) -> None:
    """The server's mount has told all that it had recorded, or its agent in its place."""
    if session.role == Role.MOUNT:
        term.state.presented(session.server)
        return
    # The mount that this manager waits for is the one that is dead, or there is none.
    awaited = term.awaited.get(session.server, request.session)
    if request.final and awaited == request.session and term.state.sessions.of_server(session.server, Role.MOUNT) is None:
        # As in `_end`: the dead mount's kernel may still believe what it was told.
        term.state.holds_ended(frozenset({session.server}))


# -------------------------------------------------------------------------------------------------------- the answer


def _reply(
    term: Term, session: Session, mutation: Mutation, journal: Journal, request: ApplyRecords, outcome: Outcome
) -> RecordsApplied:
    if mutation.session is not session:
        return RecordsApplied(journal.last, lost=outcome.lost)
    _open_again(term, session, journal, request, outcome)
    now = monotonic_s()
    tokens = [term.state.grant(session, node, now) for node in outcome.made if node.home_volume]
    return RecordsApplied(journal.last, tokens, _grant(term, mutation, request, outcome, now), outcome.lost)


def _open_again(term: Term, session: Session, journal: Journal, request: ApplyRecords, outcome: Outcome) -> None:
    """Registers what repeated records have made as open: their mount did not know that they had been applied, so no `Hello` since
    has presented it. It closes nothing before it is answered; who has gone on since then has been."""
    if request.first + len(request.records) == journal.last + 1:
        for ino in outcome.files:
            if ino not in term.state.reaping:
                term.state.register_creator(session, ino)


def _grant(term: Term, mutation: Mutation, request: ApplyRecords, outcome: Outcome, now: float) -> Grant | None:
    """More time with what the records name, and with what they made in held directories."""
    named = dict.fromkeys(numbers_of(request.records))
    for record in request.records:
        operation = record.operation
        named |= dict.fromkeys(directories_of(operation))
        named |= dict.fromkeys(known_before([operation]))
        named |= dict.fromkeys(expected.ino for expected in record.expected)
    # What a full disk does not take is to be refused to programs, not recorded.
    renews = term.store.room.fault is None
    return term.granting.stay_alone(mutation.session, named, outcome.born, mutation, now, renews=renews)
