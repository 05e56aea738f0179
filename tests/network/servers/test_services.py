"""What the processes of a server tell systemd, whose place the test takes: when they serve, what they wait for, that they run."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.readable import is_readable
from lab.lab import Lab
from lab.mounts import answers, detach
from tests.support.conditions import wait_until

CHECKOUT = Path(__file__, "../../../..").resolve()
WATCHDOG_US = 900_000  # a ping each 0.3 s
# An agent whose event loop, and nothing else of it, stands still from a signal on.
STUCK = """
import pathlib, signal, sys, time
import agent.main, cli.commands.run

signal.signal(signal.SIGUSR2, lambda *_: time.sleep(3600))
cli.commands.run.run_part("agent", agent.main.run_agent, pathlib.Path(sys.argv[-1]), "INFO")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("services") / "lab", servers=2)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


class Notified:
    """One process that systemd would have started, and what it has told."""

    def __init__(self, lab: Lab, listening: socket.socket, program: Sequence[str], log: Path) -> None:
        self.messages: list[str] = []
        self._listening = listening
        about = {"NOTIFY_SOCKET": listening.getsockname(), "WATCHDOG_USEC": str(WATCHDOG_US)}
        argv = [sys.executable, "-bb", *program, "--config", str(lab.config_path("s2"))]
        with open(log, "wb") as said:
            self.process = subprocess.Popen(lab.command("s2", argv), env={**os.environ, **about}, cwd=CHECKOUT, stderr=said)

    def lines(self) -> list[str]:
        """Of all messages so far."""
        while True:
            try:
                self.messages.append(self._listening.recv(4096).decode())
            except BlockingIOError:
                return [line for message in self.messages for line in message.split("\n")]

    def hears(self, seconds: float) -> bool:
        """Whether a message comes within so many."""
        return is_readable(self._listening.fileno(), seconds)

    def wait_for(self, line: str) -> None:
        """Until a line that begins so has come since the last such wait."""
        wait_until(lambda: [found for found in self.lines() if found.startswith(line)], line, 30)
        self.messages.clear()


@contextmanager
def notified(lab: Lab, part: str, folder: Path, program: Sequence[str] = ()) -> Iterator[Notified]:
    """A part of s2, started as systemd does, in the place of the lab's own."""
    lab.kill("s2", part, signal.SIGTERM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(folder / "notify"))
        listening.setblocking(False)
        made = Notified(lab, listening, program or ["-m", "cli.main", "run", part], folder / "log")
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()
            if part == "mount":
                detach(lab.mount("s2"))
            lab.start("s2", part)


@pytest.mark.parametrize("part", ["manager", "agent", "mount"])
def test_a_process_says_when_it_serves_reads_its_settings_and_stops(lab: Lab, part: str, tmp_path: Path) -> None:
    with notified(lab, part, tmp_path) as told:
        wait_until(lambda: "READY=1" in told.lines(), "it is ready", 30)
        if part == "mount":
            assert answers(lab.mount("s2"), 5.0)
        wait_until(lambda: [line for line in told.lines() if line.startswith("STATUS=") and "s1" in line], "whom it follows", 30)
        told.messages.clear()
        told.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "READY=1" in told.lines(), "it has read them", 10)
        of_reload = [line for line in told.lines() if line in ("RELOADING=1", "READY=1")]
        assert of_reload == ["RELOADING=1", "READY=1"]
        told.wait_for("WATCHDOG=1")
        told.process.terminate()
        assert told.process.wait(30) == 0
        assert "STOPPING=1" in told.lines()


def test_a_mount_without_a_manager_is_not_ready_and_says_why(lab: Lab, tmp_path: Path) -> None:
    lab.kill("s1", "manager")
    lab.kill("s2", "manager")
    try:
        with notified(lab, "mount", tmp_path) as told:
            wait_until(lambda: "STATUS=waits for a manager: none of them answered" in told.lines(), "why it waits", 30)
            told.wait_for("WATCHDOG=1")
            assert "READY=1" not in told.lines()
            lab.start("s1", "manager")
            told.wait_for("READY=1")
    finally:
        lab.start("s1", "manager")
        lab.start("s2", "manager")


def test_a_process_that_is_stuck_is_silent(lab: Lab, tmp_path: Path) -> None:
    """Its event loop has the say, not a thread: systemd would end it, and start it again."""
    with notified(lab, "agent", tmp_path, ["-c", STUCK]) as told:
        told.wait_for("READY=1")
        told.process.send_signal(signal.SIGUSR2)
        # What came before it was stuck; systemd would wait for as long.
        silent_s = 3 * WATCHDOG_US / 1_000_000
        wait_until(lambda: is_silent(told, silent_s), "it is silent", 30)
        # As systemd ends it: what every thread did is in its log.
        told.process.send_signal(signal.SIGABRT)
        assert told.process.wait(30) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in (tmp_path / "log").read_text()


def is_silent(told: Notified, seconds: float) -> bool:
    """Whether nothing comes for so long."""
    told.lines()
    told.messages.clear()
    return not told.hears(seconds)
