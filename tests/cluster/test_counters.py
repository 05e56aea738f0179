"""Counters and gauges: declarations, numbers, and the map that travels."""

import msgspec
import pytest

from cluster.counters import METRICS, METRICS_MAX, Counters, Kind, Metric, counter, gauge, histogram
from cluster.messages import Heartbeat


def metric(name: str, *labels: str) -> Metric:
    """A declaration that is not kept: tests share a process."""
    return Metric(name, "help", Kind.COUNTER if name.endswith("_total") else Kind.GAUGE, labels)


def test_each_name_is_declared_once_and_as_prometheus_wants_it() -> None:
    for name in ("requests_total", "godwit_Requests_total", "godwit_requests", "godwit__total", "godwit_faults_total"):
        with pytest.raises(ValueError, match=name):
            counter(name, "help")
    for name in ("godwit_requests_total", "other"):
        with pytest.raises(ValueError, match=name):
            gauge(name, "help")
    for name in ("godwit_took_total", "godwit_took_seconds_count", "godwit_took_bucket", "took_seconds"):
        with pytest.raises(ValueError, match=name):
            histogram(name, "help")
    assert all(declared.help.endswith(".") for declared in METRICS.values())


@pytest.mark.parametrize(
    ("name", "unit"), [("godwit_copied_bytes_total", "bytes"), ("godwit_lag_seconds", "seconds"), ("godwit_leases", "")]
)
def test_the_unit_is_in_the_name(name: str, unit: str) -> None:
    assert metric(name).unit == unit


def test_numbers_by_name_and_labels() -> None:
    counters = Counters()
    by_disk = metric("godwit_errors_total", "disk", "kind")
    counters.cell(by_disk, "/v1", "read").value += 2
    counters.cell(by_disk, "/v1", "read").value += 1
    counters.cell(by_disk, 'a"b', "write")
    kept_elsewhere = [1, 2]
    counters.follow(metric("godwit_kept"), lambda: len(kept_elsewhere))
    counters.follow_each(metric("godwit_faults_total", "cause"), lambda: {"one": 4, "two": 5})
    kept_elsewhere.append(3)
    assert counters.numbers() == {
        'godwit_errors_total{disk="/v1",kind="read"}': 3,
        r'godwit_errors_total{disk="a\"b",kind="write"}': 0,
        "godwit_kept": 3,
        'godwit_faults_total{cause="one"}': 4,
        'godwit_faults_total{cause="two"}': 5,
    }


def test_histograms_stay_with_their_process() -> None:
    counters = Counters()
    took = counters.histograms(Metric("godwit_took_seconds", "help", Kind.HISTOGRAM, ("what",), (0.1, 1.0)))
    for seconds in (0.05, 0.1, 0.11, 1.0, 1.1, 7.0):
        took["read"].observe(seconds)
    assert took["read"] is took["read"]
    ((metric, values, total, counts),) = counters.samples()
    assert (metric.name, values, counts) == ("godwit_took_seconds", ("read",), (2, 2, 2))
    assert total == pytest.approx(9.36)
    assert counters.numbers() == {}


def test_a_process_tells_a_bounded_number_of_them() -> None:
    counters = Counters()
    counters.follow_each(metric("godwit_faults_total", "cause"), lambda: {str(number): number for number in range(1000)})
    assert len(counters.numbers()) == METRICS_MAX


def test_the_map_travels() -> None:
    counters = Counters()
    counters.cell(metric("godwit_requests_total")).value += 7
    beat = Heartbeat(None, counters.numbers())
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(beat), type=Heartbeat)
    assert again.metrics == {"godwit_requests_total": 7.0}
