"""The rules by which the catalog and a disk are compared, in milliseconds."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.checking.comparison import Kind, Observed, best_of, is_newer, is_the_content, judge
from cluster.messages import ReplicaState, Stamp, TaskOperation
from cluster.volume.layout import ObjectRecord

STAMP = Stamp(10, 100, 1000)
DIGEST = b"d" * 32
COPY_ROW = ReplicaState(7, 3, 3, STAMP, b"", "", False, False, 1, 1, "")
HOME = msgspec.structs.replace(COPY_ROW, is_home=True)
DIRTY = msgspec.structs.replace(HOME, dirty=True)
UNBORN = msgspec.structs.replace(DIRTY, version=0, wanted=0, stamp=None)
OTHER_CTIME = Stamp(10, 100, 2000)
WRITTEN = Stamp(12, 3000, 3000)


def record(version: int, *, ino: int = 7, epoch: int = 1, checksum: str = "") -> ObjectRecord:
    return ObjectRecord(ino, version, epoch, checksum)


def with_(row: ReplicaState, **changes: object) -> ReplicaState:
    return msgspec.structs.replace(row, **changes)


@pytest.mark.parametrize(
    ("row", "observed", "kind"),
    [
        (COPY_ROW, None, Kind.MISSING),
        (HOME, None, Kind.MISSING),
        (DIRTY, None, Kind.MISSING),
        (UNBORN, None, Kind.MISSING),
        (COPY_ROW, Observed(STAMP, record(3)), None),
        (COPY_ROW, Observed(STAMP, record(2)), None),  # it fell back: the version was raised in the catalog only
        (COPY_ROW, Observed(OTHER_CTIME, record(3)), Kind.STAMP),
        (COPY_ROW, Observed(OTHER_CTIME, None), Kind.STAMP),
        (COPY_ROW, Observed(Stamp(9, 100, 1000), record(3)), Kind.SIZE),
        (COPY_ROW, Observed(WRITTEN, record(2)), Kind.VERSION),
        (HOME, Observed(WRITTEN, record(4)), Kind.VERSION),
        (HOME, Observed(WRITTEN, record(3)), Kind.SIZE),
        (DIRTY, Observed(WRITTEN, record(2)), None),
        (UNBORN, Observed(WRITTEN, None), None),
        (COPY_ROW, Observed(Stamp(0, 0, 0), error="Input/output error"), Kind.UNREADABLE),
        (DIRTY, Observed(Stamp(0, 0, 0), error="Input/output error"), Kind.UNREADABLE),
        (with_(COPY_ROW, checksum=DIGEST), Observed(STAMP, record(3), DIGEST), None),
        (with_(COPY_ROW, checksum=DIGEST), Observed(STAMP, record(3), b"x" * 32), Kind.DIGEST),
        (COPY_ROW, Observed(STAMP, record(3, checksum=DIGEST.hex()), b"x" * 32), Kind.DIGEST),
        (COPY_ROW, Observed(STAMP, record(2, checksum=DIGEST.hex()), b"x" * 32), None),  # of which version nobody knows
        (COPY_ROW, Observed(STAMP, record(3, checksum="nonsense"), b"x" * 32), None),
        (COPY_ROW, Observed(STAMP, record(3), b"x" * 32), None),
    ],
)
def test_how_a_disk_differs(row: ReplicaState, observed: Observed | None, kind: Kind | None) -> None:
    assert judge(row, observed) is kind
    assert judge(with_(row, task=TaskOperation.COPY), observed) is None
    assert judge(with_(row, wanted=-1), observed) is None


@pytest.mark.parametrize(
    ("row", "observed", "right"),
    [
        (HOME, Observed(OTHER_CTIME, record(3)), True),
        (HOME, Observed(OTHER_CTIME, record(2)), False),
        (HOME, Observed(OTHER_CTIME, record(3, ino=8)), False),
        (HOME, Observed(OTHER_CTIME, None), False),
        (HOME, Observed(Stamp(10, 101, 1000), record(3)), False),
        (HOME, Observed(Stamp(11, 100, 1000), record(3)), False),
        (HOME, Observed(OTHER_CTIME, record(3), error="Input/output error"), False),
        (UNBORN, Observed(STAMP, None), False),
        (with_(HOME, checksum=DIGEST), Observed(Stamp(10, 5, 5), record(2), DIGEST), True),
        (with_(HOME, checksum=DIGEST), Observed(Stamp(10, 5, 5), None, DIGEST), True),
        (with_(HOME, checksum=DIGEST), Observed(OTHER_CTIME, record(3), b"x" * 32), False),
        (with_(HOME, checksum=DIGEST), Observed(OTHER_CTIME, record(3)), False),
    ],
)
def test_what_is_the_content_that_the_catalog_means(row: ReplicaState, observed: Observed, right: bool) -> None:
    assert is_the_content(row, observed) is right
    assert is_the_content(with_(row, is_home=False), observed) is right


@pytest.mark.parametrize(
    ("row", "observed", "newer"),
    [
        (HOME, Observed(WRITTEN, record(4)), True),
        (HOME, Observed(WRITTEN, record(3)), False),
        (HOME, Observed(WRITTEN, record(4, epoch=2)), False),  # of a home that this volume was not made
        (DIRTY, Observed(WRITTEN, record(3)), True),
        (DIRTY, Observed(WRITTEN, record(2)), False),
        (DIRTY, Observed(WRITTEN, None), False),
        (UNBORN, Observed(WRITTEN, None), True),
        (UNBORN, Observed(WRITTEN, record(1, ino=8)), False),
        (COPY_ROW, Observed(WRITTEN, record(4)), False),
    ],
)
def test_what_a_home_may_have_had_since(row: ReplicaState, observed: Observed, newer: bool) -> None:
    assert is_newer(row, observed) is newer


FILES = [
    ("right", Observed(OTHER_CTIME, record(3))),
    ("newer", Observed(WRITTEN, record(4))),
    ("newest", Observed(WRITTEN, record(5))),
    ("older", Observed(WRITTEN, record(2))),
    ("foreign", Observed(OTHER_CTIME, record(3, ino=8))),
    ("broken", Observed(Stamp(0, 0, 0), error="Input/output error")),
]


@given(st.permutations(FILES), st.integers(min_value=0, max_value=len(FILES)))
def test_the_right_content_comes_back_else_the_newest_of_a_home(files: list[tuple[str, Observed]], count: int) -> None:
    files = files[:count]
    names = {name for name, _seen in files}
    by_rank = [name for name in ("right", "newest", "newer") if name in names]
    assert best_of(HOME, files) == (by_rank[0] if by_rank else None)
    assert best_of(COPY_ROW, files) == ("right" if "right" in names else None)


def test_no_content_is_both_older_than_the_catalog_and_taken() -> None:
    rows = (COPY_ROW, HOME, DIRTY, UNBORN)
    stamps = (STAMP, OTHER_CTIME, WRITTEN)
    records = (None, record(1), record(2), record(3), record(4))
    for row, stamp, found in itertools.product(rows, stamps, records):
        if found is not None and found.version < row.version:
            assert best_of(row, [("file", Observed(stamp, found))]) is None
