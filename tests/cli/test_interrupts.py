"""Ctrl-C ends any command at once, and nothing is printed that only a programmer understands."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import exits
from lab.registry import unregister
from tests.cli.test_commands import fake_lab
from tests.support.runner import heed_interrupts
from tests.support.terminals import LEFT, in_terminal

SOON_S = 20.0  # on a machine that does much else

SCRIPT = "from cli.start import main; main()"


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """Takes connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SOON_S)
        yield server


@pytest.fixture
def root(tmp_path: Path, manager: socket.socket) -> Iterator[Path]:
    lab = fake_lab(tmp_path / "lab", f"127.0.0.1:{manager.getsockname()[1]}")
    yield lab.root
    unregister(lab.root)


@contextlib.contextmanager
def running(*arguments: str, prepare: Callable[[], None] = heed_interrupts) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-bb", "-c", SCRIPT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "status --watch",
        "servers ls",
        "events",
        "events --follow",
        "queue ls",
        "migrations ls",
        "manager show",
        "certs renew",
        "fsck",
        "servers add s4",
    ],
)
def test_while_it_waits_for_a_manager(command: str, root: Path, manager: socket.socket) -> None:
    with running(*command.split(), "--root", str(root), "--timeout", "100") as process:
        connection, _address = manager.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == exits.INTERRUPTED
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in out


def test_the_terminal_is_left_as_it_was_while_it_waits_for_a_manager(root: Path, manager: socket.socket) -> None:
    for end, code in ((b"q", 0), (b"\x03", exits.INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)):
        with in_terminal(["top", "--root", str(root), "--timeout", "100"]) as terminal:
            before = terminal.modes()
            terminal.wait_for(lambda lines: "waiting for the manager" in lines, "it says for what it waits")
            if isinstance(end, bytes):
                terminal.type(end)
            else:
                terminal.process.send_signal(end)
            assert terminal.wait() == code
            assert b"Traceback" not in terminal.written
            assert terminal.written.rstrip().endswith(LEFT)
            assert terminal.modes() == before


def test_while_it_is_read_from_the_disk(root: Path) -> None:
    script = f"print('up', flush=True); input(); {SCRIPT}"
    command = [sys.executable, "-bb", "-c", script, "status", "--root", str(root), "--timeout", "100"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert catches(process.pid, signal.SIGINT), "by the interpreter"
        process.stdin.write("\n")
        deadline = time.monotonic() + SOON_S
        # From here on its modules are read, for half a second.
        while catches(process.pid, signal.SIGINT):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_one_that_is_started_without_ctrl_c_stays_without(root: Path, manager: socket.socket) -> None:
    """As by nohup, or in the background of a script."""
    with running("status", "--root", str(root), "--timeout", "2", prepare=_ignore_interrupts) as process:
        connection, _address = manager.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SOON_S)
    assert process.returncode == exits.UNREACHABLE


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# As a shell has it: what is printed is kept in memory until there is enough of it.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_reader_that_goes_away_ends_it_without_a_word(option: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-bb", "-c", SCRIPT, option]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=SOON_S, check=False, env=BUFFERED)
    os.close(write)
    assert (done.returncode, done.stderr) == (exits.FAILURE, "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_output_that_cannot_be_written_is_said(option: str) -> None:
    command = [sys.executable, "-bb", "-c", SCRIPT, option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SOON_S, check=False, env=BUFFERED)
    assert (done.returncode, done.stderr) == (exits.FAILURE, "godwit: No space left on device\n")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)
