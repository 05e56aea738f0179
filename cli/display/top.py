"""The screen of `godwit top`: what is known of the network, laid out for a terminal of any size. Pure.

It has exactly as many lines as the terminal. What needs attention comes first; what has no room is counted.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from cli.display.events import STYLES, repeated
from cli.display.render import as_age, as_bytes
from cluster.events import Severity, sentence
from cluster.health import findings, summary
from cluster.membership import ServerState, VolumeCondition, VolumeStanding
from cluster.messages import EventRow, MigrationRow, MigrationState, ServerInfo, Status
from cluster.progress import Rate, totals

LATE_S = 5.0  # without an answer, before that is said
FINDINGS_MAX = 3  # lines of what wants attention, of 24
MIGRATIONS_MAX = 3
EVENTS_MIN = 4  # lines, with their heading, that other parts leave
BAR = 12  # cells
COLUMNS = ("SERVER", "STATE", "SEEN", "FREE", "USED", "REQ/S", "MGR/S", "QUEUE", "OLDEST", "DEAD")
LEFT = frozenset({"SERVER", "STATE"})  # aligned so; numbers are not
LEFT_OUT = ("MGR/S", "USED", "REQ/S", "DEAD", "OLDEST", "SEEN", "QUEUE", "FREE")  # on a narrow terminal, in this order
KEYS = "q  quit   space  look now"
NO_KEYS = "Ctrl-C  quit"  # where nothing can be typed

WARNING, ERROR, HEADING = "yellow", "bold red", "bold"
BAD_STATES = {ServerState.DOWN: ERROR, ServerState.LOST: ERROR, ServerState.SUSPECT: WARNING, ServerState.DRAINING: "cyan"}


@dataclass(frozen=True)
class Flow:
    """What a server's mount has to do, in a second; None: not known yet, or there is none."""

    kernel: float | None = None  # requests of the kernel
    manager: float | None = None  # requests that it makes of managers


@dataclass(frozen=True)
class Screen:
    """What is shown."""

    status: Status | None  # None: nobody has answered yet
    at_s: float = 0.0  # when it was answered, since the epoch
    silent_s: float = 0.0  # for how long nobody has answered
    why: str = ""  # they do not
    flows: dict[str, Flow] = field(default_factory=dict)  # by server
    migrations: Sequence[tuple[MigrationRow, Rate]] = ()
    events: Sequence[EventRow] = ()  # the newest last
    keys: str = KEYS


