"""The rules of the election: the table, what is learnt from row and pings, and a simulated world that tries to break them."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.messages import Pong
from manager.rules.election import (
    ABSTAIN_PART,
    ASK_PART,
    EXTEND_PART,
    HUNG_PART,
    LATE_FACTOR,
    LATE_TERM_FACTOR,
    LONGEST_FACTOR,
    PATIENCE_PART,
    RULES,
    SAFE_PART,
    STORM_FACTOR,
    STUCK_PART,
    WATCH_PART,
    Ask,
    Beat,
    OfficeRow,
    Seat,
    Stand,
    Step,
    Taken,
    View,
    Voice,
    Watch,
    answered,
    decide,
    elected,
    hears,
    hears_for,
    is_decided,
    is_stuck,
    lasts_at_first,
    lasts_from_now,
    may_begin,
    refused,
    safe_until,
    saw,
    step,
    stepped_aside,
    watching,
)
from tests.manager.rules.simulation import CLOCK_ERROR, TERM_S, Rules, TwoManagers, World, storm

DOCUMENT = Path(__file__, "../../../../docs/election.md").resolve()
T = 4.0
ROW = OfficeRow(3, "s1", "s1:1", 10)


def watched(row: OfficeRow = ROW, draw: float = 0.0, at: float = 0.0) -> View:
    return saw(watching(T, draw, at), row, at)


def in_office(term: int = 3, server: str = "s1") -> Pong:
    return Pong(server, term, True)


# ------------------------------------------------------------------------------------------------------- the table


def test_the_table_has_one_answer_for_every_situation() -> None:
    for situation in itertools.product(Seat, Voice, Beat):
        assert sum(situation[0] in r.seats and situation[1] in r.voices and situation[2] in r.beats for r in RULES) == 1


def test_only_a_vacant_office_is_taken_without_asking() -> None:
    for seat, voice, beat in itertools.product(Seat, Voice, Beat):
        assert (step(seat, voice, beat) is Step.STAND) == (seat is Seat.VACANT)


def rules_table() -> str:
    """The rules as the documentation shows them."""

    def shown(some: object, all_of: type[Seat] | type[Voice] | type[Beat]) -> str:
        chosen = [item.value for item in all_of if item in some]  # type: ignore[operator]
        return "any" if len(chosen) == len(all_of) else "; or ".join(chosen)

    lines = ["| the office | its holder | the beat | the candidate | because |", "|---|---|---|---|---|"]
    for rule in RULES:
        cells = (shown(rule.seats, Seat), shown(rule.voices, Voice), shown(rule.beats, Beat), rule.step.value, rule.why)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_documentation_shows_the_table() -> None:
    assert rules_table() in DOCUMENT.read_text(), f"docs/election.md should contain\n\n{rules_table()}"


def test_the_documentation_shows_the_times() -> None:
    text = DOCUMENT.read_text()
    for name, part in {
        "SAFE_PART": SAFE_PART,
        "EXTEND_PART": EXTEND_PART,
        "WATCH_PART": WATCH_PART,
        "PATIENCE_PART": PATIENCE_PART,
        "ASK_PART": ASK_PART,
        "ABSTAIN_PART": ABSTAIN_PART,
        "STUCK_PART": STUCK_PART,
        "HUNG_PART": HUNG_PART,
        "LONGEST_FACTOR": LONGEST_FACTOR,
        "STORM_FACTOR": STORM_FACTOR,
        "LATE_TERM_FACTOR": LATE_TERM_FACTOR,
    }.items():
        assert f"| `{name}` | {part:g} |" in text


# -------------------------------------------------------------------------------------------------- what is learnt


def test_a_holder_that_neither_beats_nor_answers_is_followed_when_most_of_those_who_answer_agree() -> None:
    view = answered(watched(), in_office(), 1.0)
    view = saw(view, OfficeRow(3, "s1", "s1:1", 11), 1.2)
    assert decide(view, 4.9) == Watch()
    ask = decide(view, 5.2)
    assert ask == Ask(OfficeRow(3, "s1", "s1:1", 11), 1.2, of_all=False)
    assert isinstance(ask, Ask)
    assert elected(ask, {}, 3)
    assert elected(ask, {"s2": False}, 3)
    assert not elected(ask, {"s2": True}, 3)
    assert elected(ask, {"s2": True, "s4": False}, 5)


def test_a_holder_that_beats_is_deposed_only_by_most_of_all_members() -> None:
    view = watched()
    for beat in range(11, 17):
        view = saw(view, OfficeRow(3, "s1", "s1:1", beat), beat - 10.0)
    ask = decide(view, 6.0)
    assert ask == Ask(OfficeRow(3, "s1", "s1:1", 16), 6.0, of_all=True)
    assert isinstance(ask, Ask)
    assert not elected(ask, {}, 2)
    assert not elected(ask, {}, 3)
    assert elected(ask, {"s2": False}, 3)
    assert not elected(ask, {"s2": False}, 4)
    assert not elected(ask, {"s1": True, "s2": True}, 3)


def test_the_members_are_not_waited_for_once_most_of_them_are_deaf() -> None:
    assert not is_decided({}, 3)
    assert is_decided({"s2": False}, 3)
    assert not is_decided({"s2": False}, 4)
    assert is_decided({}, 1)


@given(st.dictionaries(st.sampled_from("abcde"), st.booleans()), st.integers(0, 5), st.booleans())
def test_what_is_decided_elects(answers: dict[str, bool], silent: int, of_all: bool) -> None:
    members = len(answers) + 1 + silent
    if is_decided(answers, members):
        assert elected(Ask(ROW, 0.0, of_all), answers, members)


def test_patience_delays_the_question_but_not_the_answer() -> None:
    view = watched(draw=1.0)
    assert decide(view, T + 0.1) == Watch()
    assert hears(view, T + 0.1) is False
    assert isinstance(decide(view, T * (1 + PATIENCE_PART)), Ask)


def test_who_has_just_begun_to_listen_does_not_know() -> None:
    assert hears(watching(T, 0.0, 0.0), 100.0) is None
    assert hears(watched(), T - 0.1) is None
    assert hears(watched(), T) is False
    assert hears(answered(watched(), in_office(), 1.0), 1.0) is True
    assert hears(watched(OfficeRow(3, "", "", 10)), 0.0) is False


def test_who_has_seen_a_later_term_says_so() -> None:
    assert hears_for(watched(), 2, 100.0) is True
    assert hears_for(watched(), 3, 100.0) is False
    assert hears_for(watching(T, 0.0, 0.0), 3, 100.0) is None


def test_a_holder_that_says_it_is_not_in_office_is_believed() -> None:
    view = answered(answered(watched(), in_office(), 1.0), Pong("s1", 3, False), 2.0)
    assert hears(view, 2.0) is False
    assert decide(view, T - 0.1) == Ask(ROW, 0.0, of_all=True)
    assert decide(view, T) == Ask(ROW, 0.0, of_all=False)


def test_others_pongs_and_those_of_earlier_terms_say_nothing() -> None:
    assert answered(watched(), in_office(server="s2"), 1.0) == watched()
    assert answered(watched(), in_office(term=2), 1.0) == watched()
    assert hears(answered(watched(), in_office(term=4), 1.0), 1.0) is True


def test_a_new_holder_has_a_whole_term_to_be_heard() -> None:
    view = saw(watched(), OfficeRow(4, "s2", "s2:1", 11), 3.9)
    assert decide(view, 7.8) == Watch()
    assert hears(view, 7.8) is None


def test_a_vacant_office_is_taken_at_once_but_not_by_who_stepped_down() -> None:
    vacant = OfficeRow(3, "", "", 11)
    assert decide(watched(vacant), 0.0) == Stand(vacant, 0.0, clear=True)
    view = stepped_aside(watched(vacant), 3, 0.0)
    assert decide(view, 0.0) == Watch()
    assert decide(view, 2 * T) == Stand(vacant, 0.0, clear=True)
    later = OfficeRow(4, "", "", 13)
    assert decide(saw(view, later, 1.0), 1.0) == Stand(later, 1.0, clear=True)


def test_who_was_refused_asks_again_soon_and_then_less_often() -> None:
    view, now, pauses = watched(), T, []
    for _ in range(8):
        assert isinstance(decide(view, now), Ask)
        view = refused(view, now)
        assert decide(view, now) == Watch()
        pauses.append(view.ask_after_s - now)
        now = view.ask_after_s
    assert pauses[:4] == [T * WATCH_PART, T * WATCH_PART * 2, T * WATCH_PART * 4, T]
    assert set(pauses[3:]) == {T}
    assert decide(saw(view, OfficeRow(4, "", "", 20), now), now) == Stand(OfficeRow(4, "", "", 20), now, clear=True)


def test_who_deposes_waits_for_the_deposed() -> None:
    stand = Stand(ROW, 9.0, clear=False)
    assert not may_begin(stand, Taken.UNCHANGED, 10.0, 2, 9.0 + T - 0.1, T)
    assert may_begin(stand, Taken.UNCHANGED, 10.0, 2, 9.0 + T, T)
    assert not may_begin(stand, Taken.DEPOSED, 10.0, 2, 9.0 + T, T)
    assert may_begin(stand, Taken.DEPOSED, 10.0, 2, 10.0 + T, T)
    assert may_begin(stand, Taken.DEPOSED, 10.0, 3, 10.0, T)
    assert may_begin(Stand(ROW, 9.0, clear=True), Taken.UNCHANGED, 10.0, 0, 10.0, T)


def test_the_holder_has_stopped_before_the_slowest_watcher_stands() -> None:
    holders_clock_slow = safe_until(0.0, T) / (1 - CLOCK_ERROR)
    watchers_clock_fast = T / (1 + CLOCK_ERROR)
    assert holders_clock_slow < watchers_clock_fast


# --------------------------------------------------------------------------------------------------- the simulation

IN_TIME_S = 1.95 * TERM_S  # docs/election.md: what the clients have left of their 5 s
# The longest way: still, patient, refused and asking again, deposing, waiting for the deposed; and that twice with a long term.
RECOVERY_S = (4.5 + 2 * (LONGEST_FACTOR - 1)) * TERM_S


def stormy(seed: int, rules: Rules | None = None) -> World:
    dice = random.Random(seed)
    world = World(dice.choice([1, 2, 3, 3, 4, 5]), dice, rules or Rules())
    storm(world, 40.0)
    world.run(40.0)
    return world


@pytest.mark.search
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40))
def test_never_two_managers_and_one_again_after_the_storm(seed: int) -> None:
    world = stormy(seed)
    world.run(40.0 + RECOVERY_S)
    assert len(world.acting()) == 1
    terms = len(world.history)
    world.run(40.0 + RECOVERY_S + 10 * TERM_S)
    assert len(world.history) == terms
    assert len({term for _at, term, _who in world.history}) == terms


@pytest.mark.search
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.booleans())
def test_a_majority_that_talks_gets_a_manager_and_keeps_it(seed: int, catalog: bool) -> None:
    """One candidate stays cut off from the others, with or without a way to the catalog."""
    world = stormy(seed)
    if world.size < 3:
        return
    alone = world.dice.randrange(world.size)
    links = {pair for pair in world.calm.links if alone not in pair}
    reached = world.calm.catalog if catalog else world.calm.catalog - {alone}
    world.calm.links.intersection_update(links)
    world.calm.catalog.intersection_update(reached)
    world.run(40.0 + RECOVERY_S)
    (manager,) = world.acting()
    assert manager.number != alone
    terms = len(world.history)
    world.run(40.0 + RECOVERY_S + 10 * TERM_S)
    assert len(world.history) == terms


def test_one_server_that_is_cut_off_deposes_nobody() -> None:
    for seed in range(20):
        world = World(3, random.Random(seed))
        world.run(10.0)
        (manager,) = world.acting()
        alone = (manager.number + 1) % 3
        world.weather.links.difference_update({pair for pair in world.calm.links if alone in pair})
        world.run(60.0)
        assert [p.number for p in world.acting()] == [manager.number]
        assert len(world.history) == 1


@pytest.mark.parametrize(("size", "fault"), [(2, "killed"), (3, "killed"), (3, "cut off"), (5, "killed"), (5, "cut off")])
def test_another_one_is_in_office_in_time(size: int, fault: str) -> None:
    """On a network that works, whenever it happens and whatever the clocks and the patience of the others."""
    for seed in range(100):
        world = World(size, random.Random(seed))
        world.run(10.0 + seed / 25)
        (manager,) = world.acting()
        if fault == "killed":
            world.kill(manager.number)
        else:
            world.weather.links.difference_update({pair for pair in world.calm.links if manager.number in pair})
        world.run(world.now + IN_TIME_S)
        assert [other.number for other in world.acting()] not in ([], [manager.number]), seed


@pytest.mark.parametrize(
    "broken",
    [
        Rules(safe_until=lambda began_s, term_s: began_s + 1.3 * term_s),
        Rules(may_begin=lambda *_: True),
        Rules(may_begin=lambda stand, _taken, _at, stopped, _now, _term: stand.clear or stopped >= stand.row.term - 1),
    ],
    ids=["a holder that stops late", "a successor that does not wait", "one that believes what was said of earlier terms"],
)
def test_the_simulation_notices_broken_rules(broken: Rules) -> None:
    def is_caught(seed: int) -> bool:
        try:
            stormy(seed, broken)
        except TwoManagers:
            return True
        return False

    assert any(is_caught(seed) for seed in range(200))


def busy(seed: int, rules: Rules, latency_s: float = 0.35) -> int:
    """How many terms begin in five minutes on machines on which everything takes its time."""
    world = World(3, random.Random(seed), rules)
    world.weather.latency_s = latency_s
    world.run(300.0)
    return len(world.history)


def test_a_busy_machine_is_no_reason_for_elections() -> None:
    """Where extensions come late the term is longer, and ends of it are rare; with terms of one length there are many."""
    fixed = Rules(lasts_from_now=lambda _lasts_s, _took_s, term_s: term_s)
    seeds = range(10)
    assert sum(busy(seed, Rules()) for seed in seeds) * 3 < sum(busy(seed, fixed) for seed in seeds)


def test_a_term_is_as_long_as_it_must_be() -> None:
    assert lasts_from_now(T, 0.1, T) == T
    assert lasts_from_now(T, 1.0, T) == LATE_FACTOR
    assert lasts_from_now(T, 100.0, T) == LONGEST_FACTOR * T
    lasts_s, extensions = T * STORM_FACTOR, 0
    while lasts_s > T:
        lasts_s, extensions = lasts_from_now(lasts_s, 0.01, T), extensions + 1
    assert extensions * EXTEND_PART <= 1.0  # within one term all is as before


def test_who_follows_a_holder_that_was_late_and_fell_silent_takes_longer() -> None:
    assert lasts_at_first(Stand(ROW, 0.0, clear=True), T) == T, "it has died"
    late = LATE_TERM_FACTOR * T + 0.1
    assert lasts_at_first(Stand(replace(ROW, lasts_s=late), 0.0, clear=True), T) == STORM_FACTOR * late
    assert lasts_at_first(Stand(replace(ROW, lasts_s=4 * T), 0.0, clear=True), T) == LONGEST_FACTOR * T
    assert lasts_at_first(Stand(replace(ROW, lasts_s=2 * T), 0.0, clear=False), T) == 2 * T
    assert lasts_at_first(Stand(replace(ROW, server=""), 0.0, clear=True), T) == T


def test_candidates_wait_as_long_as_the_row_says() -> None:
    view = watched(replace(ROW, lasts_s=2 * T))
    assert decide(view, 1.9 * T) == Watch()
    assert isinstance(decide(view, 2 * T), Ask)
    heard = answered(view, in_office(), 0.0)
    assert hears(heard, 1.9 * T)
    assert not hears(heard, 2 * T)


def test_only_an_event_loop_that_has_had_its_time_and_stands_still_costs_the_office() -> None:
    assert not is_stuck(4 * T, 0.1, T)
    assert is_stuck(1.1 * T, 1.0 * T, T)
    assert is_stuck(10 * T, 0.0, T)


def depose_and_step_down(seed: int, rules: Rules) -> bool:
    """A holder that nobody hears loses its catalog, too; who deposes it is told to step down at once. Whether that happened."""
    world = World(3, random.Random(seed), rules)
    world.run(10.0 + seed / 50)
    (manager,) = world.acting()
    world.weather.links.difference_update({pair for pair in world.calm.links if manager.number in pair})
    world.run(world.now + 0.95 * TERM_S)
    world.weather.catalog.discard(manager.number)
    stop_at = world.now + 2 * TERM_S
    while world.now < stop_at:
        world.run(world.now + 0.01)
        for waiting in [process for process in world.waiting() if process is not manager]:
            world.step_down(waiting.number)
            world.run(world.now + TERM_S)
            return True
    return False


def test_who_has_not_begun_does_not_speak_for_those_before_it() -> None:
    assert sum(depose_and_step_down(seed, Rules()) for seed in range(100)) > 10


def test_the_simulation_notices_when_it_does() -> None:
    broken = Rules(resigns_unbegun=True)
    with pytest.raises(TwoManagers):
        assert sum(depose_and_step_down(seed, broken) for seed in range(100)) == 0
