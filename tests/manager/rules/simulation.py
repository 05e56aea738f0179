"""Candidates over a shared register in simulated time: messages are late or lost, networks split, processes pause, crash and
start again, clocks run up to 5 % wrong. The candidates follow `manager.rules.election`; after every event it is checked that no
two believe, at the same true time, that they may act.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cluster.messages import Pong
from manager.rules import election
from manager.rules.election import Ask, OfficeRow, Stand, Taken, View

TERM_S = 2.0
CLOCK_ERROR = 0.05


class TwoManagers(AssertionError):
    """Two candidates believe that they may act."""


@dataclass
class Rules:
    """What may be broken on purpose, to see that the simulation notices."""

    safe_until: Callable[[float, float], float] = election.safe_until
    may_begin: Callable[[Stand, Taken, float, int, float, float], bool] = election.may_begin
    lasts_from_now: Callable[[float, float, float], float] = election.lasts_from_now
    resigns_unbegun: bool = False


@dataclass
class Weather:
    """What the world does to messages from now on. `links`: who reaches whom; `catalog`: who reaches the register."""

    links: set[frozenset[int]]
    catalog: set[int]
    loss: float = 0.0
    latency_s: float = 0.002


@dataclass
class Tenure:
    """A term that a candidate has taken."""

    stand: Stand
    taken: Taken
    taken_s: float
    deadline_s: float
    lasts_s: float
    lasted_s: float
    begun: bool = False
    took_s: float = 0.0
    beat: int = 0

    @property
    def number(self) -> int:
        return self.stand.row.term + 1


@dataclass
class Process:
    """One candidate's process; a crash replaces it."""

    number: int
    life: int
    view: View
    held: Tenure | None = None
    asking: tuple[Ask, dict[str, bool]] | None = None