def shown(screen: Screen, width: int, height: int) -> RenderableType:
    """The screen, for a terminal of this size."""
    # The first lines stay whatever there is no room for; the last one is the footer's.
    room = max(0, height - 1)
    lines = _title(screen) + _health(screen, width, max(1, FINDINGS_MAX * height // 24))
    if screen.status is not None:
        # At least the most urgent of each; the rest of the room is for events.
        least = EVENTS_MIN + (min(len(screen.migrations), MIGRATIONS_MAX) + 2 if screen.migrations else 0)
        lines += _servers(screen, screen.status, width, room - len(lines) - least)
        lines += _migrations(screen, room - len(lines) - EVENTS_MIN)
        lines += _events(screen.events, room - len(lines), screen.at_s)
    lines = lines[:room] + [Text("")] * (room - len(lines)) + [Text(screen.keys, style="reverse")]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


# ------------------------------------------------------------------------------------------------------- at the top


def _title(screen: Screen) -> list[Text]:
    status = screen.status
    if status is None:
        return [Text("godwit top", style=HEADING)]
    space = f"{as_bytes(status.space.free_bytes)} free of {as_bytes(status.space.total_bytes)}"
    at = datetime.fromtimestamp(screen.at_s)
    return [Text(f"{status.cluster}   manager {status.manager} (term {status.term})   {space}   {at:%H:%M:%S}", style=HEADING)]


def _health(screen: Screen, width: int, room: int) -> list[Text]:
    """As `godwit status` begins; the most urgent first."""
    lines: list[Text] = []
    if screen.silent_s >= LATE_S or screen.why:
        since = f"nobody has answered for {as_age(screen.silent_s)}"
        lines += _attention(f"{since}{f': {screen.why}' if screen.why else ''}", width)
    status = screen.status
    if status is None:
        return [*lines, *([] if lines else [Text("waiting for the manager")])]
    found = findings(status)
    if not found:
        lines.append(Text.assemble(("OK", "bold green"), f"  {summary(status)}"))
    for finding in found[:room]:
        lines += _attention(f"{finding.text} ({finding.look})", width)
    if len(found) > room:
        lines.append(Text(f"           and {len(found) - room} more: godwit status"))
    return [*lines, _work(status)]


def _attention(text: str, width: int) -> list[Text]:
    """Two lines at most."""
    indent = " " * len("ATTENTION  ")
    first, *rest = textwrap.wrap(text, max(20, width - len(indent)), max_lines=2, placeholder=" …")
    return [Text.assemble(("ATTENTION", ERROR), f"  {first}"), *(Text(indent + line) for line in rest)]


def _work(status: Status) -> Text:
    text = Text("files at risk ")
    text.append(str(status.below_policy), style=WARNING if status.below_policy else "")
    text.append("   damaged ")
    text.append(str(status.damaged), style=ERROR if status.damaged else "")
    text.append(f"   tasks {status.waiting_tasks} waiting, {status.claimed_tasks} at work, ")
    text.append(f"{status.dead_tasks} dead", style=WARNING if status.dead_tasks else "")
    return text


# ---------------------------------------------------------------------------------------------------------- servers


def _servers(screen: Screen, status: Status, width: int, room: int) -> list[Text]:
    """A line each, in a table; those that are well are left out first."""
    infos = [info for info in status.servers if info.state != ServerState.LEFT]
    kept, rows = infos, max(1, room - 2)  # beside an empty line and the heading
    if len(infos) > rows:
        ordered = sorted(infos, key=lambda info: (not _is_ill(info), info.server))
        kept = sorted(ordered[: max(1, rows - 1)], key=lambda info: info.server)
    cells = [_server(info, screen.flows.get(info.server, Flow()), is_manager=info.server == status.manager) for info in kept]
    more = [Text(f"and {len(infos) - len(kept)} more: godwit servers ls")] if len(kept) < len(infos) else []
    return [Text(""), *_table(COLUMNS, cells, width), *more]


def _is_ill(info: ServerInfo) -> bool:
    return info.state != ServerState.UP or bool(info.problems) or bool(info.dead_tasks)


def _server(info: ServerInfo, flow: Flow, *, is_manager: bool) -> list[Text]:
    free, used, is_bad = _space(info)
    return [
        Text(info.server + ("*" if is_manager else "")),
        Text(info.state, style=BAD_STATES.get(info.state, "")),  # type: ignore[call-overload]
        Text("never" if info.last_seen_s < 0 else as_age(info.last_seen_s)),
        Text(free, style=ERROR if is_bad else ""),
        Text(used),
        Text(_per_second(flow.kernel)),
        Text(_per_second(flow.manager)),
        Text(str(info.waiting_tasks)),
        Text("-" if info.oldest_task_s < 0 else as_age(info.oldest_task_s)),
        Text(str(info.dead_tasks), style=WARNING if info.dead_tasks else ""),
    ]


def _space(info: ServerInfo) -> tuple[str, str, bool]:
    """What is free and used on its disks, those that are in use; instead the condition of one that is not."""
    bad = [volume for volume in info.volumes if volume.condition != VolumeCondition.GOOD or volume.standing != VolumeStanding.IN]
    if bad:
        worst = bad[0]
        return (worst.condition if worst.condition != VolumeCondition.GOOD else worst.standing), "-", True
    devices = {volume.device: volume for volume in info.volumes}.values()
    total, free = sum(one.total_bytes for one in devices), sum(one.free_bytes for one in devices)
    if not total:
        return "-", "-", False
    return as_bytes(free), f"{100 * (total - free) // total}%", False


def _per_second(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.1f}" if 0 < rate < 9.95 else f"{rate:.0f}"


# ----------------------------------------------------------------------------------------------- migrations, events


def _migrations(screen: Screen, room: int) -> list[Text]:
    rows = list(screen.migrations)
    if not rows or room + EVENTS_MIN < 3:
        return []
    kept = rows[: max(1, min(room - 2, MIGRATIONS_MAX))]
    more = f", and {len(rows) - len(kept)} more" if len(kept) < len(rows) else ""
    lines: list[Text] = [Text(""), Text(f"MIGRATIONS{more}", style=HEADING)]
    width = max(len(_name(row)) for row, _rate in kept)
    return lines + [_migration(row, rate, width) for row, rate in kept]


def _migration(row: MigrationRow, rate: Rate, width: int) -> Text:
    """Which one, a bar, and what it means in numbers."""
    done = totals(row)
    filled = BAR * done.done_files // max(done.files, 1)
    parts = [f"{done.done_files} of {done.files} files"]
    if row.state in (MigrationState.PLANNING, MigrationState.RUNNING):
        parts.append(f"{as_bytes(int(rate.size))}/s")
        # While it is planned, what is left to do is not known, however fast it goes.
        if rate.left_s is not None and row.planned:
            parts.append(f"{as_age(rate.left_s)} left")
    if done.failed_files:
        parts.append(f"{done.failed_files} failed")
    style = {MigrationState.FAILED: ERROR, MigrationState.PAUSED: WARNING}.get(row.state, "")  # type: ignore[call-overload]
    return Text.assemble(
        f"{_name(row):<{width}}  ",
        ("█" * filled, "green"),
        ("░" * (BAR - filled), "dim"),
        ("  " + (row.state if row.planned else f"{row.state}, still planning"), style),
        f"  {', '.join(parts)}",
    )


def _name(row: MigrationRow) -> str:
    return f"{row.migration}  {row.source} to {row.target or 'others'}"


def is_shown(row: MigrationRow) -> bool:
    """Whether a migration is of interest now: one that failed can go on."""
    return not row.ended_ns and row.state not in (MigrationState.DONE, MigrationState.CANCELLED)


def _events(rows: Sequence[EventRow], room: int, now_s: float) -> list[Text]:
    if room < 3:
        return []
    lines: list[Text] = [Text(""), Text("EVENTS", style=HEADING)]
    if not rows:
        return [*lines, Text("none")]
    return lines + [_event(row, now_s) for row in rows[-(room - 2) :]]


def _event(row: EventRow, now_s: float) -> Text:
    at = datetime.fromtimestamp(row.time_ns / 1e9)
    style = next((style for severity, style in STYLES.items() if severity == row.severity), "")
    # One of another day is told by its date.
    when = f"{at:%H:%M:%S}" if at.date() == datetime.fromtimestamp(now_s).date() else f"{at:%m-%d}   "
    severity = row.severity if row.severity in set(Severity) else "?"
    return Text.assemble(f"{when}  ", (f"{severity:<7}", style), f"  {sentence(row)}{repeated(row)}")


# ---------------------------------------------------------------------------------------------------------- drawing


def _table(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Lines with a heading. Where the terminal is too narrow, columns are left out, the least important first."""
    kept = list(range(len(columns)))
    sizes = [max([len(name), *(row[number].cell_len for row in rows)]) for number, name in enumerate(columns)]
    for name in LEFT_OUT:
        if sum(sizes[number] + 2 for number in kept) - 2 > width:
            kept.remove(columns.index(name))

    def line(cells: Sequence[Text]) -> Text:
        padded = []
        for number in kept:
            cell = cells[number].copy()
            cell.align("left" if columns[number] in LEFT else "right", sizes[number])
            padded.append(cell)
        return Text("  ").join(padded)

    heading = line([Text(name) for name in columns])
    heading.stylize(HEADING)
    return [heading, *(line(cells) for cells in rows)]
