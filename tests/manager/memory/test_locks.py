"""The manager's table of locks: ranges as POSIX has them, queues, deadlocks, and sessions that come and go."""

import errno
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.config import ManagerConfig
from cluster.errors import NotManager, Refused
from cluster.messages import (
    LOCK_END,
    HeldLocks,
    LockOutcome,
    LockSpan,
    SetLock,
    Unlock,
)
from cluster.spans import common, covers, excludes, with_span, within, without
from cluster.trust.identity import Role
from manager.memory.locks import SESSION_MAX, TERMS_TO_ELECT, Locks, believed_s, kept_s
from manager.memory.sessions import Session
from manager.rules.liveness import TICK_S
from manager.rules.locks import PATIENCE_S

BYTES = 12
INO = 7
LASTS_S = 10.0
OTHER_INO = 8
WHOLE = LockSpan(0, LOCK_END, True)

spans = st.builds(
    lambda start, length, write: LockSpan(start, min(start + length, BYTES - 1), write),
    st.integers(0, BYTES - 1),
    st.integers(0, BYTES - 1),
    st.booleans(),
)


def as_bytes(held: list[LockSpan]) -> list[str]:
    """Byte by byte: unlocked, locked for reading, locked for writing."""
    found = ["-"] * BYTES
    for span in held:
        for at in range(span.start, span.end + 1):
            assert found[at] == "-", "spans overlap"
            found[at] = "W" if span.write else "R"
    return found


# ------------------------------------------------------------------------------------------------------- the table


class Tables(RuleBasedStateMachine):
    """The table beside an array of bytes for each owner. Two sessions with two owners each; records and whole files."""

    @initialize()
    def begin(self) -> None:
        self.locks = Locks(1, LASTS_S, lambda: True, lambda: 0.0)
        self.sessions = [Session(number, f"s{number}", Role.MOUNT, 0.0) for number in (1, 2)]
        for session in self.sessions:
            self.locks.introduced(session, [], adopt=False)
        self.model: dict[tuple[int, int, bool], list[str]] = {
            (session.number, owner, whole): ["-"] * BYTES
            for session in self.sessions
            for owner in (1, 2)
            for whole in (False, True)
        }
        self.tickets = 0

    def others(self, key: tuple[int, int, bool]) -> list[list[str]]:
        return [held for other, held in self.model.items() if other != key and other[2] == key[2]]

    @rule(session=st.integers(0, 1), owner=st.integers(1, 2), whole=st.booleans(), span=spans)
    def tries(self, session: int, owner: int, whole: bool, span: LockSpan) -> None:
        if whole:
            span = LockSpan(0, BYTES - 1, span.write)
        self.tickets += 1
        key = (session + 1, owner, whole)
        range_of = range(span.start, span.end + 1)
        blocked = any(held[at] == "W" or (span.write and held[at] == "R") for held in self.others(key) for at in range_of)
        request = SetLock(INO, whole, owner, 42, span, self.tickets, wait=False)
        outcome = self.locks.set(self.sessions[session], request)
        assert outcome == (LockOutcome.HELD if blocked else LockOutcome.GRANTED)
        for at in range_of:
            if not blocked:
                self.model[key][at] = "W" if span.write else "R"
            elif whole:
                self.model[key][at] = "-"

    @rule(session=st.integers(0, 1), owner=st.integers(1, 2), whole=st.booleans(), span=spans, kept=st.lists(spans, max_size=3))
    def unlocks(self, session: int, owner: int, whole: bool, span: LockSpan, kept: list[LockSpan]) -> None:
        keeps: list[LockSpan] = []
        for one in kept:
            keeps = with_span(keeps, one)
        self.locks.unlock(self.sessions[session], Unlock(INO, whole, owner, span.start, span.end, keeps))
        held, wanted = self.model[session + 1, owner, whole], as_bytes(keeps)
        for at in range(span.start, span.end + 1):
            held[at] = "-" if "-" in (held[at], wanted[at]) else "R" if "R" in (held[at], wanted[at]) else "W"

    @rule(session=st.integers(0, 1))
    def introduces_itself_again(self, session: int) -> None:
        number = session + 1
        presented = [
            HeldLocks(INO, whole, owner, 42, spans_in(held))
            for (of, owner, whole), held in self.model.items()
            if of == number and set(held) != {"-"}
        ]
        assert self.locks.introduced(self.sessions[session], presented, adopt=False) == []

    @rule(session=st.integers(0, 1))
    def is_replaced(self, session: int) -> None:
        number = session + 1
        self.locks.end_session(number)
        self.locks.introduced(self.sessions[session], [], adopt=False)
        for key in [key for key in self.model if key[0] == number]:
            self.model[key] = ["-"] * BYTES

    @invariant()
    def is_as_modelled(self) -> None:
        if not hasattr(self, "locks"):
            return
        found = {key: ["-"] * BYTES for key in self.model}
        for one in self.locks.listed():
            assert not one.waiting
            held = found[one.owner.session, one.owner.number, one.file.whole]
            for at in range(one.span.start, one.span.end + 1):
                held[at] = "W" if one.span.write else "R"
        assert found == self.model
        assert len(self.locks) == len(list(self.locks.listed()))


