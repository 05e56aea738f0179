"""A look that hangs, fails or may not be taken is a finding like others."""

import errno
import os
import threading
import time

import pytest

from cli.diagnosis.checks import Check, Field, Look, Verdict, judged, worst
from cluster.errors import GodwitError, Refused, TimedOut, Unavailable

ADVICE = "look at it"


def found(error: BaseException) -> Check:
    def judge() -> list[Check]:
        raise error

    (check,) = judged(Field.DISKS, "s1", judge, hung=ADVICE)
    return check


def test_a_look_that_hangs_is_given_up() -> None:
    look = Look(threading.Event().wait)
    before = time.monotonic()
    with pytest.raises(TimedOut, match=r"no answer within 0\.1 s"):
        look.result(0.1)
    assert time.monotonic() - before < 5
    # Nothing is left of what could be killed.
    with pytest.raises(ChildProcessError):
        os.waitpid(look.process, os.WNOHANG)


def test_looks_are_taken_side_by_side() -> None:
    looks = [Look(lambda number=number: (number, "x" * 200_000)) for number in range(3)]  # type: ignore[misc]
    assert [look.result(10)[0] for look in looks] == [0, 1, 2]


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_what_a_look_meets_is_met_by_who_waits() -> None:
    with pytest.raises(ZeroDivisionError):
        Look(lambda: 1 // 0).result(10)
    with pytest.raises(FileNotFoundError) as missing:
        Look(lambda: os.stat("/nowhere")).result(10)
    assert missing.value.filename == "/nowhere"

    def odd() -> None:
        raise Unpicklable(1, 2)

    with pytest.raises(GodwitError, match="1 and 2"):
        Look(odd).result(10)


@pytest.mark.parametrize(
    ("error", "verdict", "text"),
    [
        (TimedOut("no answer within 1 s"), Verdict.FAILURE, "no answer within 1 s"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/k"), Verdict.NOTE, "not looked at: /k: Permission denied"),
        (Refused("it is none"), Verdict.FAILURE, "it is none"),
        (Unavailable("nobody answers"), Verdict.FAILURE, "nobody answers"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/vol"), Verdict.FAILURE, "/vol: Input/output error"),
        (ValueError(), Verdict.FAILURE, "ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_keeps_a_check_from_being_made_is_told(error: Exception, verdict: Verdict, text: str) -> None:
    check = found(error)
    assert (check.field, check.subject, check.verdict, check.text) == (Field.DISKS, "s1", verdict, text)
    assert check.advice == (ADVICE if isinstance(error, TimedOut) else "run godwit doctor as root" if verdict == "note" else "")


def test_the_worst_of_several_counts() -> None:
    checks = [Check(Field.DISKS, "s1", verdict, "") for verdict in (Verdict.OK, Verdict.WARNING, Verdict.NOTE)]
    assert worst(checks) is Verdict.WARNING
    assert worst([]) is Verdict.OK
