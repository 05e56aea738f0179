"""Works this server's queue: claims tasks, keeps the claims alive, carries the tasks out side by side.

A task is held from its claim until its report is delivered. Small copies have many slots, since what they wait for is
latency; large ones have few, so that a disk is not torn between them.
"""

import logging

import trio

from agent.copying.attempts import Attempts
from agent.copying.pulls import SMALL_BYTES
from agent.copying.reports import Reporter
from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome, run_worker
from cluster.errors import GodwitError
from cluster.messages import COPY, ClaimTasks, ExtendClaims, Task
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

CLAIM_LIMIT = 64
CLAIM_WAIT_S = 20.0
HELD_MAX = 256
SMALL_PER_SLOT = 16
MANAGER_TIMEOUT_S = 10.0


def is_small(task: Task) -> bool:
    """Whether a task takes a slot of the small ones."""
    sizes = (source.stamp.size for source in task.sources if source.stamp is not None)
    return task.operation != COPY or max(task.size, *sizes, 0) <= SMALL_BYTES


class TaskQueue:
    """`run` works until `stop` and then finishes what is held."""

    def __init__(
        self,
        *,
        session: ManagerSession,
        attempts: Attempts,
        reporter: Reporter,
        locks: KeyedLocks[int],
        copies_at_once: int,
        extend_s: float,
    ) -> None:
        self._session = session
        self._attempts = attempts
        self._reporter = reporter
        self._locks = locks
        self._extend_s = extend_s
        self._large_slots = trio.Semaphore(copies_at_once)
        self._small_slots = trio.Semaphore(copies_at_once * SMALL_PER_SLOT)
        self._held: dict[tuple[int, int], Task] = {}
        self._room = trio.Event()
        self._claiming = trio.CancelScope()
        self.finished = trio.Event()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as extending:
                extending.start_soon(self._extend_forever)
                async with trio.open_nursery() as nursery:
                    with self._claiming:
                        await run_worker(_Claimer(self, nursery), interval_s=0.2)
                extending.cancel_scope.cancel()
        finally:
            self.finished.set()

    def stop(self) -> None:
        """Claims nothing any more; `finished` is set when all that is held has been reported."""
        self._claiming.cancel()

    async def claim(self, nursery: trio.Nursery) -> Outcome:
        """Waits for tasks and starts them in *nursery*."""
        while len(self._held) > HELD_MAX - CLAIM_LIMIT:
            self._room = trio.Event()
            await self._room.wait()
        reply = await self._session.call(ClaimTasks(CLAIM_LIMIT, CLAIM_WAIT_S), timeout_s=CLAIM_WAIT_S + MANAGER_TIMEOUT_S)
        for task in reply.tasks:
            self._held[task.task, task.claim] = task
            nursery.start_soon(self._work, task)
        return Outcome.PROGRESS

    async def _work(self, task: Task) -> None:
        async with self._small_slots if is_small(task) else self._large_slots, self._locks.hold(task.ino):
            report = await self._attempts.attempt(task)
        if report.outcome in ("retry", "failed"):
            log.warning(
                "%s of inode %d to volume %d: %s: %s", task.operation, task.ino, task.volume, report.outcome, report.error
            )
        await self._reporter.deliver(report, at_most=len(self._held))
        del self._held[task.task, task.claim]
        self._room.set()

    async def _extend_forever(self) -> None:
        while True:
            await trio.sleep(self._extend_s)
            if not self._held:
                continue
            try:
                await self._session.call(ExtendClaims([task for task, _ in self._held]), timeout_s=MANAGER_TIMEOUT_S)
            except GodwitError as error:
                log.warning("cannot extend %d claims: %s", len(self._held), error)


class _Claimer:
    name = "queue"

    def __init__(self, queue: TaskQueue, nursery: trio.Nursery) -> None:
        self._queue = queue
        self._nursery = nursery

    async def run_once(self) -> Outcome:
        return await self._queue.claim(self._nursery)
