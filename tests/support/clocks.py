"""Moves time on in an async test whose clock lets it, such as that of tests/manager: what waits for real time waits less."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing

HURRY = 10.0


def movable_clock() -> trio.testing.MockClock:
    """Shows real time until a test moves it on."""
    return trio.testing.MockClock(rate=1.0)


def _of_this_test() -> trio.testing.MockClock:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock), "this test runs on a clock that cannot be moved"
    return clock


async def skip(seconds: float) -> None:
    """It is so much later: what has become due begins before this returns."""
    _of_this_test().jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


@contextmanager
def hurried() -> Iterator[None]:
    """Inside the block time passes `HURRY` times as fast: for loops that only have to come round again."""
    clock = _of_this_test()
    clock.rate *= HURRY
    try:
        yield
    finally:
        clock.rate /= HURRY
