"""Works this server's queue: claims tasks, keeps the claims alive, carries the tasks out side by side.

A task is held from its claim until its report is delivered. Small copies have many slots, since what they wait for is
latency; large ones have few, so that a disk is not torn between them.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

import trio

from agent.copying.attempts import Attempts
from agent.copying.bunches import Bunch, Bunches, first_source
from agent.copying.pulls import SMALL_BYTES
from agent.copying.reports import Reporter
from agent.keyed_locks import KeyedLocks
from agent.loop import Outcome, run_worker
from cluster.clock import thread_s
from cluster.counters import SLOW_S, counter, counters, gauge, histogram
from cluster.errors import GodwitError
from cluster.faults import faults
from cluster.messages import ClaimTasks, ExtendClaims, Task, TaskOperation, TaskReport
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

TASK_S = histogram("godwit_task_seconds", "How long attempts at tasks took on the agent.", "operation", "outcome", bounds=SLOW_S)
COPIED = counter("godwit_copied_bytes_total", "Bytes of the copies that the agent has made.")
HELD = gauge("godwit_tasks_held", "Tasks that the agent has claimed and not yet reported.")

_copied = counters.cell(COPIED)

CLAIM_LIMIT = 256  # tasks in one answer
CLAIM_WAIT_S = 20.0  # that the manager holds the question while the queue is empty
HELD_MAX = 512  # tasks here at once; their claims all go into one request of extension
BUNCHES_AT_ONCE = 2  # from one volume to another: one is asked for while another is written
SMALL_PER_SLOT = 16  # small copies for each large one of `copies_at_once`
MANAGER_TIMEOUT_S = 10.0  # beyond what the manager may wait on purpose


def is_small(task: Task) -> bool:
    """Whether a task takes a slot of the small ones."""
    sizes = (source.stamp.size for source in task.sources if source.stamp is not None)
    # A deletion is a rename. A copy of unknown size counts as small: 0 is the least.
    return task.operation != TaskOperation.COPY or max(task.size, *sizes, 0) <= SMALL_BYTES


class TaskQueue:
    """`run` works until `stop` and then finishes what is held."""

    def __init__(
        self,
        *,
        session: ManagerSession,
        attempts: Attempts,
        bunches: Bunches,
        reporter: Reporter,
        locks: KeyedLocks[int],
        copies_at_once: int,
        extend_s: float,
    ) -> None:
        self._session = session  # to the manager in office, whose tasks these are
        self._attempts = attempts  # what carries a task out; never raises
        self._bunches = bunches  # what carries out many at a time
        self._reporter = reporter  # what brings its report home
        self._locks = locks  # of inodes, the same for the whole agent
        self._extend_s = extend_s  # between two extensions of all claims that are held
        # Small tasks have slots of their own: they do not wait behind large copies.
        self._large_slots = trio.Semaphore(copies_at_once)
        self._small_slots = trio.Semaphore(copies_at_once * SMALL_PER_SLOT)
        # By target and source: a disk that hangs, at either end, holds up no other.
        self._bunch_slots: dict[tuple[int, int], trio.Semaphore] = defaultdict(lambda: trio.Semaphore(BUNCHES_AT_ONCE))
        self._held: dict[tuple[int, int], Task] = {}  # by task and claim, until its report is delivered
        self._room = trio.Event()  # a held task is over; made anew by who waits for it
        self._claiming = trio.CancelScope()  # `stop` ends claiming alone: what is held goes on
        self.finished = trio.Event()
        counters.follow(HELD, lambda: len(self._held))

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as extending:
                extending.start_soon(self._extend_forever)
                async with trio.open_nursery() as nursery:
                    with self._claiming:
                        # The inner nursery: it is left when all that is held is reported, and until then claims are extended.
                        await run_worker(_Claimer(self, nursery), interval_s=0.2)
                extending.cancel_scope.cancel()
        finally:
            self.finished.set()

    def stop(self) -> None:
        """Claims nothing any more; `finished` is set when all that is held has been reported."""
        self._claiming.cancel()

    async def claim(self, nursery: trio.Nursery) -> Outcome:
        """Waits for tasks and starts them in *nursery*."""
        # Before the question: what the manager gives away is claimed, whether or not there is room.
        while len(self._held) > HELD_MAX - CLAIM_LIMIT:
            self._room = trio.Event()
            await self._room.wait()
        reply = await self._session.call(ClaimTasks(CLAIM_LIMIT, CLAIM_WAIT_S), timeout_s=CLAIM_WAIT_S + MANAGER_TIMEOUT_S)
        for task in reply.tasks:
            # In one step with the answer: a claim that is not held would not be extended.
            self._held[task.task, task.claim] = task
        nursery.start_soon(self._work_on_all, reply.tasks, nursery)
        return Outcome.PROGRESS

    async def _work_on_all(self, tasks: Sequence[Task], nursery: trio.Nursery) -> None:
        """Starts *tasks* in *nursery*, those together that can go together."""
        small = {task.task: task for task in tasks if first_source(task) is not None}
        for task in tasks:
            # At once: to plan the others, the manager may have to be asked.
            if task.task not in small:
                nursery.start_soon(self._work, task)
        try:
            for bunch in await self._bunches.plan(list(small.values())):
                for task, _ in bunch:
                    del small[task.task]
                nursery.start_soon(self._work_together, bunch, nursery)
        except Exception as error:  # each by itself, then
            faults.unexpected(log, f"while {len(tasks)} tasks were looked at", error)
        for task in small.values():
            nursery.start_soon(self._work, task)

    async def _work_together(self, bunch: Bunch, nursery: trio.Nursery) -> None:
        reports: list[TaskReport] = []
        first, request = bunch[0]
        began_s = thread_s()
        try:
            async with self._bunch_slots[first.volume, request.volume]:
                # Another task has an inode, or waits for it: this one waits behind that, by itself.
                with self._locks.hold_free(task.ino for task, _ in bunch) as held:
                    reports = await self._bunches.copy([pair for pair in bunch if pair[0].ino in held])
        except Exception as error:  # each by itself, then
            faults.unexpected(log, f"with {len(bunch)} tasks", error)
        _measure(reports, TaskOperation.COPY, began_s)
        over = {report.task for report in reports}
        for task, _ in bunch:
            if task.task not in over:
                nursery.start_soon(self._work, task)
        await self._reporter.deliver(reports, at_most=len(self._held))
        for report in reports:
            self._held.pop((report.task, report.claim), None)
        self._room.set()

    async def _work(self, task: Task) -> None:
        try:
            await self._work_and_report(task)
        except Exception as error:  # its claim runs out, and it is tried again
            faults.unexpected(log, f"with task {task.task}", error)
        finally:
            # Only now may the claim run out. By both numbers: the same task can be claimed again while an old attempt ends.
            self._held.pop((task.task, task.claim), None)
            self._room.set()

    async def _work_and_report(self, task: Task) -> None:
        # Slot before lock: the other way round a task could hold an inode while it waits for a slot.
        async with self._small_slots if is_small(task) else self._large_slots, self._locks.hold(task.ino):
            began_s = thread_s()
            report = await self._attempts.attempt(task)
        _measure([report], task.operation, began_s)
        if report.outcome in ("retry", "failed"):
            log.warning(
                "%s of inode %d to volume %d: %s: %s", task.operation, task.ino, task.volume, report.outcome, report.error
            )
        # The locks are free: a report waits for a manager, and others may work on the inode meanwhile.
        await self._reporter.deliver([report], at_most=len(self._held))

    async def _extend_forever(self) -> None:
        while True:
            # A third of the claim's time at most: one extension may be lost before a claim runs out.
            await trio.sleep(self._extend_s)
            if not self._held:
                continue
            try:
                await self._session.call(ExtendClaims([task for task, _ in self._held]), timeout_s=MANAGER_TIMEOUT_S)
            except GodwitError as error:
                # Not tried again at once: the next turn extends the same claims. One that ran out is done twice, which is
                # harmless.
                log.warning("cannot extend %d claims: %s", len(self._held), error)
            except Exception as error:
                faults.unexpected(log, "while claims were extended", error)


def _measure(reports: Sequence[TaskReport], operation: str, began_s: float) -> None:
    """Counts attempts that are over: each of a bunch took as long as all of it."""
    known = operation if operation in tuple(TaskOperation) else "unknown"
    for report in reports:
        counters.histogram(TASK_S, known, report.outcome).observe(thread_s() - began_s)
        if report.outcome == "done" and report.stamp is not None:
            _copied.value += report.stamp.size


class _Claimer:
    name = "queue"

    def __init__(self, queue: TaskQueue, nursery: trio.Nursery) -> None:
        self._queue = queue
        self._nursery = nursery

    async def run_once(self) -> Outcome:
        return await self._queue.claim(self._nursery)
