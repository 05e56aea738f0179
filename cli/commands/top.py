"""`godwit top`: the network on a terminal, live."""

import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.live import Live

from cli.display.top import KEYS, NO_KEYS, Flow, Screen, is_shown, shown
from cli.network.ask import talk_on
from cli.network.target import DEFAULT_TIMEOUT_S, RootOption, TimeoutOption, find_target
from cluster.clock import monotonic_s
from cluster.errors import Refused, Unavailable
from cluster.messages import EventRow, GetStatus, ListEvents, ListMigrations, MigrationRow, Status
from cluster.progress import Meter, totals
from cluster.rates import Rates
from cluster.rpc.conversation import Asker

LOOK_S = 2.0  # between looks
DRAW_S = 1.0  # and between drawings, as times go on
EVENTS = 100  # more than a terminal has lines
MIGRATIONS = 50  # of the newest, those that go on


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-d", metavar="SECONDS", min=0.2, max=3600.0, help="Between two looks.")
    ] = LOOK_S,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Show the network live, until q or Ctrl-C: health, servers and queues, migrations, what has happened.

    The first lines are those of godwit status. REQ/S are requests of the kernel to the server's mount, MGR/S those of the mount
    to the manager, each second; QUEUE and OLDEST are the copies and deletions that the server has yet to do, and since when the
    oldest waits.

    \b
    Examples:
      godwit top
      godwit top -d 0.5 --root /var/lib/godwit/lab
    """
    console = _console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        raise Refused("godwit top draws on a terminal; elsewhere: godwit status --watch, godwit events --follow")
    target = find_target(root)
    ended = 0

    async def watch(asker: Asker) -> None:
        nonlocal ended
        with _typing() as typed, Live(console=console, screen=True, auto_refresh=False) as live:
            view = View(asker, KEYS if typed is not None else NO_KEYS)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(view.look_loop, interval)
                nursery.start_soon(_redraw_when_resized, view)
                nursery.start_soon(view.draw_loop, lambda screen: _draw(live, console, screen))
                if typed is not None:
                    nursery.start_soon(_obey_keys, typed, view, nursery.cancel_scope)
                ended = await _until_terminated(nursery)

    talk_on(target, timeout, watch)
    if ended:
        raise typer.Exit(128 + ended)


def _console() -> Console:
    # In these a shell may have said how large the terminal was when it began.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Console(highlight=False, _environ=environment)


def _draw(live: Live, console: Console, screen: Screen) -> None:
    width, height = console.size
    live.update(shown(screen, width, height), refresh=True)


class View:
    """What has been answered, and what follows from it."""

    def __init__(self, asker: Asker, keys: str) -> None:
        self._asker = asker
        self._keys = keys
        self._status: Status | None = None
        self._events: list[EventRow] = []
        self._migrations: list[MigrationRow] = []
        self._at_s = 0.0  # since the epoch
        self._answered_s = monotonic_s()  # last; at first when the first question was asked
        self._why = ""  # nobody answers
        self._rates: Rates[tuple[str, str]] = Rates()  # by server and what is counted
        self._flows: dict[str, Flow] = {}
        self._meters: dict[int, Meter] = {}
        self._wanted = trio.Event()  # a look, sooner than in time
        self._changed = trio.Event()  # something, so that it is to be drawn

    @property
    def screen(self) -> Screen:
        """What is to be shown now."""
        now = monotonic_s()
        migrations = [(row, self._meters.setdefault(row.migration, Meter()).last) for row in self._migrations]
        silent_s = now - self._answered_s
        return Screen(self._status, self._at_s, silent_s, self._why, self._flows, migrations, self._events, self._keys)

    def look_now(self) -> None:
        """Somebody does not want to wait."""
        self._wanted.set()

    def redraw(self) -> None:
        """The terminal has changed."""
        self._changed.set()

    async def look_loop(self, interval_s: float) -> None:
        """Asks again and again, whether it is answered or not."""
        while True:
            try:
                await self._look()
            except Unavailable as error:
                self._why = str(error)
            self.redraw()
            with trio.move_on_after(interval_s):
                await self._wanted.wait()
            self._wanted = trio.Event()

    async def _look(self) -> None:
        status = await self._asker(GetStatus())
        events = (await self._asker(ListEvents(limit=EVENTS))).events
        migrations = (await self._asker(ListMigrations(limit=MIGRATIONS))).migrations
        self._answered_s, self._at_s, self._why = monotonic_s(), time.time(), ""
        self._status, self._events = status, events
        self._migrations = [row for row in migrations if is_shown(row)]
        self._count(status)

    def _count(self, status: Status) -> None:
        counted: dict[tuple[str, str], float] = {}
        for info in status.servers:
            if info.counts is not None:
                counted[info.server, "kernel"] = info.counts.kernel_requests
                counted[info.server, "manager"] = info.counts.manager_requests
        rates = self._rates.add(self._answered_s, counted)
        self._flows = {
            info.server: Flow(rates.get((info.server, "kernel")), rates.get((info.server, "manager"))) for info in status.servers
        }
        going_on = {row.migration: row for row in self._migrations}
        self._meters = {number: self._meters.get(number, Meter()) for number in going_on}
        for number, row in going_on.items():
            self._meters[number].add(self._answered_s, totals(row))

    async def draw_loop(self, draw: Callable[[Screen], None]) -> None:
        """Draws what has changed, and how time passes."""
        while True:
            draw(self.screen)
            with trio.move_on_after(DRAW_S):
                await self._changed.wait()
            self._changed = trio.Event()


# --------------------------------------------------------------------------------------------------- the terminal


@contextmanager
def _typing() -> Iterator[int | None]:
    """While inside, keys come one by one and are not shown; None if nothing can be typed."""
    if not sys.stdin.isatty():
        yield None
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        changed = termios.tcgetattr(file)
        # A shell could not be used over what is drawn here.
        changed[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(file, termios.TCSADRAIN, changed)
        yield file
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


async def _obey_keys(file: int, view: View, scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(file)
        typed = os.read(file, 64)
        if not typed or b"q" in typed.lower():
            scope.cancel()
            return
        if b" " in typed:
            view.look_now()


async def _redraw_when_resized(view: View) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _number in signals:
            view.redraw()


async def _until_terminated(nursery: trio.Nursery) -> int:
    """Waits for a signal that ends it, so that the terminal is left as it was."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            nursery.cancel_scope.cancel()
            return number
    raise AssertionError("signals never end")
