"""Lease tokens: what the seal guards, what the timer decides, and that nobody believes in a token for too long."""

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RENEWALS_PER_ACCESS
from cluster.errors import TokenRefused
from cluster.leases import (
    CLOCK_RATE,
    MARGIN,
    READ,
    SHARED,
    WRITE,
    Decision,
    LeaseToken,
    ManagerClock,
    Sealer,
    TokenGate,
    all_ended_s,
    decide,
    grant_lasts_s,
    margin_s,
    mode_for,
    mode_table,
    read_token,
    timer_table,
)

SECRET = "5e" * 32
TOKEN = LeaseToken(1, 7, WRITE, "s1", 3, "10.0.0.1:7401", 5, 2, 4, 30.0, 1000.0)

# ------------------------------------------------------------------------------------------------------- the seal


def test_a_sealed_token_says_the_same() -> None:
    sealed = Sealer(SECRET).seal(TOKEN)
    assert Sealer(SECRET).open(sealed) == TOKEN
    assert read_token(sealed) == TOKEN


@given(st.data())
def test_no_byte_of_a_token_can_be_changed(data: st.DataObject) -> None:
    sealed = bytearray(Sealer(SECRET).seal(TOKEN))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TokenRefused):
        Sealer(SECRET).open(bytes(sealed))


@given(st.binary(max_size=200))
def test_garbage_is_refused(sealed: bytes) -> None:
    with pytest.raises(TokenRefused):
        Sealer(SECRET).open(sealed)
    with pytest.raises(TokenRefused):
        read_token(sealed)


def test_another_cluster_seals_otherwise() -> None:
    with pytest.raises(TokenRefused):
        Sealer("00" * 32).open(Sealer(SECRET).seal(TOKEN))


# ------------------------------------------------------------------------------------------------------- deciding


@pytest.mark.parametrize(("is_open", "is_dirty", "used"), list(itertools.product((False, True), repeat=3)))
def test_a_token_is_renewed_while_its_inode_is_open_dirty_or_used(is_open: bool, is_dirty: bool, used: bool) -> None:
    idle = not (is_open or is_dirty or used)
    assert decide(is_open=is_open, is_dirty=is_dirty, used=used) is (Decision.LAPSE if idle else Decision.RENEW)


@given(st.booleans(), st.booleans(), st.lists(st.booleans()), st.booleans())
def test_who_writes_alone_is_at_home_and_known_to_be_alone(
    writer: bool, at_home: bool, others: list[bool], in_grace: bool
) -> None:
    mode = mode_for(writer=writer, at_home=at_home, others=others, in_grace=in_grace)
    assert (mode == WRITE) == (writer and at_home and not others and not in_grace)
    if mode == READ:
        assert not writer
        assert not any(others)
    else:
        assert mode == WRITE or writer or any(others)


# ----------------------------------------------------------------------------------------------------- the clocks


@given(
    st.floats(0, 1e6),
    st.floats(-CLOCK_RATE, CLOCK_RATE),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=8),
    st.floats(0, 60),
)
def test_the_bound_is_never_behind_the_managers_clock(
    offset: float, rate: float, questions: list[tuple[float, float, float]], after: float
) -> None:
    """Whatever the messages were delayed by, and however the manager's clock runs, within the allowed rate."""

    def managers(local: float) -> float:
        return offset + local * (1 + rate)

    clock = ManagerClock()
    now = 0.0
    for pause, there, back in questions:
        now += pause
        asked = now
        shown = managers(asked + there)
        now = asked + there + back
        clock.heard(1, shown, asked)
        latest = clock.latest(1, now)
        assert latest is not None
        assert latest >= managers(now) - 1e-6
    latest = clock.latest(1, now + after)
    assert latest is not None
    assert latest >= managers(now + after) - 1e-6


