"""Which object is a file's content when a catalog is made again, and where its home is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.rules.rebuilding import EPOCH_GAP, Change, Decision, Held, Known, decide

ALL = (1, 2, 3)


@pytest.mark.parametrize(
    ("known", "objects", "looked_at", "complete", "expected"),
    [
        pytest.param(Known(1, 1, 5), [Held(1, 1, 5)], ALL, True, Decision(Change.NONE, 1, 1, 5), id="as it was"),
        pytest.param(
            Known(1, 1, 5), [Held(1, 1, 7), Held(2, 1, 5)], ALL, True, Decision(Change.NEWER, 1, 1, 7, 1), id="committed"
        ),
        pytest.param(
            Known(1, 1, 5), [Held(1, 1, 5), Held(2, 3, 5)], ALL, True, Decision(Change.NEWER, 2, 3, 5, 2), id="by another"
        ),
        pytest.param(
            Known(1, 1, 5),
            [Held(1, 1, 4), Held(2, 1, 7)],
            ALL,
            True,
            Decision(Change.NEWER, 2, 1 + EPOCH_GAP, 7, 2),
            id="home lost some",
        ),
        pytest.param(
            Known(1, 2, 5),
            [Held(2, 1, 5), Held(3, 1, 4)],
            ALL,
            True,
            Decision(Change.MOVED, 2, 2 + EPOCH_GAP, 5, 2),
            id="home gone",
        ),
        pytest.param(Known(1, 2, 5), [Held(2, 2, 3)], ALL, True, Decision(Change.OLDER, 2, 2 + EPOCH_GAP, 3, 2), id="only older"),
        pytest.param(Known(1, 2, 5), [Held(2, 2, 3)], ALL, False, Decision(Change.NONE, 1, 2, 5), id="older, but not all seen"),
        pytest.param(Known(1, 1, 5), [Held(2, 1, 5)], (2, 3), False, Decision(Change.NONE, 1, 1, 5), id="home not seen"),
        pytest.param(
            Known(1, 1, 5), [Held(2, 1, 6)], (2, 3), False, Decision(Change.NEWER, 1, 1, 6, 2), id="home not seen, copy newer"
        ),
        pytest.param(Known(1, 1, 5), [], ALL, True, Decision(Change.GONE), id="nowhere"),
        pytest.param(Known(1, 1, 5), [], ALL, False, Decision(Change.NONE), id="nowhere, but not all seen"),
        pytest.param(Known(1, 1, 0), [], ALL, True, Decision(Change.NONE), id="never committed"),
        pytest.param(
            None,
            [Held(1, 1, 9), Held(2, 2, 3)],
            ALL,
            True,
            Decision(Change.NEWER, 2, 2, 3, 2, (1,)),
            id="fell back to what is newer now",
        ),
        pytest.param(
            None,
            [Held(1, 1, 2, has_checksum=True), Held(2, 1, 2)],
            ALL,
            True,
            Decision(Change.NEWER, 2, 1, 2, 2),
            id="homes have none",
        ),
        pytest.param(
            None,
            [Held(1, 1, 2), Held(2, 1, 2, has_checksum=True, as_recorded=False)],
            ALL,
            True,
            Decision(Change.NEWER, 2, 1, 2, 2),
            id="what was written after its record is a home",
        ),
        pytest.param(None, [Held(3, 0, 0)], ALL, True, Decision(Change.NEWER, 3, 1, 0, 3), id="without a record"),
    ],
)
def test_cases(known: Known | None, objects: list[Held], looked_at: tuple[int, ...], complete: bool, expected: Decision) -> None:
    assert decide(known, objects, looked_at, complete=complete) == expected


numbers = st.integers(0, 4)
held = st.lists(
    st.builds(Held, st.sampled_from(ALL), numbers, numbers, st.booleans(), st.booleans()),
    max_size=3,
    unique_by=lambda one: one.volume,
)


@settings(max_examples=100, deadline=None)
@given(
    st.none() | st.builds(Known, st.sampled_from(ALL), st.integers(1, 4), numbers),
    held,
    st.sets(st.sampled_from(ALL)),
    st.booleans(),
)
def test_no_content_is_passed_over(known: Known | None, objects: list[Held], given_: set[int], complete: bool) -> None:
    looked_at = given_ | {one.volume for one in objects}
    decision = decide(known, objects, looked_at, complete=complete)
    newest = max((one.age for one in objects), default=(0, 0))
    if decision.change is Change.GONE:
        assert not objects
        assert complete
        return
    if objects and (known is None or newest > known.age):
        (content,) = [one for one in objects if one.volume == decision.content]
        assert (content.age, decision.version) == (newest, newest[1])
    if known is not None:
        assert decision.change is Change.NONE or decision.home_epoch >= known.home_epoch
        if decision.home_volume != known.home_volume and decision.change is not Change.NONE:
            assert known.home_volume in looked_at
        if decision.change is not Change.OLDER and objects and decision.version < known.version:
            assert newest > known.age, "a higher epoch counts more than a version"
    assert decision.content not in decision.left_out
