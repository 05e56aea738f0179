"""Measurements of a network, on one that is made up: a second directory that stands for another server's mount."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench import network
from bench.registry import GROUPS
from bench.sample import QUICK, Ground
from bench.sides import is_current
from cluster.messages import Node, PolicyRow, ReplicaRow, TaskOperation, TaskRow, TaskState, Where


class OneDirectory:
    """Both servers see the same directory; copies are current when the clock says so."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.copies: list[tuple[str, int]] = []
        self.sent = 0
        self._late_s = late_s

    def path_there(self, directory: Path) -> Path:
        return directory

    def set_copies(self, directory: Path, copies: int) -> None:
        self.copies.append((directory.name, copies))

    def objects_of(self, path: Path) -> list[Path]:
        return [path]

    def sent_bytes(self) -> int:
        self.sent += 160_000
        return self.sent

    def wait_until_current(self, directory: Path, timeout_s: float, at_rest: Callable[[], object] = bool) -> float:
        at_rest()
        assert any(directory.iterdir())
        assert timeout_s == QUICK.copies_s
        return time.monotonic() + self._late_s


def ground(directory: Path, elsewhere: OneDirectory | None) -> Ground:
    return Ground(directory, QUICK, directory / "tree.tar", elsewhere)


def test_all_measurements_of_a_network_give_a_figure(tmp_path: Path) -> None:
    elsewhere = OneDirectory()
    (group,) = (group for group in GROUPS if group.needs_network)
    for measurement in group.measurements:
        assert measurement.measure(ground(tmp_path, elsewhere)).value > 0, measurement.metric
    assert elsewhere.copies == [("remote-large", 1), ("remote-small", 1), ("changed", 2)]


def test_a_bulk_copy_is_made_by_the_network_or_by_cp(tmp_path: Path) -> None:
    for name, elsewhere in (("network", OneDirectory(late_s=2.0)), ("native", None)):
        directory = tmp_path / name
        directory.mkdir()
        sample = network.bulk_copy(ground(directory, elsewhere))
        assert sample.count == QUICK.bulk_bytes
        assert sample.value == pytest.approx(QUICK.bulk_bytes / 1e6 / sample.seconds)
        assert all(path.stat().st_size == 0 for path in (directory / "bulk").iterdir())
        if elsewhere is not None:
            assert sample.seconds >= 2.0
            assert elsewhere.copies == [("bulk", 1), ("bulk", 2)]


def test_the_share_that_is_sent_is_of_the_whole_file(tmp_path: Path) -> None:
    sample = network.changed_part(ground(tmp_path, OneDirectory()))
    assert sample.value == pytest.approx(100 * 160_000 / QUICK.bulk_bytes)


def test_the_wait_for_copies_counts_from_the_last_write(tmp_path: Path) -> None:
    sample = network.copies_of_small_files(ground(tmp_path, OneDirectory(late_s=50.0)))
    assert sample.value == pytest.approx(50.0, abs=0.5)
    assert sample.count == QUICK.copied_files


def test_a_network_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network"):
        network.remote_read(ground(tmp_path, None))


CLEAN = Node(
    ino=5, mode=0o100644, nlink=1, uid=0, gid=0, rdev=0, size=1, blocks=8, atime_ns=0, mtime_ns=0, ctime_ns=0, btime_ns=0
)
PENDING = TaskRow(1, "s2", TaskOperation.COPY, TaskState.WAITING, 5, b"/f", 2, 1, 1, 0, "", 0)


def where(current: int, *, dirty: bool = False, pending: tuple[TaskRow, ...] = ()) -> Where:
    replicas = [ReplicaRow(n, f"s{n}", "/v", 1, n <= current, n == 1, b"", True) for n in (1, 2)]
    node = msgspec.structs.replace(CLEAN, dirty=dirty)
    return Where(node, b"/f", replicas, PolicyRow(1, b"/", 2, 0), list(pending), [])


def test_current_means_clean_and_copied_as_often_as_the_policy_asks() -> None:
    assert is_current(where(2))
    assert not is_current(where(1))
    assert not is_current(where(2, pending=(PENDING,)))
    assert not is_current(where(2, dirty=True))
