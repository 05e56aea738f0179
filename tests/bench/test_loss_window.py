"""The measurement of what a dead machine takes with it: what counts as lost, and that it measures."""

from pathlib import Path

import pytest

from bench.loss_window import COLUMNS, Window, main, row_of


def test_lost_is_what_was_told_and_is_not_durable_yet() -> None:
    window = Window([1.0, 2.0, 2.5, 6.0], [3.0, 3.0, 4.0, 7.0])
    assert [window.lost_at(moment) for moment in (0.5, 1.0, 2.75, 3.0, 3.5, 5.0, 6.5)] == [
        (0, 0.0),
        (1, 0.0),
        (3, 1.75),
        (1, 0.5),
        (1, 1.0),
        (0, 0.0),
        (1, 0.5),
    ]
    assert window.delays_s == [1.0, 1.0, 1.5, 2.0]
    counts, ages_s = window.lost(moments=1000)
    assert (counts[0], counts[-1]) == (0, 3)
    assert 1.98 < ages_s[-1] < 2.0
    assert dict(zip(COLUMNS[:3], row_of(20, window, 2), strict=False)) == {"RATE/S": "20", "MADE": "4", "MESSAGES": "2"}
    assert len(row_of(20, window, 2)) == len(COLUMNS)


def test_files_are_made_and_reach_the_manager(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rates", "100", "--seconds", "1", "--root", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "RATE/S"
    rate, made, messages, *rest = row.split()
    assert (rate, made) == ("100", "100")
    assert 1 <= int(messages) <= 100
    delay_ms, p99_ms, most_ms = map(float, rest[:3])
    assert 0 < delay_ms <= p99_ms <= most_ms
    assert int(rest[-1]) >= 1, "something is always under way"
