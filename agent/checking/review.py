"""Compares all objects of this server with the catalog after the agent's start, and after each return.

Only their stamps are looked at, a batch a step; what shows another one is examined. So what a loss of power has taken away is
found before anybody asks for it.
"""

import os
from collections.abc import Sequence

import trio

from agent.checking.damage import Examiner
from agent.loop import Outcome
from agent.objects.open_objects import ObjectKey
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.errors import GodwitError
from cluster.messages import HeldObject, ListHeld
from cluster.rpc.session import ManagerSession
from cluster.volume.content import stamp_of

BATCH = 500
PAUSE_S = 0.02  # between batches, so that others come first
MANAGER_TIMEOUT_S = 30.0


class ObjectReview:
    """Worker that goes through all volumes once, and again after each `restart`."""

    name = "object review"

    def __init__(self, *, volumes: VolumeTable, session: ManagerSession, examiner: Examiner) -> None:
        self._volumes = volumes
        self._session = session
        self._examiner = examiner
        self._left = list(volumes.volumes)  # not looked through yet, the present one first
        self._after = 0  # inode after which the next page begins
        self._again = trio.Event()  # all once more

    def restart(self) -> None:
        """Has everything looked at once more; what is under way begins again."""
        self._again.set()

    async def run_once(self) -> Outcome:
        if self._again.is_set():
            self._again = trio.Event()
            self._left, self._after = list(self._volumes.volumes), 0
        if not self._left:
            await self._again.wait()
            return Outcome.PROGRESS
        volume = self._left[0]
        if volume not in self._volumes.volumes:
            del self._left[0]  # its disk is away; all begins again when it comes
            return Outcome.PROGRESS
        listed = await self._session.call(ListHeld(volume.number, self._after, BATCH), timeout_s=MANAGER_TIMEOUT_S)
        for ino in await trio.to_thread.run_sync(_suspects, volume, listed.objects, limiter=volume.bulk_io):
            try:
                await self._examiner.examine(ObjectKey(volume.number, ino))
            except GodwitError:
                continue  # it is reported, or will be by who asks for it
        self._after = listed.last
        if not listed.last:
            del self._left[0]
        await trio.sleep(PAUSE_S)
        return Outcome.PROGRESS


def _suspects(volume: LocalVolume, objects: Sequence[HeldObject]) -> list[int]:
    """The inodes of those that do not look as they should. Blocks."""
    found = []
    for held in objects:
        try:
            if stamp_of(os.stat(volume.layout.object_path(held.ino), follow_symlinks=False)) == held.stamp:
                continue
        except OSError:
            pass
        found.append(held.ino)
    return found
