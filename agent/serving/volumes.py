"""Answers what operators ask of an agent about its volumes: listing and filling `unknown/`, comparing all objects."""

import errno
from itertools import islice

import trio

from agent.checking.fsck import Checker
from agent.checking.strays import StrayScan
from agent.objects.quarantine import Generation, describe, names_in
from agent.objects.trash import TrashPurger
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import thread_s
from cluster.config import ServerConfig
from cluster.errors import from_os_error, refused
from cluster.messages import CheckVolumes, Count, Done, ListUnknown, MakeRoom, SweepVolumes, UnknownObject, UnknownObjects
from cluster.rpc.serving import Replies

PAGE = 250  # files in one reply; each has its path


class Upkeep:
    """Answers these requests, for the data server."""

    def __init__(
        self,
        config: ServerConfig,
        volumes: VolumeTable,
        strays: StrayScan,
        checker: Checker,
        generation: Generation,
        trash: TrashPurger,
    ) -> None:
        self._server = config.server  # whom requests that change anything must name
        self._keep_s = config.agent.trash_keep_s  # how long files stay in `unknown/`
        self._volumes = volumes
        self._strays = strays
        self._checker = checker
        self._generation = generation  # decides which of them stay for good
        self._trash = trash

    async def handle(self, request: CheckVolumes | ListUnknown | SweepVolumes | MakeRoom, send: Replies) -> Done | Count:
        if isinstance(request, ListUnknown):
            return await self._list_unknown(send)
        # After ListUnknown, which changes nothing.
        self._require_meant(request.server)
        if isinstance(request, CheckVolumes):
            await self._checker.run(send, repair=request.repair, deep=request.deep)
            return Done()
        if isinstance(request, MakeRoom):
            volume = self._volumes.require(request.volume)
            return Count(int(await self._trash.make_room(volume, thread_s() - request.age_s)))
        return Count(await self._strays.consent())

    def _require_meant(self, server: str) -> None:
        """What changes anything names whom it is for: an address may be another server's by now."""
        if server != self._server:
            raise refused(errno.EINVAL, f"this is {self._server}, not {server}")

    async def _list_unknown(self, send: Replies) -> Done:
        for volume in self._volumes.volumes:
            try:
                names = iter(await trio.to_thread.run_sync(names_in, volume, limiter=volume.bulk_io))
                while page := await trio.to_thread.run_sync(self._described, volume, list(islice(names, PAGE))):
                    await send(UnknownObjects(page))
            except OSError as error:
                raise from_os_error(error, str(volume.layout.unknown)) from error
        return Done()

    def _described(self, volume: LocalVolume, names: list[str]) -> list[UnknownObject]:
        return list(describe(volume, names, self._keep_s, self._generation.first_ino))
