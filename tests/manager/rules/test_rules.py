"""The pure rules: access lists, placement, back-offs, sessions."""

import errno
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Fenced, Refused
from cluster.messages import TaskState
from manager.changes.tasks import BACKOFF_MAX_S, backoff_s, judge
from manager.memory.claims import DEFERRED_MAX, Claims
from manager.memory.sessions import Sessions
from manager.rules import acl
from manager.rules.placement import Copy, Drop, Holding, Place
from manager.rules.tasks import GONE, TRANSITIONS, Event, next_state, states_after, table
from tests.manager.rules.placing import place

GIB = 2**30

# ------------------------------------------------------------------------------------------------ access lists

permissions = st.integers(0, 7)


@st.composite
def lists(draw: st.DrawFn) -> acl.Acl:
    users = draw(st.dictionaries(st.integers(0, 2**32 - 2), permissions, max_size=3))
    groups = draw(st.dictionaries(st.integers(0, 2**32 - 2), permissions, max_size=3))
    entries = [acl.AclEntry(acl.USER_OBJ, draw(permissions))]
    entries += [acl.AclEntry(acl.USER, bits, who) for who, bits in sorted(users.items())]
    entries += [acl.AclEntry(acl.GROUP_OBJ, draw(permissions))]
    entries += [acl.AclEntry(acl.GROUP, bits, who) for who, bits in sorted(groups.items())]
    if users or groups or draw(permissions) == 0:
        entries.append(acl.AclEntry(acl.MASK, draw(permissions)))
    return (*entries, acl.AclEntry(acl.OTHER, draw(permissions)))


@given(lists())
def test_a_list_survives_packing(entries: acl.Acl) -> None:
    assert acl.parse(acl.pack(entries)) == entries
    assert acl.parse(acl.pack(tuple(reversed(entries)))) == entries


@given(lists(), st.integers(0, 0o7777))
def test_chmod_and_the_list_agree(entries: acl.Acl, mode: int) -> None:
    assert acl.mode_of(acl.chmod(entries, mode), mode) == mode


@given(lists(), st.integers(0, 0o777))
def test_what_is_inherited_grants_no_more_than_mode_and_list(entries: acl.Acl, mode: int) -> None:
    got, access = acl.inherit(entries, mode)
    assert got & ~mode == 0
    assert got & ~acl.mode_of(entries, 0) == 0
    assert access is None or acl.mode_of(access, got) == got


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_understood(value: bytes) -> None:
    parsed = None
    with suppress(Refused):
        parsed = acl.parse(value)
    assert parsed is None or acl.parse(acl.pack(parsed)) == parsed


@pytest.mark.parametrize(
    "entries",
    [
        [(1, 7, 0), (4, 7, 0)],
        [(1, 7, 0), (4, 7, 0), (0x20, 7, 0), (0x20, 7, 0)],
        [(1, 7, 0), (2, 7, 5), (4, 7, 0), (0x20, 7, 0)],
        [(1, 7, 0), (2, 7, 5), (2, 7, 5), (4, 7, 0), (0x10, 7, 0), (0x20, 7, 0)],
        [(1, 8, 0), (4, 7, 0), (0x20, 7, 0)],
        [(1, 7, 0), (3, 7, 0), (4, 7, 0), (0x20, 7, 0)],
    ],
)
def test_invalid_lists(entries: list[tuple[int, int, int]]) -> None:
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    with pytest.raises(Refused) as caught:
        acl.parse(value)
    assert caught.value.errno == errno.EINVAL


# --------------------------------------------------------------------------------------------------- placement


@st.composite
def networks(draw: st.DrawFn) -> dict[int, Place]:
    count = draw(st.integers(1, 8))
    return {
        number: Place(
            number,
            f"s{draw(st.integers(1, 4))}",
            f"d{draw(st.integers(1, 6))}",
            200 * GIB,
            draw(st.integers(0, 200)) * GIB,
            draw(st.booleans()),
        )
        for number in range(1, count + 1)
    }


@given(networks(), st.integers(1, 6), st.integers(1, 10_000), st.data())
def test_placement_converges_and_never_endangers(places: dict[int, Place], copies: int, ino: int, data: st.DataObject) -> None:
    home = data.draw(st.sampled_from(sorted(places)))
    held = {
        volume: Holding(volume, current=data.draw(st.booleans()))
        for volume in data.draw(st.sets(st.sampled_from(sorted(places))))
        if volume != home
    }
    first: list[Copy | Drop] = []
    for _ in range(3):
        actions = place(ino=ino, size=1, home=home, copies=copies, holdings=held.values(), places=places)
        first = first or actions
        copied = {action.volume for action in actions if isinstance(action, Copy)}
        dropped = {action.volume for action in actions if isinstance(action, Drop)}
        assert home not in copied | dropped
        current = 1 + sum(holding.current for volume, holding in held.items() if volume not in dropped)
        assert not dropped or current >= copies
        assert len(copied) <= copies - 1
        for volume in dropped:
            del held[volume]
        held |= {volume: Holding(volume, current=True) for volume in copied}
    assert place(ino=ino, size=1, home=home, copies=copies, holdings=held.values(), places=places) == []
    assert place(ino=ino, size=1, home=home, copies=copies, holdings=held.values(), places=places) == []


