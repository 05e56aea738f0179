"""The rules of moves and of placement with moves: pure, for any network."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.messages import MOVE_COPYING, MOVE_DELETING, MOVE_DONE, MOVE_FAILED, MOVE_WAITING
from manager.migrating import pick_target
from manager.rules.moves import (
    ACTIVE,
    MEANINGS,
    TRANSITIONS,
    UNFINISHED,
    Event,
    Move,
    Step,
    as_markdown,
    choose_home,
    decide,
    look_at_target,
    next_state,
)
from manager.rules.placement import Copy, Drop, Holding, Layout, Place, lay_out
from tests.manager.rules.placing import place

GIB = 2**30
DOCUMENT = Path(__file__, "../../../docs/migration.md").resolve()


def test_the_documentation_shows_this_table() -> None:
    assert as_markdown() in DOCUMENT.read_text()


def test_every_state_and_event_is_reachable_and_explained() -> None:
    targets = {state for transitions in TRANSITIONS.values() for state in transitions.values()}
    assert targets | {"planned"} == set(TRANSITIONS)
    assert {event for transitions in TRANSITIONS.values() for event in transitions} == set(Event) == set(MEANINGS)
    assert set(ACTIVE) < set(UNFINISHED) < set(TRANSITIONS)


@pytest.mark.parametrize("state", TRANSITIONS)
def test_other_events_are_refused(state: str) -> None:
    for event in Event:
        if event in TRANSITIONS[state]:
            assert next_state(state, event) == TRANSITIONS[state][event]
        else:
            with pytest.raises(ValueError, match=state):
                next_state(state, event)


# ------------------------------------------------------------------------------------------------- any network


@st.composite
def networks(draw: st.DrawFn) -> dict[int, Place]:
    count = draw(st.integers(2, 7))
    return {
        number: Place(
            number,
            f"s{draw(st.integers(1, 4))}",
            f"d{number}",
            200 * GIB,
            draw(st.sampled_from([0, 50, 100])) * GIB,
            draw(st.booleans()),
            counts=draw(st.sampled_from([True, True, True, False])),
            accepts=draw(st.sampled_from([True, True, False])),
        )
        for number in range(1, count + 1)
    }


@dataclass
class File:
    """A file as the manager sees it, without a catalog: what `manager.tasks` does with the rules, in miniature."""

    places: dict[int, Place]
    copies: int
    home: int
    current: dict[int, bool]
    moves: list[Move]
    written: bool = False
    deletions: set[int] = field(default_factory=set)

    def effective(self) -> list[Move]:
        return [
            move
            for move in self.moves
            if move.state in ACTIVE and not move.paused and look_at_target(move, 1, self.current, self.places) is None
        ]

    def lay_out(self) -> Layout:
        moves = self.effective()
        return lay_out(
            ino=7,
            size=1,
            home=self.home,
            copies=self.copies,
            holdings=[Holding(volume, current) for volume, current in self.current.items()],
            places=self.places,
            leaving={move.source for move in moves},
            pinned={move.target for move in moves},
        )

    def align(self) -> Layout:
        """One look at the file; the deletions that are in the queues after it."""
        moves = self.effective()
        leaving = {move.source for move in moves}
        layout = self.lay_out()
        if not self.written and (self.home in leaving or not self.places[self.home].counts):
            fit = {
                volume: self.places[volume]
                for volume, current in self.current.items()
                if current and self.places[volume].counts and volume not in leaving
            }
            chosen = choose_home(home=self.home, copies=self.copies, layout=layout, moves=moves, fit=fit)
            assert chosen == 0 or chosen in fit
            self.home = chosen or self.home
            layout = self.lay_out()
        self.deletions = {action.volume for action in layout.actions if isinstance(action, Drop)}
        for move in moves:
            is_current = [volume for volume, current in self.current.items() if current]
            step = decide(move, home=self.home, copies=self.copies, layout=layout, is_current=is_current)
            self._record(move, step)
            if step.event is Event.CLEAR:
                self.deletions.add(move.source)
        self.check(layout)
        return layout

    def _record(self, move: Move, step: Step) -> None:
        self.moves[self.moves.index(move)] = replace(move, state=next_state(move.state, step.event), error=step.text)

    def check(self, layout: Layout) -> None:
        """What must hold at every moment."""
        assert self.home in self.current
        assert self.home not in self.deletions
        if self.deletions:
            kept = [
                volume
                for volume, current in self.current.items()
                if current and volume not in self.deletions and self.places[volume].counts
            ]
            assert len(kept) >= self.copies
        for action in layout.actions:
            if isinstance(action, Copy):
                place = self.places[action.volume]
                assert place.counts
                assert place.accepts or action.volume in self.current


@st.composite
def files(draw: st.DrawFn) -> File:
    places = draw(networks())
    home = draw(st.sampled_from(sorted(places)))
    others = draw(st.dictionaries(st.sampled_from(sorted(places)), st.booleans()))
    current = {**others, home: True}
    source = draw(st.sampled_from(sorted(places)))
    target_server = draw(st.sampled_from(["", *sorted({place.server for place in places.values()} - {places[source].server})]))
    moves = []
    for volume in sorted(current):
        if places[volume].server == places[source].server:
            target = pick_target(7, 1, target_server, current, places) if target_server else 0
            moves.append(Move(1, volume, target, MOVE_COPYING))
    return File(places, draw(st.integers(1, 4)), home, current, moves, written=draw(st.booleans()))


@given(files(), st.lists(st.tuples(st.sampled_from(["copy", "delete", "write", "open", "down", "pause"]), st.integers(0, 10))))
def test_no_step_leaves_fewer_current_replicas_than_the_policy(file: File, steps: list[tuple[str, int]]) -> None:
    """Copies and deletions arrive in any order, writers and servers come and go: see `File.check`."""
    layout = file.align()
    for what, number in steps:
        if what == "copy":
            wanted = [action.volume for action in layout.actions if isinstance(action, Copy)]
            if wanted:
                file.current[wanted[number % len(wanted)]] = True
        elif what == "delete" and file.deletions:
            volume = sorted(file.deletions)[number % len(file.deletions)]
            del file.current[volume]
            file.moves = [move if move.source != volume else replace(move, state=MOVE_DONE) for move in file.moves]
        elif what == "write":
            file.written = True
            file.current = {volume: volume == file.home for volume in file.current}
        elif what == "open":
            file.written = not file.written
        elif what == "down":
            volume = sorted(file.places)[number % len(file.places)]
            server = file.places[volume].server
            file.places = {
                n: replace(place, counts=not place.counts) if place.server == server else place
                for n, place in file.places.items()
            }
        elif what == "pause":
            file.moves = [replace(move, paused=not move.paused) for move in file.moves]
        layout = file.align()


@given(files())
def test_a_move_comes_to_its_end_when_nothing_is_in_the_way(file: File) -> None:
    file.written = False
    for _ in range(len(file.places) + 6):
        layout = file.align()
        for action in layout.actions:
            if isinstance(action, Copy):
                file.current[action.volume] = True
        for volume in sorted(file.deletions):
            file.current.pop(volume)
            file.moves = [move if move.source != volume else replace(move, state=MOVE_DONE) for move in file.moves]
        file.deletions = set()
    layout = file.align()
    for move in file.moves:
        if move.state == MOVE_DONE or look_at_target(move, 1, file.current, file.places) is not None:
            continue
        assert len(layout.wanted) < file.copies, "only a lack of places keeps a move from its end"
        assert "the policy wants" in move.error


# --------------------------------------------------------------------------------------------- one decision each


def three() -> dict[int, Place]:
    return {n: Place(n, f"s{n}", f"d{n}", 200 * GIB, 99 * GIB, up=True) for n in (1, 2, 3)}


def layout_of(*held: Holding, leaving: int = 1, pinned: int = 3, copies: int = 2, home: int = 1) -> Layout:
    return lay_out(ino=7, size=1, home=home, copies=copies, holdings=held, places=three(), leaving={leaving}, pinned={pinned})


def step_of(layout: Layout, *current: int, home: int = 1, copies: int = 2, state: str = MOVE_COPYING) -> Event:
    return decide(Move(1, 1, 3, state), home=home, copies=copies, layout=layout, is_current=current).event


def test_the_decisions() -> None:
    nothing_copied = layout_of(Holding(1, True), Holding(2, True))
    assert nothing_copied.actions == (Copy(3),)
    assert step_of(nothing_copied, 1, 2) is Event.COPIES_MISSING
    all_there = layout_of(Holding(1, True), Holding(2, True), Holding(3, True))
    assert all_there.actions == ()
    assert step_of(all_there, 1, 2, 3) is Event.IN_USE
    assert step_of(all_there, 1, 2, 3, home=3) is Event.CLEAR
    for state in (MOVE_WAITING, MOVE_DELETING):
        assert next_state(state, step_of(nothing_copied, 1, 2, state=state)) == MOVE_COPYING
    assert step_of(layout_of(Holding(1, True), Holding(3, True)), 1, 3) is Event.COPIES_MISSING


def test_targets_that_cannot_take_the_file() -> None:
    places = three()
    move = Move(1, 1, 3, MOVE_COPYING)
    assert look_at_target(move, 1, [1], places) is None
    full = look_at_target(move, 100 * GIB, [1], places)
    assert full is not None
    assert next_state(MOVE_COPYING, full.event) == MOVE_FAILED
    assert look_at_target(move, 100 * GIB, [1, 3], places) is None, "what is there already needs no room"
    for broken in (replace(places[3], counts=False), replace(places[3], accepts=False)):
        step = look_at_target(move, 1, [1], {**places, 3: broken})
        assert step is not None
        assert step.event is Event.COPIES_MISSING
        assert step.text
    assert look_at_target(move, 1, [1], {1: places[1]}) is not None


def test_a_home_that_does_not_count_goes_to_a_replica_that_is_up() -> None:
    places = three() | {1: replace(three()[1], counts=False, up=False)}
    layout = lay_out(ino=7, size=1, home=1, copies=2, holdings=[Holding(1, True), Holding(2, True)], places=places)
    assert layout.wanted == (2, 3)
    assert choose_home(home=1, copies=2, layout=layout, moves=[], fit={2: places[2]}) == 2
    assert choose_home(home=1, copies=2, layout=layout, moves=[], fit={}) == 0
    away = replace(places[2], up=False)
    assert choose_home(home=1, copies=2, layout=layout, moves=[], fit={2: away}) == 0


def test_replicas_that_do_not_count_are_neither_refreshed_nor_dropped_and_come_back_cheaply() -> None:
    places = three()
    down = places | {2: replace(places[2], counts=False, up=False, accepts=False)}
    held = [Holding(1, True), Holding(2, True)]
    assert place(ino=7, size=1, home=1, copies=2, holdings=held, places=down) == [Copy(3)]
    queued = Holding(3, current=False, stored=False)
    assert place(ino=7, size=1, home=1, copies=2, holdings=[*held, queued], places=places) == []
    stale = [Holding(1, True), Holding(2, False), Holding(3, True)]
    assert place(ino=7, size=1, home=1, copies=2, holdings=stale, places=down) == []
    assert place(ino=7, size=1, home=1, copies=2, holdings=stale, places=places) == [Drop(2)]


def test_a_server_that_is_left_gets_nothing_new_on_any_volume() -> None:
    places = three() | {4: Place(4, "s1", "d4", 200 * GIB, 199 * GIB, up=True)}
    layout = lay_out(ino=7, size=1, home=1, copies=3, holdings=[Holding(1, True)], places=places, leaving={1})
    assert set(layout.wanted) == {2, 3}


def test_a_faulty_home_secures_nothing() -> None:
    held = [Holding(1, current=False), Holding(2, True), Holding(3, True)]
    assert Drop(3) not in place(ino=7, size=1, home=1, copies=2, holdings=held, places=three())
