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
    ALONE_SHORTEST,
    CLOCK_RATE,
    MARGIN,
    READ,
    SHARED,
    SHORTEST,
    WRITE,
    Decision,
    LeaseKeys,
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

SECRET = b"\x5e" * 32
TOKEN = LeaseToken(1, 7, WRITE, "s3", 3, "10.0.0.1:7401", 5, 2, 4, 30.0, 1000.0, checked_by="s1")
KEYS = LeaseKeys(SECRET)
# By `printf 'godwit lease token\0s1' | openssl dgst -sha256 -mac HMAC -macopt hexkey:5e5e…`.
KEY_OF_S1 = "5b7eea53f4bab5cd9f56b25b017290fb5cfad1b9398018d1f76bc0248ac1aeca"

# ------------------------------------------------------------------------------------------------------- the seal


def test_a_sealed_token_says_the_same() -> None:
    sealed = KEYS.seal(TOKEN)
    assert Sealer(KEYS.key_of("s1")).open(sealed) == TOKEN
    assert KEYS.open(sealed) == TOKEN
    assert read_token(sealed) == TOKEN


@given(st.data())
def test_no_byte_of_a_token_can_be_changed(data: st.DataObject) -> None:
    sealed = bytearray(KEYS.seal(TOKEN))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= data.draw(st.integers(1, 255))
    for opener in (KEYS, Sealer(KEYS.key_of("s1"))):
        with pytest.raises(TokenRefused):
            opener.open(bytes(sealed))


@given(st.binary(max_size=200))
def test_garbage_is_refused(sealed: bytes) -> None:
    for opener in (KEYS, Sealer(KEYS.key_of("s1"))):
        with pytest.raises(TokenRefused):
            opener.open(sealed)
    with pytest.raises(TokenRefused):
        read_token(sealed)


def test_another_cluster_seals_otherwise() -> None:
    with pytest.raises(TokenRefused):
        LeaseKeys(bytes(32)).open(KEYS.seal(TOKEN))


def test_keys_stay_the_same_over_all_managers() -> None:
    assert LeaseKeys(SECRET).key_of("s1").hex() == KEY_OF_S1
    assert LeaseKeys(bytes(32)).key_of("s1").hex() != KEY_OF_S1


NAMES = st.text("abcdefs123-.", max_size=12)


@given(st.lists(NAMES, unique=True))
def test_each_server_has_a_key_of_its_own(names: list[str]) -> None:
    assert len({KEYS.key_of(name) for name in names} | {SECRET}) == len(names) + 1


@given(mine=NAMES, claimed=NAMES, other=NAMES)
def test_who_knows_one_servers_key_makes_tokens_for_no_other(mine: str, claimed: str, other: str) -> None:
    """Whatever the forged token says of whom it is for."""
    forged = Sealer(KEYS.key_of(mine)).seal(msgspec.structs.replace(TOKEN, checked_by=claimed))
    for opener, is_taken in ((Sealer(KEYS.key_of(other)), other == mine), (KEYS, claimed == mine)):
        if is_taken:
            assert opener.open(forged).checked_by == claimed
        else:
            with pytest.raises(TokenRefused, match="for this server"):
                opener.open(forged)


@given(ino=st.integers(1, 2**63 - 1), holder=NAMES, server=NAMES, asked=NAMES, mode=st.sampled_from([READ, WRITE, SHARED]))
def test_a_token_is_taken_by_one_agent_only(ino: int, holder: str, server: str, asked: str, mode: str) -> None:
    token = msgspec.structs.replace(TOKEN, ino=ino, holder=holder, mode=mode, checked_by=server)
    checked = gate(server=asked)
    if asked == server:
        assert checked.check(KEYS.seal(token), ino, 0.0, holder) == token
    else:
        with pytest.raises(TokenRefused, match="for this server"):
            checked.check(KEYS.seal(token), ino, 0.0, holder)


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
    shortest=st.sampled_from([SHORTEST, ALONE_SHORTEST]),
)
def test_what_an_earlier_term_granted_has_ended_when_the_next_says_so(
    extended_s: float,
    age_s: float,
    seen_after_s: float,
    ended_after_s: float,
    old_rate: float,
    holder_rate: float,
    access_s: float,
    shortest: float,
) -> None:
    """On the new manager's clock; those of the old manager and of the holder run at other rates."""
    granted_s = extended_s + age_s
    lasts_s = grant_lasts_s(access_s, 0.0, age_s * (1 + old_rate), shortest)
    assert access_s * shortest <= lasts_s <= access_s
    holder_stops_s = granted_s + lasts_s / (1 + holder_rate)
    assert holder_stops_s < all_ended_s(access_s, extended_s + seen_after_s, granted_s + ended_after_s, shortest)


