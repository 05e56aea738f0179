"""The two sides of a run: the native file system and the mounted one. Neither knows what is measured on it."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from bench.processors import Reading, lab_reading
from bench.report import MOUNTED, NATIVE
from bench.sample import Elsewhere
from cli.network.ask import talk
from cli.network.target import Target, lab_target
from cluster.messages import GetWhere, ListTasks, SetPolicy, TaskState, Where
from cluster.rpc.conversation import Asker
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab

ASK_TIMEOUT_S = 30.0  # a manager under load; longer than a change of managers
POLL_S = 0.05  # also the accuracy of the time until copies are current
COMMITTED_S = 0.5  # from a close to its commit, which brings the copies, it is a tenth of that
ASKED_AT_ONCE = 32  # questions under way: a file each, thousands of them
SETTLE_S = 30.0  # then it is measured all the same
# s1 has the first manager; which of them is in office does not matter to the figures.
HERE, THERE = "s1", "s2"


def _nothing() -> None:
    """A side without background work has nothing to settle."""


@dataclass(frozen=True)
class Side:
    """`root` holds this side's directories; `settle` waits until its background work rests."""

    name: str  # `native` or `mounted`
    root: Path  # made by this run, removed at its end
    settle: Callable[[], None] = field(default=_nothing)
    elsewhere: Elsewhere | None = None
    read_processors: Callable[[], Reading] = dict  # of the parts that work for this side

    def remove(self) -> None:
        """Deletes everything; what cannot be deleted (a mount that has died) is left."""
        shutil.rmtree(self.root, ignore_errors=True)


def native_side(parent: Path, name: str) -> Side:
    return _made(Side(NATIVE, parent / name))


def mounted_side(mount: Path, name: str) -> Side:
    """Any file system that is mounted already."""
    return _made(Side(MOUNTED, mount / name))


def lab_side(lab: Lab, name: str) -> Side:
    """The mount of a lab's first server, with its second server as elsewhere."""
    # Any process of s1 will do: only its network namespace is looked at.
    there = LabElsewhere(lab_target(lab), lab.mount(HERE), lab.mount(THERE), lab.pid(HERE, "agent"))
    return _made(Side(MOUNTED, lab.mount(HERE) / name, there.settle, there, lab_reading(lab)))


def _made(side: Side) -> Side:
    side.root.mkdir()
    return side


class LabElsewhere:
    """Implements `Elsewhere` for a lab, with questions to its manager; *process* is one of this server's."""

    def __init__(self, target: Target, here: Path, there: Path, process: int) -> None:
        self._target = target
        self._here = here
        self._there = there
        self._process = process

    def path_there(self, directory: Path) -> Path:
        return self._there / directory.relative_to(self._here)

    def set_copies(self, directory: Path, copies: int) -> None:
        ino = directory.stat().st_ino

        async def ask(asker: Asker) -> None:
            await asker(SetPolicy(ino, copies=copies))

        talk(self._target, ASK_TIMEOUT_S, ask)

    def objects_of(self, path: Path) -> list[Path]:
        ino = path.stat().st_ino

        async def ask(asker: Asker) -> list[Path]:
            where = await asker(GetWhere(ino))
            return [Path(VolumeLayout(Path(row.path)).object_path(ino)) for row in where.replicas]

        return talk(self._target, ASK_TIMEOUT_S, ask)

    def sent_bytes(self) -> int:
        """Counted by the network devices of this server's namespace, so whatever any of its processes sends."""
        # Two lines of headings. The ninth number after the name is what was transmitted.
        lines = Path(f"/proc/{self._process}/net/dev").read_text().splitlines()[2:]
        devices = dict(line.split(":") for line in lines)
        return sum(int(counts.split()[8]) for name, counts in devices.items() if name.strip() != "lo")

    def settle(self) -> None:
        """Waits until no task is waiting or running, and none has come for `COMMITTED_S`; at most `SETTLE_S`."""
        deadline = time.monotonic() + SETTLE_S

        async def poll(asker: Asker) -> None:
            busy_at = time.monotonic()
            while (look := await _look(asker)).at < min(deadline, busy_at + COMMITTED_S):
                busy_at = look.at if look.tasks else busy_at
                await trio.sleep(POLL_S)

        talk(self._target, SETTLE_S + ASK_TIMEOUT_S, poll)

    def wait_until_current(self, directory: Path, timeout_s: float, at_rest: Callable[[], object] = bool) -> float:
        """See `Elsewhere`. When the queues are empty, asks for each file: a commit may not have reached the manager yet."""
        deadline = time.monotonic() + timeout_s
        inos: list[int] = []

        async def poll(asker: Asker) -> _Look:
            while True:
                look = await _look(asker)
                # Only then: a question for each file while copies are made would slow them down.
                if not look.tasks:
                    at_rest()
                    # Once: listing the directory goes through the mount, and would be work for it.
                    inos[:] = inos or [entry.inode() for entry in os.scandir(directory)]
                    if await _all_current(asker, inos):
                        return look
                # A dead task is never tried again by itself: waiting longer is no use.
                if look.dead or look.at > deadline:
                    return msgspec.structs.replace(look, late=True)
                await trio.sleep(POLL_S)

        last = talk(self._target, timeout_s + ASK_TIMEOUT_S, poll)
        if last.late:
            raise TimeoutError(
                f"copies are not current {timeout_s:g} s after the last write: {last.tasks} tasks are left, {last.dead} dead"
            )
        return last.at


class _Look(msgspec.Struct, frozen=True):
    """The queues at one moment: tasks in them, and those of them that the agents gave up."""

    at: float
    tasks: int
    dead: int
    late: bool = False


async def _look(asker: Asker) -> _Look:
    rows = await asker(ListTasks(limit=1))
    # When the queue was seen, before what is asked after it.
    at = time.monotonic()
    dead = (await asker(ListTasks(state=TaskState.DEAD, limit=1))).total if rows.total else 0
    return _Look(at, rows.total - dead, dead)


async def _all_current(asker: Asker, inos: list[int]) -> bool:
    """Asks for some files at a time, and stops at the first lot that is not all current."""
    for start in range(0, len(inos), ASKED_AT_ONCE):
        found: list[bool] = []

        async def look(ino: int, found: list[bool] = found) -> None:
            found.append(is_current(await asker(GetWhere(ino))))

        async with trio.open_nursery() as nursery:
            for ino in inos[start : start + ASKED_AT_ONCE]:
                nursery.start_soon(look, ino)
        if not all(found):
            return False
    return True


def is_current(where: Where) -> bool:
    """Whether a file is clean and has the copies that its policy asks for."""
    current = sum(replica.current for replica in where.replicas)
    return not where.node.dirty and not where.pending and current >= where.policy.copies