def _three(up: tuple[bool, bool, bool] = (True, True, True), free: tuple[int, int, int] = (9, 9, 9)) -> dict[int, Place]:
    return {n: Place(n, f"s{n}", f"d{n}", 200 * GIB, free[n - 1] * GIB, up[n - 1]) for n in (1, 2, 3)}


def _place(places: dict[int, Place], copies: int, *held: Holding, size: int = 1, ino: int = 7) -> list[Copy | Drop]:
    return place(ino=ino, size=size, home=1, copies=copies, holdings=held, places=places)


def test_servers_that_are_down_get_new_copies_only_if_nobody_else_is_left() -> None:
    places = _three(up=(True, False, True))
    assert all(_place(places, 2, ino=ino) == [Copy(3)] for ino in range(50))
    assert {action.volume for action in _place(places, 3)} == {2, 3}


def test_another_server_is_better_than_another_volume_of_the_same_one() -> None:
    places = _three() | {4: Place(4, "s1", "d4", 200 * GIB, 199 * GIB, True), 5: Place(5, "s1", "d1", 200 * GIB, GIB, True)}
    assert all(action.volume in (2, 3) for ino in range(50) for action in _place(places, 3, ino=ino))
    assert {action.volume for action in _place(places, 9)} == {2, 3, 4}, "a second volume on the home's disk protects nothing"


def test_replicas_stay_where_they_are_even_if_their_server_is_down() -> None:
    assert _place(_three(up=(True, False, True)), 2, Holding(2, current=True)) == []
    assert _place(_three(up=(True, False, True)), 2, Holding(2, current=False)) == [Copy(2)]


def test_full_volumes_get_nothing_new() -> None:
    assert _place(_three(free=(9, 0, 9)), 3) == [Copy(3)]
    assert _place(_three(), 3, size=10 * GIB) == []


def test_surplus_goes_only_when_enough_is_current() -> None:
    both = Holding(2, current=True), Holding(3, current=True)
    assert len(_place(_three(), 2, *both)) == 1
    assert _place(_three(), 1, *both) == [Drop(2), Drop(3)]
    assert _place(_three(), 2, Holding(2, current=False), Holding(3, current=False)) in ([Copy(2)], [Copy(3)])


def test_free_space_decides_in_proportion() -> None:
    places = _three(free=(9, 10, 30))
    on_third = sum(_place(places, 2, ino=ino) == [Copy(3)] for ino in range(1000))
    assert 650 < on_third < 850


# ------------------------------------------------------------------------------------------ queue rules, claims


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_back_offs_grow_to_a_bound(attempts: int, draw: float) -> None:
    assert 0.5 <= backoff_s(attempts, draw) <= BACKOFF_MAX_S
    assert backoff_s(attempts + 4, draw) >= backoff_s(attempts, draw)


def test_verdicts() -> None:
    def verdict(outcome: str, attempts: int, *, newer: bool = False) -> tuple[str, int]:
        judged = judge(outcome, attempts=attempts, newer=newer, max_attempts=3, draw=0.5)
        return next_state(TaskState.CLAIMED, judged.event), judged.attempts

    assert verdict("changed", 2) == ("deferred", 2)
    assert verdict("retry", 0) == ("deferred", 1)
    assert verdict("retry", 2) == ("dead", 3)
    assert verdict("failed", 0) == ("dead", 1)
    assert verdict("retry", 2, newer=True) == ("waiting", 0)
    assert verdict("nonsense", 2) == ("dead", 3)


def test_every_state_can_be_left_and_every_event_happens_somewhere() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)
    for state in TRANSITIONS:
        reached, todo = {state}, [state]
        while todo:
            for following in TRANSITIONS.get(todo.pop(), {}).values():
                if following not in reached:
                    reached.add(following)
                    todo.append(following)
        assert GONE in reached, f"a task that is {state} may stay for ever"
    assert states_after(Event.NEW_MANAGER) == {TaskState.DEFERRED: TaskState.WAITING}
    assert set(states_after(Event.RETRY)) == {TaskState.DEFERRED, TaskState.DEAD}
    with pytest.raises(KeyError):
        next_state(TaskState.WAITING, Event.DONE)


