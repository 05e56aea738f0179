"""When a volume stops counting, and counts again: the rule, over every condition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.membership import READABLE, VolumeCondition, VolumeStanding
from manager.rules.disks import Health, after, condition_of, first_health, standing_now
from manager.rules.liveness import Delays

DELAYS = Delays(suspect_s=7, down_s=600)
BAD = [condition for condition in VolumeCondition if condition is not VolumeCondition.GOOD]
SOON = (VolumeCondition.READ_ONLY, VolumeCondition.FAILING)


@pytest.mark.parametrize("condition", BAD)
def test_a_bad_disk_stops_counting_after_its_delay_and_not_before(condition: VolumeCondition) -> None:
    health = after(Health(VolumeCondition.GOOD, 0), condition, 100)
    delay_s = DELAYS.suspect_s if condition in SOON else DELAYS.down_s
    assert standing_now(VolumeStanding.IN, health, 99.9 + delay_s, DELAYS) is VolumeStanding.IN
    assert standing_now(VolumeStanding.IN, health, 100 + delay_s, DELAYS) is VolumeStanding.OUT


@pytest.mark.parametrize("standing", [VolumeStanding.OUT, VolumeStanding.LOST])
@pytest.mark.parametrize("condition", BAD)
def test_what_was_out_counts_when_it_was_good_for_a_while(standing: VolumeStanding, condition: VolumeCondition) -> None:
    bad = Health(condition, 0)
    assert standing_now(standing, bad, 10_000, DELAYS) is standing
    good = after(bad, VolumeCondition.GOOD, 10_000)
    assert standing_now(standing, good, 10_006.9, DELAYS) is standing
    assert standing_now(standing, good, 10_007, DELAYS) is VolumeStanding.IN


@given(st.lists(st.tuples(st.sampled_from(BAD), st.floats(0.1, 6.9)), max_size=50))
def test_a_disk_that_comes_and_goes_never_counts_again_and_one_that_goes_and_comes_never_stops(
    steps: list[tuple[VolumeCondition, float]],
) -> None:
    """No condition lasts for a delay, and every other one is good."""
    out, kept, now = Health(VolumeCondition.AWAY, 0), Health(VolumeCondition.GOOD, 0), 0.0
    for condition, lasts_s in steps:
        for present in (condition, VolumeCondition.GOOD):
            out, kept = after(out, present, now), after(kept, present, now)
            now += lasts_s
            assert standing_now(VolumeStanding.OUT, out, now, DELAYS) is VolumeStanding.OUT
            assert standing_now(VolumeStanding.IN, kept, now, DELAYS) is VolumeStanding.IN


def test_one_kind_of_trouble_after_the_other_is_one_time() -> None:
    health = after(Health(VolumeCondition.GOOD, 0), VolumeCondition.SILENT, 10)
    health = after(health, VolumeCondition.AWAY, 500)
    assert standing_now(VolumeStanding.IN, health, 610, DELAYS) is VolumeStanding.OUT


def test_a_new_manager_waits_for_reports() -> None:
    assert first_health(VolumeStanding.IN, 5).is_good
    assert not first_health(VolumeStanding.OUT, 5).is_good
    assert condition_of("of a later release") is VolumeCondition.FAILING
    assert VolumeCondition.AWAY not in READABLE
