"""Batched work on one volume: inspecting objects, publishing copies, discarding objects or setting them aside."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from agent.batches import ENDED, Batcher, at_most, in_thread
from agent.objects.quarantine import quarantine_objects
from agent.objects.staging import Publication, publish
from agent.objects.trash import discard_objects
from agent.volumes.volume import LocalVolume
from cluster.errors import Undone
from cluster.messages import Stamp
from cluster.volume.layout import ObjectRecord, read_record

R = TypeVar("R")

BATCH_LIMIT = 128  # objects; bounds how long the first of a batch waits for the last


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
            # The only errno that says that there is no such object; any other leaves it open.
            results.append(None)
        except OSError as error:
            results.append(error)
        else:
            results.append(Found(read_record(descriptor)))
            os.close(descriptor)
    return results


class DiskWork:
    """The batchers of a volume; `run` keeps them going until `stop`."""

    def __init__(self, volume: LocalVolume) -> None:
        self.volume = volume  # on which all of this works
        self._running = trio.CancelScope()  # cancelled by `stop`, when the volume is closed
        # Apart from `bulk_io`: a rename does not wait behind eight threads that copy. Each of the four batchers uses one thread
        # at a time.
        limiter = trio.CapacityLimiter(3)
        self._at_once = trio.CapacityLimiter(2)  # for steps for many objects, which hold up no single one
        count = at_most(BATCH_LIMIT)
        # inode -> what is there; None if nothing is
        self.inspect: Batcher[int, Found | None] = Batcher(in_thread(partial(inspect, volume), limiter), count=count)
        # verified copy -> stamp of the object that it has become
        self.publish: Batcher[Publication, Stamp] = Batcher(in_thread(publish, limiter), count=count)
        # inode -> whether it was there, and is in the trash now
        self.discard: Batcher[int, bool] = Batcher(in_thread(partial(discard_objects, volume), limiter), count=count)
        # inode -> whether it was there, and is in `unknown/` now
        self.quarantine: Batcher[int, bool] = Batcher(in_thread(partial(quarantine_objects, volume), limiter), count=count)

    async def in_thread(self, function: Callable[..., R], *arguments: object) -> R:
        """Runs what blocks for a while in one of the volume's threads."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self.volume.bulk_io)

    async def at_once(self, function: Callable[[], R]) -> R:
        """Runs a step for many objects in the place of a batch, and waits for it even when cancelled. Raises `Undone`."""
        if self._running.cancel_called:
            raise Undone(ENDED)
        results: list[R] = []
        with trio.CancelScope(shield=True):
            results.append(await trio.to_thread.run_sync(function, limiter=self._at_once))
        return results[0]

    def stop(self) -> None:
        """The volume is closed: what waits fails, as does what is submitted from now on."""
        self._running.cancel()

    async def run(self) -> None:
        with self._running:
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.inspect.run)
            nursery.start_soon(self.publish.run)
            nursery.start_soon(self.discard.run)
            nursery.start_soon(self.quarantine.run)