def test_a_grant_outlasts_the_time_between_two_renewals() -> None:
    assert SHORTEST > 1 / RENEWALS_PER_ACCESS


def test_of_old_terms_only_the_last_few_are_known() -> None:
    clock = ManagerClock()
    for term in range(1, 11):
        clock.heard(term, 100.0 * term, 0.0)
    assert clock.latest(10, 0.0) == 1000.0
    assert clock.latest(9, 0.0) == 900.0
    assert clock.latest(1, 0.0) is None


# ------------------------------------------------------------------------------------------------------- the gate


def gate(shown_s: float = 1000.0, term: int = 4, server: str = "s1") -> TokenGate:
    """A gate that knows what the manager's clock shows at our 0, and its server's key."""
    clock = ManagerClock()
    clock.heard(term, shown_s, 0.0)
    checked = TokenGate(clock)
    checked.take_key(KEYS.key_of(server))
    return checked


def sealed(**changes: object) -> bytes:
    return KEYS.seal(msgspec.structs.replace(TOKEN, **changes))


def test_a_good_token_passes_until_its_access_time_is_over() -> None:
    checked = gate()
    assert checked.check(sealed(), 7, 0.0, "s3") == TOKEN
    assert checked.check(sealed(), 7, 30.0 / (1 + CLOCK_RATE) - 0.001, "s3", to_write=True) == TOKEN
    with pytest.raises(TokenRefused, match="expired"):
        checked.check(sealed(), 7, 30.0, "s3")


def test_a_token_for_something_else_is_refused() -> None:
    checked = gate()
    with pytest.raises(TokenRefused, match="for inode 7, not for 8"):
        checked.check(sealed(), 8, 0.0, "s3")
    with pytest.raises(TokenRefused, match="no right to write"):
        checked.check(sealed(mode=READ), 7, 0.0, "s3", to_write=True)
    assert checked.check(sealed(mode=SHARED), 7, 0.0, "s3", to_write=True).mode == SHARED
    with pytest.raises(TokenRefused, match="term 5"):
        checked.check(sealed(term=5), 7, 0.0, "s3")
    with pytest.raises(TokenRefused, match="not made by a manager"):
        checked.check(b"x" * 80, 7, 0.0, "s3")


def test_only_its_holder_may_show_it() -> None:
    checked = gate()
    assert checked.check(sealed(), 7, 0.0, "s3") == TOKEN
    for peer in ("s2", "s1", ""):
        with pytest.raises(TokenRefused, match=f"^the lease token is s3's, not {peer}'s$"):
            checked.check(sealed(), 7, 0.0, peer)


def test_nothing_passes_before_there_is_a_key_and_nothing_of_an_older_one_after_it() -> None:
    clock = ManagerClock()
    clock.heard(4, 1000.0, 0.0)
    checked = TokenGate(clock)
    for _ in range(2):
        with pytest.raises(TokenRefused, match="no manager has given it its server's key yet"):
            checked.check(sealed(), 7, 0.0, "s3")
        checked.take_key(b"")
    checked.take_key(KEYS.key_of("s1"))
    assert checked.check(sealed(), 7, 0.0, "s3") == TOKEN
    checked.take_key(KEYS.key_of("s1"))
    assert checked.check(sealed(), 7, 0.0, "s3") == TOKEN
    checked.take_key(LeaseKeys(bytes(32)).key_of("s1"))
    with pytest.raises(TokenRefused, match="for this server"):
        checked.check(sealed(), 7, 0.0, "s3")


def test_no_agent_takes_a_token_that_is_for_none() -> None:
    for server in ("s1", "s2", "godwit"):
        with pytest.raises(TokenRefused, match="for this server"):
            gate(server=server).check(sealed(checked_by=""), 7, 0.0, "s3")


def test_a_token_of_the_last_term_is_good_until_its_own_end() -> None:
    clock = ManagerClock()
    clock.heard(4, 1000.0, 0.0)
    clock.heard(5, 50.0, 10.0)
    checked = TokenGate(clock)
    checked.take_key(KEYS.key_of("s1"))
    assert checked.check(sealed(), 7, 20.0, "s3") == TOKEN
    with pytest.raises(TokenRefused, match="expired"):
        checked.check(sealed(), 7, 31.0, "s3")


def test_the_documentation_shows_the_rules() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/leases.md").read_text()
    assert mode_table() in text
    assert timer_table() in text
