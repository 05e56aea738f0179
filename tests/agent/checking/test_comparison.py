"""The rules by which the catalog and a disk are compared, in milliseconds."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.checking.comparison import Kind, Seen, best_of, is_newer, is_the_content, judge
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
    ("row", "seen", "kind"),
    [
        (COPY_ROW, None, Kind.MISSING),
        (HOME, None, Kind.MISSING),
        (DIRTY, None, Kind.MISSING),
        (UNBORN, None, Kind.MISSING),
        (COPY_ROW, Seen(STAMP, record(3)), None),
        (COPY_ROW, Seen(STAMP, record(2)), None),  # it fell back: the version was raised in the catalog only
        (COPY_ROW, Seen(OTHER_CTIME, record(3)), Kind.STAMP),
        (COPY_ROW, Seen(OTHER_CTIME, None), Kind.STAMP),
        (COPY_ROW, Seen(Stamp(9, 100, 1000), record(3)), Kind.SIZE),
        (COPY_ROW, Seen(WRITTEN, record(2)), Kind.VERSION),
        (HOME, Seen(WRITTEN, record(4)), Kind.VERSION),
        (HOME, Seen(WRITTEN, record(3)), Kind.SIZE),
        (DIRTY, Seen(WRITTEN, record(2)), None),
        (UNBORN, Seen(WRITTEN, None), None),
        (COPY_ROW, Seen(Stamp(0, 0, 0), error="Input/output error"), Kind.UNREADABLE),
        (DIRTY, Seen(Stamp(0, 0, 0), error="Input/output error"), Kind.UNREADABLE),
        (with_(COPY_ROW, checksum=DIGEST), Seen(STAMP, record(3), DIGEST), None),
        (with_(COPY_ROW, checksum=DIGEST), Seen(STAMP, record(3), b"x" * 32), Kind.DIGEST),
        (COPY_ROW, Seen(STAMP, record(3, checksum=DIGEST.hex()), b"x" * 32), Kind.DIGEST),
        (COPY_ROW, Seen(STAMP, record(2, checksum=DIGEST.hex()), b"x" * 32), None),  # of which version nobody knows
        (COPY_ROW, Seen(STAMP, record(3, checksum="nonsense"), b"x" * 32), None),
        (COPY_ROW, Seen(STAMP, record(3), b"x" * 32), None),
    ],
)
def test_how_a_disk_differs(row: ReplicaState, seen: Seen | None, kind: Kind | None) -> None:
    assert judge(row, seen) is kind
    assert judge(with_(row, task=TaskOperation.COPY), seen) is None
    assert judge(with_(row, wanted=-1), seen) is None


@pytest.mark.parametrize(
    ("row", "seen", "right"),
    [
        (HOME, Seen(OTHER_CTIME, record(3)), True),
        (HOME, Seen(OTHER_CTIME, record(2)), False),
        (HOME, Seen(OTHER_CTIME, record(3, ino=8)), False),
        (HOME, Seen(OTHER_CTIME, None), False),
        (HOME, Seen(Stamp(10, 101, 1000), record(3)), False),
        (HOME, Seen(Stamp(11, 100, 1000), record(3)), False),
        (HOME, Seen(OTHER_CTIME, record(3), error="Input/output error"), False),
        (UNBORN, Seen(STAMP, None), False),
        (with_(HOME, checksum=DIGEST), Seen(Stamp(10, 5, 5), record(2), DIGEST), True),
        (with_(HOME, checksum=DIGEST), Seen(Stamp(10, 5, 5), None, DIGEST), True),
        (with_(HOME, checksum=DIGEST), Seen(OTHER_CTIME, record(3), b"x" * 32), False),
        (with_(HOME, checksum=DIGEST), Seen(OTHER_CTIME, record(3)), False),
    ],
)
def test_what_is_the_content_that_the_catalog_means(row: ReplicaState, seen: Seen, right: bool) -> None:
    assert is_the_content(row, seen) is right
    assert is_the_content(with_(row, is_home=False), seen) is right


@pytest.mark.parametrize(
    ("row", "seen", "newer"),
    [
        (HOME, Seen(WRITTEN, record(4)), True),
        (HOME, Seen(WRITTEN, record(3)), False),
        (HOME, Seen(WRITTEN, record(4, epoch=2)), False),  # of a home that this volume was not made
        (DIRTY, Seen(WRITTEN, record(3)), True),
        (DIRTY, Seen(WRITTEN, record(2)), False),
        (DIRTY, Seen(WRITTEN, None), False),
        (UNBORN, Seen(WRITTEN, None), True),
        (UNBORN, Seen(WRITTEN, record(1, ino=8)), False),
        (COPY_ROW, Seen(WRITTEN, record(4)), False),
    ],
)
def test_what_a_home_may_have_had_since(row: ReplicaState, seen: Seen, newer: bool) -> None:
    assert is_newer(row, seen) is newer


FILES = [
    ("right", Seen(OTHER_CTIME, record(3))),
    ("newer", Seen(WRITTEN, record(4))),
    ("newest", Seen(WRITTEN, record(5))),
    ("older", Seen(WRITTEN, record(2))),
    ("foreign", Seen(OTHER_CTIME, record(3, ino=8))),
    ("broken", Seen(Stamp(0, 0, 0), error="Input/output error")),
]


@given(st.permutations(FILES), st.integers(min_value=0, max_value=len(FILES)))
def test_the_right_content_comes_back_else_the_newest_of_a_home(files: list[tuple[str, Seen]], count: int) -> None:
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
            assert best_of(row, [("file", Seen(stamp, found))]) is None
