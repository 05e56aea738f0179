"""The small machinery: workers' loop, locks by key, batches, open descriptors, reports."""

import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from agent.batches import Batcher, at_most, in_thread
from agent.copying.reports import Reporter
from agent.keyed_locks import KeyedLocks
from agent.loop import BACKOFF_MAX_S, Outcome, backoff_s, run_worker
from agent.objects.open_objects import ObjectKey, OpenObjects
from cluster.errors import Unavailable
from cluster.messages import ReportTasks, TaskReport
from cluster.rpc.session import ManagerSession


class Scripted:
    """A worker that does what a script says and notes when."""

    name = "scripted"

    def __init__(self, script: Sequence[Outcome | Exception]) -> None:
        self._script = iter(script)
        self.times: list[float] = []

    async def run_once(self) -> Outcome:
        self.times.append(trio.current_time())
        step = next(self._script, Outcome.FINISHED)
        if isinstance(step, Exception):
            raise step
        return step


@pytest.mark.usefixtures("autojump_clock")
async def test_a_worker_waits_backs_off_and_finishes() -> None:
    failure = Unavailable("not now")
    worker = Scripted([Outcome.PROGRESS, Outcome.IDLE, failure, failure, ValueError("bug"), Outcome.IDLE])

    await run_worker(worker, interval_s=1.0)
    waits = [after - before for before, after in pairwise(worker.times)]
    for wait, expected in zip(waits, [0, 1, 1, 2, 4, 1], strict=True):
        assert 0.8 * expected <= wait <= 1.2 * expected


@given(st.integers(min_value=1, max_value=10**6), st.floats(min_value=0.001, max_value=100))
def test_back_off_grows_and_is_bounded(failures: int, interval_s: float) -> None:
    assert 0 < backoff_s(failures, interval_s) <= backoff_s(failures + 1, interval_s) <= BACKOFF_MAX_S


@pytest.mark.usefixtures("autojump_clock")
async def test_holders_of_a_key_follow_one_another_and_leave_no_trace() -> None:
    locks: KeyedLocks[int] = KeyedLocks()
    active: dict[int, int] = {1: 0, 2: 0}

    async def hold(key: int) -> None:
        with trio.move_on_after(0.5):
            async with locks.hold(key):
                active[key] += 1
                assert active[key] == 1
                await trio.sleep(0.2)
                active[key] -= 1
                return
        active[key] = 0

    async with trio.open_nursery() as nursery:
        for key in (1, 2, 1, 1, 1, 2):
            nursery.start_soon(hold, key)
    assert len(locks) == 0


@pytest.mark.usefixtures("autojump_clock")
async def test_keys_that_nobody_holds_are_held_together_and_others_follow() -> None:
    locks: KeyedLocks[int] = KeyedLocks()
    order: list[str] = []

    async def hold(key: int, name: str) -> None:
        async with locks.hold(key):
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, 1, "before")
        await trio.testing.wait_all_tasks_blocked()
        with locks.hold_free([1, 2, 3]) as held:
            assert held == [2, 3]
            nursery.start_soon(hold, 2, "after")
            await trio.testing.wait_all_tasks_blocked()
            with locks.hold_free([2, 3, 4]) as others:
                assert others == [4]
            await trio.sleep(5)
            order.append("together")
            assert len(locks) == 2
    assert order == ["before", "together", "after"]
    assert len(locks) == 0


async def test_a_batch_gathers_while_another_is_under_way() -> None:
    sizes: list[int] = []

    async def act(items: Sequence[int]) -> list[int | Exception]:
        sizes.append(len(items))
        await trio.lowlevel.checkpoint()
        return [ValueError(str(item)) if item == 13 else item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(act, count=at_most(10))
    results: dict[int, int] = {}

    async def submit(item: int) -> None:
        try:
            results[item] = await batcher.submit(item)
        except ValueError:
            results[item] = -1

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as submitters:
            for item in range(40):
                submitters.start_soon(submit, item)
            nursery.start_soon(batcher.run)
        nursery.cancel_scope.cancel()
    assert results == {item: -1 if item == 13 else item * 2 for item in range(40)}
    assert len(sizes) < 10
    assert max(sizes) == 10


async def test_an_act_that_breaks_fails_its_whole_batch_and_no_other() -> None:
    def act(items: Sequence[int]) -> list[int | Exception]:
        if 0 in items:
            raise OSError("disk")
        return list(items)

    batcher: Batcher[int, int] = Batcher(in_thread(act, trio.CapacityLimiter(1)), count=at_most(10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        with pytest.raises(OSError, match="disk"):
            await batcher.submit(0)
        assert await batcher.submit(1) == 1
        nursery.cancel_scope.cancel()


def is_open(descriptor: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.fixture
def descriptors(tmp_path: Path) -> list[int]:
    return [os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR) for number in range(5)]


def test_the_least_used_descriptor_goes_first_and_never_one_in_use(descriptors: list[int]) -> None:
    objects = OpenObjects(2)
    keys = [ObjectKey(1, ino) for ino in range(5)]
    with objects.use(keys[0], descriptors[0]), objects.use(keys[1], descriptors[1]):
        with objects.use(keys[2], descriptors[2]) as third:
            assert third == descriptors[2]
            assert len(objects) == 3
            with objects.use(keys[0]) as again:
                assert again == descriptors[0]
        assert not is_open(descriptors[2])
    with objects.use(keys[3], descriptors[3]):
        assert keys[1] not in objects
        objects.forget(keys[3])
        assert keys[3] not in objects
        assert is_open(descriptors[3])
    assert not is_open(descriptors[3])
    with objects.use(keys[0], descriptors[4]) as kept:
        assert kept == descriptors[0]
    objects.close()
    assert not any(is_open(descriptor) for descriptor in descriptors)


@pytest.mark.usefixtures("autojump_clock")
async def test_reports_go_together_unless_nobody_else_is_coming() -> None:
    sent: list[list[int]] = []

    class Manager:
        async def call(self, request: ReportTasks, *, timeout_s: float) -> None:
            del timeout_s
            sent.append([report.task for report in request.reports])

    reporter = Reporter(cast(ManagerSession, Manager()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        began_s = trio.current_time()
        await reporter.deliver([TaskReport(1, 1, "done")], at_most=1)
        assert trio.current_time() == began_s
        async with trio.open_nursery() as tasks:
            for task in (2, 3):
                tasks.start_soon(partial(reporter.deliver, [TaskReport(task, 1, "done")], at_most=2))
        assert trio.current_time() == began_s
        await reporter.deliver([TaskReport(4, 1, "done"), TaskReport(5, 1, "done")], at_most=3)
        assert trio.current_time() > began_s
        nursery.cancel_scope.cancel()
    assert [sorted(tasks) for tasks in sent] == [[1], [2, 3], [4, 5]]
