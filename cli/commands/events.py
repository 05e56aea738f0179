"""`godwit events`: what has happened."""

import errno
import json
import os
import re
import select
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import trio
import typer
from rich.console import Console
from rich.text import Text

from cli.display.events import line_of, style_of
from cli.display.render import print_line
from cli.network.ask import ask, talk_on
from cli.network.completion import complete_server
from cli.network.target import DEFAULT_TIMEOUT_S, RootOption, Target, TimeoutOption, find_target
from cluster.errors import Unavailable
from cluster.events import GROUPS, EventKind, Severity, sentence
from cluster.messages import EventRow, Events, ListEvents
from cluster.rpc.conversation import Asker

POLL_S = 1.0  # a question to the manager each time
SHOWN = 100  # unless --limit says otherwise
SHOWN_MAX = 10_000  # of those that there are
SHOWN_BEFORE = 10  # the same with --follow, before those to come
AT_ONCE = 1000  # of those to come, in one answer

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?(?:min|[smhdw])\s*)+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(min|[smhdw])")


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, with what happens from now on, until Ctrl-C.")] = False,
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME", help="Only since then: 90s, 2h, 1h30m, 7d, or 2026-12-24 18:00.", show_default=False
        ),
    ] = "",
    server: Annotated[
        str,
        typer.Option("--server", metavar="NAME", autocompletion=complete_server, help="Only of this server.", show_default=False),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="KIND",
            autocompletion=lambda incomplete: [name for name in _names() if name.startswith(incomplete)],
            help="Only of this kind (server-down), or of this group of kinds (server).",
            show_default=False,
        ),
    ] = "",
    severity: Annotated[Severity, typer.Option("--severity", help="Only what is as bad as this, or worse.")] = Severity.INFO,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            min=1,
            max=SHOWN_MAX,
            help=f"The newest so many: {SHOWN}, or {SHOWN_BEFORE} before --follow, unless --since says since when.",
            show_default=False,
        ),
    ] = None,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in each line, as docs/cli.md describes it.")] = False,
) -> None:
    """Show what has happened, the newest last: elections, servers and disks that went and came back, files at risk, migrations.

    Kept for 30 days. What happens again and again is one event, which says how often. With --json there is one object in each
    line. The page docs/events.md has all kinds.

    \b
    Examples:
      godwit events --since 2h
      godwit events --follow --severity warning
      godwit events --kind migration --server s1 --json
    """
    if kind and kind not in _names():
        raise typer.BadParameter(f"there is no kind {kind!r}; there are: {', '.join(EventKind)}", param_hint="--kind")
    # Info is all there is: without a condition the newest are found at once.
    worst = "" if severity is Severity.INFO else severity.value
    wanted = ListEvents(since_ns=since_ns(since, time.time()), server=server, kind=kind, severity=worst)
    target = find_target(root)
    if follow:
        # Whoever says since when wants all of it.
        shown = limit or (SHOWN_MAX if since else SHOWN_BEFORE)
        _follow(target, timeout, msgspec.structs.replace(wanted, limit=shown), as_json=as_json)
        return
    found = ask(target, timeout, msgspec.structs.replace(wanted, limit=limit or (SHOWN_MAX if since else SHOWN))).events
    _print(found, as_json=as_json)
    if not found and not as_json:
        print_line("no events")


def _names() -> list[str]:
    return [*GROUPS, *EventKind]


def since_ns(text: str, now_s: float) -> int:
    """Nanoseconds since the epoch of a span before *now_s*, or of a date with or without a time, local unless it says otherwise.

    Raises `typer.BadParameter`.
    """
    text = text.strip()
    if not text:
        return 0
    if _SPAN.fullmatch(text):
        span_s = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
        return max(0, int((now_s - span_s) * 1e9))
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp() * 1e9))
    except (ValueError, OverflowError, OSError) as error:
        why = f"{text!r} is no time: 90s, 2h, 1h30m, 7d, 2026-12-24, '2026-12-24 18:00'"
        raise typer.BadParameter(why, param_hint="--since") from error


# -------------------------------------------------------------------------------------------------------- following


def _follow(target: Target, timeout_s: float, wanted: ListEvents, *, as_json: bool) -> None:
    """Shows events until Ctrl-C, or until nobody reads them any more."""

    async def follow(asker: Asker) -> None:
        answer = await asker(wanted)
        is_away = False
        # Of those to come all are wanted, however late a manager wrote them down.
        following = msgspec.structs.replace(wanted, since_ns=0, limit=AT_ONCE)
        while True:
            _print(answer.events, as_json=as_json)
            _check_reader()
            # By its number: whoever is the manager then has the same ones after it. An older catalog may have been brought back.
            following = msgspec.structs.replace(following, after=answer.newest)
            if len(answer.events) < AT_ONCE:
                await trio.sleep(POLL_S)
            try:
                answer = await asker(following)
                is_away = False
            except Unavailable as error:
                if not is_away:
                    sys.stderr.write(f"godwit: {error}; going on as soon as somebody does\n")
                is_away, answer = True, Events([], following.after)

    talk_on(target, timeout_s, follow)


def _check_reader() -> None:
    """Raises `BrokenPipeError` if nobody reads the output any more: perhaps nothing happens for days."""
    sys.stdout.flush()
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except OSError:
        return  # in tests it is no file
    if any(event & select.POLLERR for _file, event in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


# ----------------------------------------------------------------------------------------------------------- showing


def _print(rows: list[EventRow], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_line(json.dumps(event_object(row)))
        return
    console = Console(highlight=False) if sys.stdout.isatty() else None
    for row in rows:
        if console is None:
            print_line(line_of(row))
        else:
            console.print(Text(line_of(row), style=style_of(row)), soft_wrap=True)


def event_object(row: EventRow) -> dict[str, object]:
    """An event for JSON; see docs/cli.md."""
    return {
        "event": row.event,
        "time": datetime.fromtimestamp(row.time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "time_ns": row.time_ns,
        "last_ns": row.last_ns,
        "count": row.count,
        "severity": row.severity,
        "kind": row.kind,
        "server": row.server or None,
        "volume": row.volume or None,
        "message": sentence(row),
        "fields": row.fields,
    }
