"""What silence and reports mean, by the clock alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.membership import DOWN, DRAINING, SUSPECT, UP, Event, Standing, transition
from manager.rules.liveness import Delays, Hearing, event_now, first_hearing, is_reachable

DELAYS = Delays(suspect_s=7.0, down_s=600.0)
times = st.integers(min_value=0, max_value=600)


@pytest.mark.parametrize(
    ("silent_s", "event"),
    [(0.0, Event.HEARD), (7.0, Event.HEARD), (7.1, Event.SILENT), (600.0, Event.SILENT), (600.1, Event.SILENT_TOO_LONG)],
)
def test_silence_has_two_delays(silent_s: float, event: Event) -> None:
    hearing = Hearing(100.0, 0.0)
    for standing in (UP, SUSPECT, DRAINING):
        assert event_now(standing, hearing, 100.0 + silent_s, DELAYS) is event


def test_a_new_manager_counts_silence_from_its_own_start() -> None:
    hearing = first_hearing(UP, 50.0)
    assert event_now(UP, hearing, 57.0, DELAYS) is Event.HEARD
    assert event_now(UP, hearing, 650.0, DELAYS) is Event.SILENT
    assert event_now(UP, hearing, 650.1, DELAYS) is Event.SILENT_TOO_LONG


def test_who_was_down_must_be_heard_first() -> None:
    hearing = first_hearing(DOWN, 50.0)
    assert not is_reachable(hearing, 50.0, DELAYS)
    assert event_now(DOWN, hearing, 50.0, DELAYS) is Event.SILENT_TOO_LONG


def test_a_return_takes_steady_reports() -> None:
    hearing = first_hearing(DOWN, 0.0)
    for now in (10.0, 12.0, 14.0, 16.0):
        hearing = hearing.heard(now, DELAYS)
        assert is_reachable(hearing, now, DELAYS)
        assert event_now(DOWN, hearing, now, DELAYS) is None
    hearing = hearing.heard(18.0, DELAYS)
    assert event_now(DOWN, hearing, 18.0, DELAYS) is Event.HEARD


def test_a_gap_begins_the_return_anew() -> None:
    hearing = first_hearing(DOWN, 0.0).heard(10.0, DELAYS).heard(16.0, DELAYS)
    hearing = hearing.heard(23.5, DELAYS)
    assert event_now(DOWN, hearing, 23.5, DELAYS) is None
    assert event_now(DOWN, hearing.heard(30.5, DELAYS), 30.5, DELAYS) is Event.HEARD


def test_an_older_report_changes_nothing() -> None:
    hearing = Hearing(100.0, 50.0)
    assert hearing.heard(99.0, DELAYS) is hearing


@given(st.lists(times, min_size=1, max_size=40))
def test_being_heard_within_the_delay_never_starts_healing(gaps: list[int]) -> None:
    """Whatever the pattern of short silences: no server that is heard again in time is ever down."""
    standing: Standing = UP
    now = 0.0
    hearing = first_hearing(standing, now)
    for gap in gaps:
        for moment in (now + gap / 2, now + gap):
            event = event_now(standing, hearing, moment, DELAYS)
            assert event is not None
            standing = transition(standing, event)
        now += gap
        hearing = hearing.heard(now, DELAYS)
        assert standing in (UP, SUSPECT)
