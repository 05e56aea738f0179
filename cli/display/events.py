"""Events as lines for people."""

from datetime import datetime

from cluster.events import KINDS, Severity, sentence
from cluster.messages import EventRow

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}


def style_of(row: EventRow) -> str:
    """How a terminal shows it."""
    return next((style for severity, style in STYLES.items() if severity == row.severity), "")


def line_of(row: EventRow) -> str:
    """An event in a line, with the time of this machine's clock zone."""
    return f"{_time(row.time_ns):%Y-%m-%d %H:%M:%S}  {row.severity:<7}  {sentence(row)}{repeated(row)}"


def repeated(row: EventRow) -> str:
    """How often it happened, if the sentence does not say so."""
    known = KINDS.get(row.kind)  # type: ignore[call-overload]
    if row.count == 1 or (known is not None and "{count" in known.sentence):
        return ""
    return f" ({row.count} times, the last at {_time(row.last_ns):%H:%M:%S})"


def _time(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / 1e9)
