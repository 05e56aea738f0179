"""What a manager does unasked: ends silent sessions, claims and back-offs; reaps orphans; brings files to their policy."""

import logging
import stat
from functools import partial

import trio
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import CatalogFault, NotManager
from cluster.trust.identity import Role
from manager.catalog.inodes import children
from manager.catalog.schema import applied, journals, scans
from manager.catalog.store import Transaction
from manager.changes.alignment import Rows, align, replicas_of_all, tasks_of_all
from manager.changes.mounts import forget_mount
from manager.changes.tasks import release_claims, wake_tasks
from manager.memory.mutations import Held
from manager.memory.notes import SWEEP_BATCH, delete_notes
from manager.memory.state import REAP, SCAN, State
from manager.rules.liveness import TICK_S
from manager.term import Term, reap
from manager.workers.members import tick_members

log = logging.getLogger(__name__)

REAP_BATCH = 64  # orphans in one transaction, for which requests wait
ORPHAN_S = 1.0  # between looking up a name and opening it, it may have been taken away
SCAN_BATCH = 64  # entries of a directory in one transaction
SCAN_PAUSE_S = 0.005  # between batches, so that requests go first
FORGET_REPLIES_S = 3600.0  # a client that is away for less finds its replies
FORGET_JOURNALS_S = 86400.0  # the last message of a mount may be repeated for as long

_FIRST_SCAN = select(scans.c.ino, scans.c.after).order_by(scans.c.ino).limit(1)
_OLD_JOURNALS = delete(journals).where(journals.c.final == 1, journals.c.changed_ns < bindparam("b_before"))
_SCAN_KNOWN = select(scans.c.ino).where(scans.c.ino == bindparam("ino"))


async def tick_loop(term: Term) -> None:
    """Everything that happens because time has passed."""
    while True:
        now = monotonic_s()
        await end_sessions(term, now)
        # Before the members are judged: any request of an agent counts as having been heard.
        _hear_agents(term)
        await tick_members(term, now)
        if term.state.in_grace and (not term.awaited or now >= term.grace_until):
            if term.awaited:
                log.warning("the mounts of %s did not come back", ", ".join(sorted(term.awaited)))
            await term.end_grace()
        await _end_claims(term, now)
        term.expire_leases(now)
        call_back_held(term, now)
        await _sweep_notes(term, now)
        await trio.sleep(TICK_S)


async def end_sessions(term: Term, now: float) -> None:
    """Forgets sessions that have been silent for too long."""
    for session in term.state.sessions.silent(now):
        if term.state.locks.holds(session.number):
            continue  # it believes in its locks for an access time, so the next manager has to wait for it
        log.info("the %s of %s is silent: its session ends", session.role, session.server)
        # It may have been heard while the write for another one was waited for: then it introduces itself again.
        term.end_session(session)
        if session.role == Role.MOUNT:
            await term.store.write(partial(forget_mount, session=session))


def _hear_agents(term: Term) -> None:
    for session in term.state.sessions.all():
        if session.role == Role.AGENT:
            term.state.members.heard(session.server, session.heard_s)


async def _end_claims(term: Term, now: float) -> None:
    expired = term.claims.expired(now)
    due = term.claims.due(now)
    if not expired and not due:
        return

    def work(tx: Transaction) -> None:
        release_claims(tx, term.state, expired)
        wake_tasks(tx, term.state, due)
        # After the commit: what a failed transaction leaves in the catalog is tried again with the next tick.
        tx.after(lambda: term.claims.end_all(expired))
        tx.after(lambda: term.claims.woken(due))

    # Reports may come before this transaction: both bodies look at each task again.
    await term.store.write(work)


async def _sweep_notes(term: Term, now: float) -> None:
    """Deletes notes under which nothing can be cached any more; a batch at each tick."""
    # Out of the memory first: a grant that comes meanwhile writes a note of its own, behind this deletion.
    rows = term.state.notes.take_unused(now - term.state.leases.lasts_s, SWEEP_BATCH)
    if rows:
        await term.store.write(partial(delete_notes, notes=term.state.notes, rows=rows))


