"""The log of a process: lines on stderr, which a thread writes, so that whatever takes them never holds up who logs.

Where stderr is systemd's journal, each line begins with its priority, as sd-daemon(3) has it, and without the time, which the
journal keeps itself: `journalctl -p err` shows what is to be looked at.

What reads stderr may hang: a file on a disk that does not answer, a journal that is stuck, a pipe that nobody empties. Lines then
wait, up to a bound; what comes beyond it is counted, and the count is written in its place when lines are taken again.
"""

import faulthandler
import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

LINES_MAX = 10_000  # that wait; a process that has more to say while nobody listens repeats itself
LAST_LINES_S = 2.0  # for what waits at the end of the process
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
STAMP = "%(asctime)s.%(msecs)03d %(levelname)-7s "  # what a line begins with that goes into a file
STDERR = 2
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.NOTSET: 7}  # of syslog(3)


class BackgroundHandler(logging.Handler):
    """Hands lines to a thread that writes them to *descriptor*; in order, and without waiting.

    The thread writes past `sys.stderr`, whose lock, held in a write that hangs, would keep the process from ending.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(lines_max)
        self._lost = 0  # lines that found no room since the last one that did; guarded by the handler's lock
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            line = self.format(record)
            self._tell_of_loss()
            self._waiting.put_nowait(line)
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)  # as every handler: arguments that do not fit their message

    def _tell_of_loss(self, within_s: float = 0.0) -> None:
        if self._lost:
            record = logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"})
            record.msg = f"{self._lost} lines of this log were lost: stderr took none"
            self._waiting.put(self.format(record), block=within_s > 0, timeout=within_s)
            self._lost = 0

    def end(self, within_s: float) -> None:
        """Returns when all is written, or when for *within_s* nothing could be; what is logged afterwards is lost."""
        try:
            with self.lock or nullcontext():
                self._tell_of_loss(within_s)
            self._waiting.put(None, timeout=within_s)
        except queue.Full:
            return  # the thread goes with the process
        self._thread.join(within_s)

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            rest = memoryview(f"{line}\n".encode(errors="backslashreplace"))
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                continue  # nobody can be told


class JournalFormatter(logging.Formatter):
    """Gives each line of a message the priority of syslog(3) that systemd's journal takes off again."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in PRIORITIES.items() if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def is_journal(descriptor: int, named: str) -> bool:
    """Whether what is written there goes to the journal, of which systemd has *named* device and inode (JOURNAL_STREAM)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


@contextmanager
def log_to_stderr(line_format: str, level: int) -> Iterator[None]:
    """While inside, the process logs to stderr; SIGUSR1 shows where every thread is.

    *line_format* begins with `STAMP`, which the journal does without.
    """
    formatter: logging.Formatter
    if is_journal(STDERR, os.environ.get("JOURNAL_STREAM", "")):
        formatter = JournalFormatter(line_format.removeprefix(STAMP))
    else:
        formatter = logging.Formatter(line_format, TIME_FORMAT)
    handler = BackgroundHandler(STDERR, formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Also for SIGABRT, by which systemd ends a process that is stuck: what every thread was doing is what people should read.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    try:
        yield
    finally:
        handler.end(LAST_LINES_S)
