"""Many small copies in one go: which go together, and that whatever is not as usual is left to be tried by itself."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.checking.strays import Arrivals
from agent.copying.attempts import request_of
from agent.copying.bunches import Bunches
from agent.copying.peers import PeerChannels, SmallPulls, VolumeDirectory
from agent.copying.pulls import SMALL_BYTES
from agent.copying.reports import Reporter
from agent.copying.tasks import TaskQueue
from agent.keyed_locks import KeyedLocks
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import OpenObjects
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.errors import Undone
from cluster.messages import (
    PULLS_MAX,
    Done,
    Failure,
    ListVolumes,
    Pulled,
    PullEnd,
    PullObject,
    Replica,
    ReportTasks,
    Stamp,
    Task,
    TaskOperation,
    TaskReport,
    Tasks,
    Volume,
    Volumes,
)
from cluster.rpc.connection import Answer
from cluster.rpc.serving import SendReply
from tests.agent.copying.test_peers import Source, channel_to
from tests.agent.network import Network, digest, make_volume, record_of
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)

HERE, NEAR, FAR, AWAY = 1, 2, 3, 4  # volumes: of this agent, of two others, and of one that the manager does not hear


def content(ino: int) -> bytes:
    return b"%d " % ino * 20


def stamp(ino: int) -> Stamp:
    return Stamp(len(content(ino)), 5, 6)


def copy(ino: int, *sources: int, size: int = 0, **changes: Any) -> Task:
    replicas = [Replica(volume, 3, stamp(ino)) for volume in sources or (NEAR,)]
    task = Task(ino + 1000, 9, TaskOperation.COPY, ino, HERE, 3, size, sources=replicas, path=b"/f")
    return msgspec.structs.replace(task, **changes)


class Peer(Source):
    """Has every object, but for those that it says are damaged, or sends as others."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked: list[list[int]] = []
        self.damaged: set[int] = set()
        self.mistaken: set[int] = set()

    async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
        del body, send
        self.asked.append([pull.ino for pull in request.pulls])
        results = [self._result(pull) for pull in request.pulls]
        sent = [content(pull.ino) for pull in request.pulls if pull.ino not in self.damaged]
        return Answer(Pulled(results), b"".join(sent))

    def _result(self, pull: PullObject) -> PullEnd | Failure:
        if pull.ino in self.damaged:
            return Failure("corrupt", 5, "no")
        return PullEnd(digest(b"other" if pull.ino in self.mistaken else content(pull.ino)))


class Manager:
    def __init__(self, address: str) -> None:
        self._address = address

    async def call(self, request: ListVolumes, *, timeout_s: float) -> Volumes:
        del request, timeout_s
        volumes = [Volume(number, "s1", "/v", self._address, 1, 1, "d", up=number != AWAY) for number in (HERE, NEAR, FAR, AWAY)]
        return Volumes(volumes)


class Rig:
    """The bunches of one agent with a volume, and a peer that has everything."""

    def __init__(self, peer: Peer, address: str, volume: LocalVolume, nursery: trio.Nursery) -> None:
        self.peer = peer
        self.volume = volume
        self.work = DiskWork(volume)
        self.objects = OpenObjects(10)
        table = VolumeTable([volume])
        table.number([HERE], [volume])
        self.bunches = Bunches(
            works=lambda _number: self.work,
            volumes=table,
            directory=VolumeDirectory(Manager(address)),  # type: ignore[arg-type]
            small=SmallPulls(PeerChannels(nursery, credentials("s9", "agent")), nursery),
            objects=self.objects,
            arrivals=Arrivals(),
        )

    def path(self, ino: int) -> Path:
        return Path(self.volume.layout.object_path(ino))

    async def copied(self, tasks: list[Task]) -> list[int]:
        """The inodes that were copied by the only bunch of *tasks*."""
        (bunch,) = await self.bunches.plan(tasks)
        return [report.task - 1000 for report in await self.bunches.copy(bunch)]


@asynccontextmanager
async def rig_in(folder: Path) -> AsyncIterator[Rig]:
    peer, volume = Peer(), make_volume(folder)
    async with channel_to(peer) as source, trio.open_nursery() as nursery:
        yield Rig(peer, source.peer, volume, nursery)
        nursery.cancel_scope.cancel()
    volume.close()


async def test_what_is_small_and_new_is_asked_for_at_once_and_becomes_objects(tmp_path: Path) -> None:
    async with rig_in(tmp_path) as rig:
        assert await rig.copied([copy(ino) for ino in range(5, 25)]) == list(range(5, 25))
        assert rig.peer.asked == [list(range(5, 25))]
        for ino in range(5, 25):
            assert rig.path(ino).read_bytes() == content(ino)
            record = record_of(str(rig.path(ino)))
            assert (record.ino, record.version, record.checksum, record.path) == (ino, 3, digest(content(ino)).hex(), "/f")
        assert os.listdir(rig.volume.layout.staging) == []


async def test_reports_say_what_has_become_of_each(tmp_path: Path) -> None:
    async with rig_in(tmp_path) as rig:
        (bunch,) = await rig.bunches.plan([copy(5), copy(6)])
        reports = await rig.bunches.copy(bunch)
        for ino, report in zip((5, 6), reports, strict=True):
            status = rig.path(ino).stat()
            assert (report.task, report.claim, report.outcome, report.version) == (ino + 1000, 9, "done", 3)
            assert report.checksum == digest(content(ino))
            assert report.stamp == Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


