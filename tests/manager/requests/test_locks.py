"""Locks over the wire: requests of mounts, and tables that one manager hands on to the next."""

from typing import Any

import pytest
import trio

from cluster.clock import monotonic_s
from cluster.errors import GodwitError, ProtocolError, Refused
from cluster.messages import (
    LOCK_END,
    PROTOCOL,
    AskConflict,
    AwaitLocks,
    HeldLocks,
    Hello,
    ListLocks,
    LockConflict,
    LockOutcome,
    LockRow,
    LockSpan,
    SetLock,
    Unlock,
    Welcome,
)
from manager.memory.locks import believed_s
from manager.rules.locks import File
from manager.workers.housekeeping import end_sessions
from tests.manager.office import Office, Peer, config, in_office, small_network, until

INO = 7
OTHER_INO = 8
WHOLE = LockSpan(0, LOCK_END, True)


def asked(owner: int = 1, *, ticket: int = 1, wait: bool = False, ino: int = INO) -> SetLock:
    return SetLock(ino, False, owner, 42, WHOLE, ticket, wait)


async def answer(peer: Peer, request: SetLock) -> int:
    return (await peer.ask(request)).outcome


async def presented(peer: Peer, *locks: HeldLocks) -> Welcome:
    return await peer.ask(Hello(PROTOCOL, "test", peer.server, peer.role, peer.number, [], [], [], list(locks)))


async def test_two_mounts_exclude_each_other_until_one_is_replaced(url: str) -> None:
    async with small_network(url) as (office, mount):
        other = await office.peer("s2")
        assert await answer(mount, asked()) == LockOutcome.GRANTED
        assert await answer(other, asked(ticket=5, wait=True)) == LockOutcome.WAITING
        found = await other.ask(AskConflict(INO, 1, WHOLE))
        assert found == LockConflict(WHOLE, "s1", 42)
        assert (await mount.ask(AskConflict(INO, 1, WHOLE))).span is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.peer, "s1")
            with trio.fail_after(5):
                woken = await other.ask(AwaitLocks(0, 30.0))
        assert woken.tickets == [5]
        assert (await other.ask(AwaitLocks(woken.serial, 0.0))).tickets == []
        assert await answer(other, asked(ticket=5, wait=True)) == LockOutcome.GRANTED


async def test_locks_are_listed_with_paths_and_waiters(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        other = await office.peer("s2")
        await answer(mount, asked(ino=made.ino))
        await answer(other, asked(ino=made.ino, wait=True))
        rows = (await other.ask(ListLocks())).locks
        assert [(row.path, row.holder, row.pid, row.waiting) for row in rows] == [
            (b"/file", "s1", 42, False),
            (b"/file", "s2", 42, True),
        ]
        assert all(isinstance(row, LockRow) and row.since_s >= 0 for row in rows)
        assert [row.holder for row in (await other.ask(ListLocks("s2"))).locks] == ["s2"]
        assert (await other.ask(ListLocks(ino=99))).total == 0
        limited = await other.ask(ListLocks(limit=1))
        assert (len(limited.locks), limited.total) == (1, 2)


async def test_the_next_manager_waits_for_the_mounts_that_were_there(url: str) -> None:
    async with in_office(url) as office:
        first, second = await office.peer("s1"), await office.peer("s2")
        assert await answer(first, asked()) == LockOutcome.GRANTED
    async with in_office(url) as office:
        again = Peer(office, "s2", "mount", second.number)
        await again.hello()
        assert await answer(again, asked(ticket=5)) == LockOutcome.WAITING
        holder = Peer(office, "s1", "mount", first.number)
        welcome = await presented(holder, HeldLocks(INO, False, 1, 42, [WHOLE]))
        assert welcome.unlocked == []
        assert welcome.locks_s == believed_s(config(url).manager)
        assert (await again.ask(AwaitLocks(0, 0.0))).tickets == [5]
        assert await answer(again, asked(ticket=5)) == LockOutcome.HELD
        late = await presented(Peer(office, "s3", "mount", 77), HeldLocks(INO, False, 1, 42, [WHOLE]))
        assert late.unlocked == [INO]


async def test_a_manager_that_has_waited_for_long_enough_grants(url: str) -> None:
    async with in_office(url) as office:
        await office.peer("s1")
        await office.peer("s2")
    async with in_office(url, access_s=0.2, session_timeout_s=0.2) as office:
        other = await office.peer("s2")
        assert await answer(other, asked(ticket=5)) == LockOutcome.WAITING
        asking = AskConflict(INO, 1, WHOLE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expire_when_due, office)
            assert (await other.ask(asking)).span is None
        assert await answer(other, asked(ticket=5)) == LockOutcome.GRANTED


async def test_locks_of_an_earlier_term_end_before_its_leases_do(url: str) -> None:
    async with in_office(url) as office:
        first = await office.peer("s1")
        await office.peer("s2")
    async with in_office(url) as office:
        assert office.term is not None
        other = await office.peer("s2")
        assert await answer(other, asked(ticket=5)) == LockOutcome.WAITING
        office.term.locks_until = monotonic_s()
        office.term.expire_leases(monotonic_s())
        assert await answer(other, asked(ticket=5)) == LockOutcome.GRANTED
        assert office.state.absent == {"s1"}, "it may still believe what it was told of names and attributes"
        late = Peer(office, "s1", "mount", first.number)
        elsewhere = HeldLocks(OTHER_INO, False, 1, 42, [WHOLE])
        assert (await presented(late, elsewhere)).unlocked == [OTHER_INO]


async def expire_when_due(office: Office) -> None:
    assert office.term is not None
    term = office.term
    for session in office.state.sessions.all():
        session.heard_s = monotonic_s() + 1e6

    async def over() -> bool:
        term.expire_leases(monotonic_s())
        return not office.state.may_lock

    await until(over)


async def test_only_mounts_lock_and_only_what_can_be_locked(url: str) -> None:
    async with small_network(url) as (office, mount):
        agent = await office.peer("s9", "agent")
        bad: list[tuple[Peer, Any]] = [
            (agent, asked()),
            (agent, AwaitLocks(0, 0.0)),
            (mount, SetLock(INO, False, 1, 42, LockSpan(5, 4, True), 1, False)),
            (mount, SetLock(INO, False, 2**64, 42, WHOLE, 1, False)),
            (mount, Unlock(INO, False, 1, 0, LOCK_END + 1)),
            (mount, Unlock(INO, False, 1, 0, 9, [LockSpan(0, 5, True), LockSpan(5, 9, True)])),
        ]
        for peer, request in bad:
            with pytest.raises((ProtocolError, Refused)):
                await peer.ask(request)
        with pytest.raises(GodwitError):
            await presented(mount, HeldLocks(INO, False, 1, 42, [WHOLE, WHOLE]))


async def test_a_session_with_locks_is_not_forgotten_before_they_have_ended(url: str) -> None:
    """Else the next manager would not wait for it."""

    async with small_network(url) as (office, mount):
        await answer(mount, asked())
        assert office.state.locks.holds(mount.number)
        assert [row.file for row in office.state.locks.listed(INO)] == [File(INO, False)]
        session = office.state.sessions.get(mount.number)
        assert session is not None
        session.heard_s = monotonic_s() - 1000.0
        assert office.term is not None
        await end_sessions(office.term, monotonic_s())
        assert office.state.sessions.is_live(session)
        office.state.locks.expire()
        await end_sessions(office.term, monotonic_s())
        assert not office.state.sessions.is_live(session)
