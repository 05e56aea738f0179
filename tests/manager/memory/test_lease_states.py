"""What becomes of a lease in the manager's table: each state, each event.

`docs/leases.md` quotes the table, which is made by running the code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.leases import LeaseKeys
from cluster.messages import Node
from cluster.trust.identity import Role
from manager.memory.leases import Leases
from manager.memory.sessions import Session
from tests.manager.office import SECRET

INO = 7
NODE = Node(INO, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
DOCUMENT = Path(__file__).parents[3] / "docs" / "leases.md"
NOW_S = 100.0


class NoMembers:
    """Volumes are on nobody's server here."""

    def get(self, _volume: int) -> None:
        return None


class Table:
    """A manager's table with one session's lease for one inode at most."""

    def __init__(self) -> None:
        members: Any = NoMembers()
        self.leases = Leases(1, 15.0, LeaseKeys(SECRET), members, lambda: NOW_S, now=lambda: NOW_S)
        self.session = Session(1, "s1", Role.MOUNT, NOW_S)
        self.now_s = NOW_S

    def expire(self, after_s: float) -> None:
        self.now_s = NOW_S + after_s
        self.leases.expire(self.now_s)

    @property
    def state(self) -> str:
        lease = self.leases.get(INO, self.session.number)
        if lease is None:
            return "none"
        return (
            f"`{lease.mode(self.now_s)}`" + (", token" if lease.token is not None else "") + (", writer" if lease.writer else "")
        )

    def token(self, *, writer: bool) -> None:
        self.leases.grant(self.session, NODE, writer=writer, in_grace=False, now=NOW_S)

    def cache(self) -> None:
        self.leases.let_cache(self.session, [INO], 1, self.leases.next_serial(), NOW_S)

    def alone(self) -> None:
        self.leases.let_alone(self.session, [INO], INO, self.leases.next_serial(), NOW_S)

    def stop_caching(self) -> None:
        lease = self.leases.get(INO, self.session.number)
        is_open = lease is not None and lease.token is not None
        self.leases.stops_caching(INO, self.session.number, up_to=self.leases.next_serial(), is_open=is_open)


STATES: dict[str, list[Callable[[Table], None]]] = {
    "none": [],
    "cached": [Table.cache],
    "open to read": [lambda table: table.token(writer=False)],
    "open to read and cached": [lambda table: table.token(writer=False), Table.cache],
    "open to write": [lambda table: table.token(writer=True)],
    "open to write and cached": [lambda table: table.token(writer=True), Table.cache],
    "alone": [Table.alone],
    "open to write and alone": [lambda table: table.token(writer=True), Table.alone],
}
EVENTS: dict[str, Callable[[Table], None]] = {
    "token to read": lambda table: table.token(writer=False),
    "token to write": lambda table: table.token(writer=True),
    "grant to cache": Table.cache,
    "grant to be alone": Table.alone,
    "recall answered or waited out, or given back": Table.stop_caching,
    "closed for writing": lambda table: table.leases.stops_writing(table.session, INO),
    "time to be alone and margin over": lambda table: table.expire(table.leases.alone_lasts_s),
    "access time and margin over": lambda table: table.expire(table.leases.lasts_s),
    "another process of the server": lambda table: table.leases.end_session(table.session.number, keep_alone_at=NOW_S),
}

ENDS_WRITING = {"token to read", "closed for writing", "access time and margin over", "another process of the server"}


def in_state(name: str) -> Table:
    table = Table()
    for step in STATES[name]:
        step(table)
    return table


def state_table() -> str:
    """What each event makes of each state, in Markdown."""
    lines = [
        "| event | " + " | ".join(f"{name}: {in_state(name).state}" for name in STATES) + " |",
        "|---" * (len(STATES) + 1) + "|",
    ]
    for event, happens in EVENTS.items():
        after = []
        for name in STATES:
            table = in_state(name)
            before = table.state
            happens(table)
            after.append("=" if table.state == before else table.state)
        lines.append(f"| {event} | {' | '.join(after)} |")
    return "\n".join(lines) + "\n"


def test_the_document_has_the_table_of_states() -> None:
    assert state_table() in DOCUMENT.read_text(), state_table()


def test_nothing_but_an_end_takes_the_right_to_write_from_who_may_be_writing() -> None:
    for name in ("open to write", "open to write and cached", "open to write and alone"):
        for event, happens in EVENTS.items():
            table = in_state(name)
            happens(table)
            ends = event in (
                "token to read",
                "closed for writing",
                "access time and margin over",
                "another process of the server",
            )
            assert table.leases.is_written(INO) != ends, (name, event)


def test_no_event_but_a_grant_lets_a_holder_cache() -> None:
    for name in STATES:
        for event, happens in EVENTS.items():
            table = in_state(name)
            before = bool(table.leases.caching(INO, NOW_S))
            happens(table)
            if bool(table.leases.caching(INO, NOW_S)) and not before:
                assert event in ("grant to cache", "grant to be alone"), (name, event)


def test_nobody_is_alone_who_may_not_cache() -> None:
    for name in STATES:
        for event, happens in EVENTS.items():
            table = in_state(name)
            happens(table)
            is_alone = table.leases.is_alone(INO, table.session.number, table.now_s)
            assert not is_alone or table.leases.caching(INO, table.now_s), (name, event)
            assert is_alone == (table.leases.alone_elsewhere(INO, 2, table.now_s) is not None), (name, event)
            assert is_alone == bool(table.leases.held(table.now_s)), (name, event)


def test_who_was_alone_before_takes_nothing_from_who_is_now() -> None:
    table = Table()
    leases, later_s = table.leases, NOW_S + 2 * table.leases.lasts_s
    table.alone()
    other = Session(2, "s2", Role.MOUNT, NOW_S)
    leases.let_alone(other, [INO], INO, leases.next_serial(), later_s)
    leases.expire(later_s)
    assert leases.get(INO, table.session.number) is None
    assert leases.is_alone(INO, other.number, later_s)
    leases.end_session(other.number)
    assert leases.held(later_s) == []
