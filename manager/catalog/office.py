"""The manager's office: one row that candidates watch, take, extend and give back. What the statements mean is in
`manager.rules.election`.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, select, update

from manager.catalog.schema import Number, office, servers
from manager.rules.election import OfficeRow

GONE = ("left", "lost")

_TERM = bindparam("mine", type_=Number)
_MINE = office.c.term == _TERM
_ROW = select(office.c.term, office.c.server, office.c.address, office.c.beat, office.c.stopped).where(office.c.id == 1)
_DEPOSE = (
    update(office)
    .where(office.c.id == 1, office.c.term == bindparam("seen_term"))
    .values(term=office.c.term + 1, beat=office.c.beat + 1, server=bindparam("new_server"), address=bindparam("new_address"))
)
_TAKE = _DEPOSE.where(office.c.beat == bindparam("seen_beat"))
_EXTEND = update(office).where(office.c.id == 1, _MINE).values(beat=office.c.beat + 1)
_RESIGN = (
    update(office)
    .where(office.c.id == 1)
    .values(
        stopped=case((office.c.stopped < _TERM, _TERM), else_=office.c.stopped),
        server=case((_MINE, ""), else_=office.c.server),
        beat=case((_MINE, office.c.beat + 1), else_=office.c.beat),
    )
)
_CANDIDATES = select(servers.c.manager, servers.c.state).where(servers.c.manager != "")


def read_office(connection: Connection) -> OfficeRow:
    """The office's row."""
    row = connection.execute(_ROW).one()
    return OfficeRow(row.term, row.server, row.address, row.beat, row.stopped)


@dataclass(frozen=True)
class Roll:
    """The addresses of candidates, as far as the catalog knows them: of members, and of servers that have left or are lost."""

    members: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()


def read_roll(connection: Connection) -> Roll:
    """Who may stand and who may not."""
    rows = connection.execute(_CANDIDATES).all()
    members = frozenset(row.manager for row in rows if row.state not in GONE)
    return Roll(members, frozenset(row.manager for row in rows) - members)


def take_office(connection: Connection, seen: OfficeRow, server: str, address: str) -> bool:
    """Takes the term after *seen*; False if somebody else was faster or the holder is alive after all."""
    values = {"seen_term": seen.term, "seen_beat": seen.beat, "new_server": server, "new_address": address}
    return connection.execute(_TAKE, values).rowcount == 1


def depose_office(connection: Connection, term: int, server: str, address: str) -> bool:
    """Takes the term after *term* from a holder that may still be acting; False if somebody else was faster."""
    return connection.execute(_DEPOSE, {"seen_term": term, "new_server": server, "new_address": address}).rowcount == 1


def extend_office(connection: Connection, term: int) -> None:
    """Raises the beat; the store has checked the term in this transaction."""
    connection.execute(_EXTEND, {"mine": term})


def resign_office(connection: Connection, term: int) -> None:
    """Says that the holder of *term*, which had begun, acts no more; if nobody has followed yet, the office is vacant."""
    connection.execute(_RESIGN, {"mine": term})
