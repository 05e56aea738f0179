"""How something that moves is shown: redrawn in one place on a terminal, as lines in a pipe, or not at all."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import typer
from rich.console import Console
from rich.live import Live

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
