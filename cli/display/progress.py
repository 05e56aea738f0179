"""How far a migration is: files and bytes, rate, time left. Pure, but for the clock that the caller gives."""

from collections import deque
from dataclasses import dataclass

from cluster.messages import (
    MOVE_CANCELLED,
    MOVE_DONE,
    MOVE_FAILED,
    MOVE_SKIPPED,
    MigrationRow,
)

NOT_TO_DO = (MOVE_CANCELLED, MOVE_SKIPPED)
WINDOW_S = 15.0


@dataclass(frozen=True)
class Totals:
    """Sums over a migration's moves; what was skipped or cancelled is in none of them."""

    files: int
    size: int
    done_files: int
    done_size: int
    failed_files: int

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
        files.get(MOVE_DONE, 0),
        sizes.get(MOVE_DONE, 0),
        files.get(MOVE_FAILED, 0),
    )


@dataclass(frozen=True)
class Rate:
    """Per second; and how long the rest takes at that rate, None while nothing can be said."""

    files: float
    size: float
    left_s: float | None


def rate_between(before: Totals, after: Totals, seconds: float) -> Rate:
    """The rate of what was done in between. The time left is the longer one of files and bytes."""
    if seconds <= 0:
        return Rate(0.0, 0.0, None)
    files = max(0, after.done_files - before.done_files) / seconds
    size = max(0, after.done_size - before.done_size) / seconds
    if after.left_files == 0:
        return Rate(files, size, 0.0)
    if files == 0:
        return Rate(files, size, None)
    by_files = after.left_files / files
    by_size = (after.size - after.done_size) / size if size else 0.0
    return Rate(files, size, max(by_files, by_size))


def overall_rate(row: MigrationRow) -> Rate:
    """The rate since the migration began."""
    return rate_between(Totals(0, 0, 0, 0, 0), totals(row), row.elapsed_s)


class Meter:
    """The rate of the last seconds, from what is seen while watching."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Totals]] = deque()

    def see(self, now: float, seen: Totals) -> Rate:
        """Takes a sample and gives the present rate."""
        self._seen.append((now, seen))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        began, first = self._seen[0]
        return rate_between(first, seen, now - began)
