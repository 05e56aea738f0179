"""Machines that die, without a lab: what counts as lost, and what is made meanwhile."""

import time
from pathlib import Path

import pytest

from bench.dead_machines import Maker, lost_of

RATE = 200.0
WANTED = 40  # files


def test_lost_is_the_end_and_nothing_else_may_be() -> None:
    answered_s = [1.0, 1.5, 3.0, 3.25]
    assert lost_of(answered_s, {0, 1, 2, 3}) == (0, 0.0)
    assert lost_of(answered_s, {0, 1, 2, 3, 4}) == (0, 0.0), "it was made, and its program not answered"
    assert lost_of(answered_s, {0, 1, 2}) == (1, 0.0)
    assert lost_of(answered_s, {0}) == (3, 1.75)
    with pytest.raises(RuntimeError, match=r"not the end: \[1\]"):
        lost_of(answered_s, {0, 2, 3})


def test_files_are_made_no_faster_than_wanted_until_the_mount_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    begin_s = time.monotonic()
    maker = Maker(folder, RATE)
    while len(maker.answered_s) < WANTED:
        assert time.monotonic() < begin_s + 10
        time.sleep(0.01)
    assert maker.answered_s[WANTED - 1] - begin_s >= (WANTED - 1) / RATE
    folder.rename(tmp_path / "dead")
    maker.stop()
    made = {int(path.name) for path in (tmp_path / "dead").iterdir()}
    assert lost_of(maker.answered_s, made) == (0, 0.0)
    assert made == set(range(len(maker.answered_s)))
