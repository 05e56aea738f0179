"""What the queue does to one volume, in batches: look at objects, publish copies, discard objects."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from agent.batches import Batcher, at_most, in_thread
from agent.objects.staging import Publication, publish
from agent.trash import discard_objects
from agent.volumes import LocalVolume
from cluster.messages import Stamp
from cluster.volume.layout import ObjectRecord, read_record

R = TypeVar("R")

BATCH_LIMIT = 128


class Found(NamedTuple):
    """An object that exists; `record` is None if it has none."""

    record: ObjectRecord | None


def inspect(volume: LocalVolume, inodes: Sequence[int]) -> list[Found | Exception | None]:
    """Which of these objects there are. Blocks."""
    results: list[Found | Exception | None] = []
    for ino in inodes:
        try:
            descriptor = volume.layout.open_object(ino, os.O_RDONLY)
        except FileNotFoundError:
            results.append(None)
        except OSError as error:
            results.append(error)
        else:
            results.append(Found(read_record(descriptor)))
            os.close(descriptor)
    return results


class DiskWork:
    """The three batchers of a volume; `run` keeps them going."""

    def __init__(self, volume: LocalVolume) -> None:
        self.volume = volume
        limiter = trio.CapacityLimiter(3)
        count = at_most(BATCH_LIMIT)
        self.inspect: Batcher[int, Found | None] = Batcher(in_thread(partial(inspect, volume), limiter), count=count)
        self.publish: Batcher[Publication, Stamp] = Batcher(in_thread(publish, limiter), count=count)
        self.discard: Batcher[int, bool] = Batcher(in_thread(partial(discard_objects, volume), limiter), count=count)

    async def in_thread(self, function: Callable[..., R], *arguments: object) -> R:
        """Runs what blocks for a while in one of the volume's threads."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self.volume.bulk_io)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.inspect.run)
            nursery.start_soon(self.publish.run)
            nursery.start_soon(self.discard.run)
