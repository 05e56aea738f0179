"""The manager's office: one row that candidates watch, take, extend and give back.

A candidate that has seen the same (term, beat) for `term_s` by its own clock, or an empty server name, takes the next term
by compare-and-set. The holder stops at a deadline that it counts from before its last successful extension began, so it
has stopped before a watcher, who saw that extension later, can take over. Clocks of machines are never compared.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from manager.schema import office

SAFE_PART = 0.9  # of `term_s`: when the holder stops, against clocks that run at slightly different speeds
EXTEND_PART = 0.25  # of `term_s`: how often the holder extends
WATCH_PART = 0.125  # of `term_s`: how often a candidate looks

_ROW = select(office.c.term, office.c.server, office.c.address, office.c.beat).where(office.c.id == 1)
_TAKE = (
    update(office)
    .where(office.c.id == 1, office.c.term == bindparam("seen_term"), office.c.beat == bindparam("seen_beat"))
    .values(term=office.c.term + 1, beat=office.c.beat + 1, server=bindparam("new_server"), address=bindparam("new_address"))
)
_EXTEND = update(office).where(office.c.id == 1, office.c.term == bindparam("mine")).values(beat=office.c.beat + 1)
_VACATE = _EXTEND.values(server="", beat=office.c.beat + 1)


@dataclass(frozen=True)
class OfficeRow:
    """What the row says."""

    term: int
    server: str
    address: str
    beat: int

    @property
    def vacant(self) -> bool:
        return not self.server


class Watch:
    """When a candidate may stand: a pure rule over what it saw and when."""

    def __init__(self, term_s: float) -> None:
        self._term_s = term_s
        self._seen: OfficeRow | None = None
        self._since = 0.0

    def observe(self, row: OfficeRow, now: float) -> bool:
        """Takes what was read before *now*; True if the office may be taken from what this row says."""
        if self._seen is None or (row.term, row.beat) != (self._seen.term, self._seen.beat):
            self._seen = row
            self._since = now
        return row.vacant or now - self._since >= self._term_s


def read_office(connection: Connection) -> OfficeRow:
    """The office's row."""
    row = connection.execute(_ROW).one()
    return OfficeRow(row.term, row.server, row.address, row.beat)


def take_office(connection: Connection, seen: OfficeRow, server: str, address: str) -> bool:
    """Takes the term after *seen*; False if somebody else was faster or the holder is alive after all."""
    values = {"seen_term": seen.term, "seen_beat": seen.beat, "new_server": server, "new_address": address}
    return connection.execute(_TAKE, values).rowcount == 1


def extend_office(connection: Connection, term: int) -> None:
    """Raises the beat; the store has checked the term in this transaction."""
    connection.execute(_EXTEND, {"mine": term})


def vacate_office(connection: Connection, term: int) -> None:
    """Lets any candidate take over at once."""
    connection.execute(_VACATE, {"mine": term})
