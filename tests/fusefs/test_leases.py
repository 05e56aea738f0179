"""The holder's side of lease tokens, on a clock of the test's own: timers, renewals, deadlines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from cluster.errors import Refused, Unavailable
from cluster.leases import READ, LeaseToken, Sealer
from cluster.messages import AskLeases, LeaseTokens
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases, Use

pytestmark = pytest.mark.usefixtures("autojump_clock")

ACCESS_S = 30.0
RENEW_S = 10.0
TIMEOUT_S = 20.0
SEALER = Sealer("5e" * 32)
IDLE = Use(is_open=False, is_dirty=False)


class Session:
    """What the mount's session is to its leases. `answers`: whether a manager is there."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.answers = True
        self.unknown: set[int] = set()
        self.delay_s = 0.0
        self.serial = 0

    async def call(self, request: AskLeases, *, timeout_s: float) -> LeaseTokens:
        self.asked.append(list(request.inodes))
        if not self.answers:
            await trio.sleep(timeout_s)
            raise Unavailable("no manager")
        await trio.sleep(self.delay_s)
        return LeaseTokens([b"" if ino in self.unknown else self.token(ino) for ino in request.inodes])

    def token(self, ino: int, epoch: int = 1) -> bytes:
        self.serial += 1
        return SEALER.seal(LeaseToken(self.serial, ino, READ, "s1", 1, "h:1", 1, epoch, 1, ACCESS_S, 0.0))


class Holder:
    """A mount's leases with what is open there."""

    def __init__(self) -> None:
        self.session = Session()
        self.uses: dict[int, Use] = {}
        session: Any = self.session
        self.leases = Leases(session, Caching(), RENEW_S, TIMEOUT_S, lambda ino: self.uses.get(ino, IDLE), lambda _ino: None)


@pytest.fixture
@asynccontextmanager
async def holder() -> AsyncIterator[Holder]:
    holder = Holder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder.leases.renew_loop)
        yield holder
        nursery.cancel_scope.cancel()


async def test_an_open_file_is_renewed_for_ten_access_times(holder: Holder) -> None:
    holder.uses[7] = Use(is_open=True, is_dirty=False)
    holder.leases.granted(holder.session.token(7), trio.current_time())
    for _ in range(int(10 * ACCESS_S)):
        await trio.sleep(1)
        assert holder.leases.good(7) is not None
    assert len(holder.session.asked) == pytest.approx(10 * ACCESS_S / RENEW_S, abs=5)


async def test_what_is_not_used_any_more_lapses_after_one_renewal(holder: Holder) -> None:
    holder.leases.granted(holder.session.token(7), trio.current_time())
    await trio.sleep(2 * RENEW_S + 3)
    assert holder.session.asked == [[7]], "used since it was got, then no more"
    assert holder.leases.good(7) is None


async def test_what_is_used_between_the_timers_is_kept(holder: Holder) -> None:
    holder.leases.granted(holder.session.token(7), trio.current_time())
    for _ in range(20):
        await trio.sleep(RENEW_S / 2)
        assert holder.leases.good(7) is not None


async def test_what_is_dirty_is_kept_without_being_used(holder: Holder) -> None:
    holder.uses[7] = Use(is_open=False, is_dirty=True)
    holder.leases.granted(holder.session.token(7), trio.current_time())
    await trio.sleep(3 * ACCESS_S)
    assert holder.leases.good(7) is not None


async def test_renewals_of_one_tick_travel_together(holder: Holder) -> None:
    for ino in range(100, 400):
        holder.uses[ino] = Use(is_open=True, is_dirty=False)
        holder.leases.granted(holder.session.token(ino), trio.current_time())
    await trio.sleep(RENEW_S + 2)
    assert [len(asked) for asked in holder.session.asked] == [300]


async def test_the_deadline_counts_from_before_the_question(holder: Holder) -> None:
    holder.session.delay_s = 12.0
    held = await holder.leases.hold(7)
    assert held.deadline_s == pytest.approx(ACCESS_S)
    assert trio.current_time() == pytest.approx(12.0)


async def test_a_holder_that_is_cut_off_stops_at_its_deadline_and_fails_in_time(holder: Holder) -> None:
    holder.uses[7] = Use(is_open=True, is_dirty=True)
    holder.leases.granted(holder.session.token(7), trio.current_time())
    holder.session.answers = False
    await trio.sleep(ACCESS_S - 0.01)
    assert holder.leases.good(7) is not None
    await trio.sleep(0.02)
    assert holder.leases.good(7) is None
    before = trio.current_time()
    with pytest.raises(Unavailable):
        await holder.leases.hold(7)
    assert trio.current_time() - before == pytest.approx(TIMEOUT_S, abs=1)
    holder.session.answers = True
    assert (await holder.leases.hold(7)).token.ino == 7


async def test_an_inode_that_is_gone_is_stale(holder: Holder) -> None:
    holder.session.unknown.add(7)
    with pytest.raises(Refused, match="inode 7"):
        await holder.leases.hold(7)


async def test_many_who_need_one_token_ask_once(holder: Holder) -> None:
    holder.session.delay_s = 1.0
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(holder.leases.hold, 7)
    assert holder.session.asked == [[7]]


async def test_an_older_answer_does_not_replace_a_newer_token(holder: Holder) -> None:
    older = holder.session.token(7, epoch=1)
    newer = holder.session.token(7, epoch=2)
    holder.leases.granted(newer, 0.0)
    holder.leases.granted(older, 0.0)
    held = holder.leases.good(7)
    assert held is not None
    assert held.token.home_epoch == 2
    assert (await holder.leases.replace(held)).token.serial > held.token.serial


async def test_a_new_manager_is_shown_what_is_open(holder: Holder) -> None:
    holder.uses[7] = Use(is_open=True, is_dirty=False)
    for ino in (7, 8):
        holder.leases.granted(holder.session.token(ino), trio.current_time())
    assert [SEALER.open(sealed).ino for sealed in holder.leases.presented()] == [7]
