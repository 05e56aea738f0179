"""The states of a server: every standing with every event, and what the documentation shows of it."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.membership import (
    DOWN,
    DOWN_WANTED_EMPTY,
    DRAINING,
    LEFT,
    LOST,
    MEANINGS,
    STANDINGS,
    SUSPECT,
    TRANSITIONS,
    UP,
    Event,
    IllegalTransition,
    ServerState,
    Standing,
    standing_of,
    stored_state,
    table,
    transition,
)

FROM_TIME = (Event.HEARD, Event.SILENT, Event.SILENT_TOO_LONG)
DOCUMENT = Path(__file__, "../../../docs/membership.md").resolve()


@pytest.mark.parametrize(("standing", "event"), list(product(STANDINGS, Event)), ids=str)
def test_an_event_leads_to_a_standing_or_is_refused(standing: Standing, event: Event) -> None:
    if event in TRANSITIONS[standing]:
        assert transition(standing, event) in STANDINGS
    else:
        with pytest.raises(IllegalTransition, match=f"{standing}.*{event}"):
            transition(standing, event)


def test_the_table_knows_every_standing_and_every_state_has_a_meaning() -> None:
    assert set(TRANSITIONS) == set(STANDINGS)
    assert set(MEANINGS) == set(ServerState) == {standing.state for standing in STANDINGS}


@pytest.mark.parametrize("standing", [standing for standing in STANDINGS if standing not in (LEFT, LOST)], ids=str)
def test_time_may_pass_for_every_member(standing: Standing) -> None:
    """Reports and silence are legal at any time, and a repeat changes nothing more."""
    for event in FROM_TIME:
        once = transition(standing, event)
        assert transition(once, event) == once


@given(st.lists(st.sampled_from(FROM_TIME), max_size=30))
def test_the_wish_to_be_empty_outlives_silence(events: list[Event]) -> None:
    standing = DRAINING
    for event in events:
        standing = transition(standing, event)
        assert standing.wanted_empty
        assert not MEANINGS[standing.state].accepts
    assert transition(standing, Event.HEARD) == DRAINING


def test_what_each_way_leads_to() -> None:
    assert transition(UP, Event.SILENT) == SUSPECT
    assert transition(SUSPECT, Event.HEARD) == UP
    assert transition(SUSPECT, Event.SILENT_TOO_LONG) == DOWN
    assert transition(DOWN, Event.HEARD) == UP
    assert transition(DRAINING, Event.SILENT_TOO_LONG) == DOWN_WANTED_EMPTY
    assert transition(DOWN_WANTED_EMPTY, Event.UNDRAIN) == DOWN
    assert transition(DRAINING, Event.UNDRAIN) == UP
    assert transition(LEFT, Event.ADD) == SUSPECT
    assert TRANSITIONS[LEFT].keys() == {Event.ADD}
    assert transition(LOST, Event.ADD) == SUSPECT
    assert {standing for standing in STANDINGS if Event.LOSE in TRANSITIONS[standing]} == {DOWN, DOWN_WANTED_EMPTY, LOST}
    for standing in STANDINGS:
        if standing != LEFT:
            assert transition(standing, Event.REMOVE) == LEFT
            assert standing == LOST or Event.ADD not in TRANSITIONS[standing]


def test_suspicion_changes_nothing_about_copies() -> None:
    assert MEANINGS[ServerState.SUSPECT] == MEANINGS[ServerState.UP]


def test_what_does_not_count_gets_nothing_new() -> None:
    for meaning in MEANINGS.values():
        assert meaning.counts or not meaning.accepts
        assert meaning.belongs or not (meaning.counts or meaning.accepts or meaning.works)


def test_a_standing_comes_back_from_the_catalog() -> None:
    for standing in STANDINGS:
        back = standing_of(str(stored_state(standing)), wanted_empty=standing.wanted_empty)
        assert back == (UP if standing == SUSPECT else standing)
    assert standing_of("asleep", wanted_empty=False) == DOWN  # a column that is damaged ends no manager


def test_the_documentation_shows_this_table() -> None:
    assert table() in DOCUMENT.read_text()
