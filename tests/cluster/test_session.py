"""A session among candidates: silent ones, idle ones, one that names another, one that dies or has replaced it."""

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from cluster.decoding import from_msgpack
from cluster.errors import Fenced, NotManager, ProtocolError, Refused, Unavailable
from cluster.messages import MANAGER_UNION, Applied, Apply, Beat, Done, Heartbeat, Hello, Ping, Pong, Sync, Unlink, Welcome
from cluster.rpc.serving import Handler, SendReply, listen
from cluster.rpc.session import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, ManagerSession
from cluster.rpc.waiters import Waiter, work_for
from tests.support.trust import credentials


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class FakeCandidate:
    """Answers as its public state says; `is_deaf`: not at all; `forgets`: no changes."""

    def __init__(self, server: str) -> None:
        self.address = free_address()
        self.server = server
        self.term = 0
        self.names = ""
        self.is_deaf = False
        self.beginning = False
        self.fences = False
        self.hellos = 0
        self.forgets = False
        self.applies: list[int] = []
        self.syncs = 0
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            await listen(
                self.address,
                from_msgpack(MANAGER_UNION),
                lambda _peer: _Answers(self),
                credentials("s1", "manager"),
                task_status=task_status,
            )

    def die(self) -> None:
        self._scope.cancel()


class _Answers(Handler):
    def __init__(self, candidate: FakeCandidate) -> None:
        self._candidate = candidate

    def closed(self) -> None:
        return

    def at_once(self, request: Any) -> None:
        del request

    async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
        del body, send
        me = self._candidate
        if me.is_deaf:
            await trio.sleep_forever()
        if isinstance(request, Ping):
            if request.cluster != "test":
                raise ProtocolError("another cluster")
            return Pong(me.server, me.term, me.term > 0, me.names)
        if isinstance(request, Hello):
            me.hellos += 1
            if me.fences:
                raise Fenced("a newer one has taken over")
        if not me.term or me.beginning:
            raise NotManager(f"{me.server} is not the manager")
        if isinstance(request, Hello):
            return Welcome(me.term, me.server, 30.0, [])
        if isinstance(request, Heartbeat):
            return Beat(me.term, 0.0)
        me.syncs += isinstance(request, Sync)
        if isinstance(request, Apply):
            me.applies.append(request.request_id)
            if me.forgets:
                await trio.sleep_forever()
            return Applied([None])
        return Done()


