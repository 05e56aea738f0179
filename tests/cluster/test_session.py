"""A session among candidates: silent ones, idle ones, one that names another, one that dies or has replaced it."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from cluster.errors import Fenced, NotManager, ProtocolError, Unavailable
from cluster.messages import Beat, Done, Heartbeat, Hello, ManagerRequest, Ping, Pong, Sync, Welcome
from cluster.rpc.connection import SendReply, listen
from cluster.rpc.session import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, ManagerSession


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class FakeCandidate:
    """Answers as its public state says; `is_deaf`: not at all."""

    def __init__(self, server: str) -> None:
        self.address = free_address()
        self.server = server
        self.term = 0
        self.names = ""
        self.is_deaf = False
        self.beginning = False
        self.fences = False
        self.hellos = 0
        self.syncs = 0
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            await listen(
                self.address, msgspec.msgpack.Decoder(ManagerRequest), lambda _peer: _Answers(self), task_status=task_status
            )

    def die(self) -> None:
        self._scope.cancel()


class _Answers:
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
    return ManagerSession(managers=[fake.address for fake in fakes], cluster="test", server="s9", role="cli")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


def test_silent_candidates_delay_nobody() -> None:
    async def main() -> None:
        async with candidates(3) as ((deaf, idle, holder), nursery):
            deaf.is_deaf, holder.term = True, 4
            session = session_with(deaf, idle, holder)
            nursery.start_soon(session.run)
            before = trio.current_time()
            await session.call(Sync(), timeout_s=10)
            assert trio.current_time() - before < 0.9
            assert session.term == 4
            assert (idle.hellos, holder.hellos) == (0, 1)

    trio.run(main)


def test_a_candidate_that_names_the_manager_is_enough() -> None:
    async def main() -> None:
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

    trio.run(main)


def test_a_manager_that_is_just_beginning_is_asked_again() -> None:
    async def main() -> None:
        async with candidates(1) as ((holder,), nursery):
            holder.term, holder.beginning = 4, True
            session = session_with(holder)
            nursery.start_soon(session.run)
            await until(lambda: holder.hellos > 2)
            holder.beginning = False
            await session.call(Sync(), timeout_s=10)

    trio.run(main)


def test_a_manager_that_falls_silent_is_left_while_a_request_waits() -> None:
    async def main() -> None:
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

    trio.run(main)


def test_nobody_in_office_is_unavailable_with_the_reason() -> None:
    async def main() -> None:
        async with candidates(1) as ((idle,), nursery):
            session = session_with(idle)
            nursery.start_soon(session.run)
            with pytest.raises(Unavailable, match="s1 is not the manager"):
                await session.call(Heartbeat(), timeout_s=0.4)

    trio.run(main)


def test_a_session_that_was_replaced_ends() -> None:
    async def main() -> None:
        async with candidates(1) as ((holder,), _nursery):
            holder.term, holder.fences = 4, True
            session = session_with(holder)
            with pytest.raises(Fenced):
                await session.run()
            with pytest.raises(Fenced):
                await session.call(Heartbeat(), timeout_s=1)

    trio.run(main)
