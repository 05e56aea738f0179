"""Writes into each volume which catalog knows its objects, in which generation it was compared with it.

So a disk that is carried to another network, or that has seen a newer catalog than its server remembers, says so itself.
"""

import trio

from agent.loop import Outcome
from agent.volumes.volume import VolumeTable
from cluster.catalog_point import CatalogMemory


class Marking:
    """Worker: marks volumes that have come, and all of them when *compared* has another generation."""

    name = "marking of volumes"

    def __init__(self, volumes: VolumeTable, compared: CatalogMemory) -> None:
        self._volumes = volumes
        self._compared = compared

    async def run_once(self) -> Outcome:
        point = self._compared.point
        for volume in list(self._volumes.volumes):
            if point is None or (volume.identity.catalog, volume.identity.generation) == (point.catalog, point.generation):
                continue
            if volume.number and not volume.is_read_only():
                await trio.to_thread.run_sync(volume.remember, point, limiter=volume.small_io)
        return Outcome.IDLE
