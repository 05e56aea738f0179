"""Logs and counts faults that others caused: once per cause, and again each time the count has grown tenfold.

A cause is named by the code, never by what came from outside: so there are few, and nobody can fill a disk with a log.
"""

import logging
import traceback
from collections import Counter

from cluster.counters import counter, counters

FAULTS = counter("godwit_faults_total", "Faults that others caused, and errors that nobody had thought of.", "cause")
UNEXPECTED = counter("godwit_unexpected_errors_total", "Errors that nobody had thought of: the log has their tracebacks.")

CAUSES_MAX = 1000  # that are told apart: more than the code can name
SHOWN_MAX = 50  # of them, the most frequent ones
OTHERS = "other causes"


class Faults:
    """The counts of one process. Only its event loop uses them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._unexpected = 0

    def begin_anew(self) -> None:
        """Forgets all: for tests, which share a process."""
        self.counts.clear()
        self._unexpected = 0

    @property
    def unexpected_errors(self) -> int:
        """How many there were of the kind that nobody had thought of."""
        return self._unexpected

    def problems(self, whose: str) -> list[str]:
        """What whoever looks after the server should know."""
        count = self._unexpected
        return [f"{count} unexpected errors in its {whose} since that began: see its log"] if count else []

    def note(self, log: logging.Logger, cause: str, what: str, *, level: int = logging.ERROR) -> None:
        """Counts *cause*; says *what* happened the first, tenth, hundredth … time, with the count."""
        count = self._count(cause)
        if _is_power_of_ten(count):
            log.log(level, "%s%s", what, "" if count == 1 else f" ({count} times by now: {cause})")

    def unexpected(self, log: logging.Logger, what: str, error: BaseException) -> None:
        """As `note`, for an error that nobody had thought of: the cause is where it was raised; with the traceback."""
        self._unexpected += 1
        count = self._count(f"{type(error).__name__} {_origin(error)}")
        if _is_power_of_ten(count):
            log.error("unexpected error %s%s", what, "" if count == 1 else f" ({count} times by now)", exc_info=error)

    def _count(self, cause: str) -> int:
        known = cause if cause in self.counts or len(self.counts) < CAUSES_MAX else OTHERS
        self.counts[known] += 1
        return self.counts[known]


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"


def _origin(error: BaseException) -> str:
    """The file and line that raised it; of a group, the first of its errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    return f"at {frames[-1].filename}:{frames[-1].lineno}" if frames else "from nowhere"


faults = Faults()
"""Those of this process."""

counters.follow_each(FAULTS, lambda: dict(faults.counts.most_common(SHOWN_MAX)))
counters.follow(UNEXPECTED, lambda: faults.unexpected_errors)
