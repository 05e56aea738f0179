"""What ends a term, and what keeps its background work going until then."""

import logging
from collections.abc import Awaitable, Callable

import trio

from cluster.errors import CatalogFault, NotManager
from cluster.faults import faults
from manager.term import Term

log = logging.getLogger(__name__)

FAILED_LOOP_PAUSE_S = 1.0  # so that work that fails at once does not fill the log or the processor


async def end_when_asked(term: Term, scope: trio.CancelScope) -> None:
    """Ends the term in order once somebody has asked for it; raises the reason if the catalog must not be worked with."""
    await term.leaving.wait()
    if term.refusal is not None:
        raise term.refusal
    log.info("stepping down, term %d", term.number)
    term.end()
    scope.cancel()


async def end_when_over(term: Term, scope: trio.CancelScope) -> None:
    """Ends the term when its time is over, whatever else hangs."""
    while term.in_office:
        # The deadline moves with each extension: it is looked again whether this was the last one.
        await trio.sleep_until(term.deadline)
    log.error("the office could not be extended in time")
    scope.cancel()


async def keep_going(loop: Callable[[Term], Awaitable[None]], term: Term) -> None:
    """Runs background work again when it fails: only the office's rules end a term."""
    said = ""
    while True:
        try:
            await loop(term)
        # Expected while the catalog's disk is full, or at the end of the term; said once.
        except (NotManager, CatalogFault) as error:
            if str(error) != said:
                said = str(error)
                log.warning("%s: %s", loop.__name__, said)
        except Exception as error:
            faults.unexpected(log, f"in {loop.__name__}", error)
        await trio.sleep(FAILED_LOOP_PAUSE_S)