@dataclass
class World:
    """Everything. `now` is the true time."""

    size: int
    dice: random.Random
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        everyone = range(self.size)
        self.now = 0.0
        self.row = OfficeRow(0, "", "", 0)
        self.calm = Weather({frozenset(pair) for pair in itertools.combinations(everyone, 2)}, set(everyone))
        self.weather = self.calm
        self.paused_until = dict.fromkeys(everyone, 0.0)
        self.history: list[tuple[float, int, int]] = []  # true time, term, who began it
        self._rates = {n: self.dice.uniform(1 - CLOCK_ERROR, 1 + CLOCK_ERROR) for n in everyone}
        self._offsets = {n: self.dice.uniform(0, 1e5) for n in everyone}
        self._lives = itertools.count()
        self._order = itertools.count()
        self._events: list[tuple[float, int, int | None, int, Callable[[], None]]] = []
        self._processes: dict[int, Process] = {}
        for number in everyone:
            self.start(number)

    # ----------------------------------------------------------------------------------------------- the machinery

    def start(self, number: int) -> None:
        """Starts a candidate, instead of the one that ran before."""
        process = Process(number, next(self._lives), election.watching(TERM_S, self.dice.random(), self.clock(number)))
        self._processes[number] = process
        self._later(process, self.dice.uniform(0, 0.2), lambda: self._look(process))
        self._later(process, self.dice.uniform(0, 0.2), lambda: self._ping(process))

    def kill(self, number: int) -> None:
        """Ends a candidate for good."""
        self._processes.pop(number)

    def clock(self, number: int) -> float:
        return self._offsets[number] + self._rates[number] * self.now

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Has something happen to the world."""
        heapq.heappush(self._events, (when, next(self._order), None, 0, what))

    def _later(self, process: Process, local_s: float, what: Callable[[], None]) -> None:
        when = self.now + local_s / self._rates[process.number]
        heapq.heappush(self._events, (when, next(self._order), process.number, process.life, what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, order, number, life, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            if number is not None:
                if number not in self._processes or self._processes[number].life != life:
                    continue
                if self.paused_until[number] > self.now:
                    heapq.heappush(self._events, (self.paused_until[number], order, number, life, what))
                    continue
            what()
            self.check()
        self.now = until
        self.check()

    def acting(self) -> list[Process]:
        """Who believes that it may act; a process that is paused now still would, when it goes on."""
        return [process for process in self._processes.values() if self._acts(process)]

    def waiting(self) -> list[Process]:
        """Who has the office, but not begun."""
        return [process for process in self._processes.values() if process.held is not None and not process.held.begun]

    def _acts(self, process: Process) -> bool:
        held = process.held
        return held is not None and held.begun and self.clock(process.number) < held.deadline_s

    def check(self) -> None:
        acting = self.acting()
        if len(acting) > 1:
            raise TwoManagers(f"at {self.now:.3f}: {[(p.number, p.held) for p in acting]}")

    # ------------------------------------------------------------------------------------------------- the network

    def _latency(self) -> float:
        return self.dice.expovariate(1 / self.weather.latency_s)

    def _send(self, sender: int, receiver: int, deliver: Callable[[Process], None]) -> None:
        """One way of a message: perhaps."""
        reaches = sender == receiver or frozenset((sender, receiver)) in self.weather.links
        process = self._processes.get(receiver)
        if reaches and process is not None and self.dice.random() >= self.weather.loss:
            when = self.now + self._latency()
            heapq.heappush(self._events, (when, next(self._order), receiver, process.life, lambda: deliver(process)))

    def _transact(self, process: Process, work: Callable[[], object], done: Callable[[object], None]) -> None:
        """Does *work* on the register after a while, and tells the outcome after another; either may be lost."""

        def execute() -> None:
            if process.number in self.weather.catalog and self.dice.random() >= self.weather.loss:
                outcome = work()
                if self.dice.random() >= self.weather.loss:
                    self._later(process, self._latency(), lambda: done(outcome))

        self.at(self.now + self._latency(), execute)

    # ----------------------------------------------------------------------------------------- watching and standing

    def _pause(self) -> float:
        return TERM_S * election.WATCH_PART * self.dice.uniform(0.8, 1.2)

    def _look(self, me: Process) -> None:
        self._transact(me, lambda: self.row, lambda row: self._saw(me, row))
        self._later(me, self._pause(), lambda: self._look(me))

    def _saw(self, me: Process, row: object) -> None:
        assert isinstance(row, OfficeRow)
        now = self.clock(me.number)
        me.view = election.saw(me.view, row, now)
        if me.held is not None:
            self._maybe_begin(me, row)
        elif me.asking is None:
            action = election.decide(me.view, now)
            if isinstance(action, Stand):
                self._take(me, action)
            elif isinstance(action, Ask):
                self._ask(me, action)

    def _ping(self, me: Process) -> None:
        row = me.view.row
        if me.held is None and row is not None and not row.vacant:
            sent_s = self.clock(me.number)
            self._send(me.number, int(row.server), lambda other: self._pong(other, me.number, sent_s))
        self._later(me, self._pause(), lambda: self._ping(me))

    def _is_holder(self, process: Process) -> bool:
        return process.held is not None and self.clock(process.number) < process.held.deadline_s

    def _pong(self, me: Process, asker: int, sent_s: float) -> None:
        term = me.held.number if me.held is not None else 0
        pong = Pong(str(me.number), term, self._is_holder(me))

        def deliver(other: Process) -> None:
            other.view = election.answered(other.view, pong, sent_s)

        self._send(me.number, asker, deliver)

    def _ask(self, me: Process, ask: Ask) -> None:
        answers: dict[str, bool] = {}
        me.asking = (ask, answers)
        for other in range(self.size):
            if other != me.number:
                self._send(me.number, other, lambda asked: self._hearing(asked, me, ask.row.term))
        self._later(me, TERM_S * election.ASK_PART, lambda: self._counted(me, answers))

    def _hearing(self, asked: Process, asker: Process, term: int) -> None:
        hears = True if self._is_holder(asked) else election.hears_for(asked.view, term, self.clock(asked.number))
        if hears is None:
            return

        def deliver(other: Process) -> None:
            if other is asker and other.asking is not None:
                other.asking[1][str(asked.number)] = hears
                if election.is_decided(other.asking[1], self.size):
                    self._counted(other, other.asking[1])

        self._send(asked.number, asker.number, deliver)

    def _counted(self, me: Process, answers: dict[str, bool]) -> None:
        if me.asking is None or me.asking[1] is not answers:
            return
        ask, me.asking = me.asking[0], None
        if election.elected(ask, answers, self.size):
            self._take(me, ask.stand())
        else:
            me.view = election.refused(me.view, self.clock(me.number))

    def _take(self, me: Process, stand: Stand) -> None:
        started = self.clock(me.number)
        lasts_s = election.lasts_at_first(stand, TERM_S)

        def compare_and_set() -> object:
            if self.row.term != stand.row.term or (stand.clear and self.row.beat != stand.row.beat):
                return Taken.LOST, 0.0
            lasted_s = max(TERM_S, self.row.lasts_s)
            self.row = replace(self.row, lasts_s=max(lasts_s, self.row.lasts_s))
            taken = Taken.UNCHANGED if self.row.beat == stand.row.beat else Taken.DEPOSED
            server = str(me.number)
            self.row = replace(self.row, term=self.row.term + 1, beat=self.row.beat + 1, server=server, address=server)
            return taken, lasted_s

        def done(outcome: object) -> None:
            assert isinstance(outcome, tuple)
            taken, lasted_s = outcome
            if taken is not Taken.LOST and me.held is None:
                deadline_s = self.rules.safe_until(started, lasts_s)
                self._hold(me, Tenure(stand, taken, self.clock(me.number), deadline_s, lasts_s, lasted_s))

        self._transact(me, compare_and_set, done)

    # --------------------------------------------------------------------------------------------------- in office

    def _hold(self, me: Process, held: Tenure) -> None:
        me.held = held
        self._maybe_begin(me, held.stand.row)
        self._extend_later(me, held)
        self._guard(me, held)

    def _guard(self, me: Process, held: Tenure) -> None:
        """Ends the term when its time is over."""
        if me.held is held:
            left = held.deadline_s - self.clock(me.number)
            if left <= 0:
                self._end(me, held)
            else:
                self._later(me, left + 1e-6, lambda: self._guard(me, held))

    def _maybe_begin(self, me: Process, row: OfficeRow) -> None:
        held = me.held
        assert held is not None
        now = self.clock(me.number)
        if not held.begun and self.rules.may_begin(held.stand, held.taken, held.taken_s, row.stopped, now, held.lasted_s):
            held.begun = True
            self.history.append((self.now, held.number, me.number))

    def _extend_later(self, me: Process, held: Tenure) -> None:
        due_s = self.clock(me.number) + TERM_S * election.EXTEND_PART
        self._later(me, TERM_S * election.EXTEND_PART, lambda: self._extend(me, held, due_s))

    def _extend(self, me: Process, held: Tenure, due_s: float) -> None:
        """One after the other; one whose answer does not come is given up, and may be applied later all the same."""
        if me.held is not held:
            return
        held.beat = beat = (held.beat or self.row.beat) + 1
        started = self.clock(me.number)
        lasts_s = self.rules.lasts_from_now(held.lasts_s, max(held.took_s, started - due_s), TERM_S)
        if not held.begun:
            lasts_s = max(lasts_s, held.lasts_s)
        held.deadline_s = min(held.deadline_s, self.rules.safe_until(started, lasts_s))

        def raise_beat() -> object:
            mine = self.row.term == held.number
            if mine and self.row.server and self.row.beat < beat:
                self.row = replace(self.row, beat=beat, lasts_s=lasts_s)
            return mine

        def done(extended: object) -> None:
            if me.held is not held or held.beat != beat:
                return
            self._extend_later(me, held)
            if not extended:
                self._end(me, held)
            elif self.clock(me.number) < held.deadline_s:
                held.lasts_s, held.took_s = lasts_s, self.clock(me.number) - due_s
                held.deadline_s = self.rules.safe_until(started, lasts_s)

        def give_up() -> None:
            if me.held is held and held.beat == beat:
                self._extend(me, held, due_s)

        self._transact(me, raise_beat, done)
        self._later(me, TERM_S, give_up)

    def _end(self, me: Process, held: Tenure) -> None:
        me.held = None
        now = self.clock(me.number)
        me.view = replace(
            election.watching(TERM_S, self.dice.random(), now),
            aside_term=me.view.aside_term,
            aside_until_s=me.view.aside_until_s,
        )
        if not (held.begun or self.rules.resigns_unbegun):
            return

        def resign() -> object:
            self.row = replace(self.row, stopped=max(self.row.stopped, held.number))
            if self.row.term == held.number:
                self.row = replace(self.row, server="", beat=self.row.beat + 1)
            return None

        self._transact(me, resign, lambda _nothing: None)

    def step_down(self, number: int) -> None:
        """What `godwit manager step-down` does, if *number* holds the office."""
        me = self._processes[number]
        if me.held is not None:
            held = me.held
            self._end(me, held)
            me.view = election.stepped_aside(me.view, held.number, self.clock(number))


# ------------------------------------------------------------------------------------------------------ bad weather


def storm(world: World, until: float) -> None:
    """Plans faults of all kinds, until it is calm again."""
    dice = world.dice
    when = dice.uniform(0.5, 3.0)
    while when < until:
        world.at(when, lambda: _fault(world, until))
        when += dice.expovariate(1 / 1.5)
    world.at(until, lambda: _calm(world))


def _calm(world: World) -> None:
    world.weather = world.calm
    world.paused_until = dict.fromkeys(world.paused_until, 0.0)


def _fault(world: World, until: float) -> None:
    dice = world.dice
    who = dice.choice([int(world.row.server or 0), dice.randrange(world.size)])
    match dice.choice(["pause", "crash", "split", "catalog", "loss", "late", "calm", "step down"]):
        case "pause":
            world.paused_until[who] = min(until, world.now + dice.choice([0.3, 1.0, 1.9, 2.5, 6.0]))
        case "crash":
            world.start(who)
        case "split":
            world.weather = replace(world.weather, links={pair for pair in world.calm.links if dice.random() < 0.5})
        case "catalog":
            world.weather = replace(world.weather, catalog={n for n in range(world.size) if dice.random() < 0.6})
        case "loss":
            world.weather = replace(world.weather, loss=dice.choice([0.02, 0.2, 0.5]))
        case "late":
            world.weather = replace(world.weather, latency_s=dice.choice([0.002, 0.05, 0.4, 1.2]))
        case "calm":
            world.weather = world.calm
        case _:
            world.step_down(who)
