"""Shows a report, and the difference between two, to people."""

import sys
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.peers import PEERS
from bench.processors import LATER, SHOWN
from bench.report import TOTAL, Change, Report, Result, processor_medians, spread

SHOWN_PEERS = ("GlusterFS", "MooseFS")  # mergerfs makes no copies: it is in the file, and not beside what does
COSTS = (*SHOWN, TOTAL)
PIPE_WIDTH = 1000  # columns; no line is wrapped or cut
# A mark, and the (max − min) / median from which a ratio has it.
SOFT, SOFT_SPREAD = "~", 0.5


def show_report(report: Report) -> None:
    """The table of a run, its failures and its notes."""
    facts = report.machine
    _line(
        f"{report.subject} · kernel {facts['kernel']} · {facts['cores']} cores · {facts['file_system']} · {facts['git_commit']}"
    )
    rows = []
    for result in report.results:
        peers = PEERS.get(result.metric, {})
        ratios = [shown(peers[name].ratio) if name in peers else "" for name in SHOWN_PEERS]
        # The same figure the other way round, for ratios far below 1.
        slower = 1 / result.ratio if result.ratio else None
        soft = SOFT if is_soft(result) else ""
        figures = [shown(result.native.median), shown(result.mounted.median), soft + shown(result.ratio), soft + shown(slower)]
        rows.append([result.metric, result.unit, *figures, *ratios])
    headers = ("metric", "unit", "native", "mounted", "ratio", "× slower", *SHOWN_PEERS)
    _table(headers, rows, left=2)
    _line("Medians. Ratio: speed relative to native, above 1 is faster. GlusterFS and MooseFS: their ratios on such a machine.")
    _line(f"{SOFT}: the samples of one side differ by more than {SOFT_SPREAD:.0%}, so the ratio is soft.")
    _show_processors(report)
    for failure in report.failures:
        _line(f"failed: {failure.metric} ({failure.side}, round {failure.round}): {failure.error}")
    for note in report.notes:
        _line(f"note: {note}")


def _show_processors(report: Report) -> None:
    costs = {result.metric: processor_medians(result.mounted.samples) for result in report.results}
    parts = _parts_of(*costs.values())
    rows = [[metric, *(shown(cost.get(part)) for part in parts)] for metric, cost in costs.items() if cost]
    if rows:
        _table(("processor µs per operation", *parts), rows, left=1)
        _line(f"User and system time of all servers, for each file with programs. {LATER}: until the lab was at rest again.")


def _parts_of(*costs: Mapping[str, float]) -> list[str]:
    """The columns: a database only where there is one."""
    return [part for part in COSTS if any(part in cost for cost in costs)]


def show_changes(changes: Sequence[Change], warnings: Sequence[str]) -> None:
    """The table of a comparison; spreads in percent."""
    rows = [
        [
            change.metric,
            change.unit,
            *map(shown, (change.old, change.new, change.ratio)),
            f"{change.old_spread:.0%}",
            f"{change.new_spread:.0%}",
            shown(change.native_ratio),
            change.verdict,
        ]
        for change in changes
    ]
    headers = ("metric", "unit", "old", "new", "new/old", "spread old", "new", "native new/old", "verdict")
    _table(headers, rows, left=2)
    _line("new/old: speed, above 1 is faster. Spread: (max − min) / median. same: the samples of both runs overlap.")
    _show_processor_changes([(change.metric, change.old_processor, change.new_processor) for change in changes])
    for warning in warnings:
        _line(f"note: {warning}")


def _show_processor_changes(changes: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]]) -> None:
    both = [(metric, old, new) for metric, old, new in changes if old and new]
    parts = _parts_of(*(cost for _, *costs in both for cost in costs))
    rows = [[metric, *(f"{shown(old.get(part))} → {shown(new.get(part))}" for part in parts)] for metric, old, new in both]
    if rows:
        _table(("processor µs per operation, old → new", *parts), rows, left=1)


def is_soft(result: Result) -> bool:
    """Whether there is a ratio that would not come out the same again."""
    sides = ([sample.value for sample in side.samples] for side in (result.native, result.mounted))
    return result.ratio is not None and any(spread(values) > SOFT_SPREAD for values in sides)


def shown(value: float | None) -> str:
    """Three significant digits, with separators for thousands; empty for None."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
