"""Makes the measurements: round by round, group by group, side by side in turn, each in a fresh directory.

ext4 creates up to ten times slower for some seconds after a mass deletion. So nothing is deleted before the end, and
measurements that delete are made after all the others.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.isolation import Measured, MeasurementFailed, measure_apart
from bench.processors import LATER, Meter, used_between
from bench.registry import Group, Measurement
from bench.report import Failure
from bench.sample import Ground, Load, Sample
from bench.sides import Side
from bench.tables import shown


@dataclass(frozen=True)
class Plan:
    """What is to be done. A round of a group is left out if it would probably end later than `budget_s` after the start."""

    groups: Sequence[Group]  # cut to what is wanted
    sides: Sequence[Side]  # measured in turn within each group, so that both see the same weather
    load: Load  # the same for all
    tar: Path  # the tree for programs
    rounds: int  # of every group
    budget_s: float  # from the start of the first round


@dataclass(frozen=True)
class _Turn:
    """One group on one side in one round, and the measurements that failed in it."""

    group: Group
    side: Side
    round: int  # from 1
    ground: Ground
    failed: list[str] = field(default_factory=list)  # metrics; the first one is named as the reason of the others


@dataclass(frozen=True)
class _Unsettled:
    """A sample whose operations may have left the lab with work."""

    side: Side
    samples: list[Sample]  # of its metric and side; it is the last of them
    measured: Measured

    def settle(self) -> None:
        """The lab is at rest: what it has used since the counting ended belongs to the sample."""
        later_s = sum(used_between(self.measured.settled_from, self.side.read_processors()).values())
        used = {**self.measured.used, LATER: later_s}
        each = {part: seconds * 1e6 / self.measured.sample.count for part, seconds in used.items()}
        self.samples[-1] = msgspec.structs.replace(self.measured.sample, processor_us=each)


class Runner:
    """Runs a plan once; `samples` (by metric and side) and `failures` grow as it goes and stay valid when it is interrupted."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.samples: dict[tuple[str, str], list[Sample]] = {}
        self.failures: list[Failure] = []
        self.left_out = 0  # rounds of groups that did not fit
        self._unsettled: _Unsettled | None = None  # the last sample, until the next rest
        self._plan = plan
        self._tell = tell

    def run(self) -> None:
        turns: list[_Turn] = []
        start = time.monotonic()
        costs: dict[str, float] = {}
        for number in range(1, self._plan.rounds + 1):
            for group in self._plan.groups:
                begin = time.monotonic()
                # The first round has no cost yet, and is always made: half a table is no use.
                if group.name in costs and begin + costs[group.name] > start + self._plan.budget_s:
                    self.left_out += 1
                    continue
                turns += [
                    self._begin(group, side, number) for side in self._plan.sides if side.elsewhere or not group.needs_network
                ]
                costs[group.name] = time.monotonic() - begin  # of the last round; later ones cost the same
        # All rounds of what deletes, after everything else.
        for turn in turns:
            self._measure_all(turn, at_the_end=True)
        self._rest()

    def _begin(self, group: Group, side: Side, number: int) -> _Turn:
        """A group's first measurements, in a directory that stays for its last ones."""
        directory = side.root / f"{group.name}-{number}"
        ground = Ground(directory, self._plan.load, self._plan.tar, side.elsewhere, Meter(side.read_processors))
        turn = _Turn(group, side, number, ground)
        directory.mkdir()
        self._measure_all(turn, at_the_end=False)
        return turn

    def _measure_all(self, turn: _Turn, at_the_end: bool) -> None:
        due = [measurement for measurement in turn.group.measurements if measurement.at_the_end is at_the_end]
        for measurement in due:
            self._rest()
            self._measure(measurement, turn)

    def _rest(self) -> None:
        """Lets copies and writeback of earlier measurements end, so that they do not weigh on the next, on either side."""
        for side in self._plan.sides:
            try:
                side.settle()
            except Exception as error:
                # A manager that does not answer must not end the run: the figures say so themselves.
                self._tell(f"    not at rest: {error}")
        if self._unsettled is not None:
            self._unsettled.settle()
            self._unsettled = None
        # Writeback of one side would be measured on the other.
        os.sync()

    def _measure(self, measurement: Measurement, turn: _Turn) -> None:
        label = f"round {turn.round}  {turn.side.name:<8}{measurement.metric:<32}"
        try:
            # Reported as failed, too: a gap in the table must have a reason.
            if turn.failed and turn.group.chained:
                raise MeasurementFailed(f"not measured, since this failed before: {turn.failed[0]}")
            measured = measure_apart(measurement.measure, turn.ground, self._plan.load.patience_s)
        except MeasurementFailed as error:
            turn.failed.append(measurement.metric)
            self.failures.append(Failure(measurement.metric, turn.side.name, turn.round, str(error)))
            self._tell(f"{label}failed: {error}")
            return
        sample = measured.sample
        samples = self.samples.setdefault((measurement.metric, turn.side.name), [])
        samples.append(sample)
        if measured.used:
            self._unsettled = _Unsettled(turn.side, samples, measured)
        self._tell(f"{label}{shown(sample.value):>12} {measurement.unit}{'  (cut short)' if sample.cut_short else ''}")
