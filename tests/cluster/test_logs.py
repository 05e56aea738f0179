"""The log of a process whose stderr nobody reads."""

import fcntl
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.logs import BackgroundHandler

LINES_MAX = 10
LOGGED = 100

Pipe = tuple[int, int]


@pytest.fixture
def full_pipe() -> Iterator[Pipe]:
    """Both ends of a pipe that takes nothing any more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"\n" * 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def logger() -> logging.Logger:
    """Which nobody else hears."""
    made = logging.Logger("test")
    made.propagate = False
    return made


def read_until(reader: int, text: str) -> str:
    found = ""
    while text not in found:
        found += os.read(reader, 4096).decode()
    return found.lstrip("\n")


def test_who_logs_does_not_wait_and_the_reader_learns_how_much_was_lost(full_pipe: Pipe, logger: logging.Logger) -> None:
    reader, writer = full_pipe
    handler = BackgroundHandler(writer, logging.Formatter("%(levelname)s %(message)s"), LINES_MAX)
    logger.addHandler(handler)
    for number in range(LOGGED):
        logger.info("line %d", number)
    assert os.read(reader, 4096) == b"\n" * 4096
    shown = read_until(reader, f"line {LINES_MAX - 1}\n")
    logger.info("the last line")
    shown += read_until(reader, "the last line\n")
    lost = sum(int(count) for count in re.findall(r"WARNING (\d+) lines of this log were lost", shown))
    kept = re.findall(r"INFO line (\d+)", shown)
    assert kept == sorted(kept, key=int)
    assert LINES_MAX <= len(kept) == LOGGED - lost
    handler.end(10)


def test_a_pipe_that_stays_full_does_not_keep_a_process_from_ending(full_pipe: Pipe, logger: logging.Logger) -> None:
    reader, writer = full_pipe
    script = "import logging\nfrom cluster.logs import log_to_stderr\nwith log_to_stderr('%(message)s', logging.INFO):\n"
    script += "    for number in range(20_000):\n        logging.info('line %d', number)\n"
    subprocess.run([sys.executable, "-c", script], stderr=writer, check=True, timeout=60)
    assert os.read(reader, 4096) == b"\n" * 4096


def test_lines_and_tracebacks_are_whole_and_in_order_when_the_process_ends() -> None:
    script = (
        "import logging\nfrom cluster.logs import log_to_stderr\nwith log_to_stderr('%(levelname)s %(message)s', logging.INFO):\n"
    )
    script += "    try:\n        1 / 0\n    except ZeroDivisionError:\n        logging.exception('a %s', 'failure')\n"
    script += "    logging.debug('unheard')\n    logging.info('the end \\udcff')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    first, *traceback, last = done.stderr.splitlines()
    assert (first, last) == ("ERROR a failure", r"INFO the end \udcff")
    assert traceback[-1] == "ZeroDivisionError: division by zero"


def test_in_the_journal_each_line_has_its_priority_and_no_time() -> None:
    """systemd says in JOURNAL_STREAM what stderr is; a program that it is inherited by may have another one."""
    script = "import logging\nfrom cluster.logs import STAMP, log_to_stderr\n"
    script += "with log_to_stderr(STAMP + 'mount: %(message)s', logging.DEBUG):\n"
    script += "    logging.debug('d')\n    logging.info('i')\n    logging.warning('w')\n    logging.error('e')\n"
    script += "    try:\n        1 / 0\n    except ZeroDivisionError:\n        logging.critical('c', exc_info=True)\n"
    reader, writer = os.pipe()
    status = os.fstat(writer)
    environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    subprocess.run([sys.executable, "-c", script], stderr=writer, env=environment, check=True, timeout=60)
    os.close(writer)
    with open(reader) as file:
        lines = file.read().splitlines()
    assert lines[:5] == ["<7>mount: d", "<6>mount: i", "<4>mount: w", "<3>mount: e", "<2>mount: c"]
    assert lines[-1] == "<2>ZeroDivisionError: division by zero"
    assert all(line.startswith("<2>") for line in lines[4:])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+ DEBUG   mount: d\n", done.stderr)
