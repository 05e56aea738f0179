"""What counts as the processor time of a measurement: readings that are made up, and steps of the clock that they are read by."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import network, programs
from bench.metadata import open_read_close
from bench.processors import LATER, Meter
from bench.registry import Group, Measurement
from bench.report import MOUNTED, NATIVE, TOTAL, processor_medians
from bench.runner import Plan, Runner
from bench.sample import QUICK, Ground, Sample, per_second
from bench.sides import Side


class Clock:
    """Each second of `used` is one of the mount and two of the manager."""

    def __init__(self) -> None:
        self.used = 0.0

    def read(self) -> dict[str, float]:
        return {"mount": self.used, "manager": 2 * self.used}

    def use(self, seconds: float) -> None:
        self.used += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_only_what_is_used_while_operations_are_counted_counts(clock: Clock) -> None:
    meter = Meter(clock.read)
    per_second(lambda _: clock.use(100), range(10), 60)
    clock.use(100)
    per_second(lambda _: clock.use(1), range(128), 60, meter)
    clock.use(100)
    assert meter.used == {"mount": 2, "manager": 4}
    assert meter.settled_from == {"mount": 202, "manager": 404}
    meter.skip()
    assert meter.used == {"mount": 2, "manager": 4}
    assert meter.settled_from == {"mount": 302, "manager": 604}


def test_without_parts_nothing_is_counted() -> None:
    meter = Meter()
    per_second(lambda _: None, range(10), 60, meter)
    assert meter.used == {}


def test_what_fills_caches_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "f").write_bytes(bytes(4096))
    readings = iter([{"mount": 1.0}, {"mount": 3.0}])
    meter = Meter(lambda: next(readings))
    here = os.getcwd()
    try:
        open_read_close(Ground(tmp_path, QUICK, tmp_path, meter=meter))
    finally:
        os.chdir(here)
    assert meter.used == {"mount": 2}


def test_programs_count_while_they_run(tmp_path: Path, clock: Clock) -> None:
    programs.make_tar(tmp_path / "tree.tar", 3)
    meter = Meter(clock.read)
    programs.untar(Ground(tmp_path, QUICK, tmp_path / "tree.tar", meter=meter))
    clock.use(1)
    assert meter.used == {"mount": 0, "manager": 0}


class AskedForEach:
    """Copies take a second of the mount, and making sure of them ten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def path_there(self, directory: Path) -> Path:
        return directory

    def set_copies(self, directory: Path, copies: int) -> None:
        raise NotImplementedError

    def objects_of(self, path: Path) -> list[Path]:
        raise NotImplementedError

    def sent_bytes(self) -> int:
        raise NotImplementedError

    def wait_until_current(self, directory: Path, timeout_s: float, at_rest: Callable[[], object] = bool) -> float:
        assert any(directory.iterdir())
        self._clock.use(1)
        at_rest()
        self._clock.use(10)
        return 1e9 + timeout_s


def test_copies_count_without_the_questions_for_them(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(clock.read)
    network.copies_of_small_files(Ground(tmp_path, QUICK, tmp_path, AskedForEach(clock), meter))
    assert meter.used["mount"] == 1
    assert meter.settled_from["mount"] == 11


def _run(tmp_path: Path, read: Callable[[], dict[str, float]], settle: Callable[[], None], measurement: Measurement) -> Runner:
    sides = [Side(NATIVE, tmp_path / NATIVE), Side(MOUNTED, tmp_path / MOUNTED, settle, read_processors=read)]
    for side in sides:
        side.root.mkdir()
    runner = Runner(Plan([Group("g", (measurement,))], sides, QUICK, tmp_path / "tree.tar", 2, 60.0), lambda _text: None)
    runner.run()
    return runner


def test_what_comes_until_the_lab_is_at_rest_belongs_to_the_sample(tmp_path: Path) -> None:
    """The reading is a file, which the measurement's own process sees, too."""
    used = tmp_path / "used"
    used.write_text("0")

    def use(seconds: float) -> None:
        used.write_text(str(float(used.read_text()) + seconds))

    def read() -> dict[str, float]:
        return {"mount": float(used.read_text()), "agents": 3 * float(used.read_text())}

    def measure(ground: Ground) -> Sample:
        use(1000)
        return per_second(lambda _: use(2), range(64), 60, ground.meter)

    runner = _run(tmp_path, read, lambda: use(8), Measurement("m", "ops/s", measure))
    assert [sample.processor_us for sample in runner.samples["m", NATIVE]] == [None, None]
    each = {"mount": 2e6 / 64, "agents": 6e6 / 64, LATER: 32e6 / 64}
    assert [sample.processor_us for sample in runner.samples["m", MOUNTED]] == [each, each]


def test_what_counts_no_operations_has_no_processor_time(tmp_path: Path, clock: Clock) -> None:
    def measure(_ground: Ground) -> Sample:
        return per_second(lambda _: None, range(64), 60)

    runner = _run(tmp_path, clock.read, lambda: clock.use(1), Measurement("m", "MB/s", measure))
    assert [sample.processor_us for sample in runner.samples["m", MOUNTED]] == [None, None]


def test_medians_are_of_parts_and_of_their_sums() -> None:
    assert processor_medians([Sample(1.0, 1, 1.0)]) == {}
    costs = [{"mount": 1.0, LATER: 9.0}, {"mount": 2.0, LATER: 4.0}, {"mount": 3.0, LATER: 5.0}]
    samples = [Sample(1.0, 1, 1.0, processor_us=cost) for cost in costs]
    assert processor_medians(samples) == {"mount": 2.0, LATER: 5.0, TOTAL: 8.0}
