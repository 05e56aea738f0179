"""Watching a migration until it is over: a display that moves on a terminal, plain lines in a pipe."""

import sys
from typing import Protocol

import trio
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.display.live import displaying, interruptible
from cli.display.progress import describe
from cli.display.render import print_line
from cli.network.ask import talk_on
from cli.network.target import Target
from cluster.clock import monotonic_s
from cluster.errors import Refused
from cluster.messages import ListMigrations, MigrationRow, MigrationState
from cluster.progress import ENDS, Meter, Rate, totals
from cluster.rpc.conversation import Asker

POLL_S = 0.5  # a question to the manager each time
LINE_S = 2.0  # in a pipe, at most one line in this time


class Display(Protocol):
    """What shows each state that was seen."""

    def show(self, row: MigrationRow, rate: Rate) -> None: ...


def watch(target: Target, timeout_s: float, number: int, *, quiet: bool = False) -> MigrationRow:
    """Shows the migration until it is over, and returns what it came to. Ctrl-C ends only the watching."""

    nothing: Display = _Nothing()

    async def follow(asker: Asker) -> MigrationRow:
        meter = Meter()
        with displaying(nothing, _Bar, _Lines, quiet=quiet) as display:
            while True:
                row = await find_migration(asker, number)
                display.show(row, meter.add(monotonic_s(), totals(row)))
                # A failed migration has no end of its own: it can be resumed.
                if row.state in ENDS and (row.ended_ns or row.state == MigrationState.FAILED):
                    return row
                await trio.sleep(POLL_S)

    with interruptible(f"migration {number} goes on; look at it with: godwit migrations watch {number}"):
        return talk_on(target, timeout_s, follow)


async def find_migration(asker: Asker, number: int) -> MigrationRow:
    """The migration's row; raises `Refused` if there is none."""
    answer = await asker(ListMigrations(number))
    if not answer.migrations:
        raise Refused(f"there is no migration {number} (see: godwit migrations ls)")
    return answer.migrations[0]


def require_done(row: MigrationRow) -> None:
    """Raises `Refused` for a migration that came to another end than was asked for."""
    if row.state == MigrationState.FAILED:
        failed = totals(row).failed_files
        raise Refused(
            f"{failed} file{'' if failed == 1 else 's'} of migration {row.migration} could not be moved: {row.problem} "
            f"(see: godwit migrations show {row.migration}; again: godwit migrations resume {row.migration})"
        )
    if row.state == MigrationState.CANCELLED:
        raise Refused(f"migration {row.migration} was cancelled")


class _Nothing:
    def show(self, row: MigrationRow, rate: Rate) -> None:
        """Prints nothing: the caller prints the end."""


class _Lines:
    """A line when something has changed, but not many."""

    def __init__(self) -> None:
        self._last = ""
        self._last_s = -LINE_S  # so that the first line comes at once

    def show(self, row: MigrationRow, rate: Rate) -> None:
        line = f"migration {row.migration} {row.state}: {describe(row, totals(row), rate)}"
        now = monotonic_s()
        # The end is always shown, however soon after the line before.
        if row.state in ENDS or (line != self._last and now - self._last_s >= LINE_S):
            print_line(line)
            sys.stdout.flush()
            self._last, self._last_s = line, now


class _Bar:
    """A bar, what it means in numbers, and what is in the way."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, row: MigrationRow, rate: Rate) -> None:
        done = totals(row)
        # rich divides by it: a migration without files has none.
        bar = ProgressBar(total=max(done.files, 1), completed=done.done_files, width=40)
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(f"migration {row.migration}"), bar, Text(row.state if row.planned else f"{row.state}, still planning"))
        table = Table.grid()
        table.add_row(grid)
        table.add_row(Text(describe(row, done, rate)))
        if row.problem:
            table.add_row(Text(row.problem, style="yellow"))
        self._live.update(table)