def test_the_documentation_shows_the_states_of_tasks() -> None:
    assert table() in (Path(__file__).resolve().parents[3] / "docs/queues.md").read_text()


def test_claims_run_out_and_back_offs_are_bounded() -> None:
    claims = Claims(10.0)
    claims.begin(1, 5, "s1", 7, now=0.0)
    claims.extend([1], "s2", now=9.0)
    assert claims.expired(10.0) == {1: 5}
    claims.extend([1], "s1", now=9.0)
    assert claims.expired(10.0) == {}
    claims.end_all({1: 4})
    assert claims.of_server("s1") == {1: 5}
    for task in range(DEFERRED_MAX + 3):
        claims.defer(task, 100.0)
    due = claims.due(0.0)
    assert due == {0: 100.0, 1: 100.0, 2: 100.0}
    claims.defer(1, 200.0)
    claims.woken(due)
    assert len(claims.due(100.0)) == DEFERRED_MAX
    claims.woken(claims.due(100.0))
    assert claims.due(200.0) == {1: 200.0}


# ---------------------------------------------------------------------------------------------------- sessions


def test_a_close_ends_only_what_was_opened_before() -> None:
    sessions = Sessions(30.0)
    one, _ = sessions.introduce(1, "s1", "mount", 0.0)
    sessions.open(one, 5, write=True, sequence=4)
    assert sessions.close(one, 5, 4, still_open=False) is None
    assert sessions.is_written(5)
    sessions.open(one, 5, write=False, sequence=6)
    assert sessions.close(one, 5, 5, still_open=False) is None
    assert sessions.is_open(5)
    assert not sessions.is_written(5)
    assert sessions.close(one, 5, 7, still_open=False) == 5
    assert not sessions.is_open(5)


def test_writing_ends_before_reading() -> None:
    sessions = Sessions(30.0)
    one, _ = sessions.introduce(1, "s1", "mount", 0.0)
    two, _ = sessions.introduce(2, "s2", "mount", 0.0)
    sessions.open(one, 5, write=True, sequence=1)
    assert sessions.is_written(5)
    assert not sessions.is_written(5, besides=one)
    assert not sessions.is_written(5, besides=one, until=1)
    sessions.open(one, 5, write=True, sequence=2)
    assert sessions.is_written(5, besides=one, until=1), "an open that came after the commit counts"
    assert sessions.is_written(5, besides=two)
    assert sessions.writers(5) == ["s1"]
    assert sessions.close(one, 5, 3, still_open=True) is None
    assert sessions.is_open(5)
    assert not sessions.is_written(5)


def test_a_newer_session_replaces_the_older_one_except_for_people() -> None:
    sessions = Sessions(30.0)
    old, _ = sessions.introduce(1, "s1", "mount", 0.0)
    new, replaced = sessions.introduce(2, "s1", "mount", 1.0)
    assert replaced == [old]
    sessions.end(old)
    assert not sessions.is_live(old)
    with pytest.raises(Fenced):
        sessions.introduce(1, "s1", "mount", 2.0)
    assert sessions.introduce(3, "s1", "agent", 1.0)[1] == []
    assert sessions.introduce(4, "s1", "admin", 1.0)[1] == []
    assert sessions.introduce(5, "s1", "admin", 1.0)[1] == []
    assert sessions.introduce(2, "s1", "mount", 3.0) == (new, [])
    assert new.connection == 2


def test_silence_ends_a_session_and_what_it_has_open() -> None:
    sessions = Sessions(30.0)
    one, _ = sessions.introduce(1, "s1", "mount", 0.0)
    two, _ = sessions.introduce(2, "s2", "mount", 20.0)
    for session in (one, two):
        sessions.open(session, 7, write=False, sequence=1)
    sessions.open(one, 8, write=False, sequence=2)
    assert sessions.silent(31.0) == [one]
    assert sessions.end(one) == [8]
    assert sessions.is_open(7)


def test_what_is_presented_is_all_there_is() -> None:
    sessions = Sessions(30.0)
    one, _ = sessions.introduce(1, "s1", "mount", 0.0)
    sessions.open(one, 5, write=True, sequence=9)
    sessions.open(one, 6, write=True, sequence=9)
    assert sessions.present(one, [(5, False), (7, True)]) == [6]
    assert sessions.close(one, 5, 8, still_open=False) is None, "a registration that is there keeps its sequence"
    assert sessions.is_written(7)
    assert sessions.close(one, 7, 1, still_open=False) == 7
