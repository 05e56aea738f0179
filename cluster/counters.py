"""Counters, gauges and histograms: each is declared once, in the module that counts.

A declaration gives a metric its name, help and labels for the whole program (`METRICS`, which `cluster.exporter` and
`docs/metrics.md` follow); a `Counters` keeps the numbers of one process, or of one term of a manager. Counters and gauges travel
to the manager as a map of numbers; histograms have too many for that, and are told by their own process only. Names follow
Prometheus: `godwit_` first, the unit in the name (`_bytes`, `_seconds`), `_total` at the end of what only grows.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

METRICS_MAX = 256  # numbers that one process tells: labels are of few values, and nobody can fill a manager's memory
NAME_MAX = 256  # characters of a name with its labels

_NAME = re.compile(r"godwit(_[a-z0-9]+)+")
_UNITS = ("bytes", "seconds")
_RESERVED = ("_bucket", "_count", "_sum", "_created")  # ends that Prometheus gives to parts of a histogram

QUICK_S = (
    *(0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds for what somebody waits for: from an answer out of memory to one of a disk that hangs."""
SLOW_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""Bounds for work in the background: from a small copy to one that waits for a server that is away."""

Numbers = dict[str, float]
"""By name with labels, as in `godwit_disk_errors_total{disk="/srv/v1"}`."""


class Kind(StrEnum):
    """What a metric is, in Prometheus' words."""

    COUNTER = "counter"  # only grows
    GAUGE = "gauge"  # rises and falls
    HISTOGRAM = "histogram"  # how often values were within bounds


@dataclass(frozen=True)
class Metric:
    """A declaration."""

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()  # of a histogram, rising, each the largest value that is within

    @property
    def unit(self) -> str:
        """`bytes`, `seconds`, or empty for what is counted in pieces."""
        parts = self.name.removesuffix("_total").split("_")
        return parts[-1] if parts[-1] in _UNITS else ""

    def key(self, *values: str) -> str:
        """The name with a value for each label."""
        assert len(values) == len(self.labels), self.name
        if not values:
            return self.name
        pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(self.labels, values, strict=True))
        return f"{self.name}{{{pairs}}}"


METRICS: dict[str, Metric] = {}
"""All that are declared in the modules that this process has imported."""


def counter(name: str, help_: str, *labels: str) -> Metric:
    """Declares what only grows; its name ends with `_total`. Raises `ValueError` for a wrong name, or one that is taken."""
    return _declare(Metric(name, help_, Kind.COUNTER, labels))


def gauge(name: str, help_: str, *labels: str) -> Metric:
    """As `counter`, for what rises and falls; its name ends otherwise."""
    return _declare(Metric(name, help_, Kind.GAUGE, labels))


def histogram(name: str, help_: str, *labels: str, bounds: tuple[float, ...] = QUICK_S) -> Metric:
    """As `gauge`, for values of which is counted how many were within each of the *bounds*."""
    return _declare(Metric(name, help_, Kind.HISTOGRAM, labels, bounds))


def _declare(metric: Metric) -> Metric:
    is_counter = metric.name.endswith("_total")
    if not _NAME.fullmatch(metric.name) or is_counter != (metric.kind is Kind.COUNTER) or metric.name.endswith(_RESERVED):
        raise ValueError(f"{metric.name} is no name for a {metric.kind}")
    if METRICS.setdefault(metric.name, metric) is not metric:
        raise ValueError(f"{metric.name} is declared twice")
    return metric


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Cell:
    """One number. Whoever counts adds to `value`: an attribute is all that a hot path pays."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How many values were within which bounds, and what they add up to."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of values up to the bound and above the one before; the last is above all
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts *value*: one search in a tuple, for hot paths."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Histograms(dict[str, Histogram]):
    """Those of a metric with one label, by its value, which the code must name: they are made when they are first looked up."""

    def __init__(self, make: Callable[[str], Histogram]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, value: str) -> Histogram:
        made = self[value] = self._make(value)
        return made


class Sample(NamedTuple):
    """One metric with values for its labels, at a moment."""

    metric: Metric
    values: tuple[str, ...]  # of its labels
    number: float  # of a histogram: what its values add up to
    counts: tuple[int, ...] = ()  # of a histogram: see `Histogram`


class Counters:
    """The numbers of one process or term. Only its event loop uses them."""

    def __init__(self) -> None:
        # By name and values of labels.
        self._cells: dict[tuple[str, tuple[str, ...]], tuple[Metric, Cell]] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], tuple[Metric, Histogram]] = {}
        self._asked: list[Callable[[], Iterator[Sample]]] = []

    def cell(self, metric: Metric, *values: str) -> Cell:
        """The number of *metric* for these values of its labels, 0 at first; the same one each time."""
        assert len(values) == len(metric.labels), metric.name
        return self._cells.setdefault((metric.name, values), (metric, Cell()))[1]

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        """As `cell`, for a histogram."""
        assert len(values) == len(metric.labels), metric.name
        return self._histograms.setdefault((metric.name, values), (metric, Histogram(metric.bounds)))[1]

    def histograms(self, metric: Metric) -> Histograms:
        """Those of a metric with one label, to be looked up by its value."""
        return Histograms(lambda value: self.histogram(metric, value))

    def follow(self, metric: Metric, ask: Callable[[], float]) -> None:
        """Tells what *ask* returns at that moment: for a number that is kept elsewhere. *metric* has no labels."""
        self._asked.append(lambda: iter((Sample(metric, (), ask()),)))

    def follow_each(self, metric: Metric, ask: Callable[[], Mapping[str, float]]) -> None:
        """As `follow`, for a metric with one label: *ask* returns the numbers by its values."""
        self._asked.append(lambda: (Sample(metric, (value,), number) for value, number in ask().items()))

    def numbers(self) -> Numbers:
        """All of them now but for histograms, `METRICS_MAX` at most: what travels."""
        numbers = {metric.key(*values): float(number) for metric, values, number, _ in self._plain()}
        return dict([item for item in numbers.items() if len(item[0]) <= NAME_MAX][:METRICS_MAX])

    def samples(self) -> list[Sample]:
        """All of them now: what a scraper is told."""
        kept = [
            Sample(metric, values, counted.sum, tuple(counted.counts))
            for (_name, values), (metric, counted) in self._histograms.items()
        ]
        return [*self._plain(), *kept]

    def _plain(self) -> Iterator[Sample]:
        for (_name, values), (metric, cell) in self._cells.items():
            yield Sample(metric, values, cell.value)
        for ask in self._asked:
            yield from ask()


counters = Counters()
"""Those of this process."""
