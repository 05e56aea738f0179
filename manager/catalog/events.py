"""What has happened, as the catalog keeps it for people: written, asked for, and forgotten.

`note` belongs into the transaction of what happened: then nothing is told that was undone, and nothing that was done is left out.
It is never called where names are changed, but for what goes wrong there. What may happen again and again is one event for a
while, and counts: see `Again`.
"""

import json
import logging
import re
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from cluster.clock import file_time_ns
from cluster.decoding import from_json
from cluster.errors import Malformed
from cluster.events import KINDS, EventKind, Severity
from cluster.messages import EventRow
from manager.catalog.schema import events

log = logging.getLogger(__name__)

EVENTS_MAX = 50_000  # that are kept, however young they are
FORGET_BATCH = 500  # in one transaction, for which requests wait
TEXT_MAX = 1000  # characters of a field

Fields = dict[str, int | str]

_fields_of = from_json(dict[str, int | str])


class Again(NamedTuple):
    """When something that happens again is the same event: within a time, and if nothing of another kind came in between."""

    within_s: float
    but_for: EventKind | None = None


_NEWEST = (
    select(events.c.event, events.c.last_ns)
    .where(events.c.kind == bindparam("k"), events.c.server == bindparam("s"), events.c.volume == bindparam("v"))
    .order_by(events.c.event.desc())
    .limit(1)
)
_NEWEST_OF_KIND = select(func.coalesce(func.max(events.c.event), 0)).where(events.c.kind == bindparam("k"))
_LAST = select(func.coalesce(func.max(events.c.event), 0))
_OLDEST = select(events.c.event, events.c.last_ns).order_by(events.c.event).limit(FORGET_BATCH)


def note(
    connection: Connection,
    kind: EventKind,
    *,
    server: str = "",
    volume: int = 0,
    count: int = 1,
    again: Again | None = None,
    time_ns: int | None = None,
    **fields: int | str,
) -> None:
    """Writes down that something has happened, now if no other time is given; within a transaction that has locked the office."""
    now_ns = file_time_ns() if time_ns is None else time_ns
    if again is not None and _happened_again(connection, kind, server, volume, count, again, now_ns):
        return
    values = {
        "time_ns": now_ns,
        "last_ns": now_ns,
        "count": count,
        "severity": str(KINDS[kind].severity),
        "kind": str(kind),
        "server": server,
        "volume": volume,
        "fields": _as_text(fields),
    }
    connection.execute(insert(events), values)


def _happened_again(
    connection: Connection, kind: EventKind, server: str, volume: int, count: int, again: Again, now_ns: int
) -> bool:
    row = connection.execute(_NEWEST, {"k": str(kind), "s": server, "v": volume}).one_or_none()
    if row is None or row.last_ns < now_ns - int(again.within_s * 1e9):
        return False
    if again.but_for is not None and newest_of(connection, again.but_for) > row.event:
        return False
    _count_up(connection, row.event, count, now_ns)
    return True


def _count_up(connection: Connection, event: int, count: int, now_ns: int) -> None:
    counted = {"count": events.c.count + count, "last_ns": now_ns}
    connection.execute(update(events).where(events.c.event == event).values(**counted))


def newest_of(connection: Connection, kind: EventKind) -> int:
    """The number of the newest event of a kind; 0: there is none."""
    newest: int = connection.execute(_NEWEST_OF_KIND, {"k": str(kind)}).scalar_one()
    return newest


def _as_text(fields: Fields) -> str:
    """Surrogates, of file names that are no UTF-8, are escaped: no database takes them otherwise."""
    return json.dumps({name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()})


# --------------------------------------------------------------------------------------------------------- problems

PROBLEM_S = 86400.0  # a problem that is still there, or there again, is told once in this time
PROBLEMS_MAX = 20  # new ones of a server in this time: the others are in `servers show`

_PROBLEMS = (
    select(events.c.event, events.c.fields)
    .where(
        events.c.kind == str(EventKind.SERVER_PROBLEM),
        events.c.server == bindparam("s"),
        events.c.last_ns >= bindparam("since"),
    )
    .order_by(events.c.event.desc())
    .limit(PROBLEMS_MAX)
)


def note_problem(connection: Connection, server: str, problem: str) -> None:
    """As `note`, for a sentence of a process of the server. Numbers in it may change: it is the same problem."""
    now_ns = file_time_ns()
    found = connection.execute(_PROBLEMS, {"s": server, "since": now_ns - int(PROBLEM_S * 1e9)}).all()
    cause = cause_of(problem)
    for row in found:
        if cause_of(str(fields_of(row).get("problem", ""))) == cause:
            _count_up(connection, row.event, 1, now_ns)
            return
    if len(found) < PROBLEMS_MAX:
        note(connection, EventKind.SERVER_PROBLEM, server=server, problem=problem)


def cause_of(problem: str) -> str:
    """What is the same of two sentences about one cause."""
    return re.sub(r"\d+([.,]\d+)?", "#", problem[:TEXT_MAX])


# ---------------------------------------------------------------------------------------------------------- reading


def read_events(
    connection: Connection, *, after: int, since_ns: int, server: str, kind: str, severity: str, limit: int
) -> tuple[list[EventRow], int]:
    """The newest events, or those *after* a number, in order; and the number up to which there are no others."""
    # First: what comes in between is found by the next question.
    newest: int = connection.execute(_LAST).scalar_one()
    chosen = select(events)
    if since_ns > 0:
        chosen = chosen.where(events.c.last_ns >= since_ns)
    if server:
        chosen = chosen.where(events.c.server == server)
    if kind:
        chosen = chosen.where(or_(events.c.kind == kind, events.c.kind.startswith(f"{kind}-", autoescape=True)))
    if severity:
        chosen = chosen.where(events.c.severity.in_([str(one) for one in Severity(severity).or_worse]))
    if after < 0:
        rows = connection.execute(chosen.order_by(events.c.event.desc()).limit(limit)).all()[::-1]
    else:
        rows = connection.execute(chosen.where(events.c.event > after).order_by(events.c.event).limit(limit)).all()
    found = [_row(row) for row in rows]
    if after >= 0 and len(found) == limit:
        newest = found[-1].event
    return found, max([newest, *(row.event for row in found[-1:])])


def _row(row: Any) -> EventRow:
    return EventRow(
        row.event, row.time_ns, row.last_ns, row.count, row.severity, row.kind, row.server, row.volume, fields_of(row)
    )


def fields_of(row: Any) -> Fields:
    """The fields of a row; none of one that is damaged, which must not hide the others."""
    try:
        return _fields_of(row.fields.encode("utf-8", "surrogatepass"))
    except (Malformed, ValueError) as error:
        log.warning("event %s is damaged: %s", row.event, error)
        return {}


def forget_oldest(connection: Connection, before_ns: int) -> bool:
    """Deletes some of the events that did not happen since a time, or are too many; whether there may be more."""
    page = connection.execute(_OLDEST).all()
    last: int = connection.execute(_LAST).scalar_one()
    # By numbers, of which some are missing: so there may be fewer.
    old = [row.event for row in page if row.last_ns < before_ns or row.event <= last - EVENTS_MAX]
    if old:
        connection.execute(delete(events).where(events.c.event.in_(old)))
    return len(old) == FORGET_BATCH
