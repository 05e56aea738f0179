"""Medians, ratios and comparisons, on samples that were made up."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import PEERS
from bench.processors import LATER
from bench.registry import GROUPS, HIGHER, LOWER, Measurement, measurements, needed_groups, wanted_metrics
from bench.report import (
    FASTER,
    SAME,
    SCHEMA,
    SLOWER,
    TOTAL,
    UNCLEAR,
    Report,
    Result,
    compare,
    differences,
    judge,
    make_result,
    median,
    speed_ratio,
    spread,
)
from bench.sample import Ground, Sample, megabytes_per_second, per_second
from bench.tables import show_changes


def no_measure(ground: Ground) -> Sample:
    raise AssertionError("made-up metrics are not measured")


RATE = Measurement("made-up rate", "ops/s", no_measure)
TIME = Measurement("made-up time", "s", no_measure)

positive = st.floats(min_value=1e-6, max_value=1e9)


def samples(*values: float) -> list[Sample]:
    return [Sample(value, 1, 1.0) for value in values]


def report(*results: Result, machine: dict[str, str | int | float] | None = None, files: int = 1) -> Report:
    return Report(
        schema=SCHEMA,
        started="2025-01-01T00:00:00+00:00",
        duration_s=1.0,
        subject="made up",
        machine=machine or {"kernel": "6.18", "cores": 2, "cpu": "x", "file_system": "ext4"},
        load={"files": files},
        results=list(results),
        failures=[],
        notes=[],
    )


def test_median_and_spread() -> None:
    assert median([]) is None
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([1.0, 2.0]) == 1.5
    assert spread([]) == spread([5.0]) == 0.0
    assert spread([9.0, 10.0, 12.0]) == pytest.approx(0.3)


def test_ratio_is_a_speed_for_rates_and_for_times() -> None:
    assert make_result(RATE, samples(100, 100, 900), samples(50, 40, 50)).ratio == pytest.approx(0.5)
    assert make_result(TIME, samples(1, 1, 9), samples(4, 4, 2)).ratio == pytest.approx(0.25)


def test_ratio_needs_both_sides() -> None:
    only_mounted = make_result(RATE, [], samples(1))
    assert (only_mounted.native.median, only_mounted.mounted.median, only_mounted.ratio) == (None, 1, None)
    assert make_result(RATE, samples(0), samples(1)).ratio is None


@given(positive, positive)
def test_ratios_of_swapped_sides_are_inverse(a: float, b: float) -> None:
    for better in (HIGHER, LOWER):
        one, other = speed_ratio(a, b, better), speed_ratio(b, a, better)
        assert one is not None
        assert other is not None
        assert one * other == pytest.approx(1)


def test_a_run_is_the_same_as_itself() -> None:
    run = report(make_result(RATE, samples(5, 6), samples(1, 2)), make_result(TIME, samples(5, 6), samples(1, 2)))
    assert [(change.ratio, change.verdict) for change in compare(run, run)] == [(1.0, SAME), (1.0, SAME)]


def test_compare_says_what_became_faster() -> None:
    old = report(make_result(RATE, samples(10), samples(100, 110)), make_result(TIME, samples(1), samples(4.0, 4.4)))
    new = report(make_result(RATE, samples(20), samples(200, 220)), make_result(TIME, samples(2), samples(8.0, 8.8)))
    rate, time = compare(old, new)
    assert [rate.ratio, rate.native_ratio] == pytest.approx([2, 2])
    assert [time.ratio, time.native_ratio] == pytest.approx([0.5, 0.5])
    assert (rate.verdict, time.verdict) == (FASTER, SLOWER)
    assert rate.old_spread == pytest.approx(10 / 105)


def test_compare_has_the_processor_time_of_both_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def run(cost: dict[str, float]) -> Report:
        return report(make_result(RATE, samples(1), [msgspec.structs.replace(samples(1)[0], processor_us=cost)]))

    (change,) = compare(run({"mount": 10.0, LATER: 400.0}), run({"mount": 11.0, LATER: 200.0}))
    assert change.old_processor == {"mount": 10, LATER: 400, TOTAL: 410}
    assert change.new_processor == {"mount": 11, LATER: 200, TOTAL: 211}
    show_changes([change], [])
    shown = capsys.readouterr().out
    assert re.search(r"made-up rate +10.0 → 11.0 +400 → 200 +410 → 211\n", shown)
    assert "database" not in shown


def test_compare_leaves_out_what_only_one_run_has() -> None:
    both = make_result(RATE, samples(1), samples(1, 1))
    assert [change.metric for change in compare(report(both), report(both, make_result(TIME, [], samples(1))))] == [RATE.metric]
    assert compare(report(make_result(RATE, samples(1), [])), report(both)) == []


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((1.0, 2.0), (2.0, 3.0), SAME),
        ((1.0, 4.0), (2.0, 3.0), SAME),
        ((1.0, 2.0), (3.0, 4.0), FASTER),
        ((3.0, 4.0), (1.0, 2.0), SLOWER),
        ((1.0,), (3.0, 4.0), UNCLEAR),
        ((), (), UNCLEAR),
    ],
)
def test_judge_needs_samples_that_do_not_overlap(old: tuple[float, ...], new: tuple[float, ...], verdict: str) -> None:
    assert judge(old, new, ratio=2.0 if sum(new) > sum(old) else 0.5) == verdict


def test_differences_of_machine_and_load_are_named() -> None:
    assert differences(report(), report()) == []
    other = report(machine={"kernel": "6.18", "cores": 4, "cpu": "x", "file_system": "ext4"}, files=2)
    loads, cores = differences(report(), other)
    assert "amounts" in loads
    assert cores == "cores: 2 then, 4 now"


def test_metric_names_are_unique_and_the_peers_rows() -> None:
    names = [measurement.metric for measurement in measurements()]
    assert len(names) == len(set(names))
    local = {found.metric for group in GROUPS if not group.needs_network for found in group.measurements}
    assert set(PEERS) == local - {"bulk copy 4 GiB, synced"}


def test_only_keeps_what_prepares_the_wanted_metrics() -> None:
    wanted = wanted_metrics("second")
    assert wanted == {"stat, second pass", "git status, second"}
    metadata, programs = needed_groups(wanted)
    assert [found.metric for found in metadata.measurements] == [
        "create + 4 KiB + close",
        "stat, first pass",
        "stat, second pass",
    ]
    assert [found.metric for found in programs.measurements][-1] == "git status, second"
    assert wanted_metrics("copies*") == {"copies current, 2,000 × 4 KiB", "copies current, 512 MiB"}
    assert [len(group.measurements) for group in needed_groups(wanted_metrics("copies*"))] == [2]
    assert needed_groups(wanted_metrics("NETWORK"))[0].name == "network"
    assert not wanted_metrics("no such thing")


def test_rates_stop_at_the_time_limit() -> None:
    seen: list[int] = []
    sample = per_second(seen.extend, range(1000), limit_s=0)
    assert (sample.count, sample.cut_short) == (64, True)
    assert seen == list(range(64))
    sample = per_second(seen.extend, range(100), limit_s=60)
    assert (sample.count, sample.cut_short) == (100, False)
    assert megabytes_per_second(Sample(0, 10, 2.0), 1_000_000).value == 5.0
    with pytest.raises(ValueError, match="nothing"):
        per_second(seen.extend, [], limit_s=1)