async def test_sources_and_answers_make_bunches(tmp_path: Path) -> None:
    async with rig_in(tmp_path) as rig:
        near, far = [copy(ino) for ino in range(5, 5 + PULLS_MAX + 2)], [copy(ino, FAR) for ino in range(500, 502)]
        bunches = await rig.bunches.plan([*far, *near])
        assert [[task for task, _ in bunch] for bunch in bunches] == [far, near[:PULLS_MAX], near[PULLS_MAX:]]


@pytest.mark.parametrize(
    "other",
    [
        copy(9, operation=TaskOperation.DELETE),
        copy(9, sources=[]),
        copy(9, sources=[Replica(NEAR, 3, None)]),
        copy(9, sources=[Replica(NEAR, 3, Stamp(SMALL_BYTES + 1, 5, 6))]),
        copy(9, size=SMALL_BYTES + 1),
        copy(9, AWAY),
        copy(9, NEAR, HERE),
        copy(9, FAR),
    ],
    ids=["deletion", "no source", "no stamp", "long", "long by now", "not heard", "also here", "alone"],
)
async def test_what_is_not_as_usual_does_not_go_together(tmp_path: Path, other: Task) -> None:
    async with rig_in(tmp_path) as rig:
        (bunch,) = await rig.bunches.plan([copy(5), other, copy(6)])
        assert [task.ino for task, _ in bunch] == [5, 6]


async def test_what_goes_wrong_with_one_is_left_to_be_tried_by_itself(tmp_path: Path) -> None:
    async with rig_in(tmp_path) as rig:
        rig.peer.damaged, rig.peer.mistaken = {5}, {6}
        rig.path(7).parent.mkdir()
        rig.path(7).write_bytes(b"an older version")
        rig.path(8).mkdir()
        expected = copy(9, checksum=b"another digest")
        assert await rig.copied([copy(ino) for ino in (4, 5, 6, 7, 8)] + [expected, copy(10)]) == [4, 10]
        assert rig.path(7).read_bytes() == b"an older version"
        assert sorted(os.listdir(rig.path(7).parent), key=int) == ["4", "7", "8", "10"]
        assert os.listdir(rig.volume.layout.staging) == []


async def test_a_volume_that_is_closed_meanwhile_gets_nothing(tmp_path: Path) -> None:
    async with rig_in(tmp_path) as rig:
        rig.work.stop()
        with pytest.raises(Undone):
            await rig.work.at_once(lambda: None)
        assert await rig.copied([copy(5), copy(6)]) == []
        assert not rig.path(5).exists()


class Claims:
    """A manager that gives these tasks, once, and takes reports."""

    def __init__(self, tasks: list[Task]) -> None:
        self.reported: list[int] = []
        self.all_reported = trio.Event()
        self._tasks = tasks

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        del timeout_s
        if isinstance(request, ReportTasks):
            self.reported += [report.task for report in request.reports]
            self.all_reported.set()
            return Done()
        tasks, self._tasks = self._tasks, []
        if not tasks:
            await trio.sleep_forever()
        return Tasks(tasks)


class Hanging:
    """Copies from the volume `FAR` hang; others are made at once."""

    async def plan(self, tasks: list[Task]) -> list[list[tuple[Task, PullObject]]]:
        return [[(task, request_of(task, task.sources[0]))] for task in tasks]

    async def copy(self, bunch: list[tuple[Task, PullObject]]) -> list[TaskReport]:
        if bunch[0][1].volume == FAR:
            await trio.sleep_forever()
        return [TaskReport(task.task, task.claim, "done") for task, _ in bunch]


@pytest.mark.usefixtures("autojump_clock")
async def test_a_source_that_hangs_holds_up_no_other() -> None:
    manager = Claims([*[copy(ino, FAR) for ino in range(5, 25)], copy(30)])
    reporter = Reporter(manager)  # type: ignore[arg-type]
    queue = TaskQueue(
        session=manager,  # type: ignore[arg-type]
        attempts=None,  # type: ignore[arg-type]
        bunches=Hanging(),  # type: ignore[arg-type]
        reporter=reporter,
        locks=KeyedLocks(),
        copies_at_once=1,
        extend_s=1000.0,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        nursery.start_soon(queue.run)
        with trio.fail_after(10):
            await manager.all_reported.wait()
        nursery.cancel_scope.cancel()
    assert manager.reported == [1030]


async def test_an_agent_copies_all_whether_together_or_not(net: Network) -> None:
    """Of forty files something of one is there already, one was changed by hand, and one is long."""
    await net.start("s1")
    await net.start("s2")
    for ino in range(5, 45):
        await net.file("s1", ino, content(ino) * (1 + SMALL_BYTES * (ino == 6)))
    changed = 7
    Path(net.path("s1", changed)).write_bytes(b"changed")
    Path(net.path("s2", 5)).parent.mkdir()
    Path(net.path("s2", 5)).write_bytes(b"something")
    tasks = {ino: net.copy(ino, "s1", "s2") for ino in range(5, 45)}
    outcomes = {ino: (await net.manager.report_of(task)).outcome for ino, task in tasks.items()}
    assert outcomes.pop(changed) != "done"
    assert set(outcomes.values()) == {"done"}
    assert all(net.content("s1", ino) == net.content("s2", ino) for ino in outcomes)
    assert net.left_over("s2") == []
