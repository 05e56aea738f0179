"""What was found out by one look, and what to do about it; looks that are given up when they take too long."""

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar, cast

from cluster.errors import GodwitError, Refused, TimedOut, error_text
from cluster.readable import is_readable

T = TypeVar("T")

LOOK_S = 10.0  # for one look at a disk or a database: what takes longer hangs
KILLED_S = 1.0  # in which a process ends that can be killed


class Verdict(StrEnum):
    """How a check ended, the worst last."""

    OK = "ok"
    NOTE = "note"  # to be known; or it could not be found out here
    WARNING = "warning"  # will hurt, or does already
    FAILURE = "failure"  # does not work


class Field(StrEnum):
    """What checks are about, in the order in which they are made and shown."""

    MACHINE = "machine"
    DISKS = "disks"
    CERTIFICATES = "certificates"
    CATALOG = "catalog"
    NETWORK = "network"
    HEALTH = "health"


class Check(NamedTuple):
    """One thing that was looked at. `advice` says what to do about it; empty where there is nothing to do."""

    field: Field
    subject: str
    verdict: Verdict
    text: str
    advice: str = ""

    @property
    def is_trouble(self) -> bool:
        """Whether somebody has to do something."""
        return self.verdict in (Verdict.WARNING, Verdict.FAILURE)


class Look(Generic[T]):
    """Something that may hang, done in a process that is left behind then.

    Not in a thread: a system call that hangs on a disk cannot be ended, and who waits for a process waits for all its threads.
    """

    def __init__(self, act: Callable[[], T]) -> None:
        """*act* must need nothing of this process's threads, and give what can be pickled."""
        self._pipe, end = os.pipe()
        self.process = os.fork()  # number of the one that looks
        if self.process == 0:
            try:
                # Nothing of the parent's is written or tidied up here; nor must who reads its output wait for this process.
                nowhere = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(nowhere, descriptor)
                os.close(self._pipe)
                with open(end, "wb") as pipe:
                    pipe.write(_pickled(act))
            finally:
                os._exit(0)
        os.close(end)

    def result(self, within_s: float = LOOK_S) -> T:
        """What was found, or raised; once. Raises `TimedOut` if there is nothing yet after *within_s* seconds from now."""
        try:
            # In one piece: it is written when all is known.
            if not is_readable(self._pipe, within_s):
                self._leave()
                raise TimedOut(f"no answer within {within_s:g} s")
            with open(self._pipe, "rb", closefd=False) as pipe:
                found, error = pickle.load(pipe)  # noqa: S301 - of this very program
        finally:
            os.close(self._pipe)
        os.waitpid(self.process, 0)
        if error is not None:
            raise error
        return cast(T, found)

    def _leave(self) -> None:
        """Ends the process if that can be done: not while it waits for a disk."""
        os.kill(self.process, signal.SIGKILL)
        ended = os.pidfd_open(self.process)
        try:
            is_readable(ended, KILLED_S)
        finally:
            os.close(ended)
        os.waitpid(self.process, os.WNOHANG)


def _pickled(act: Callable[[], object]) -> bytes:
    """What *act* returns and raises."""
    try:
        return pickle.dumps((act(), None))
    except Exception as error:
        with suppress(Exception):
            # Some errors can be pickled, and are not made again of that.
            pickle.loads(text := pickle.dumps((None, error)))  # noqa: S301
            return text
        return pickle.dumps((None, GodwitError(error_text(error) or type(error).__name__)))


def judged(field: Field, subject: str, judge: Callable[[], Iterable[Check]], *, hung: str = "") -> Iterator[Check]:
    """The checks that *judge* makes; what keeps it from making them is one, too. *hung* says what to do if it takes too long."""
    try:
        yield from judge()
    except TimedOut as error:
        yield Check(field, subject, Verdict.FAILURE, str(error), hung)
    except PermissionError as error:
        yield Check(field, subject, Verdict.NOTE, f"not looked at: {error_text(error)}", "run godwit doctor as root")
    except Refused as error:
        yield Check(field, subject, Verdict.FAILURE, str(error))
    except Exception as error:  # the other checks are made whatever one has met
        yield Check(field, subject, Verdict.FAILURE, error_text(error) or type(error).__name__)


def worst(checks: Iterable[Check]) -> Verdict:
    """The verdict on all of them together."""
    order = list(Verdict)
    return max((check.verdict for check in checks), key=order.index, default=Verdict.OK)
