"""Takes a rotation of the authority on as soon as nobody is waited for."""

import logging
import time
from functools import partial

import trio

from cluster.clock import monotonic_s
from cluster.events import EventKind
from cluster.trust.credentials import SUPERSEDED_S
from manager.catalog.events import note
from manager.catalog.store import Transaction
from manager.changes.authorities import read_view, take_step
from manager.rules.authorities import Step, next_step, waiting
from manager.term import Term

log = logging.getLogger(__name__)

LOOK_S = 1.0
LATE_S = 600.0  # after so much of a phase those who hold it up have a problem
SETTLE_S = 3 * SUPERSEDED_S  # from the last certificate that was shown on: what is under way with the one before it ends


async def authorities_loop(term: Term) -> None:
    """Looks whether everybody has followed, and does the next step then."""
    found: Step | None = None
    since_s = 0.0
    revision, phase_s = -1, 0.0
    while True:
        if revision != term.believed.revision:
            revision, phase_s = term.believed.revision, monotonic_s()
        step, late = None, set[str]()
        if term.believed.phase is not None:
            view = await term.store.read_slowly(read_view)
            step = next_step(view, time.time())
            if monotonic_s() - phase_s >= LATE_S:
                late = {one.server for one in waiting(view, time.time())}
        term.late = frozenset(late)
        if step is not found:
            found, since_s = step, monotonic_s()
        # Connections are made anew, not closed, while their peers have certificates that are believed.
        if step is not None and (step is not Step.DROP or monotonic_s() - since_s >= SETTLE_S):
            await term.store.write(partial(_take, term=term), durable=True, grows=True)
        await trio.sleep(LOOK_S)


def _take(tx: Transaction, term: Term) -> None:
    # Again: somebody may have come since, who has to follow first.
    step = next_step(read_view(tx.connection), time.time())
    if step is None:
        return
    believed = take_step(tx, step)
    authority = term.opened(believed)
    kind = EventKind.AUTHORITY_SIGNS if step is Step.SIGN else EventKind.AUTHORITY_ALONE
    note(tx.connection, kind, authority=authority.number)

    def done() -> None:
        term.have_authorities(believed, authority)
        if step is Step.SIGN:
            log.info("authority %d signs from now on: all believe it", authority.number)
        else:
            log.info("only authority %d is believed from now on: all have certificates of it", authority.number)

    tx.after(done)
