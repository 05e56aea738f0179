"""What a measurement is, takes and gives; and the one loop that counts operations per second."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from bench.processors import Meter

T = TypeVar("T")

CHUNK = 64  # operations between two looks at the clock, which cost time, too
MB = 1_000_000


class Sample(msgspec.Struct, frozen=True):
    """One figure in its metric's unit, with the operations (or bytes) and the seconds it was made of.

    `cut_short`: the time limit ended the measurement before all of its operations were done; the figure is still a rate.
    `processor_us`: what each part of a lab used for one operation, in µs (`bench.processors`); only where operations are counted.
    """

    value: float  # in the metric's unit
    count: int  # operations or bytes
    seconds: float  # monotonic
    cut_short: bool = False
    processor_us: dict[str, float] | None = None


@dataclass(frozen=True)
class Load:
    """How much is measured.

    `limit_s` bounds each loop of operations, `program_s` each program that is run, `copies_s` the wait for copies, and
    `patience_s` a whole measurement: one that takes longer is killed and reported as failed.
    """

    file_bytes: int = 512 << 20
    random_ops: int = 200_000  # pages; fewer where `limit_s` ends it
    files: int = 2000  # of 4 KiB, in one directory
    passes: int = 5  # over what is warm, which is too quick to be measured once
    directories: int = 1000
    appends: int = 1000
    tree_files: int = 3000  # named in the metrics of programs
    remote_files: int = 1000
    copied_files: int = 2000
    copied_bytes: int = 512 << 20
    bulk_bytes: int = 4 << 30  # so long that connecting and committing do not count
    limit_s: float = 4.0
    program_s: float = 90.0
    copies_s: float = 90.0
    patience_s: float = 180.0


QUICK = Load(
    file_bytes=8 << 20,
    random_ops=2000,
    files=100,
    passes=2,
    directories=50,
    appends=20,
    tree_files=120,
    remote_files=50,
    copied_files=100,
    copied_bytes=16 << 20,
    bulk_bytes=32 << 20,
    limit_s=1.0,
    program_s=60.0,
    copies_s=60.0,
)


class Elsewhere(Protocol):
    """The same storage network as another server sees it."""

    def path_there(self, directory: Path) -> Path:
        """The same directory through the other server's mount."""

    def set_copies(self, directory: Path, copies: int) -> None:
        """Gives a directory a policy of its own."""

    def objects_of(self, path: Path) -> list[Path]:
        """The plain files, on whatever server's disks, that have the content of a file."""

    def sent_bytes(self) -> int:
        """How many bytes this server has sent over the network."""

    def wait_until_current(self, directory: Path, timeout_s: float, at_rest: Callable[[], object] = bool) -> float:
        """When (monotonic) each file in *directory* had all the current copies that its policy asks for.

        Calls *at_rest* whenever nothing is queued. Returns somewhat later, since it makes sure; raises `TimeoutError`.
        """


@dataclass(frozen=True)
class Ground:
    """Where a measurement works: a directory that it shares with its group's earlier ones, the load, and the tree as a tar.

    `elsewhere` is there for measurements of a network only; `meter` counts the processor time of a lab.
    """

    directory: Path
    load: Load
    tar: Path
    elsewhere: Elsewhere | None = None
    meter: Meter = field(default_factory=Meter)


Measure = Callable[[Ground], Sample]


def per_second(work: Callable[[Sequence[T]], object], items: Sequence[T], limit_s: float, meter: Meter | None = None) -> Sample:
    """Operations per second of *work*, which is given the items in small chunks until they or the time are used up.

    *meter* counts meanwhile: it is given where the operations are what is measured, not what prepares it, and not bytes.
    Raises `ValueError` if there are no items: then an earlier measurement did not leave what this one needs.
    """
    if not items:
        raise ValueError("there is nothing to measure with")
    done = 0
    elapsed = 0.0
    with (meter or Meter()).counting():
        start = time.monotonic()
        while done < len(items):
            chunk = items[done : done + CHUNK]
            work(chunk)
            done += len(chunk)
            elapsed = time.monotonic() - start
            # After the chunk: a rate needs whole operations.
            if elapsed > limit_s:
                break
    return Sample(done / elapsed if elapsed else 0.0, done, elapsed, cut_short=done < len(items))


def megabytes_per_second(sample: Sample, bytes_each: int) -> Sample:
    """The same sample in MB/s of operations that move *bytes_each*."""
    moved = sample.count * bytes_each
    return Sample(moved / MB / sample.seconds if sample.seconds else 0.0, moved, sample.seconds, sample.cut_short)
