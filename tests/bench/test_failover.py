"""The measurement of stalls, without a network: what counts as a stall, and what is printed."""

import time
from pathlib import Path

import pytest

from bench.failover import Fault, Writer, parse, show


def test_a_stall_is_the_longest_time_without_an_operation_since_the_fault(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a")
    writer.stop()
    assert writer.errors == []
    writer.returned = [1.0, 50.0, 52.0, 52.5, 60.0, 61.0]
    assert writer.longest_since(51.0) == 7.5
    assert writer.longest_since(10.0) == 40.0
    assert writer.done_since(52.0) == 3


def test_a_failed_operation_is_noted_and_the_writer_goes_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        path.unlink(missing_ok=True)
    (tmp_path / "a").rename(tmp_path / "b")
    begin, deadline = time.monotonic(), time.monotonic() + 10
    while writer.done_since(begin) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.stop()
    assert "No such file or directory" in writer.errors


def test_the_distribution_is_printed_for_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing(_lab: object, _server: str) -> None:
        raise AssertionError("nothing is struck here")

    struck = Fault("manager killed", 10, nothing, nothing, stalls_s=[float(n) for n in range(1, 11)], errors=["EIO"])
    show([struck, Fault("its server cut off", 0, nothing, nothing)])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["FAULT", "TIMES", "MIN", "MEDIAN", "P90", "MAX", "ERRORS"]
    assert row.split()[2:] == ["10", "1.00", "5.50", "10.00", "10.00", "1"]


def test_negative_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--kills", "-1"])
    assert "must not be negative" in capsys.readouterr().err
