"""The whole command, on two native directories: nothing of Godwit runs here, only the bench itself."""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from bench.isolation import MeasurementFailed, measure_apart
from bench.programs import make_tar
from bench.registry import GROUPS
from bench.report import Report
from bench.sample import QUICK, Ground, Sample

TOP = Path(__file__).resolve().parents[2]
LOCAL = [found.metric for group in GROUPS if not group.needs_network for found in group.measurements]


def bench(*arguments: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    base = tmp_path_factory.mktemp("bench")
    (base / "mount").mkdir()
    done = bench("--quick", "--mount", base / "mount", "--root", base / "root", "--json", base / "run.json")
    assert done.returncode == 0, done.stderr
    assert all(metric in done.stdout for metric in LOCAL)
    return base, msgspec.json.decode((base / "run.json").read_bytes(), type=Report)


def test_quick_run_has_all_metrics_and_facts(quick_run: tuple[Path, Report]) -> None:
    _base, report = quick_run
    assert [result.metric for result in report.results] == LOCAL
    for result in report.results:
        assert len(result.native.samples) == len(result.mounted.samples) == 1, result.metric
        assert result.ratio is not None
        assert result.ratio > 0
    assert report.failures == []
    assert {"kernel", "cores", "python", "pyfuse3", "libfuse", "git_commit", "file_system"} <= set(report.machine)


def test_quick_run_leaves_nothing_behind(quick_run: tuple[Path, Report]) -> None:
    base, _report = quick_run
    assert os.listdir(base / "mount") == []
    assert os.listdir(base / "root") == []


def test_a_stored_run_is_shown_and_compared(quick_run: tuple[Path, Report]) -> None:
    base, _report = quick_run
    done = bench("--load", base / "run.json", "--compare", base / "run.json")
    assert done.returncode == 0
    assert "new/old" in done.stdout
    assert done.stdout.count("unclear") == len(LOCAL)


def test_wrong_usage_is_named(tmp_path: Path) -> None:
    assert "no such metric" in bench("--only", "no such metric").stderr
    (tmp_path / "file").touch()
    done = bench("--root", tmp_path, "--mount", tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert bench("--load", tmp_path / "file").returncode == 2


def test_failures_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    """/proc takes no files: the mounted side cannot even begin, and says so."""
    done = bench("--quick", "--mount", "/proc", "--root", tmp_path / "root", "--only", "mkdir")
    assert done.returncode == 2
    assert "/proc" in done.stderr
    assert os.listdir(tmp_path / "root") == []


def ground(directory: Path) -> Ground:
    return Ground(directory, QUICK, directory / "tree.tar")


def test_a_measurement_that_hangs_is_killed(tmp_path: Path) -> None:
    def hang(_ground: Ground) -> Sample:
        process = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(process.pid))
        time.sleep(600)
        raise AssertionError

    with pytest.raises(MeasurementFailed, match="not done"):
        measure_apart(hang, ground(tmp_path), timeout_s=1)
    deadline = time.monotonic() + 10
    while _lives(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    def fail(_ground: Ground) -> Sample:
        raise OSError("no such luck")

    def die(_ground: Ground) -> Sample:
        os.kill(os.getpid(), 9)
        raise AssertionError

    with pytest.raises(MeasurementFailed, match="no such luck"):
        measure_apart(fail, ground(tmp_path), timeout_s=10)
    with pytest.raises(MeasurementFailed, match="killed"):
        measure_apart(die, ground(tmp_path), timeout_s=10)


def test_the_tar_is_the_same_every_time(tmp_path: Path) -> None:
    make_tar(tmp_path / "one.tar", 100)
    make_tar(tmp_path / "two.tar", 100)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getmembers()
    assert (sum(member.isfile() for member in members), sum(member.isdir() for member in members)) == (100, 5)
