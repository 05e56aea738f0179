"""Programs that lock files on mounts of a network."""

import subprocess
import sys
from pathlib import Path

COUNT = """
import fcntl, os, sys
path, times = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDWR)
for _ in range(times):
    fcntl.lockf(fd, fcntl.LOCK_EX, 8)
    value = int(os.pread(fd, 8, 0))
    os.pwrite(fd, b"%08d" % (value + 1), 0)
    fcntl.lockf(fd, fcntl.LOCK_UN, 8)
"""

HOLD = """
import errno, fcntl, os, signal, struct, sys

def interrupted(*_):
    raise InterruptedError(errno.EINTR, "a signal")

def open_file_lock(kind, start, length):
    fcntl.fcntl(fd, F_OFD_SETLKW, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))

F_OFD_SETLKW = 38
kind, path, start, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
signal.signal(signal.SIGUSR1, interrupted)
fd = os.open(path, os.O_RDWR)
print("asking", flush=True)
try:
    if kind == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    elif kind == "shared":
        fcntl.flock(fd, fcntl.LOCK_SH)
    elif kind == "open file":
        open_file_lock(fcntl.F_WRLCK, start, length)
    else:
        fcntl.lockf(fd, fcntl.LOCK_EX, length, start)
except OSError as error:
    print("refused", error.errno, flush=True)
    sys.exit(0)
print("held", flush=True)
for line in sys.stdin:
    order, _, rest = line.strip().partition(" ")
    try:
        if order == "write":
            os.pwrite(fd, rest.encode(), 0)
        elif order == "read":
            os.pread(fd, 10, 0)
        elif order == "unlock":
            fcntl.lockf(fd, fcntl.LOCK_UN, length, start)
        elif order == "more":
            fcntl.lockf(fd, fcntl.LOCK_EX, length, int(rest))
        print("done", flush=True)
    except OSError as error:
        print("failed", error.errno, flush=True)
"""

TRANSACT = """
import sqlite3, sys
path, who, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=120, isolation_level=None)
connection.execute("PRAGMA journal_mode=DELETE")
for number in range(times):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO entries (who, number) VALUES (?, ?)", (who, number))
    connection.execute("UPDATE total SET value = value + 1")
    connection.execute("COMMIT")
connection.close()
"""


class Holder:
    """A process that locks a file, and holds the lock until it is told otherwise or ends. Closing its input ends it."""

    def __init__(self, kind: str, path: Path, start: int = 0, length: int = 0) -> None:
        command = [sys.executable, "-c", HOLD, kind, str(path), str(start), str(length)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.says() == "asking"

    def says(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def does(self, order: str) -> str:
        """What becomes of an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        return self.says()

    def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=120)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.end()


def held(kind: str, path: Path, start: int = 0, length: int = 0) -> Holder:
    """A process that has its lock."""
    holder = Holder(kind, path, start, length)
    assert holder.says() == "held"
    return holder


def side_by_side(script: str, commands: list[list[str]], timeout_s: float = 280.0) -> None:
    """Runs a script once for each list of arguments, all at the same time."""
    processes = [subprocess.Popen([sys.executable, "-c", script, *arguments]) for arguments in commands]
    try:
        for process in processes:
            assert process.wait(timeout=timeout_s) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
