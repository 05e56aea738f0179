"""Sessions, and tries of the password."""

import pytest

from manager.page.visitors import (
    ADDRESSES_MAX,
    COOKIE,
    SESSION_S,
    SESSIONS_MAX,
    TRIES_OF_ADDRESS,
    TRIES_OF_ALL,
    TRY_OF_ADDRESS_S,
    TRY_OF_ALL_S,
    Sessions,
    Tries,
)

SALT = b"s" * 16


def sent(cookie: str) -> str:
    """What a browser sends of a cookie that was set."""
    return cookie.partition(";")[0]


def test_a_session_is_of_its_cookie_its_time_and_its_password() -> None:
    sessions = Sessions()
    cookie = sessions.begin(SALT, 100.0)
    mine = sent(cookie)
    assert cookie.startswith(f"{COOKIE}=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= {*cookie.split("; ")}
    assert sessions.is_known(mine, SALT, 100.0)
    assert sessions.is_known(f"other=1; {mine}; more=2", SALT, 100.0 + SESSION_S - 1)
    assert not sessions.is_known(mine, SALT, 100.0 + SESSION_S)
    assert not sessions.is_known(mine, b"t" * 16, 100.0)
    assert not sessions.is_known(mine[:-1], SALT, 100.0)
    assert not Sessions().is_known(mine, SALT, 100.0)


@pytest.mark.parametrize("cookies", ["", COOKIE, f"{COOKIE}=", "=", ";;;", f"{COOKIE}=\udcff", f'{COOKIE}="a\\\\', "x" * 10_000])
def test_odd_cookies_are_nobodys(cookies: str) -> None:
    sessions = Sessions()
    sessions.begin(SALT, 0.0)
    assert not sessions.is_known(cookies, SALT, 0.0)


def test_a_session_is_ended_by_who_has_it() -> None:
    sessions = Sessions()
    one, other = sent(sessions.begin(SALT, 0.0)), sent(sessions.begin(SALT, 0.0))
    assert one != other
    assert "Max-Age=0" in sessions.end(one)
    assert not sessions.is_known(one, SALT, 0.0)
    assert sessions.is_known(other, SALT, 0.0)


def test_there_are_only_so_many_sessions() -> None:
    sessions = Sessions()
    cookies = [sent(sessions.begin(SALT, 0.0)) for _ in range(SESSIONS_MAX + 1)]
    assert [sessions.is_known(cookie, SALT, 0.0) for cookie in cookies] == [False] + [True] * SESSIONS_MAX


def test_an_address_has_some_tries_and_then_one_from_time_to_time() -> None:
    tries = Tries()
    assert [tries.take("10.0.0.1", 50.0) for _ in range(TRIES_OF_ADDRESS)] == [0.0] * TRIES_OF_ADDRESS
    assert tries.take("10.0.0.1", 50.0) == pytest.approx(TRY_OF_ADDRESS_S)
    assert tries.take("::ffff:10.0.0.1", 55.0) == pytest.approx(TRY_OF_ADDRESS_S - 5)
    assert tries.take("10.0.0.2", 55.0) == 0.0
    assert tries.take("10.0.0.1", 50.0 + TRY_OF_ADDRESS_S) == 0.0
    assert tries.take("10.0.0.1", 50.0 + TRY_OF_ADDRESS_S) > 0


def test_a_right_password_takes_no_try() -> None:
    tries = Tries()
    for number in range(10 * TRIES_OF_ALL):
        assert tries.take("10.0.0.1", 0.0) == 0.0, number
        tries.was_right("10.0.0.1")


def test_whoever_has_a_network_of_ipv6_is_one() -> None:
    tries = Tries()
    assert [tries.take(f"2001:db8::{number}", 0.0) for number in range(TRIES_OF_ADDRESS)] == [0.0] * TRIES_OF_ADDRESS
    assert tries.take("2001:db8::ffff%eth0", 0.0) > 0
    assert tries.take("2001:db8:0:1::1", 0.0) == 0.0


def test_many_addresses_together_have_no_more_than_all() -> None:
    tries = Tries()
    taken = [tries.take(f"10.0.{number >> 8}.{number & 255}", 0.0) for number in range(2 * ADDRESSES_MAX)]
    assert taken.count(0.0) == TRIES_OF_ALL
    assert tries.take("10.1.0.0", TRY_OF_ALL_S) == 0.0
    assert tries.take("10.1.0.1", TRY_OF_ALL_S) == pytest.approx(TRY_OF_ALL_S)
