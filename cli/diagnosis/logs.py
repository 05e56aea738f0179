"""The end of the logs of a server's processes: of a lab's files, or out of systemd's journal."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab.lab import Lab
from lab.state import PARTS, SUPERVISOR_LOG

JOURNAL_LINES = 100_000  # of one unit, before its end is taken
JOURNAL_S = 30.0


class Log(NamedTuple):
    """The end of one log, or why there is none."""

    name: str
    text: str


def logs_of_lab(lab: Lab, bytes_max: int) -> Iterator[Log]:
    """Those of all its processes."""
    yield from _of_file("supervisor.log", lab.root / SUPERVISOR_LOG, bytes_max)
    for server in lab.servers:
        for part in PARTS:
            yield from _of_file(f"{server}-{part}.log", lab.log(server, part), bytes_max)


def logs_of_machine(bytes_max: int) -> Iterator[Log]:
    """Those of this machine's units, as the journal has them."""
    for part in PARTS:
        yield Log(f"{part}.log", _journal_of(f"godwit-{part}", bytes_max))


def _of_file(name: str, path: Path, bytes_max: int) -> Iterator[Log]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - bytes_max))
            yield Log(name, _whole_lines(file.read(bytes_max), is_cut=size > bytes_max))
    except FileNotFoundError:
        return
    except OSError as error:
        yield Log(name, f"cannot be read: {error.strerror}\n")


def _journal_of(unit: str, bytes_max: int) -> str:
    command = [
        "journalctl",
        "--unit",
        unit,
        "--lines",
        str(JOURNAL_LINES),
        "--output",
        "short-iso-precise",
        "--no-pager",
        "--quiet",
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=JOURNAL_S, check=False)
    except FileNotFoundError:
        return "there is no journalctl on this machine\n"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the journal does not answer: {error}\n"
    if done.returncode != 0:
        return f"the journal does not answer: {done.stderr.decode(errors='replace')}\n"
    return _whole_lines(done.stdout[-bytes_max:], is_cut=len(done.stdout) > bytes_max)


def _whole_lines(end: bytes, *, is_cut: bool) -> str:
    # Where a line was cut a word may be, too.
    return (end.partition(b"\n")[2] if is_cut else end).decode(errors="replace")