@asynccontextmanager
async def candidates(count: int) -> AsyncIterator[tuple[list[FakeCandidate], trio.Nursery]]:
    fakes = [FakeCandidate(f"s{number}") for number in range(1, count + 1)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for fake in fakes:
                await nursery.start(fake.run)
            yield fakes, nursery
            nursery.cancel_scope.cancel()


def session_with(*fakes: FakeCandidate) -> ManagerSession:
    return ManagerSession(managers=[fake.address for fake in fakes], credentials=credentials("s9", "admin"))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


async def test_silent_candidates_delay_nobody() -> None:
    async with candidates(3) as ((deaf, idle, holder), nursery):
        deaf.is_deaf, holder.term = True, 4
        session = session_with(deaf, idle, holder)
        nursery.start_soon(session.run)
        before = trio.current_time()
        await session.call(Sync(), timeout_s=10)
        assert trio.current_time() - before < 0.9
        assert session.term == 4
        assert (idle.hellos, holder.hellos) == (0, 1)


async def test_a_candidate_that_names_the_manager_is_enough() -> None:
    async with candidates(3) as ((known, named, later), nursery):
        named.term, known.names = 4, named.address
        session = session_with(known)
        nursery.start_soon(session.run)
        await session.call(Sync(), timeout_s=10)
        # It is remembered: it can name the next one, though the first has died.
        known.die()
        named.term, named.names, later.term = 0, later.address, 5
        await session.call(Sync(), timeout_s=10)
        assert (session.term, later.syncs) == (5, 1)


async def test_a_manager_that_is_just_beginning_is_asked_again() -> None:
    async with candidates(1) as ((holder,), nursery):
        holder.term, holder.beginning = 4, True
        session = session_with(holder)
        nursery.start_soon(session.run)
        await until(lambda: holder.hellos > 2)
        holder.beginning = False
        await session.call(Sync(), timeout_s=10)


async def test_a_manager_that_falls_silent_is_left_while_a_request_waits() -> None:
    async with candidates(2) as ((first, second), nursery):
        first.term = 4
        session = session_with(first, second)
        nursery.start_soon(session.run)
        await session.call(Sync(), timeout_s=10)
        first.is_deaf, second.term = True, 5
        before = trio.current_time()
        await session.call(Sync(), timeout_s=20)
        assert trio.current_time() - before < HEARTBEAT_S + HEARTBEAT_TIMEOUT_S + 0.5
        assert second.syncs == 1


async def test_nobody_in_office_is_unavailable_with_the_reason() -> None:
    async with candidates(1) as ((idle,), nursery):
        session = session_with(idle)
        nursery.start_soon(session.run)
        with pytest.raises(Unavailable, match="s1 is not the manager"):
            await session.call(Heartbeat(), timeout_s=0.4)


async def test_a_session_that_was_replaced_ends() -> None:
    async with candidates(1) as ((holder,), _nursery):
        holder.term, holder.fences = 4, True
        session = session_with(holder)
        with pytest.raises(Fenced):
            await session.run()
        with pytest.raises(Fenced):
            await session.call(Heartbeat(), timeout_s=1)


UNLINK = Unlink(1, b"name", 0)


async def test_what_was_not_sent_ends_with_who_wanted_it() -> None:
    async with candidates(1) as ((idle,), nursery):
        session = session_with(idle)
        nursery.start_soon(session.run)
        waiter = Waiter()
        work_for(waiter)
        for begin in (lambda: session.apply([UNLINK], timeout_s=20), lambda: session.call(Sync(), timeout_s=20)):
            before = trio.current_time()
            nursery.start_soon(end_soon, waiter)
            with pytest.raises(Refused) as caught:
                await begin()
            assert caught.value.errno == errno.EINTR
            assert trio.current_time() - before < 5
        idle.term = 4
        await until(lambda: idle.hellos > 0)
        assert (idle.applies, idle.syncs) == ([], 0)


async def end_soon(waiter: Waiter) -> None:
    waiter.ended = False
    await trio.sleep(0.1)
    waiter.end()


async def test_a_change_that_was_sent_is_carried_through_whoever_wanted_it() -> None:
    async with candidates(2) as ((first, second), nursery):
        first.term, first.forgets = 4, True
        session = session_with(first, second)
        nursery.start_soon(session.run)
        waiter = Waiter()

        async def change() -> None:
            work_for(waiter)
            await session.apply([UNLINK], timeout_s=20)
            with pytest.raises(Refused):
                await session.call(Sync(), timeout_s=20)
            nursery.cancel_scope.cancel()

        nursery.start_soon(change)
        await until(lambda: bool(first.applies))
        waiter.end()
        await trio.sleep(0.1)
        first.die()
        second.term = 5
        await trio.sleep_forever()
    assert first.applies == second.applies == [1]
    assert second.syncs == 0


async def test_records_are_stopped_before_it_is_said_what_is_cached() -> None:
    asked: list[str] = []

    def unsent() -> bool:
        asked.append("unsent")
        return False

    def caching() -> list[int]:
        asked.append("caching")
        return []

    candidate = FakeCandidate("a")
    candidate.term = 1
    async with trio.open_nursery() as nursery:
        await nursery.start(candidate.run)
        session = ManagerSession(
            managers=[candidate.address], credentials=credentials("s9", "mount"), unsent=unsent, caching=caching
        )
        nursery.start_soon(session.run)
        await session.call(Sync(), timeout_s=5.0)
        nursery.cancel_scope.cancel()
    assert asked == ["unsent", "caching"], "what is recorded and cached in between would not be presented"
