"""What `locks ls` says of locks: for people and for programs."""

import re

import msgspec
import pytest

from cli.commands.locks import lock_object, print_locks
from cluster.messages import LOCK_END, LockRow, LockSpan

ROW = LockRow(7, b"/a", False, LockSpan(10, 19, True), "s2", 42, waiting=False, since_s=3.21)


def columns(table: str) -> dict[str, str]:
    """The one line of a table by the names of its columns."""
    names, values = (re.split(r" {2,}", line.strip()) for line in table.splitlines())
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(
    ("whole", "span", "kind", "mode", "shown", "end"),
    [
        (False, LockSpan(10, 19, True), "record", "write", "10-19", 19),
        (False, LockSpan(10, LOCK_END, False), "record", "read", "10-", None),
        (False, LockSpan(0, LOCK_END, True), "record", "write", "all", None),
        (True, LockSpan(0, LOCK_END, False), "flock", "read", "all", None),
    ],
)
def test_kind_mode_and_range(
    whole: bool, span: LockSpan, kind: str, mode: str, shown: str, end: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    row = msgspec.structs.replace(ROW, whole=whole, span=span)
    print_locks([row])
    printed = columns(capsys.readouterr().out)
    assert (printed["KIND"], printed["MODE"], printed["BYTES"]) == (kind, mode, shown)
    told = lock_object(row)
    assert (told["kind"], told["mode"], told["start"], told["end"]) == (kind, mode, span.start, end)


def test_who_has_it_and_who_waits(capsys: pytest.CaptureFixture[str]) -> None:
    print_locks([ROW])
    printed = columns(capsys.readouterr().out)
    assert (printed["SERVER"], printed["PROCESS"], printed["STATE"], printed["PATH"]) == ("s2", "42", "held", "/a")
    print_locks([msgspec.structs.replace(ROW, waiting=True, path=b"")])
    assert columns(capsys.readouterr().out)["STATE"] == "waits"
    told = lock_object(ROW)
    assert (told["holder"], told["pid"], told["waiting"], told["for_s"], told["path"]) == ("s2", 42, False, 3.21, "/a")
