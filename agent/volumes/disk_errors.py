"""The rule for a failing disk: several errors within a while, beside what `agent.volumes.health` finds by trying. Pure.

A single bad sector is the trouble of one file; a disk that gives errors again and again is to be left.
"""

import errno

from cluster.volume.probe import DISK_ERRNOS

FAILING_ERRORS = 5  # a single bad sector is trouble of one file; so many are the disk's
WITHIN_S = 60.0  # and as long without one until the disk is believed again


class Troubles:
    """The last errors of one disk. `count` of all of them, `text` of the last.

    EROFS is counted, but never makes a disk count as failing: it is over as soon as a probe succeeds.
    """

    def __init__(self) -> None:
        self.count = 0  # also says to the probe that something is new
        self.text = ""
        self._met_s: list[float] = []  # monotonic times of the last FAILING_ERRORS, oldest first; without EROFS

    def met(self, error: OSError, now: float) -> bool:
        """Takes note of *error*; whether it is one of the disk."""
        if error.errno not in DISK_ERRNOS:
            return False
        self.count += 1
        self.text = error.strerror or ""
        if error.errno != errno.EROFS:
            self._met_s = [*self._met_s[1 - FAILING_ERRORS :], now]
        return True

    def are_many(self, now: float) -> bool:
        """Whether the disk has to be taken for failing."""
        return len(self._met_s) == FAILING_ERRORS and now - self._met_s[0] <= WITHIN_S

    def are_over(self, now: float) -> bool:
        """Whether there was none for so long that the disk may be believed again."""
        return not self._met_s or now - self._met_s[-1] > WITHIN_S
