"""The holder's side of lease tokens, on a clock of the test's own: timers, renewals, deadlines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from cluster.errors import Refused, Unavailable
from cluster.leases import READ, LeaseKeys, LeaseToken
from cluster.messages import AskLeases, LeaseTokens
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases, Use

pytestmark = pytest.mark.usefixtures("autojump_clock")

ACCESS_S = 30.0
RENEW_S = 10.0
TIMEOUT_S = 20.0
KEYS = LeaseKeys(b"\x5e" * 32)
IDLE = Use(is_open=False, is_dirty=False)


class Session:
    """What the mount's session is to its leases. `answers`: whether a manager is there."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.answers = True
        self.unknown: set[int] = set()
        self.delay_s = 0.0
        self.serial = 0
        self.volumes: list[int] = []  # for which passes were asked

    async def call(self, request: AskLeases, *, timeout_s: float) -> LeaseTokens:
        if request.volume:
            self.volumes.append(request.volume)
        else:
            self.asked.append(list(request.inodes))
        if not self.answers:
            await trio.sleep(timeout_s)
            raise Unavailable("no manager")
        await trio.sleep(self.delay_s)
        return LeaseTokens([b"" if ino in self.unknown else self.token(ino) for ino in request.inodes])

    def token(self, ino: int, epoch: int = 1, version: int = 1) -> bytes:
        self.serial += 1
        return KEYS.seal(LeaseToken(self.serial, ino, READ, "s1", 1, "h:1", version, epoch, 1, ACCESS_S, 0.0))


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


async def test_the_end_of_each_token_is_told_once(holder: Holder) -> None:
    holder.uses = {ino: Use(is_open=True, is_dirty=False) for ino in (7, 8, 9)}
    holder.leases.granted(holder.session.token(7), trio.current_time())
    await trio.sleep(2 * ACCESS_S)
    assert holder.leases.ended() == [], "it is renewed"
    holder.session.answers = False
    await trio.sleep(2 * ACCESS_S)
    assert holder.leases.ended() == [7]
    assert holder.leases.ended() == []
    asked_s = trio.current_time() - ACCESS_S + RENEW_S / 2
    holder.leases.granted(holder.session.token(8), asked_s)
    await trio.sleep(RENEW_S / 2 - 0.01)
    assert holder.leases.ended() == []
    await trio.sleep(0.02)
    assert holder.leases.ended() == [8], "before its timer"
    holder.session.answers = True
    await holder.leases.replace(await holder.leases.hold(9))
    assert holder.leases.ended() == [9], "an agent took it for none"
    holder.leases.granted(holder.session.token(8), asked_s - ACCESS_S)
    await holder.leases.hold(8)
    assert holder.leases.ended() == [], "it was asked for again"


async def test_what_others_have_finished_is_told_to_who_reads(holder: Holder) -> None:
    reads, writes = Use(is_open=True, is_dirty=False), Use(is_open=True, is_dirty=True)
    holder.uses = {1: reads, 2: reads, 3: writes}
    for version in (1, 2):
        for ino in (1, 3, 4):
            holder.leases.granted(holder.session.token(ino, version=version), trio.current_time())
        holder.leases.granted(holder.session.token(2), trio.current_time())
    assert holder.leases.outdated() == [1]
    assert holder.leases.outdated() == []


async def test_an_inode_that_is_gone_is_stale(holder: Holder) -> None:
    holder.session.unknown.add(7)
    with pytest.raises(Refused, match="inode 7"):
        await holder.leases.hold(7)


async def test_a_pass_is_kept_for_its_volume_until_it_ends_or_is_refused(holder: Holder) -> None:
    first = await holder.leases.hold_pass(7, 2)
    assert await holder.leases.hold_pass(7, 2) is first
    assert await holder.leases.hold_pass(7, 3) is not first
    assert holder.session.volumes == [2, 3]
    assert holder.session.asked == [[7]], "the lease is needed all the same"
    holder.leases.forget_pass(7, 2, first)
    second = await holder.leases.hold_pass(7, 2)
    assert second.sealed != first.sealed
    holder.leases.forget_pass(7, 2, first)
    assert await holder.leases.hold_pass(7, 2) is second, "another one was refused"
    await trio.sleep(ACCESS_S + 0.01)
    assert await holder.leases.hold_pass(7, 2) is not second
    assert holder.session.volumes == [2, 3, 2, 2]


async def test_a_pass_without_a_lease_is_good_for_nothing(holder: Holder) -> None:
    held = await holder.leases.hold_pass(7, 2)
    holder.session.answers = False
    holder.leases.granted(holder.session.token(7), trio.current_time() - ACCESS_S + 1)
    await trio.sleep(0.9)
    assert await holder.leases.hold_pass(7, 2) is held
    await trio.sleep(0.2)
    assert held.deadline_s - trio.current_time() > ACCESS_S / 2
    with pytest.raises(Unavailable):
        await holder.leases.hold_pass(7, 2)


async def test_no_pass_is_given_for_an_inode_that_is_gone(holder: Holder) -> None:
    holder.session.unknown.add(7)
    with pytest.raises(Refused, match="inode 7"):
        await holder.leases.hold_pass(7, 2)


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
    assert [KEYS.open(sealed).ino for sealed in holder.leases.presented()] == [7]
