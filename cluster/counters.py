"""Counters and gauges: each is declared once, in the module that counts, and travels as a map of numbers.

A declaration gives a metric its name, help and labels for the whole program (`METRICS`, which an exporter reads); a `Counters`
keeps the numbers of one process, or of one term of a manager. Names follow Prometheus: `godwit_` first, the unit in the name
(`_bytes`, `_seconds`), `_total` at the end of what only grows.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

METRICS_MAX = 256  # numbers that one process tells: labels are of few values, and nobody can fill a manager's memory
NAME_MAX = 256  # characters of a name with its labels

_NAME = re.compile(r"godwit(_[a-z0-9]+)+")
_UNITS = ("bytes", "seconds")

Numbers = dict[str, float]
"""By name with labels, as in `godwit_disk_errors_total{disk="/srv/v1"}`."""


@dataclass(frozen=True)
class Metric:
    """A declaration."""

    name: str
    help: str
    only_grows: bool
    labels: tuple[str, ...]

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
    return _declare(Metric(name, help_, only_grows=True, labels=labels))


def gauge(name: str, help_: str, *labels: str) -> Metric:
    """As `counter`, for what rises and falls; its name ends otherwise."""
    return _declare(Metric(name, help_, only_grows=False, labels=labels))


def _declare(metric: Metric) -> Metric:
    if not _NAME.fullmatch(metric.name) or metric.name.endswith("_total") != metric.only_grows:
        raise ValueError(f"{metric.name} is no name for a {'counter' if metric.only_grows else 'gauge'}")
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


class Counters:
    """The numbers of one process or term. Only its event loop uses them."""

    def __init__(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._asked: list[Callable[[], Mapping[str, float]]] = []

    def cell(self, metric: Metric, *values: str) -> Cell:
        """The number of *metric* for these values of its labels, 0 at first; the same one each time."""
        return self._cells.setdefault(metric.key(*values), Cell())

    def follow(self, metric: Metric, ask: Callable[[], float]) -> None:
        """Tells what *ask* returns at that moment: for a number that is kept elsewhere. *metric* has no labels."""
        key = metric.key()
        self._asked.append(lambda: {key: ask()})

    def follow_each(self, metric: Metric, ask: Callable[[], Mapping[str, float]]) -> None:
        """As `follow`, for a metric with one label: *ask* returns the numbers by its values."""
        self._asked.append(lambda: {metric.key(value): number for value, number in ask().items()})

    def numbers(self) -> Numbers:
        """All of them now, `METRICS_MAX` at most."""
        numbers: Numbers = {key: cell.value for key, cell in self._cells.items()}
        for ask in self._asked:
            numbers.update(ask())
        kept = [(key, float(number)) for key, number in numbers.items() if len(key) <= NAME_MAX]
        return dict(kept[:METRICS_MAX])


counters = Counters()
"""Those of this process."""
