"""What every background worker shares: one step at a time, and one loop that owns interval, jitter and back-off.

A worker decides nothing about time; cancelling the loop is the only way to end it, except for `FINISHED`.
"""

import enum
import logging
import random
from typing import Protocol

import trio

from cluster.errors import GodwitError, error_text
from cluster.faults import faults

log = logging.getLogger(__name__)

BACKOFF_MAX_S = 30.0  # a manager that is back is used again within half a minute


class Outcome(enum.Enum):
    """What a step achieved, which decides when the next one comes."""

    PROGRESS = "there may be more to do at once"
    IDLE = "nothing to do for an interval"
    FINISHED = "never anything to do again"


class Worker(Protocol):
    """One background duty."""

    name: str

    async def run_once(self) -> Outcome:
        """One bounded step; may be cancelled anywhere and repeated. Raises `GodwitError` or `OSError` when it cannot."""


def backoff_s(failures: int, interval_s: float) -> float:
    """How long to wait after so many failures in a row."""
    # The exponent is bounded because 2.0 ** 1024 overflows; 0.1 s keeps a worker with interval 0 from spinning.
    return min(BACKOFF_MAX_S, max(0.1, interval_s) * 2.0 ** min(failures - 1, 16))


async def run_worker(worker: Worker, *, interval_s: float) -> None:
    """Runs steps until the worker has finished; failures are logged and put off the next step."""
    failures = 0
    while True:
        try:
            outcome = await worker.run_once()
        except (GodwitError, OSError) as error:
            failures += 1
            log.warning("%s: %s", worker.name, error_text(error))
        except Exception as error:
            # A defect in one worker must not end the agent: `faults` counts it, the registration reports it.
            failures += 1
            faults.unexpected(log, f"in {worker.name}", error)
        else:
            failures = 0
            if outcome is Outcome.FINISHED:
                return
            if outcome is Outcome.PROGRESS:
                # A step that never waited would otherwise keep the event loop, and could not be cancelled.
                await trio.lowlevel.checkpoint()
                continue
        wait_s = backoff_s(failures, interval_s) if failures else interval_s
        await trio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing
