"""What a run found out, as it stands in its JSON file, and how two runs compare. Pure: takes values, gives values.

Ratios are speeds relative to a base: above 1 is faster, for rates and for times alike.
"""

import statistics
from collections.abc import Sequence

import msgspec

from bench.registry import LOWER, Measurement
from bench.sample import Sample

SCHEMA = 1  # of the JSON file; raised when a field changes its meaning
NATIVE = "native"
MOUNTED = "mounted"
TOTAL = "total"  # of all parts, and later
FASTER, SLOWER, SAME, UNCLEAR = "faster", "slower", "same", "unclear"


class Side(msgspec.Struct, frozen=True):
    """All samples of one metric on one side. `median` is null without samples."""

    median: float | None
    samples: list[Sample]


class Result(msgspec.Struct, frozen=True):
    """One metric. `better` is `higher` or `lower`; `ratio` is the mounted file system's speed relative to native."""

    metric: str  # as in `bench.registry`
    unit: str
    better: str
    native: Side
    mounted: Side
    ratio: float | None


class Failure(msgspec.Struct, frozen=True):
    """One measurement that ended without a sample."""

    metric: str  # that has no sample for this
    side: str  # `native` or `mounted`
    round: int  # from 1
    error: str  # for people


class Report(msgspec.Struct, frozen=True):
    """The JSON file. `subject` says what was mounted; `load` how much was measured; `notes` what to be careful about."""

    schema: int
    started: str  # ISO 8601, UTC
    duration_s: float  # of the whole run, lab and pauses included
    subject: str
    machine: dict[str, str | int | float]  # see `bench.machine`
    load: dict[str, int | float]
    results: list[Result]  # in the order of the registry
    failures: list[Failure]
    notes: list[str]


class Change(msgspec.Struct, frozen=True):
    """One metric of two runs, mounted side: medians, new speed relative to old, and (max − min) / median of each run.

    `native_ratio` is the same ratio of the native sides: how much the machine itself differed. `old_processor` and
    `new_processor` are what `processor_medians` gives of each run.
    """

    metric: str
    unit: str
    old: float
    new: float
    ratio: float
    old_spread: float
    new_spread: float
    native_ratio: float | None
    verdict: str
    old_processor: dict[str, float]
    new_processor: dict[str, float]


def make_side(samples: Sequence[Sample]) -> Side:
    return Side(median([sample.value for sample in samples]), list(samples))


def make_result(measurement: Measurement, native: Sequence[Sample], mounted: Sequence[Sample]) -> Result:
    sides = make_side(native), make_side(mounted)
    # Of medians, not the median of ratios: rounds of the two sides are no pairs.
    ratio = speed_ratio(sides[0].median, sides[1].median, measurement.better)
    return Result(measurement.metric, measurement.unit, measurement.better, *sides, ratio)


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def processor_medians(samples: Sequence[Sample]) -> dict[str, float]:
    """The µs of processor time of one operation by part, and `TOTAL`; empty if no sample has any."""
    costs = [sample.processor_us for sample in samples if sample.processor_us]
    if not costs:
        return {}
    # Of the sums, not the sum of medians: parts of one sample belong together.
    total = statistics.median(sum(cost.values()) for cost in costs)
    return {part: statistics.median(cost.get(part, 0.0) for cost in costs) for part in costs[0]} | {TOTAL: total}


def spread(values: Sequence[float]) -> float:
    """(max − min) / median; 0 for fewer than two values."""
    middle = median(values)
    # With three samples a standard deviation would say less.
    return (max(values) - min(values)) / middle if middle else 0.0


def speed_ratio(base: float | None, value: float | None, better: str) -> float | None:
    """How fast *value* is relative to *base*; None where either is missing or zero."""
    if not base or not value:
        return None
    return base / value if better == LOWER else value / base


def compare(old: Report, new: Report) -> list[Change]:
    """One change for each metric of which both runs have samples."""
    before = {result.metric: result for result in old.results}
    return [change for result in new.results if (change := _change(before.get(result.metric), result)) is not None]


def _change(old: Result | None, new: Result) -> Change | None:
    if old is None:
        return None
    ratio = speed_ratio(old.mounted.median, new.mounted.median, new.better)
    if ratio is None or old.mounted.median is None or new.mounted.median is None:
        return None
    olds, news = ([sample.value for sample in side.samples] for side in (old.mounted, new.mounted))
    return Change(
        metric=new.metric,
        unit=new.unit,
        old=old.mounted.median,
        new=new.mounted.median,
        ratio=ratio,
        old_spread=spread(olds),
        new_spread=spread(news),
        native_ratio=speed_ratio(old.native.median, new.native.median, new.better),
        verdict=judge(olds, news, ratio),
        old_processor=processor_medians(old.mounted.samples),
        new_processor=processor_medians(new.mounted.samples),
    )


def judge(old: Sequence[float], new: Sequence[float], ratio: float) -> str:
    """`same` where the two runs' samples overlap; `unclear` where one has fewer than two."""
    # One sample overlaps with nothing: everything would be a change.
    if min(len(old), len(new)) < 2:
        return UNCLEAR
    if min(new) <= max(old) and min(old) <= max(new):
        return SAME
    return FASTER if ratio > 1 else SLOWER


def differences(old: Report, new: Report) -> list[str]:
    """What makes two runs hard to compare: other loads, other machines."""
    found = []
    if old.load != new.load:
        found.append("the runs measured different amounts (one of them --quick?)")
    found += [
        f"{key}: {old.machine.get(key)} then, {new.machine.get(key)} now"
        for key in ("cpu", "cores", "kernel", "file_system")
        if old.machine.get(key) != new.machine.get(key)
    ]
    return found
