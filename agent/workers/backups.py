"""Keeps the newest backups of the catalog on this server's volumes, for the day on which the database and its host are gone.

One is fetched from the manager once, into all volumes that lack it: written beside its place, compared with its digest, synced,
and renamed. Older ones go only when it is there. `godwit rebuild` finds them. A disk that hangs, fails or is full keeps no other
from its backup; one that is full is no problem to tell: others have it.
"""

import errno
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar

import trio
from blake3 import blake3

from agent.loop import Outcome
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.durable import sync_directory
from cluster.errors import Corrupt, error_text
from cluster.messages import BACKUP_PART_MAX, BackupInfo, GetBackup, ReadBackup
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP = 2  # on a volume
RESERVE_BYTES = 256 << 20  # that stay free beside a backup: files come first
PATIENCE_S = 30.0  # that a disk has for one step
PART_PAUSE_S = 0.01  # between parts, so that others come first
MANAGER_TIMEOUT_S = 30.0
_NAME = re.compile(r"catalog-[0-9A-Za-z.-]{1,100}")


class _Writing:
    """A backup that is being written on one volume."""

    def __init__(self, volume: LocalVolume, name: str) -> None:
        self.volume = volume
        self._folder = volume.layout.backups
        self._name = name
        self._temporary = self._folder / f".{name}"
        self._file: BinaryIO | None = None

    def start(self, size: int) -> None:
        """Raises `OSError`, ENOSPC if files would have too little room. Blocks."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob(".*"):
            left.unlink()
        _total, free = self.volume.space()
        if free < size + RESERVE_BYTES:
            raise OSError(errno.ENOSPC, "too little room for a backup of the catalog", os.fspath(self._folder))
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file = open(descriptor, "wb")  # noqa: SIM115 - closed by `finish` or `give_up`

    def write(self, data: bytes) -> None:
        """Raises `OSError`. Blocks."""
        assert self._file is not None
        self._file.write(data)

    def finish(self) -> None:
        """It is whole: gets its name, and older ones go. Raises `OSError`. Blocks."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self._folder / self._name)
        sync_directory(self._folder)
        for old in names_on(self.volume)[:-KEEP]:
            (self._folder / old).unlink()

    def give_up(self) -> None:
        """Removes what is not whole. Blocks."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._temporary.unlink(missing_ok=True)


def names_on(volume: LocalVolume) -> list[str]:
    """The backups on a volume, the oldest first. Raises `OSError`. Blocks."""
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(volume.layout.backups) if _NAME.fullmatch(name))
    return []


class BackupKeeper:
    """Worker: asks for the newest backup, and fetches it if a volume lacks it. `problems` are for people."""

    name = "backups"

    def __init__(self, volumes: VolumeTable, session: ManagerSession) -> None:
        self._volumes = volumes
        self._session = session
        self._problems: dict[str, str] = {}  # by the volume's uuid
        self._full: set[str] = set()  # uuids of volumes that had too little room, which is said once
        # One thread for each volume: of a disk that hangs no more than that.
        self._threads: dict[str, trio.CapacityLimiter] = {}

    @property
    def problems(self) -> list[str]:
        """Why volumes lack the newest backup."""
        there = {volume.uuid for volume in self._volumes.volumes}
        return [text for uuid, text in self._problems.items() if uuid in there]

    async def run_once(self) -> Outcome:
        info = await self._session.call(GetBackup(), timeout_s=MANAGER_TIMEOUT_S)
        if not _NAME.fullmatch(info.name):
            return Outcome.IDLE
        writings = [_Writing(volume, info.name) for volume in list(self._volumes.volumes) if await self._lacks(volume, info)]
        try:
            await self._fetch(info, writings)
        finally:
            # After a cancellation it is left to the next attempt.
            for writing in writings:
                await self._in_thread(writing.volume, writing.give_up)
        return Outcome.IDLE

    async def _lacks(self, volume: LocalVolume, info: BackupInfo) -> bool:
        def looks() -> bool:
            if volume.is_read_only():
                return False
            with suppress(FileNotFoundError):
                return os.stat(volume.layout.backups / info.name).st_size != info.size
            return True

        return bool(await self._in_thread(volume, looks))

    async def _fetch(self, info: BackupInfo, writings: list[_Writing]) -> None:
        left = [writing for writing in writings if await self._do(writing, lambda one: one.start(info.size))]
        if not left:
            return
        hasher, offset = blake3(), 0
        while offset < info.size and left:
            request = ReadBackup(info.name, offset, min(BACKUP_PART_MAX, info.size - offset))
            data = (await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)).data
            if not data:
                break
            hasher.update(data)
            offset += len(data)
            left = [writing for writing in left if await self._do(writing, lambda one, data=data: one.write(data))]  # type: ignore[misc]
            await trio.sleep(PART_PAUSE_S)
        if left and (offset, hasher.digest()) != (info.size, info.digest):
            raise Corrupt(f"the backup {info.name} is not what the manager said it was")
        for writing in left:
            if await self._do(writing, lambda one: one.finish()):
                self._problems.pop(writing.volume.uuid, None)
                self._full.discard(writing.volume.uuid)
                log.info("%s has the backup %s", writing.volume.layout.root, info.name)

    async def _do(self, writing: _Writing, act: Callable[[_Writing], None]) -> bool:
        """Whether that succeeded."""

        def done() -> bool:
            act(writing)
            return True

        return bool(await self._in_thread(writing.volume, done))

    async def _in_thread(self, volume: LocalVolume, act: Callable[[], T]) -> T | None:
        """What *act* returns; None if the volume's disk fails, which is noted, or does not answer."""
        limiter = self._threads.setdefault(volume.uuid, trio.CapacityLimiter(1))
        try:
            with trio.move_on_after(PATIENCE_S):
                return await trio.to_thread.run_sync(act, limiter=limiter, abandon_on_cancel=True)
            self._met(volume, OSError(errno.EIO, f"no answer within {PATIENCE_S:g} s"))
        except OSError as error:
            self._met(volume, error)
        return None

    def _met(self, volume: LocalVolume, error: OSError) -> None:
        if error.errno == errno.ENOSPC:
            if volume.uuid not in self._full:
                self._full.add(volume.uuid)
                log.info("%s: too little room for a backup of the catalog", volume.layout.root)
            return
        text = f"{volume.layout.root}: no backup of the catalog could be kept there: {error_text(error, with_file=False)}"
        if self._problems.get(volume.uuid) != text:
            log.warning("%s", text)
        self._problems[volume.uuid] = text