def call_back_held(term: Term, now: float) -> None:
    """While the catalog's disk takes nothing more, changes are made there first, so that programs hear of it."""
    if term.store.room.fault is not None:
        held = [Held(lease.ino, lease.session) for lease in term.state.leases.held(now)]
        term.state.recalls.ask_back(held)


async def forget_journals(term: Term) -> None:
    """Deletes rows of journals that were closed long ago."""
    before_ns = file_time_ns() - int(FORGET_JOURNALS_S * 1e9)
    await term.store.write(lambda tx: tx.execute(_OLD_JOURNALS, {"b_before": before_ns}))


async def reap_loop(term: Term) -> None:
    """Removes orphans that nobody has open."""
    state = term.state
    while True:
        with state.bells.listening(REAP) as bell:
            if not state.orphaned:
                await bell.wait()
        if not state.orphaned:
            continue
        oldest_s = next(iter(state.orphaned.values()))
        # When it returns it may have been opened or named: `take_doomed` and `reap` look again.
        await trio.sleep_until(oldest_s + ORPHAN_S)
        doomed = state.take_doomed(monotonic_s() - ORPHAN_S, REAP_BATCH)
        try:
            await term.store.write(partial(reap, state=state, doomed=doomed))
        except (NotManager, CatalogFault) as error:
            log.warning("orphans wait: %s", error)
            state.reaping.difference_update(doomed)
            # Time zero: they have waited for long enough, and need not do so again.
            state.orphaned |= dict.fromkeys(doomed, 0.0)
            await trio.sleep(TICK_S)
            continue
        state.reaping.difference_update(doomed)
        for ino in doomed:
            state.sessions.gone(ino)
            state.leases.gone(ino)
            state.notes.gone(ino)


async def scan_loop(term: Term) -> None:
    """Brings files below changed policies, or all when a volume is new, to the number of copies that they should have."""
    state = term.state
    while True:
        with state.bells.listening(SCAN) as bell:
            more = await term.store.write(partial(scan_some, state=state), grows=True)
            if not more:
                await bell.wait()
        await trio.sleep(SCAN_PAUSE_S)


def scan_some(tx: Transaction, state: State) -> bool:
    """Works off some entries of one directory; False if there is nothing to do."""
    scan = tx.execute(_FIRST_SCAN).one_or_none()
    if scan is None:
        return False
    found = children(tx.connection, scan.ino, scan.after, SCAN_BATCH)
    policy = state.policies.of_directory(tx.connection, scan.ino)
    # One with several names there is looked at once: what was read of it is true until then only.
    different = {child.ino: child for child in found}
    files = [child.ino for child in different.values() if stat.S_ISREG(child.mode)]
    held, queued = replicas_of_all(tx.connection, files), tasks_of_all(tx.connection, files)
    for child in different.values():
        if stat.S_ISREG(child.mode):
            align(tx, state, child, policy, Rows(held.get(child.ino, ()), queued.get(child.ino, ())))
        elif stat.S_ISDIR(child.mode) and tx.execute(_SCAN_KNOWN, {"ino": child.ino}).first() is None:
            tx.execute(insert(scans), {"ino": child.ino, "after": 0})
    if len(found) < SCAN_BATCH:
        tx.execute(delete(scans).where(scans.c.ino == scan.ino))
    else:
        tx.execute(update(scans).where(scans.c.ino == scan.ino).values(after=found[-1].cookie))
    return True


async def forget_replies_loop(term: Term) -> None:
    """Deletes stored replies of sessions that were gone at two looks in a row."""
    gone_before: set[int] = set()
    while True:
        await trio.sleep(FORGET_REPLIES_S)
        await forget_journals(term)
        stored = await term.store.read_slowly(_sessions_with_replies)
        # One look is not enough: the session may be that of a mount which has not introduced itself to this manager yet.
        gone = stored - term.state.sessions.numbers()
        for number in gone & gone_before:
            await term.store.write(partial(_forget_replies, number=number))
        gone_before = gone


def _sessions_with_replies(connection: Connection) -> set[int]:
    return set(connection.execute(select(applied.c.session).distinct()).scalars())


def _forget_replies(tx: Transaction, number: int) -> None:
    tx.execute(delete(applied).where(applied.c.session == number))
