"""When agents are handed tasks, and when they wait because mounts ask much."""

import pytest
import trio
import trio.testing

from cluster.clock import file_time_ns, monotonic_s
from cluster.messages import ROOT_INO, AwaitCopies, GetWhere, Heartbeat, SetAttr, StartMigration, Task
from manager.memory.throttle import RUSH_REQUESTS, RUSH_S, Throttle
from tests.manager.office import NOW, Office, Peer, small_network

NEVER_S = 1000.0
NOW_S = 5000.0


def rush(throttle: Throttle, now: float, since_s: float = -NEVER_S) -> None:
    """Mounts have asked much since so many seconds; by default they still do when the test is over."""
    for _ in range(RUSH_REQUESTS):
        throttle.asked(now - since_s)


def test_tasks_are_due_unless_there_is_a_rush() -> None:
    now_ns, throttle = file_time_ns(), Throttle(NEVER_S)
    assert throttle.is_due(now_ns, NOW_S)
    for _ in range(RUSH_REQUESTS - 1):
        throttle.asked(NOW_S + NEVER_S)
    assert throttle.is_due(now_ns, NOW_S)
    throttle.asked(NOW_S + NEVER_S)
    assert not throttle.is_due(now_ns, NOW_S)
    rush(throttle, NOW_S, 2 * RUSH_S)
    assert throttle.is_due(now_ns, NOW_S)


def test_what_is_asked_for_together_counts_as_much() -> None:
    now_ns, throttle = file_time_ns(), Throttle(NEVER_S)
    throttle.asked(NOW_S, RUSH_REQUESTS - 1)
    assert throttle.is_due(now_ns, NOW_S)
    throttle.asked(NOW_S, 1000)
    assert not throttle.is_due(now_ns, NOW_S)
    assert throttle.is_due(now_ns, NOW_S + 2 * RUSH_S)


def test_nobody_gives_way_for_long() -> None:
    throttle = Throttle(NEVER_S)
    rush(throttle, NOW_S)
    now_ns = file_time_ns()
    assert throttle.is_due(now_ns - int(NEVER_S * 1e9), NOW_S)
    assert throttle.is_due(now_ns + int(NEVER_S * 1e9), NOW_S), "of a manager whose clock is ahead"
    never = Throttle(0.0)
    rush(never, NOW_S)
    assert never.is_due(now_ns, NOW_S)


def test_nobody_gives_way_while_somebody_waits_or_files_move() -> None:
    now_ns, throttle = file_time_ns(), Throttle(NEVER_S)
    rush(throttle, NOW_S)
    with throttle.hurrying():
        with throttle.hurrying():
            assert throttle.is_due(now_ns, NOW_S)
        assert throttle.is_due(now_ns, NOW_S)
    assert not throttle.is_due(now_ns, NOW_S)
    throttle.migrating = True
    assert throttle.is_due(now_ns, NOW_S)


@pytest.mark.usefixtures("autojump_clock")
async def test_who_comes_to_wait_for_copies_wakes_who_gives_way() -> None:
    throttle = Throttle(NEVER_S)

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(throttle.give_way)
        await trio.testing.wait_all_tasks_blocked()
        with throttle.hurrying():
            await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == began_s
    await throttle.give_way()
    assert trio.current_time() > began_s


async def in_a_rush(office: Office, mount: Peer) -> tuple[int, Peer, Throttle]:
    """A committed file, the agent that is to copy it, and what makes that wait."""
    node = await mount.make(b"f")
    await mount.commit(node.ino, 1)
    (pending,) = (await mount.ask(GetWhere(node.ino))).pending
    assert office.term is not None
    rush(office.term.throttle, monotonic_s())
    return node.ino, await office.peer(pending.server, "agent"), office.term.throttle


async def test_an_agent_is_handed_nothing_in_a_rush(url: str) -> None:
    async with small_network(url, give_way_s=NEVER_S) as (office, mount):
        _, agent, throttle = await in_a_rush(office, mount)
        assert await agent.claim(wait_s=0.3) == []
        rush(throttle, monotonic_s(), 2 * RUSH_S)
        assert len(await agent.claim(wait_s=10.0)) == 1


async def test_requests_of_mounts_make_a_rush_and_those_of_agents_do_not(url: str) -> None:
    async with small_network(url, give_way_s=NEVER_S) as (office, mount):
        assert office.term is not None
        agent = await office.peer("s2", "agent")
        await mount.new_ino()
        before = office.term.state.leases.counts.requests.value
        asked = office.term.throttle._asked
        asked.clear()
        await agent.attr(ROOT_INO)
        await mount.ask(Heartbeat())
        assert not asked, "that comes from every mount, whether it is used or not"
        await mount.attr(ROOT_INO)
        assert len(asked) == 1
        made = await mount.mkdir(b"d")
        assert len(asked) == 2
        await mount.apply(*[SetAttr(made.ino, NOW, mode=mode) for mode in (0o700, 0o755, 0o777)])
        assert len(asked) == 5, "three changes in one request"
        assert office.term.state.leases.counts.requests.value == before + 4


async def test_the_copies_that_somebody_waits_for_are_made_in_a_rush(url: str) -> None:
    async with small_network(url, give_way_s=NEVER_S) as (office, mount):
        ino, agent, _ = await in_a_rush(office, mount)
        claimed: list[Task] = []

        async def work() -> None:
            claimed.extend(await agent.claim(wait_s=30.0))
            await agent.done(claimed[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.sleep(0.05)
            assert claimed == []
            with trio.fail_after(10.0):
                await mount.ask(AwaitCopies(ino, 1, 2, 10.0))


async def test_a_migration_goes_on_in_a_rush(url: str) -> None:
    async with small_network(url, give_way_s=NEVER_S) as (office, mount):
        ino, agent, throttle = await in_a_rush(office, mount)
        target = next(server for server in ("s2", "s3") if server != agent.server)
        await mount.ask(StartMigration([ino], [b"/f"], "s1", target, 1))

        async def is_noticed() -> bool:
            return throttle.migrating

        await office.background(is_noticed)
        assert len(await agent.claim(wait_s=10.0)) == 1
