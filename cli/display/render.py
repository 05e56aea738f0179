"""What commands print: tables for people, one JSON object for programs.

On a terminal tables fit its width; into a pipe they are plain, and as wide as their content, so that lines never wrap.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.decoding import printable_name

PIPE_WIDTH = 100_000  # columns; programs that read tables want a line for each row
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")  # powers of 1024, as `ls -h` and `df -h`


def print_json(value: dict[str, object]) -> None:
    """Prints the object in ASCII; undecodable bytes of names are lone surrogates, as `os.fsdecode` makes them."""
    # ASCII: a name that is not UTF-8 has no UTF-8 to be printed in.
    print_line(json.dumps(value, indent=2))


def print_line(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Prints rows under their columns; those named in *right* are aligned to the right."""
    terminal = sys.stdout.isatty()
    # Into a pipe without lines and padding, for `cut` and `awk`.
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=not terminal)
    for row in rows:
        # Text, since file names with brackets would be read as rich's markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False, width=None if terminal else PIPE_WIDTH)
    # Captured, to cut off the blanks that rich fills lines up with.
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print_line(line.rstrip())


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints name and value pairs, one a line."""
    listed = [(name, str(value)) for name, value in facts]
    width = max(len(name) for name, _value in listed)
    for name, value in listed:
        print_line(f"{name:<{width}}  {value}")


def as_text(name: bytes) -> str:
    """A name for JSON: `os.fsencode` makes the same bytes of it again."""
    return os.fsdecode(name)


def as_shown(name: bytes) -> str:
    """A name for a terminal: what is not printable, or not UTF-8, is escaped."""
    return printable_name(name)


def as_bytes(count: int) -> str:
    """A size for people, in powers of 1024."""
    amount = float(count)
    for unit in UNITS[:-1]:
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} {UNITS[-1]}"


def as_age(seconds: float) -> str:
    """A time span for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
