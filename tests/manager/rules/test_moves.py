"""The rules of moves and of placement with moves: pure, for any network."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.messages import MoveState, TaskOperation, TaskState
from manager.changes.migrations import pick_target
from manager.rules.alignment import (
    Change,
    Decision,
    File,
    NewHome,
    Queued,
    Replica,
    Switch,
    TaskChange,
    View,
    abandons,
    align,
    first_copies,
    is_settled,
)
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
DOCUMENT = Path(__file__, "../../../../docs/migration.md").resolve()


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


@dataclass(frozen=True)
class Use:
    """Who uses the file."""

    may_move_home: bool
    cached: bool = False

    def is_open_at(self, _volume: int) -> bool:
        return False


@dataclass
class Network:
    """A file in a network without a catalog: agents that do what the queue says, in any order, and the real rule."""

    places: dict[int, Place]
    file: File
    replicas: dict[int, Replica]
    moves: list[Move]
    queued: dict[int, Queued] = field(default_factory=dict)
    left_alone: set[int] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    in_use: bool = False

    def align(self) -> Decision:
        """One look at the file, and what it decides, carried out as `manager.changes.alignment` does."""
        view = View(
            self.file,
            dict(self.replicas),
            dict(self.queued),
            [move for move in self.moves if move.state in ACTIVE],
            self.places,
            set(self.left_alone),
            [volume for volume in {*self.replicas, self.file.home} if self.places[volume].server in self.lost],
            Use(may_move_home=not self.in_use),
        )
        decision = align(view)
        plain = not (view.queued or view.moves or view.left_alone or any(replica.faulty for replica in view.replicas.values()))
        file = view.file
        if plain and is_settled(file.version, file.home, file.copies, list(view.replicas.values()), view.places):
            assert decision == Decision([], [], [], decision.layout, shortfall="", held_up=False, ask_back=0)
        first = first_copies(file, list(view.replicas.values()), view.places) if plain else None
        if first is not None:
            changes = [Change(TaskChange.ADD, volume, TaskOperation.COPY, file.version) for volume in first]
            assert decision == Decision([], [], changes, decision.layout, shortfall="", held_up=False, ask_back=0)
        for move, step in decision.steps:
            self.record(move, step)
        for home in decision.homes:
            self.switch(home)
        for change in decision.changes:
            self.change(change)
        self.check(decision)
        return decision

    def record(self, move: Move, step: Step) -> None:
        self.moves[self.moves.index(move)] = replace(move, state=next_state(move.state, step.event), error=step.text)

    def switch(self, home: NewHome) -> None:
        old, kept = self.file.home, self.replicas[home.volume]
        assert kept.committed
        assert not kept.faulty
        row = self.queued.get(home.volume)
        assert row is None or row.state != TaskState.CLAIMED, "an agent would put another object over the home"
        self.file = self.file._replace(home=home.volume)
        if home.switch is Switch.FELL_BACK:
            assert self.places[old].server in self.lost
            if abandons(self.file.version, dirty=self.file.dirty, kept_version=kept.version):
                self.abandon(old)
                self.file = self.file._replace(version=self.file.version + 1, dirty=False)
                for volume, replica in self.replicas.items():
                    if replica.version == kept.version and not replica.faulty:
                        self.replicas[volume] = replica._replace(version=self.file.version)
            return
        assert kept.version == self.file.version
        assert not self.file.dirty
        if home.switch is Switch.REPAIRED:
            assert self.replicas[old].faulty
            self.abandon(old)

    def abandon(self, volume: int) -> None:
        self.left_alone.add(volume)
        self.replicas.pop(volume, None)

    def change(self, change: Change) -> None:
        row = self.queued.get(change.volume)
        if change.task is TaskChange.ADD:
            assert row is None
            self.queued[change.volume] = Queued(change.volume, change.operation, TaskState.WAITING, change.version, given=False)
            return
        assert row is not None
        if change.task is TaskChange.REMOVE:
            assert row.state != TaskState.CLAIMED
            assert row.operation == TaskOperation.COPY or not row.given
            del self.queued[change.volume]
        elif change.task is TaskChange.RESTART:
            assert row.state != TaskState.CLAIMED
            self.queued[change.volume] = row._replace(operation=change.operation, state=TaskState.WAITING, version=change.version)
        else:
            assert row.operation == change.operation
            self.queued[change.volume] = row._replace(version=change.version)

    def is_current(self, volume: int) -> bool:
        replica = self.replicas.get(volume)
        return replica is not None and replica.version == self.file.version and not replica.faulty

    def check(self, decision: Decision) -> None:
        """What must hold after every look."""
        home = self.file.home
        assert home in self.replicas
        deleting = {volume for volume, row in self.queued.items() if row.operation == TaskOperation.DELETE}
        assert home not in deleting
        undecided = {volume for volume in deleting if not self.queued[volume].given}
        if undecided:
            kept = [v for v in self.replicas if self.is_current(v) and v not in deleting and self.places[v].counts]
            assert len(kept) >= self.file.copies, "no deletion is handed out that would leave too few"
        assert not undecided or not self.file.dirty or self.in_use, "nobody knows what the home has"
        assert not deleting & self.left_alone
        for volume, row in self.queued.items():
            if row.operation == TaskOperation.COPY and row.state == TaskState.WAITING:
                assert row.version == self.file.version
                assert self.places[volume].counts
                assert volume not in self.left_alone
        assert bool(decision.shortfall) == (len(decision.layout.wanted) < self.file.copies)

    # ------------------------------------------------------------------------------------------------ what happens

    def happen(self, what: str, number: int) -> None:
        getattr(self, f"_{what}")(number)

    def _pick(self, volumes: Iterable[int], number: int) -> int:
        """One of *volumes*; 0 if there is none."""
        ordered = sorted(volumes)
        return ordered[number % len(ordered)] if ordered else 0

    def _in_state(self, state: str) -> list[int]:
        return [volume for volume, row in self.queued.items() if row.state == state]

    def _claim(self, number: int) -> None:
        volume = self._pick(self._in_state(TaskState.WAITING), number)
        if volume:
            self.queued[volume] = self.queued[volume]._replace(state=TaskState.CLAIMED, given=True)

    def _done(self, number: int) -> None:
        volume = self._pick(self._in_state(TaskState.CLAIMED), number)
        if not volume:
            return
        row = self.queued.pop(volume)
        if row.operation == TaskOperation.COPY:
            self.replicas[volume] = Replica(volume, row.version, 1, committed=True, faulty=False)
            return
        self.replicas.pop(volume, None)
        for move in [move for move in self.moves if move.source == volume and move.state in ACTIVE]:
            self.record(move, Step(Event.DELETED))

    def _give_up(self, number: int) -> None:
        volume = self._pick(self._in_state(TaskState.CLAIMED), number)
        if volume:
            self.queued[volume] = self.queued[volume]._replace(state=TaskState.DEAD)

    def _write(self, _number: int) -> None:
        if self.places[self.file.home].server in self.lost or self.replicas[self.file.home].faulty:
            return
        home = self.replicas[self.file.home]._replace(version=self.file.version + 1)
        self.file = self.file._replace(dirty=True, version=self.file.version + 1)
        self.replicas[self.file.home] = home

    def _close(self, _number: int) -> None:
        if self.places[self.file.home].server not in self.lost:
            self.file = self.file._replace(dirty=False)

    def _use(self, _number: int) -> None:
        self.in_use = not self.in_use

    def _down(self, number: int) -> None:
        self._flip(self._server(number), counts=not self.places[self._pick(self.places, number)].counts)

    def _lose(self, number: int) -> None:
        self.lost.add(self._server(number))
        self._flip(self._server(number), counts=False)

    def _server(self, number: int) -> str:
        return self.places[self._pick(self.places, number)].server

    def _flip(self, server: str, *, counts: bool) -> None:
        counts = counts and server not in self.lost
        self.places = {
            volume: replace(place, counts=counts) if place.server == server else place for volume, place in self.places.items()
        }

    def _damage(self, number: int) -> None:
        volume = self._pick(self.replicas, number)
        self.replicas[volume] = self.replicas[volume]._replace(faulty=True)

    def _pause(self, _number: int) -> None:
        self.moves = [replace(move, paused=not move.paused) for move in self.moves]


@st.composite
def files(draw: st.DrawFn) -> Network:
    places = draw(networks())
    home = draw(st.sampled_from(sorted(places)))
    others = draw(st.dictionaries(st.sampled_from(sorted(places)), st.booleans()))
    replicas = {
        volume: Replica(volume, 2 if current else 1, 1, committed=True, faulty=False)
        for volume, current in {**others, home: True}.items()
    }
    source = draw(st.sampled_from(sorted(places)))
    target_server = draw(st.sampled_from(["", *sorted({place.server for place in places.values()} - {places[source].server})]))
    moves = []
    for volume in sorted(replicas):
        if places[volume].server == places[source].server:
            target = pick_target(7, 1, target_server, replicas, places) if target_server else 0
            moves.append(Move(1, volume, target, MoveState.COPYING))
    file = File(7, 1, 2, draw(st.booleans()), home, draw(st.integers(1, 4)))
    return Network(places, file, replicas, moves)


EVENTS = ("claim", "done", "give_up", "write", "close", "use", "down", "lose", "damage", "pause")


@given(files(), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 10))))
def test_no_step_leaves_fewer_current_replicas_than_the_policy(network: Network, steps: list[tuple[str, int]]) -> None:
    """Copies and deletions arrive in any order, writers and servers come and go, disks break: see `Network.check`."""
    network.align()
    for what, number in steps:
        network.happen(what, number)
        network.align()


@given(files(), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 10))))
def test_a_second_look_changes_nothing(network: Network, steps: list[tuple[str, int]]) -> None:
    for what, number in steps:
        network.happen(what, number)
    for _ in range(3):
        network.align()
    decision = network.align()
    assert not decision.homes
    assert not decision.changes


@given(files())
def test_a_move_comes_to_its_end_when_nothing_is_in_the_way(network: Network) -> None:
    network.file = network.file._replace(dirty=False)
    for _ in range(len(network.places) + 6):
        network.align()
        for volume in sorted(network.queued):
            network.happen("claim", 0)
            assert volume in network.queued
        while network.queued:
            network.happen("done", 0)
    network.align()
    for move in network.moves:
        if move.state == MoveState.DONE or look_at_target(move, 1, network.replicas, network.places) is not None:
            continue
        wanted = network.align().layout.wanted
        assert len(wanted) < network.file.copies, "only a lack of places keeps a move from its end"
        assert "the policy wants" in move.error


# --------------------------------------------------------------------------------------------- one decision each


def three() -> dict[int, Place]:
    return {n: Place(n, f"s{n}", f"d{n}", 200 * GIB, 99 * GIB, up=True) for n in (1, 2, 3)}


def layout_of(*held: Holding, leaving: int = 1, pinned: int = 3, copies: int = 2, home: int = 1) -> Layout:
    return lay_out(ino=7, size=1, home=home, copies=copies, holdings=held, places=three(), leaving={leaving}, pinned={pinned})


def step_of(layout: Layout, *current: int, home: int = 1, copies: int = 2, state: str = MoveState.COPYING) -> Event:
    return decide(Move(1, 1, 3, state), home=home, copies=copies, layout=layout, is_current=current).event


def test_the_decisions() -> None:
    nothing_copied = layout_of(Holding(1, True), Holding(2, True))
    assert nothing_copied.actions == (Copy(3),)
    assert step_of(nothing_copied, 1, 2) is Event.COPIES_MISSING
    all_there = layout_of(Holding(1, True), Holding(2, True), Holding(3, True))
    assert all_there.actions == ()
    assert step_of(all_there, 1, 2, 3) is Event.IN_USE
    assert step_of(all_there, 1, 2, 3, home=3) is Event.CLEAR
    for state in (MoveState.WAITING, MoveState.DELETING):
        assert next_state(state, step_of(nothing_copied, 1, 2, state=state)) == MoveState.COPYING
    assert step_of(layout_of(Holding(1, True), Holding(3, True)), 1, 3) is Event.COPIES_MISSING


def test_targets_that_cannot_take_the_file() -> None:
    places = three()
    move = Move(1, 1, 3, MoveState.COPYING)
    assert look_at_target(move, 1, [1], places) is None
    full = look_at_target(move, 100 * GIB, [1], places)
    assert full is not None
    assert next_state(MoveState.COPYING, full.event) == MoveState.FAILED
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
