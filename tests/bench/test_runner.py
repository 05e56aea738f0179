"""The order of measurements, and what a failure does to those that follow; measured with functions that only take notes."""

from pathlib import Path

from bench.registry import Group, Measurement
from bench.report import MOUNTED, NATIVE
from bench.runner import Plan, Runner
from bench.sample import QUICK, Ground, Sample
from bench.sides import Side


def noting(name: str) -> Measurement:
    def note(ground: Ground) -> Sample:
        with (ground.tar.parent / "order").open("a") as order:
            order.write(f"{ground.directory.parent.name} {ground.directory.name} {name}\n")
        return Sample(1.0, 1, 1.0)

    return Measurement(name, "ops/s", note, at_the_end=name == "delete")


def _fail(_ground: Ground) -> Sample:
    raise OSError("no such luck")


def run(tmp_path: Path, *groups: Group, rounds: int = 1, budget_s: float = 60.0) -> Runner:
    sides = [Side(NATIVE, tmp_path / NATIVE), Side(MOUNTED, tmp_path / MOUNTED)]
    for side in sides:
        side.root.mkdir()
    runner = Runner(Plan(groups, sides, QUICK, tmp_path / "tree.tar", rounds, budget_s), lambda _text: None)
    runner.run()
    return runner


def test_sides_take_turns_in_fresh_directories_and_deleting_comes_last(tmp_path: Path) -> None:
    run(tmp_path, Group("g", (noting("make"), noting("delete"))), rounds=2)
    assert (tmp_path / "order").read_text().splitlines() == [
        f"{side} g-{number} {name}" for name in ("make", "delete") for number in (1, 2) for side in (NATIVE, MOUNTED)
    ]


def test_what_builds_on_a_failure_is_not_measured(tmp_path: Path) -> None:
    runner = run(tmp_path, Group("g", (noting("make"), Measurement("fail", "s", _fail), noting("use"), noting("delete"))))
    assert set(runner.samples) == {("make", NATIVE), ("make", MOUNTED)}
    assert [failure.metric for failure in runner.failures if failure.side == NATIVE] == ["fail", "use", "delete"]
    assert "no such luck" in runner.failures[0].error
    assert "fail" in runner.failures[1].error


def test_what_is_independent_goes_on_after_a_failure(tmp_path: Path) -> None:
    runner = run(tmp_path, Group("g", (Measurement("fail", "s", _fail), noting("other")), chained=False))
    assert set(runner.samples) == {("other", NATIVE), ("other", MOUNTED)}


def test_a_network_is_not_measured_without_one(tmp_path: Path) -> None:
    assert run(tmp_path, Group("g", (noting("make"),), needs_network=True)).samples == {}


def test_the_first_round_is_always_made_and_others_only_in_time(tmp_path: Path) -> None:
    runner = run(tmp_path, Group("g", (noting("make"),)), rounds=3, budget_s=0.0)
    assert len(runner.samples["make", NATIVE]) == 1
    assert runner.left_out == 2
