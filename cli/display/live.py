"""How something that moves is shown: redrawn in one place on a terminal, as lines in a pipe, or not at all."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, ProgressColumn

from cli import exits

D = TypeVar("D")


@contextmanager
def displaying(nothing: D, redrawn: Callable[[Live], D], lines: Callable[[], D], *, quiet: bool) -> Iterator[D]:
    """The display that fits where the output goes; *quiet*: *nothing*."""
    if quiet:
        yield nothing
    elif sys.stdout.isatty():
        with Live(console=Console(highlight=False), refresh_per_second=4) as live:
            yield redrawn(live)
    else:
        yield lines()


@contextmanager
def bar(what: str, *columns: ProgressColumn, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal that stderr may be, none elsewhere or if *quiet*: call what it gives with how many are done, and of
    how many. It goes in the end. *columns*: in place of those that rich shows by default.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _done, _all: None
        return
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, number: bars.update(task, completed=done, total=number)


@contextmanager
def interruptible(what_now: str) -> Iterator[None]:
    """While inside, Ctrl-C ends the command by its own code, after one line that says what becomes of what it was about."""
    is_interrupted = False
    try:
        yield
    except* KeyboardInterrupt:
        is_interrupted = True
    if is_interrupted:
        # On stderr: with --json nothing but JSON belongs on stdout.
        sys.stderr.write(f"godwit: {what_now}\n")
        raise typer.Exit(exits.INTERRUPTED)
