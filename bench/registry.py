"""All measurements, in the order in which they are made and shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from bench import metadata, network, programs, throughput
from bench.sample import Measure

HIGHER = "higher"
LOWER = "lower"
MB_S, OPS_S, FILES_S, S, PER_CENT = "MB/s", "ops/s", "files/s", "s", "%"


@dataclass(frozen=True)
class Measurement:
    """`metric` and `unit` name the figure; a rate is the better the higher, a time (unit s) or a share (%) the lower.

    `at_the_end`: it deletes a lot, after which ext4 is slow for some seconds, so all of its rounds come after all others.
    """

    metric: str  # also the key of peers and of earlier runs: a new name begins a new history
    unit: str  # says which way is better
    measure: Measure  # runs in a process of its own
    at_the_end: bool = False

    @property
    def better(self) -> str:
        return LOWER if self.unit in (S, PER_CENT) else HIGHER


@dataclass(frozen=True)
class Group:
    """Measurements that share a directory.

    `chained`: each builds on what the earlier ones left there, so none of them means anything after one that failed.
    """

    name: str  # for --only, and the folder's name
    measurements: tuple[Measurement, ...]  # in the order in which they are made
    needs_network: bool = False  # left out on a side that has no `elsewhere`
    chained: bool = True


GROUPS = (
    Group(
        "throughput",
        (
            Measurement("sequential write", MB_S, throughput.write),
            Measurement("sequential write + fsync", MB_S, throughput.write_synced),
            Measurement("sequential read, cold", MB_S, throughput.read_cold),
            Measurement("sequential read, warm", MB_S, throughput.read_warm),
            Measurement("random 4 KiB read, cold", OPS_S, throughput.random_read_cold),
            Measurement("random 4 KiB read, warm", OPS_S, throughput.random_read_warm),
            Measurement("random 4 KiB overwrite", OPS_S, throughput.random_overwrite),
            Measurement("append 200 B + fsync", OPS_S, throughput.append_synced),
        ),
    ),
    Group(
        "metadata",
        (
            Measurement("create + 4 KiB + close", FILES_S, metadata.create),
            Measurement("stat, first pass", OPS_S, metadata.stat_first),
            Measurement("stat, second pass", OPS_S, metadata.stat_second),
            Measurement("open+read+close, warm", FILES_S, metadata.open_read_close),
            Measurement("readdir+stat, cold", FILES_S, metadata.list_cold),
            Measurement("readdir+stat, warm", FILES_S, metadata.list_warm),
            Measurement("rename", OPS_S, metadata.rename),
            Measurement("mkdir", OPS_S, metadata.make_directories),
            Measurement("unlink", OPS_S, metadata.unlink, at_the_end=True),
        ),
    ),
    Group(
        "programs",
        (
            Measurement("untar 3,000 files", S, programs.untar),
            Measurement("git init+add+commit of them", S, programs.git_commit),
            Measurement("git status, second", S, programs.git_status),
            Measurement("rm -rf of them", S, programs.remove, at_the_end=True),
        ),
    ),
    Group(
        "network",
        (
            Measurement("remote sequential read, cold", MB_S, network.remote_read),
            Measurement("remote open+read+close", FILES_S, network.remote_small_files),
            Measurement("copies current, 2,000 × 4 KiB", S, network.copies_of_small_files),
            Measurement("copies current, 512 MiB", S, network.copies_of_large_file),
            Measurement("sent after 1 MiB of 4 GiB changed", PER_CENT, network.changed_part),
        ),
        needs_network=True,
        chained=False,
    ),
    Group("bulk", (Measurement("bulk copy 4 GiB, synced", MB_S, network.bulk_copy),)),
)


def measurements(groups: Sequence[Group] = GROUPS) -> Iterator[Measurement]:
    for group in groups:
        yield from group.measurements


def wanted_metrics(pattern: str | None) -> frozenset[str]:
    """The metrics whose name, or whose group's name, contains *pattern* or matches it as a shell pattern; all without one."""
    if pattern is None:
        return frozenset(measurement.metric for measurement in measurements())
    return frozenset(
        measurement.metric
        for group in GROUPS
        for measurement in group.measurements
        if _matches(measurement.metric, pattern) or _matches(group.name, pattern)
    )


def needed_groups(wanted: frozenset[str]) -> list[Group]:
    """The groups that have a wanted metric, each cut off behind its last wanted one: the earlier ones prepare it."""
    groups = []
    for group in GROUPS:
        hits = [index for index, measurement in enumerate(group.measurements) if measurement.metric in wanted]
        # An unchained group needs nothing but what was asked for.
        kept = range(hits[-1] + 1) if hits and group.chained else hits
        if kept:
            groups.append(replace(group, measurements=tuple(group.measurements[index] for index in kept)))
    return groups


def _matches(name: str, pattern: str) -> bool:
    return pattern.lower() in name.lower() or fnmatch(name.lower(), pattern.lower())