def spans_in(held: list[str]) -> list[LockSpan]:
    result: list[LockSpan] = []
    for at, kind in enumerate(held):
        if kind != "-":
            result = with_span(result, LockSpan(at, at, kind == "W"))
    return result


TestTables = pytest.mark.search(Tables.TestCase)
TestTables.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


class Waiting(RuleBasedStateMachine):
    """Owners that wait: nobody waits for nothing, whatever ends, and nothing is granted that is excluded."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.locks = Locks(1, 1e9, lambda: True, lambda: self.now)
        self.session = Session(1, "s1", Role.MOUNT, 0.0)
        self.locks.introduced(self.session, [], adopt=False)
        self.wanted: dict[tuple[int, int], SetLock] = {}
        self.tickets = 0

    @rule(owner=st.integers(1, 4), ino=st.sampled_from([INO, OTHER_INO]), span=spans)
    def waits(self, owner: int, ino: int, span: LockSpan) -> None:
        if any(of == owner for of, _ticket in self.wanted):
            return  # it waits already
        self.tickets += 1
        request = SetLock(ino, False, owner, 42, span, self.tickets, wait=True)
        outcome: int = LockOutcome.HELD
        with suppress(Refused):  # a deadlock
            outcome = self.locks.set(self.session, request)
        if outcome == LockOutcome.WAITING:
            self.wanted[owner, self.tickets] = request

    @rule(owner=st.integers(1, 4), ino=st.sampled_from([INO, OTHER_INO]), span=spans)
    def unlocks(self, owner: int, ino: int, span: LockSpan) -> None:
        if not any(of == owner for of, _ticket in self.wanted):
            self.locks.unlock(self.session, Unlock(ino, False, owner, span.start, span.end))

    @rule(owner=st.integers(1, 4))
    def is_interrupted(self, owner: int) -> None:
        for key in [key for key in self.wanted if key[0] == owner]:
            asked = self.wanted.pop(key)
            self.locks.unlock(self.session, Unlock(asked.ino, False, owner, 0, 0, [LockSpan(0, 0, True)], asked.ticket))

    @rule()
    def time_passes(self) -> None:
        self.now += PATIENCE_S
        self.locks.expire()

    @rule()
    def everybody_asks_again(self) -> None:
        for key, asked in list(self.wanted.items()):
            if self.locks.set(self.session, asked) == LockOutcome.GRANTED:
                del self.wanted[key]

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "locks"):
            return
        rows = list(self.locks.listed())
        held = [row for row in rows if not row.waiting]
        for one in held:
            for other in held:
                assert one.owner == other.owner or one.file != other.file or not excludes(one.span, other.span)
        waiting = [row for row in rows if row.waiting]
        for row in waiting:
            assert self.is_blocked(row, held) or self.now - row.since_s < PATIENCE_S, "somebody waits for nothing"
        _serial, woken = self.locks.woken(self.session, 0)
        for (owner, ticket), asked in self.wanted.items():
            still = any(row.owner.number == owner and row.file.ino == asked.ino for row in waiting)
            assert still or ticket in woken, "nobody tells a waiter that it has been granted"

    @staticmethod
    def is_blocked(row: Any, held: list[Any]) -> bool:
        return any(one.owner != row.owner and one.file == row.file and excludes(one.span, row.span) for one in held)


TestWaiting = pytest.mark.search(Waiting.TestCase)
TestWaiting.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


class Table:
    """A table with sessions 1 and 2 and its own time."""

    def __init__(self, *, all_known: bool = True) -> None:
        self.all_known = all_known
        self.locks = Locks(1, LASTS_S, lambda: self.all_known, lambda: self.now)
        self.sessions = {number: Session(number, f"s{number}", Role.MOUNT, 0.0) for number in (1, 2)}
        for session in self.sessions.values():
            self.locks.introduced(session, [], adopt=False)
        self.now = 0.0
        self.ticket = 0

    def set(self, session: int, span: LockSpan = WHOLE, *, owner: int = 1, ino: int = INO, **more: Any) -> int:
        """Waits by default."""
        self.ticket += 1
        fields = {"whole": False, "wait": True, "ticket": self.ticket, **more}
        request = SetLock(ino, owner=owner, pid=42, span=span, **fields)
        return self.locks.set(self.sessions[session], request)

    def unlock(self, session: int, span: LockSpan = WHOLE, *, owner: int = 1, ino: int = INO, **more: Any) -> None:
        fields = {"whole": False, **more}
        self.locks.unlock(self.sessions[session], Unlock(ino, owner=owner, start=span.start, end=span.end, **fields))

    def woken(self, session: int, after: int = 0) -> list[int]:
        return self.locks.woken(self.sessions[session], after)[1]

    def spans(self, session: int, owner: int = 1) -> list[LockSpan]:
        return [
            row.span
            for row in self.locks.listed()
            if (row.owner.session, row.owner.number, row.waiting) == (session, owner, False)
        ]


READ = LockSpan(0, LOCK_END, False)


def test_who_waits_is_granted_and_woken_when_it_is_free() -> None:
    table = Table()
    assert table.set(1) == LockOutcome.GRANTED
    assert table.set(2, ticket=9) == LockOutcome.WAITING
    assert table.woken(2) == []
    table.unlock(1)
    assert table.woken(2) == [9]
    assert table.spans(2) == [WHOLE]
    assert table.set(2, ticket=9) == LockOutcome.GRANTED
    assert table.set(1, wait=False) == LockOutcome.HELD


def test_what_was_told_is_not_told_again() -> None:
    table = Table()
    table.set(1)
    table.set(2, ticket=9)
    table.unlock(1)
    serial, tickets = table.locks.woken(table.sessions[2], 0)
    assert tickets == [9]
    assert table.locks.woken(table.sessions[2], serial) == (serial, [])


def test_readers_do_not_starve_a_writer_but_go_on_after_a_while() -> None:
    table = Table()
    assert table.set(1, READ) == LockOutcome.GRANTED
    assert table.set(2) == LockOutcome.WAITING
    assert table.set(1, READ, owner=2, ticket=77) == LockOutcome.WAITING
    assert table.set(1, READ, owner=3, wait=False) == LockOutcome.GRANTED
    assert table.set(1, LockSpan(5, 9, False)) == LockOutcome.GRANTED, (
        "who has something locked already must not wait for its waiters"
    )
    table.now += PATIENCE_S
    table.locks.expire()
    assert table.woken(1) == [77]
    for owner in (1, 2, 3):
        table.unlock(1, owner=owner)
    assert table.spans(2) == [WHOLE]


def test_the_place_in_the_queue_is_kept() -> None:
    table = Table()
    table.set(1)
    table.set(2, ticket=90)
    table.set(1, owner=2, ticket=91)
    table.set(2, ticket=90)
    table.unlock(1)
    assert table.spans(2) == [WHOLE]
    assert table.spans(1, owner=2) == []


def test_a_deadlock_over_two_mounts_is_refused() -> None:
    table = Table()
    table.set(1)
    table.set(2, ino=OTHER_INO)
    assert table.set(1, ino=OTHER_INO) == LockOutcome.WAITING
    with pytest.raises(Refused) as caught:
        table.set(2)
    assert caught.value.errno == errno.EDEADLK
    assert table.set(2, wait=False) == LockOutcome.HELD
    table.unlock(2, ino=OTHER_INO)
    assert len(table.spans(1)) == 2


def test_locks_of_whole_files_are_apart_from_records_and_end_before_they_are_changed() -> None:
    table = Table()
    assert table.set(1, READ, whole=True) == LockOutcome.GRANTED
    assert table.set(2, READ, whole=True) == LockOutcome.GRANTED
    assert table.set(1) == LockOutcome.GRANTED
    table.unlock(1)
    assert table.set(1, whole=True, wait=False) == LockOutcome.HELD
    assert table.set(2, whole=True, wait=False) == LockOutcome.GRANTED


def test_two_that_both_turn_shared_into_exclusive_take_turns() -> None:
    table = Table()
    table.set(1, READ, whole=True)
    table.set(2, READ, whole=True)
    assert table.set(1, whole=True, ticket=90) == LockOutcome.WAITING
    assert table.set(2, whole=True) == LockOutcome.GRANTED
    table.unlock(2, whole=True)
    assert table.woken(1) == [90]


def test_a_withdrawn_waiter_gets_nothing_and_holds_up_nobody() -> None:
    table = Table()
    table.set(1)
    table.set(2, ticket=90)
    table.set(2, owner=2, ticket=91)
    table.unlock(2, ticket=90)
    table.unlock(1)
    assert table.spans(2) == []
    assert table.woken(2) == [91]


def test_withdrawing_after_the_grant_brings_back_what_was_there() -> None:
    table = Table()
    table.set(1, READ)
    table.set(2, READ)
    table.set(2, LockSpan(0, 9, True), ticket=90)
    table.unlock(1)
    assert table.spans(2)[0].write
    table.unlock(2, LockSpan(0, 9, True), ticket=90, kept=[LockSpan(0, 9, False)])
    assert table.spans(2) == [READ]


def test_a_silent_session_loses_its_locks_and_must_introduce_itself_again() -> None:
    table = Table()
    table.set(1)
    table.set(2, ticket=90)
    table.now = LASTS_S + 0.1
    table.sessions[2].heard_s = table.now
    assert table.locks.holds(1)
    table.locks.expire()
    assert table.woken(2) == [90]
    assert not table.locks.holds(1)
    with pytest.raises(NotManager):
        table.set(1)
    held = HeldLocks(INO, False, 1, 42, [WHOLE])
    assert table.locks.introduced(table.sessions[1], [held], adopt=False) == [INO]
    assert table.spans(1) == []


@pytest.mark.parametrize(("access_s", "term_s"), [(15.0, 2.0), (60.0, 2.0), (60.0, 10.0), (11.2, 2.0)])
def test_a_lock_is_free_within_the_access_time_although_the_manager_died_with_its_server(access_s: float, term_s: float) -> None:
    config = ManagerConfig("here:1", "sqlite://", access_s=access_s, term_s=term_s)
    election_s = TERMS_TO_ELECT * term_s
    assert election_s <= believed_s(config) < kept_s(config)
    assert election_s + kept_s(config) + TICK_S <= access_s


@pytest.mark.parametrize(("access_s", "lasts_s"), [(11.0, 5.0), (6.0, 5.0), (4.0, 4.0), (0.2, 0.2)])
def test_a_lock_outlasts_an_election_rather_than_the_access_time_where_that_is_short(access_s: float, lasts_s: float) -> None:
    assert believed_s(ManagerConfig("here:1", "sqlite://", access_s=access_s)) == lasts_s


def test_what_is_lost_stays_lost_although_nobody_has_it_by_now() -> None:
    """Somebody may have had the lock in between, and changed what it protects."""
    table = Table()
    table.set(1)
    table.now = LASTS_S + 0.1
    table.locks.expire()
    held = HeldLocks(INO, False, 1, 42, [WHOLE])
    assert table.locks.introduced(table.sessions[1], [held], adopt=False) == [INO]


def test_a_new_table_adopts_what_is_presented_and_grants_nothing_until_all_have() -> None:
    table = Table(all_known=False)
    first, second, third = (HeldLocks(INO, False, 1, 42, [span]) for span in (LockSpan(0, 9, True), LockSpan(5, 14, True), WHOLE))
    session = Session(3, "s3", Role.MOUNT, 0.0)
    table.locks = Locks(2, LASTS_S, lambda: table.all_known, lambda: table.now)
    assert table.locks.introduced(table.sessions[1], [first], adopt=True) == []
    assert table.locks.introduced(table.sessions[2], [second], adopt=True) == [INO]
    assert table.locks.introduced(session, [third], adopt=False) == [INO]
    assert table.set(2, wait=False) == LockOutcome.HELD
    assert table.set(2, LockSpan(20, 29, True), ticket=90, wait=False) == LockOutcome.WAITING
    assert table.set(2, LockSpan(0, 9, True), ticket=91, owner=2) == LockOutcome.WAITING
    assert table.set(1, LockSpan(0, 9, False)) == LockOutcome.GRANTED, "it has that already"
    table.unlock(1)
    table.all_known = True
    table.locks.settle()
    assert table.woken(2) == [90, 91]
    assert table.set(2, LockSpan(20, 29, True), ticket=90, wait=False) == LockOutcome.GRANTED


def test_a_try_that_waited_for_a_new_table_may_be_told_that_it_is_held() -> None:
    table = Table(all_known=False)
    session = Session(3, "s3", Role.MOUNT, 0.0)
    assert table.set(2, ticket=90, wait=False) == LockOutcome.WAITING
    assert table.locks.introduced(session, [HeldLocks(INO, False, 1, 42, [WHOLE])], adopt=True) == []
    table.all_known = True
    table.locks.settle()
    assert table.woken(2) == [90]
    assert table.set(2, ticket=90, wait=False) == LockOutcome.HELD


def test_what_is_not_presented_again_is_free() -> None:
    table = Table()
    table.set(1, LockSpan(0, 9, True))
    table.set(1, LockSpan(20, 29, True), ino=OTHER_INO)
    table.set(2, LockSpan(0, 9, True), ticket=90)
    kept = HeldLocks(OTHER_INO, False, 1, 42, [LockSpan(20, 29, True)])
    assert table.locks.introduced(table.sessions[1], [kept], adopt=False) == []
    assert table.woken(2) == [90]
    assert table.spans(1) == [LockSpan(20, 29, True)]


def test_waiters_of_a_session_that_introduces_itself_again_are_forgotten() -> None:
    table = Table()
    table.set(1)
    table.set(2, ticket=90)
    table.locks.introduced(table.sessions[2], [], adopt=False)
    table.unlock(1)
    assert len(table.locks) == 0


def test_the_table_is_bounded() -> None:
    table = Table()
    for number in range(SESSION_MAX):
        table.set(1, LockSpan(2 * number, 2 * number, True), ino=number // 100 + 1)
    with pytest.raises(Refused) as caught:
        table.set(1, ino=1_000_000)
    assert caught.value.errno == errno.ENOLCK
    assert table.set(2, ino=1_000_000) == LockOutcome.GRANTED
    table.unlock(1, ino=1)
    assert table.set(1, ino=1_000_001) == LockOutcome.GRANTED


@pytest.mark.parametrize(
    ("held", "wanted", "covered"),
    [
        ([LockSpan(0, 9, True)], LockSpan(2, 4, False), True),
        ([LockSpan(0, 9, False)], LockSpan(2, 4, True), False),
        ([LockSpan(0, 3, False), LockSpan(4, 9, True)], LockSpan(2, 5, False), True),
        ([LockSpan(0, 3, False), LockSpan(5, 9, True)], LockSpan(2, 5, False), False),
        ([LockSpan(3, 9, True)], LockSpan(2, 5, False), False),
        ([], LockSpan(2, 5, False), False),
    ],
)
def test_what_is_covered(held: list[LockSpan], wanted: LockSpan, covered: bool) -> None:
    assert covers(held, wanted) is covered


def test_neighbours_of_one_kind_are_one_span() -> None:
    held = with_span([LockSpan(0, 4, True)], LockSpan(5, 9, True))
    assert held == [LockSpan(0, 9, True)]
    assert without(held, 3, 5) == [LockSpan(0, 2, True), LockSpan(6, 9, True)]
    assert within(held, 3, 5) == [LockSpan(3, 5, True)]
    assert common(held, [LockSpan(8, 20, False)]) == [LockSpan(8, 9, False)]
