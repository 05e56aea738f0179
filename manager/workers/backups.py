"""Backs the catalog up now and then, while it is used; agents fetch each backup for their volumes."""

import logging
import time
from functools import partial

import trio

from cluster.events import EventKind
from manager.catalog.backup_folder import attempt
from manager.catalog.events import Again, note
from manager.catalog.store import Transaction
from manager.rules.backups import FIRST_S, is_due, look_s
from manager.term import Term

log = logging.getLogger(__name__)

RETRY_S = 300.0  # after an attempt that failed
_AGAIN = Again(86400.0, but_for=EventKind.CATALOG_BACKED_UP)


async def backup_loop(term: Term) -> None:
    """Makes a backup whenever the newest of this server is old enough."""
    every_s, folder = term.config.backup.every_s, term.backups
    if not every_s:
        await trio.sleep_forever()
    # Not at once: there is enough to do when a term begins, and terms may follow one another quickly.
    await trio.sleep(min(FIRST_S, every_s))
    while True:
        if is_due(await trio.to_thread.run_sync(folder.age_s, time.time()), every_s):
            # Abandoned when the term ends: it only reads the catalog, and what it writes nobody else does.
            problem = await trio.to_thread.run_sync(attempt, folder, time.time(), abandon_on_cancel=True)
            if problem and problem != folder.problem:
                log.warning("the catalog was not backed up: %s", problem)
            folder.problem = problem
            await term.store.write(partial(_tell, server=term.config.server, problem=problem))
            if problem:
                await trio.sleep(min(RETRY_S, every_s))
                continue
            log.info("the catalog was backed up into %s", folder.path)
        await trio.sleep(look_s(every_s))


def _tell(tx: Transaction, *, server: str, problem: str) -> None:
    if problem:
        note(tx.connection, EventKind.CATALOG_NOT_BACKED_UP, again=_AGAIN, server=server, problem=problem)
    else:
        note(tx.connection, EventKind.CATALOG_BACKED_UP, server=server)
