"""How far a migration is: files and bytes, rate, time left. Pure, but for the clock that the caller gives."""

from collections import deque
from dataclasses import dataclass

from cluster.messages import MigrationRow, MigrationState, MoveState

NOT_TO_DO = (MoveState.CANCELLED, MoveState.SKIPPED)  # moves that nobody is going to make
ENDS = (MigrationState.DONE, MigrationState.FAILED, MigrationState.CANCELLED)
WINDOW_S = 15.0  # of the rate while watching: long enough for large files, short enough to see a stop


@dataclass(frozen=True)
class Totals:
    """Sums over a migration's moves; what was skipped or cancelled is in none of them."""

    files: int  # to do and done, failures included
    size: int  # bytes of the same
    done_files: int  # copied, confirmed and deleted at the source
    done_size: int  # bytes of those
    failed_files: int  # `resume` tries them again

    @property
    def left_files(self) -> int:
        return self.files - self.done_files - self.failed_files


def totals(row: MigrationRow) -> Totals:
    """What there is to do, and what is done."""
    files = {count.state: count.files for count in row.counts}
    sizes = {count.state: count.size for count in row.counts}
    return Totals(
        sum(count for state, count in files.items() if state not in NOT_TO_DO),
        sum(size for state, size in sizes.items() if state not in NOT_TO_DO),
        files.get(MoveState.DONE, 0),
        sizes.get(MoveState.DONE, 0),
        files.get(MoveState.FAILED, 0),
    )


@dataclass(frozen=True)
class Rate:
    """Per second; and how long the rest takes at that rate, None while nothing can be said."""

    files: float
    size: float
    left_s: float | None  # None: nothing was done yet, or no time has passed


def rate_between(before: Totals, after: Totals, seconds: float) -> Rate:
    """The rate of what was done in between. The time left is the longer one of files and bytes."""
    if seconds <= 0:
        return Rate(0.0, 0.0, None)
    # `resume` takes failed moves back into the plan: sums may fall.
    files = max(0, after.done_files - before.done_files) / seconds
    size = max(0, after.done_size - before.done_size) / seconds
    if after.left_files == 0:
        return Rate(files, size, 0.0)
    if files == 0:
        return Rate(files, size, None)
    by_files = after.left_files / files
    # Many small files or few large ones: the slower of both decides.
    by_size = (after.size - after.done_size) / size if size else 0.0
    return Rate(files, size, max(by_files, by_size))


def overall_rate(row: MigrationRow) -> Rate:
    """The rate since the migration began."""
    return rate_between(Totals(0, 0, 0, 0, 0), totals(row), row.elapsed_s)


class Meter:
    """The rate of the last seconds, from what is counted while watching."""

    def __init__(self) -> None:
        self._counted: deque[tuple[float, Totals]] = deque()  # (monotonic, totals); the first one is the beginning of the window

    @property
    def last(self) -> Rate:
        """The rate at the last sample."""
        if not self._counted:
            return Rate(0.0, 0.0, None)
        (began, first), (now, last) = self._counted[0], self._counted[-1]
        return rate_between(first, last, now - began)

    def add(self, now: float, totals: Totals) -> Rate:
        """Takes a sample and gives the present rate."""
        self._counted.append((now, totals))
        # Two at least: one sample has no rate.
        while len(self._counted) > 2 and now - self._counted[1][0] >= WINDOW_S:
            self._counted.popleft()
        return self.last
