"""Is there an order? Linearizability (Herlihy and Wing 1990) of a history against a sequential model of one object.

The search goes through invocations and returns in the order of time, and keeps every *configuration* that the past allows: a
state of the object, and which of the pending steps have had their effect already. A step is given its effect as late as possible
(Lowe, "Testing for linearizability", 2017): a change when it returns, or when another step that has to return cannot do so
without it; so a history of any length is checked in one pass, whose cost is set by how many changes are under way at once.

Exact, in both directions, given the model: `Contradiction` iff no order exists in which every step that returned has its effect
between its invocation and its return, each step does what the model says, and a step that never returned has its effect at any
time after its invocation or never. Three observations keep it fast:

- An observation is put as early as it can be: that changes nothing for the others.
- A change that shares no key with what has to return can be put later as well.
- Of two configurations with the same state, one that has used up fewer changes of unknown outcome, and satisfied more
  observations, allows whatever the other does.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.coherence.records import Operation

State = Hashable
Done = frozenset[Hashable]
Configuration = tuple[State, Done]
Event = tuple[int, int, int]  # time, 0 for an invocation and 1 for a return, index of the step

CHECKPOINT_EVENTS = 40
EXPLAINING_STEPS = 2000  # what takes more to be shown needless is left in an explanation


@dataclass(frozen=True, eq=False)
class Step:
    """A call as one object sees it. `what` is for the model.

    `returned_ns` is None if it may never have happened. `keys`: two steps without a common key commute, and no observation tells
    in which order they were done; None shares with all.
    """

    operation: Operation
    what: tuple[Hashable, ...]
    invoked_ns: int
    returned_ns: int | None
    observes: bool
    keys: frozenset[Hashable] | None = None


class Model(Protocol):
    """The object as one process alone would see it."""

    def initial(self) -> State: ...

    def explains(self, state: State, what: tuple[Hashable, ...]) -> bool:
        """Whether the observation can be made in this state."""
        ...

    def results(self, state: State, what: tuple[Hashable, ...], marks: Iterable[Hashable]) -> Iterable[State]:
        """The states to which a change can lead; none if it cannot succeed in this one."""
        ...

    def mark(self, state: State, what: tuple[Hashable, ...]) -> Hashable:
        """What a pending change may remember of having seen this state; None for nothing."""
        ...


@dataclass(frozen=True)
class Contradiction:
    """No order explains what `failed` returned, given the others in `core`: what is left when all that does not matter is left
    out."""

    failed: Operation
    core: list[Operation]


def check(model: Model, steps: Sequence[Step]) -> Contradiction | None:
    """None if there is an order."""
    events = sorted(_events(steps))
    search = _Search(model, steps)
    failed_at = search.run(events)
    return None if failed_at is None else _explain(search, events, failed_at)


def _events(steps: Sequence[Step]) -> Iterator[Event]:
    """Invocations come before returns of the same nanosecond: such steps overlap."""
    for index, step in enumerate(steps):
        if step.returned_ns is None and step.observes:
            continue
        yield step.invoked_ns, 0, index
        if step.returned_ns is not None:
            yield step.returned_ns, 1, index


class _TooMuch(Exception):
    """An explanation would take too long to shorten."""


class _Search:
    """The configurations that are possible after the events so far."""

    def __init__(self, model: Model, steps: Sequence[Step]) -> None:
        self._model = model
        self.steps = steps
        self.configurations: set[Configuration] = {(model.initial(), frozenset())}
        self.pending: dict[int, Step] = {}
        self.checkpoints: list[tuple[int, set[Configuration], dict[int, Step]]] = []
        self._left: float = math.inf

    def run(self, events: Sequence[Event]) -> int | None:
        """The position of the first event that is not possible."""
        for position, event in enumerate(events):
            if position % CHECKPOINT_EVENTS == 0:
                self.checkpoints = [*self.checkpoints[-1:], (position, self.configurations, dict(self.pending))]
            if not self.goes_on(event):
                return position
        return None

    def fails(self, configurations: set[Configuration], pending: dict[int, Step], events: Iterable[Event]) -> bool:
        """Whether the events are certainly not possible after a checkpoint."""
        self.configurations, self.pending = configurations, dict(pending)
        self._left = EXPLAINING_STEPS
        try:
            return not all(self.goes_on(event) for event in events)
        except _TooMuch:
            return False

    def goes_on(self, event: Event) -> bool:
        _time, is_return, index = event
        if is_return:
            self._return(index)
        else:
            self._invoke(index)
        return bool(self.configurations)

    def _invoke(self, index: int) -> None:
        self.pending[index] = self.steps[index]
        self.configurations = {(state, self._noted(state, done, (index,))) for state, done in self.configurations}

    def _return(self, index: int) -> None:
        found: set[Configuration] = set()
        for configuration in self.configurations:
            if index in configuration[1]:
                found.add(configuration)
            else:
                self._reach(configuration, index, found)
        del self.pending[index]
        without = {(state, frozenset(item for item in done if _index_of(item) != index)) for state, done in found}
        self.configurations = self._best(without) if len(without) > 1 else without

    def _noted(self, state: State, done: Done, indices: Iterable[int]) -> Done:
        """*done* with what the pending steps *indices* see in this state."""
        seen: list[Hashable] = []
        for index in indices:
            step = self.pending[index]
            if index in done:
                continue
            if step.observes:
                if self._model.explains(state, step.what):
                    seen.append(index)
            elif step.returned_ns is not None and (mark := self._model.mark(state, step.what)) is not None:
                seen.append((index, mark))
        return done.union(seen) if seen else done

    def _reach(self, start: Configuration, wanted: int, found: set[Configuration]) -> None:
        """Adds the configurations in which *wanted* has just had its effect, after as few changes as it can be after."""
        changes = self._related(wanted)
        visited = {start}
        stack = [start]
        while stack:
            state, done = stack.pop()
            self._left -= 1
            if self._left < 0:
                raise _TooMuch
            for index in changes:
                if index in done:
                    continue
                marks = [item[1] for item in done if isinstance(item, tuple) and item[0] == index]
                for result in self._model.results(state, self.pending[index].what, marks):
                    if result == state and index != wanted and self.steps[index].returned_ns is None:
                        continue
                    after = (result, self._noted(result, done | {index}, self.pending))
                    if wanted in after[1]:
                        found.add(after)
                    elif after not in visited:
                        visited.add(after)
                        stack.append(after)

    def _related(self, wanted: int) -> list[int]:
        """The pending changes that may matter for *wanted*: those that share a key with it, or with one that does."""
        changes = {index: step.keys for index, step in self.pending.items() if not step.observes}
        keys = self.pending[wanted].keys
        related: list[int] = [wanted] if wanted in changes else []
        growing = True
        while growing:
            growing = False
            for index, others in changes.items():
                if index not in related and (keys is None or others is None or keys & others):
                    related.append(index)
                    keys = None if keys is None or others is None else keys | others
                    growing = True
        return related

    def _best(self, configurations: set[Configuration]) -> set[Configuration]:
        """Without those that allow nothing that another one does not."""
        by_state: dict[State, list[Done]] = {}
        for state, done in configurations:
            by_state.setdefault(state, []).append(done)
        kept: set[Configuration] = set()
        for state, dones in by_state.items():
            if len(dones) == 1:
                kept.add((state, dones[0]))
                continue
            split = [(done, *self._split(done)) for done in dones]
            for done, firm, unknown, seen in split:
                better = (
                    other is not done and f == firm and u <= unknown and s >= seen and (u, s) != (unknown, seen)
                    for other, f, u, s in split
                )
                if not any(better):
                    kept.add((state, done))
        return kept

    def _split(self, done: Done) -> tuple[Done, Done, Done]:
        """Changes that return, changes that never do, and what was seen."""
        changed = [item for item in done if isinstance(item, int) and not self.steps[item].observes]
        firm = frozenset(item for item in changed if self.steps[item].returned_ns is not None)
        unknown = frozenset(changed) - firm
        return firm, unknown, done - firm - unknown


def _index_of(item: Hashable) -> Hashable:
    return item[0] if isinstance(item, tuple) else item


def _explain(search: _Search, events: Sequence[Event], failed_at: int) -> Contradiction:
    """Leaves out of the events before the failure whatever it does not need: observations altogether, of changes that
    they had to have happened by then."""
    start, configurations, pending = search.checkpoints[0]
    window = list(events[start : failed_at + 1])
    failed = window[-1][2]
    for event in reversed(window[:-1]):
        step = search.steps[event[2]]
        if event[2] == failed or not (event[1] or step.observes):
            continue
        fewer = [other for other in window if other != event and not (step.observes and other[2] == event[2])]
        left = {index: other for index, other in pending.items() if not (step.observes and index == event[2])}
        if len(fewer) < len(window) and search.fails(configurations, left, fewer):
            window, pending = fewer, left
    needed = [search.steps[index].operation for _time, is_return, index in window if is_return]
    return Contradiction(search.steps[failed].operation, needed)