@given(st.floats(0, 30), st.floats(-CLOCK_RATE, CLOCK_RATE), st.floats(0.5, 600))
def test_the_holder_stops_before_the_manager_acts(there: float, rate: float, access_s: float) -> None:
    """The timing argument of docs/leases.md, on the manager's clock, with the holder's running at another rate."""
    asked = 100.0
    granted = asked + there
    holder_stops = asked + access_s / (1 + rate)
    manager_acts = granted + access_s + margin_s(access_s)
    assert holder_stops < manager_acts
    assert MARGIN > CLOCK_RATE / (1 - CLOCK_RATE)


@given(
    extended_s=st.floats(0, 60),
    age_s=st.floats(0, 120),
    seen_after_s=st.floats(0, 5),
    ended_after_s=st.floats(0, 120),
    old_rate=st.floats(-CLOCK_RATE, CLOCK_RATE),
    holder_rate=st.floats(-CLOCK_RATE, CLOCK_RATE),
    access_s=st.floats(0.5, 600),
)
def test_what_an_earlier_term_granted_has_ended_when_the_next_says_so(
    extended_s: float,
    age_s: float,
    seen_after_s: float,
    ended_after_s: float,
    old_rate: float,
    holder_rate: float,
    access_s: float,
) -> None:
    """On the new manager's clock; those of the old manager and of the holder run at other rates."""
    granted_s = extended_s + age_s
    lasts_s = grant_lasts_s(access_s, 0.0, age_s * (1 + old_rate))
    assert access_s / RENEWALS_PER_ACCESS < lasts_s <= access_s
    holder_stops_s = granted_s + lasts_s / (1 + holder_rate)
    assert holder_stops_s < all_ended_s(access_s, extended_s + seen_after_s, granted_s + ended_after_s)


def test_of_old_terms_only_the_last_few_are_known() -> None:
    clock = ManagerClock()
    for term in range(1, 11):
        clock.heard(term, 100.0 * term, 0.0)
    assert clock.latest(10, 0.0) == 1000.0
    assert clock.latest(9, 0.0) == 900.0
    assert clock.latest(1, 0.0) is None


# ------------------------------------------------------------------------------------------------------- the gate


def gate(shown_s: float = 1000.0, term: int = 4) -> TokenGate:
    """A gate that knows what the manager's clock shows at our 0."""
    clock = ManagerClock()
    clock.heard(term, shown_s, 0.0)
    return TokenGate(Sealer(SECRET), clock)


def sealed(**changes: object) -> bytes:
    return Sealer(SECRET).seal(msgspec.structs.replace(TOKEN, **changes))


def test_a_good_token_passes_until_its_access_time_is_over() -> None:
    checked = gate()
    assert checked.check(sealed(), 7, 0.0) == TOKEN
    assert checked.check(sealed(), 7, 30.0 / (1 + CLOCK_RATE) - 0.001, to_write=True) == TOKEN
    with pytest.raises(TokenRefused, match="expired"):
        checked.check(sealed(), 7, 30.0)


def test_a_token_for_something_else_is_refused() -> None:
    checked = gate()
    with pytest.raises(TokenRefused, match="for inode 7, not for 8"):
        checked.check(sealed(), 8, 0.0)
    with pytest.raises(TokenRefused, match="no right to write"):
        checked.check(sealed(mode=READ), 7, 0.0, to_write=True)
    assert checked.check(sealed(mode=SHARED), 7, 0.0, to_write=True).mode == SHARED
    with pytest.raises(TokenRefused, match="term 5"):
        checked.check(sealed(term=5), 7, 0.0)
    with pytest.raises(TokenRefused, match="not made by a manager"):
        checked.check(b"x" * 80, 7, 0.0)


def test_a_token_of_the_last_term_is_good_until_its_own_end() -> None:
    clock = ManagerClock()
    clock.heard(4, 1000.0, 0.0)
    clock.heard(5, 50.0, 10.0)
    checked = TokenGate(Sealer(SECRET), clock)
    assert checked.check(sealed(), 7, 20.0) == TOKEN
    with pytest.raises(TokenRefused, match="expired"):
        checked.check(sealed(), 7, 31.0)


def test_the_documentation_shows_the_rules() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/leases.md").read_text()
    assert mode_table() in text
    assert timer_table() in text
