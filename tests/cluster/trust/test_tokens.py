"""Join tokens: what is none, mistyped or of another release is told apart, and nothing of it is repeated."""

import pytest

from cluster.errors import Refused
from cluster.trust.tokens import JoinToken, digest_of, new_secret, parse_token
from tests.support.trust import authority


def test_a_token_is_read_back_as_it_was_made() -> None:
    for _ in range(100):
        token = JoinToken(authority().pin, new_secret())
        assert str(token).count(".") == 2
        assert parse_token(f" {token}\n") == token


def test_the_digest_tells_secrets_apart_and_shows_none() -> None:
    one, other = new_secret(), new_secret()
    assert digest_of(one) == digest_of(one) != digest_of(other)
    assert one.encode() not in digest_of(one)


GOOD = f"GW1.{'p' * 43}.{'s' * 32}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no token to join with"),
        ("hunter2", "no token to join with"),
        ("s" * 32, "no token to join with"),
        (GOOD.replace("GW1", "GW2"), "of another release of Godwit"),
        (GOOD[:-1], "mistyped or cut off"),
        (GOOD + "x", "mistyped or cut off"),
        (GOOD + ".x", "mistyped or cut off"),
        (GOOD.replace("s", "!"), "mistyped or cut off"),
        (GOOD.replace("p", "p p", 1), "mistyped or cut off"),
        ("GW1", "mistyped or cut off"),
        (f"GW1.{'s' * 32}.{'p' * 43}", "mistyped or cut off"),
    ],
)
def test_what_is_no_token_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        parse_token(text)
    assert "ssss" not in str(refused.value)
