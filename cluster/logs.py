"""The log of a process: lines on stderr, which a thread writes, so that whatever takes them never holds up who logs.

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
STDERR = 2


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


@contextmanager
def log_to_stderr(line_format: str, level: int) -> Iterator[None]:
    """While inside, the process logs to stderr; SIGUSR1 shows where every thread is."""
    handler = BackgroundHandler(STDERR, logging.Formatter(line_format, TIME_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    try:
        yield
    finally:
        handler.end(LAST_LINES_S)
