"""A terminal in which a program runs, with what it has drawn there last."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cluster.readable import is_readable
from tests.support.runner import heed_interrupts

HOME = b"\x1b[H"  # each drawing begins there
LEFT = b"\x1b[?1049l"  # the screen is as it was before
_COMMANDS = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """One side of it: types, and looks."""

    def __init__(self, file: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.written = b""  # all that the program has
        self._file = file

    def type(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def resize(self, width: int, height: int) -> None:
        """The program is told by its kernel."""
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def modes(self) -> list[object]:
        """What the line discipline does with keys."""
        return termios.tcgetattr(self._file)[:4]

    def wait_for(self, condition: Callable[[list[str]], bool], what: str, within_s: float = 30.0) -> list[str]:
        """The lines of the first drawing for which *condition* holds."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self._read(0.1)
            drawn = self.lines()
            if condition(drawn):
                return drawn
        raise AssertionError(f"not within {within_s:g} s: {what}:\n" + "\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The last drawing that is complete."""
        drawings = self.written.split(HOME)
        whole = drawings[-2] if len(drawings) > 1 else b""
        return [line.rstrip() for line in _COMMANDS.sub(b"", whole).decode(errors="replace").replace("\r", "").split("\n")]

    def wait(self, within_s: float = 20.0) -> int:
        """How the program ends."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        code = self.process.wait(0.1)
        self._read(0.1)
        return code

    def _read(self, within_s: float) -> None:
        while is_readable(self._file, within_s):
            try:
                read = os.read(self._file, 65536)
            except OSError:
                return  # nobody has the other side any more
            if not read:
                return
            self.written += read
            within_s = 0.0


@contextmanager
def in_terminal(arguments: Sequence[str], width: int = 80, height: int = 24) -> Iterator[Terminal]:
    """`godwit` with these arguments, in a terminal of this size."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-bb", "-m", "cli.main", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "33"}
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def prepare() -> None:
        heed_interrupts()
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=prepare
        ) as process:
            try:
                yield Terminal(ours, process)
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
