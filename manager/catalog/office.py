"""The manager's office: one row that candidates watch, take, extend and give back. What the statements mean is in
`manager.rules.election`.
"""

import math
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, select, update

from manager.catalog.schema import Number, office, servers
from manager.rules.election import OfficeRow

GONE = ("left", "lost")  # states of servers whose candidates may not stand

_TERM = bindparam("mine", type_=Number)
_MINE = office.c.term == _TERM
_LASTS = bindparam("lasts_ms", type_=Number)
_ROW = select(office.c.term, office.c.server, office.c.address, office.c.beat, office.c.stopped, office.c.lasts_ms).where(
    office.c.id == 1
)
# Compare-and-set by the term alone: the holder may be extending it at this very moment.
_DEPOSE = (
    update(office)
    .where(office.c.id == 1, office.c.term == bindparam("last_term"))
    .values(
        term=office.c.term + 1,
        beat=office.c.beat + 1,
        server=bindparam("new_server"),
        address=bindparam("new_address"),
        # Never shorter than before: the row says for how long the holder before may act, also to who deposes the new one.
        lasts_ms=case((office.c.lasts_ms < _LASTS, _LASTS), else_=office.c.lasts_ms),
    )
)
# And by the beat: it fails if the holder has been alive since the row was read.
_TAKE = _DEPOSE.where(office.c.beat == bindparam("last_beat"))
_NEXT_BEAT = bindparam("next_beat", type_=Number)
# Not a vacant office: who has resigned does not come back by an extension that was late.
_EXTEND = (
    update(office)
    .where(office.c.id == 1, _MINE, office.c.server != "", office.c.beat < _NEXT_BEAT)
    .values(beat=_NEXT_BEAT, lasts_ms=_LASTS)
)
_RESIGN = (
    update(office)
    .where(office.c.id == 1)
    .values(
        # Ever growing: a holder that resigns late takes nothing back from those after it.
        stopped=case((office.c.stopped < _TERM, _TERM), else_=office.c.stopped),
        # Only its own: if somebody has followed, just `stopped` is raised, for which that one may be waiting.
        server=case((_MINE, ""), else_=office.c.server),
        beat=case((_MINE, office.c.beat + 1), else_=office.c.beat),
    )
)
_CANDIDATES = select(servers.c.manager, servers.c.state).where(servers.c.manager != "")


def read_office(connection: Connection) -> OfficeRow:
    """The office's row."""
    row = connection.execute(_ROW).one()
    return OfficeRow(row.term, row.server, row.address, row.beat, row.stopped, row.lasts_ms / 1000)


@dataclass(frozen=True)
class Roll:
    """The addresses of candidates, as far as the catalog knows them: of members, and of servers that have left or are lost."""

    members: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()


def read_roll(connection: Connection) -> Roll:
    """The addresses of candidates that may stand, and of those that may not."""
    rows = connection.execute(_CANDIDATES).all()
    members = frozenset(row.manager for row in rows if row.state not in GONE)
    return Roll(members, frozenset(row.manager for row in rows) - members)


def take_office(connection: Connection, row: OfficeRow, server: str, address: str, lasts_s: float = 0.0) -> bool:
    """Takes the term after *row*; False if somebody else was faster or the holder is alive after all. *lasts_s*: at least."""
    values = {"last_term": row.term, "last_beat": row.beat, **_taken(server, address, lasts_s)}
    return connection.execute(_TAKE, values).rowcount == 1


def depose_office(connection: Connection, term: int, server: str, address: str, lasts_s: float = 0.0) -> bool:
    """Takes the term after *term* from a holder that may still be acting; False if somebody else was faster.

    The office lasts at least as long as with that holder's last beat: so the row says how long that may act.
    """
    return connection.execute(_DEPOSE, {"last_term": term, **_taken(server, address, lasts_s)}).rowcount == 1


def _taken(server: str, address: str, lasts_s: float) -> dict[str, str | int]:
    return {"new_server": server, "new_address": address, "lasts_ms": _milliseconds(lasts_s)}


def _milliseconds(lasts_s: float) -> int:
    # Up: who reads it must not take the office for ended before its holder does.
    return math.ceil(lasts_s * 1000)


def extend_office(connection: Connection, term: int, lasts_s: float = 0.0, beat: int | None = None) -> bool:
    """Raises the beat, to *beat* if that is given; the office lasts *lasts_s* from then on. False if the term is over.

    An earlier extension whose outcome nobody knows may still come: it finds a higher beat, and changes nothing.
    """
    wanted = read_office(connection).beat + 1 if beat is None else beat
    return connection.execute(_EXTEND, {"mine": term, "next_beat": wanted, "lasts_ms": _milliseconds(lasts_s)}).rowcount == 1


def resign_office(connection: Connection, term: int) -> None:
    """Says that the holder of *term*, which had begun, acts no more; if nobody has followed yet, the office is vacant."""
    connection.execute(_RESIGN, {"mine": term})
