"""The same figures of other file systems, for comparison.

Measured once, on 2 cores, Linux 6.18, one ext4 disk, servers as network namespaces; medians, with the ratio to native ext4
measured right before each. GlusterFS 11.1 with `replica 3 arbiter 1`, MooseFS 4.56 with three chunkservers and goal 2,
mergerfs 2.33 over three directories (one machine, no copies). Rates are the higher the better; for times the ratio is
native seconds / peer seconds of the one native column, so that it, too, is a speed. The ratios of create, mkdir, untar and
git are soft, since native itself varies: use the absolute figures there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = ("GlusterFS", "MooseFS", "mergerfs")


@dataclass(frozen=True)
class Peer:
    """A figure in the metric's unit, and the speed relative to native."""

    value: float
    ratio: float


def _rates(*pairs: tuple[float, float]) -> dict[str, Peer]:
    return {name: Peer(*pair) for name, pair in zip(NAMES, pairs, strict=True)}


def _times(native: float, *seconds: float) -> dict[str, Peer]:
    return {name: Peer(value, native / value) for name, value in zip(NAMES, seconds, strict=True)}


PEERS: Mapping[str, Mapping[str, Peer]] = {
    "sequential write": _rates((373, 0.06), (391, 0.10), (1508, 0.32)),
    "sequential write + fsync": _rates((305, 0.13), (261, 0.11), (1099, 0.47)),
    "sequential read, cold": _rates((539, 0.61), (710, 0.23), (1120, 0.56)),
    "sequential read, warm": _rates((8295, 0.30), (6749, 0.25), (920, 0.03)),
    "random 4 KiB read, cold": _rates((6231, 0.02), (7013, 0.03), (59037, 0.25)),
    "random 4 KiB read, warm": _rates((803602, 1.1), (853842, 1.1), (83919, 0.12)),
    "random 4 KiB overwrite": _rates((5054, 0.007), (9849, 0.014), (19031, 0.03)),
    "create + 4 KiB + close": _rates((224, 0.04), (796, 0.09), (1522, 0.63)),
    "stat, first pass": _rates((1636, 0.02), (8163, 0.09), (16276, 0.16)),
    "stat, second pass": _rates((5679, 0.01), (9953, 0.02), (421457, 0.77)),
    "open+read+close, warm": _rates((1584, 0.006), (4085, 0.02), (5661, 0.02)),
    "readdir+stat, cold": _rates((10542, 0.10), (27692, 0.25), (20402, 0.20)),
    "readdir+stat, warm": _rates((45316, 0.11), (30573, 0.09), (320845, 0.72)),
    "rename": _rates((438, 0.01), (2721, 0.05), (9367, 0.18)),
    "unlink": _rates((748, 0.05), (4009, 0.27), (7858, 0.49)),
    "mkdir": _rates((699, 0.02), (4873, 0.11), (4068, 0.60)),
    "append 200 B + fsync": _rates((1100, 0.14), (1882, 0.22), (5421, 0.67)),
    "untar 3,000 files": _times(0.98, 18.1, 9.0, 5.0),
    "git init+add+commit of them": _times(1.8, 28.0, 10.0, 6.2),
    "git status, second": _times(0.011, 0.53, 0.30, 0.086),
    "rm -rf of them": _times(0.25, 4.0, 0.71, 0.83),
}
