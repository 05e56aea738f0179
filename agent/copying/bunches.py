"""Small objects that are copied for the first time, many in one go: one look at the disk, one request, one sync, one report.

What one task after the other would do for each costs more than the copy itself. Whatever is not as usual here (an older object,
a source that does not answer, an error of any kind) is left to `Attempts`, which knows what to do about it and what to report.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from agent.checking.strays import Arrivals
from agent.copying.attempts import Copied, done, request_of
from agent.copying.peers import SmallPulls, VolumeDirectory, together
from agent.copying.pulls import SMALL_BYTES, SmallObject
from agent.copying.receiving import small_publication
from agent.objects.disk_batches import DiskWork, inspect
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.objects.staging import Publication, publish
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.errors import GodwitError, Unavailable
from cluster.messages import PullObject, Replica, Stamp, Task, TaskOperation, TaskReport, Volume
from cluster.rpc.wire import AgentAt

Bunch = Sequence[tuple[Task, PullObject]]
"""Tasks for one volume, each with the request for its object, all at one source."""


class Bunches:
    """Carries out many tasks at a time; the caller holds the locks of their inodes."""

    def __init__(
        self,
        *,
        works: Callable[[int], DiskWork],
        volumes: VolumeTable,
        directory: VolumeDirectory,
        small: SmallPulls,
        objects: OpenObjects,
        arrivals: Arrivals,
    ) -> None:
        self._works = works  # as for `Attempts`, like all of these
        self._volumes = volumes
        self._directory = directory
        self._small = small
        self._objects = objects
        self._arrivals = arrivals

    async def plan(self, tasks: Sequence[Task]) -> list[Bunch]:
        """Those of the tasks that can go together: at least two each, and no more than fit into one answer."""
        sources = {source.volume for task in tasks if (source := first_source(task)) is not None}
        peers = {number: await self._peer(number) for number in sources}
        bunches: dict[tuple[int, int], list[tuple[Task, PullObject]]] = defaultdict(list)
        for task in tasks:
            source = first_source(task)
            # A source of this server would be better, and one that is not heard is the last: that is the matter of `Attempts`.
            if source is None or peers[source.volume] is None or any(self._is_here(other.volume) for other in task.sources):
                continue
            bunches[task.volume, source.volume].append((task, request_of(task, source)))
        return [some for bunch in bunches.values() for some in _split(bunch) if len(some) > 1]

    def _is_here(self, volume: int) -> bool:
        return self._volumes.get(volume) is not None

    async def _peer(self, number: int) -> Volume | None:
        """The volume, if the manager hears its server."""
        try:
            peer = await self._directory.find(number)
        except Unavailable:
            return None
        return peer if peer.up else None

    async def copy(self, bunch: Bunch) -> list[TaskReport]:
        """The reports of those that are done. The others are as if nobody had tried them."""
        try:
            return await self._copy(bunch)
        except (GodwitError, OSError):
            # It comes again to `Attempts`, which reports it.
            return []

    async def _copy(self, bunch: Bunch) -> list[TaskReport]:
        work = self._works(bunch[0][0].volume)
        there = await work.at_once(partial(inspect, work.volume, [task.ino for task, _ in bunch]))
        fresh = [pair for pair, found in zip(bunch, there, strict=True) if found is None]
        if not fresh:
            return []
        peer = await self._directory.find(fresh[0][1].volume)
        pulled = await self._small.pull_together(AgentAt.of(peer), [request for _, request in fresh])
        stamped = await work.at_once(partial(_publish_all, work.volume, fresh, pulled))
        reports = []
        for (task, request), found in zip(fresh, stamped, strict=True):
            if found is not None:
                publication, stamp = found
                key = ObjectKey(task.volume, task.ino)
                # Before the report: from then on nobody may be served the old object.
                self._objects.forget(key)
                self._arrivals.note(key)
                reports.append(done(task, Copied(request.version, bytes.fromhex(publication.record.checksum), stamp)))
        return reports


def first_source(task: Task) -> Replica | None:
    """The best source of a small object; None if the task is for something else, or needs more than a request for it."""
    if task.operation != TaskOperation.COPY or not task.sources:
        return None
    source = task.sources[0]
    # Without a stamp the source could not tell whether it sends the version that is meant.
    return source if source.stamp is not None and max(task.size, source.stamp.size) <= SMALL_BYTES else None


def _split(bunch: Bunch) -> Iterator[Bunch]:
    while bunch:
        count = together([request for _, request in bunch])
        yield bunch[:count]
        bunch = bunch[count:]


def _publish_all(
    volume: LocalVolume, bunch: Bunch, pulled: Sequence[SmallObject | Exception]
) -> list[tuple[Publication, Stamp] | None]:
    """What has become an object, with its stamp; None for what has not. Blocks."""
    publications: dict[int, Publication] = {}
    for at, ((task, request), small) in enumerate(zip(bunch, pulled, strict=True)):
        if isinstance(small, SmallObject):
            with suppress(GodwitError):
                publications[at] = small_publication(task, request, small, volume)
    stamps = dict(zip(publications, publish([*publications.values()]), strict=True))
    return [(publications[at], stamp) if isinstance(stamp := stamps.get(at), Stamp) else None for at in range(len(bunch))]
