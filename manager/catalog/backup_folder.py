"""The backups that the managers of one server have made by themselves: files in a folder, each of them whole.

The newest is the one with the last name. Old ones are removed when a newer one is there, and not before. A manager that has just
come into office knows those that its own server has: if none of them is young enough, it makes one.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from sqlalchemy import make_url

from cluster.config import ServerConfig
from cluster.durable import sync_directory
from cluster.errors import GodwitError, Refused, error_text, refused
from manager.catalog.backup import back_up

PREFIX = "catalog-"
MARGIN_BYTES = 64 << 20  # that are left free, beside what a backup takes
GROWTH = 1.25  # of a backup over the one before, at most expected
_PIECE_BYTES = 1 << 20


class Stored(NamedTuple):
    """A backup in the folder."""

    name: str
    size: int  # bytes
    digest: bytes  # BLAKE3


class BackupFolder:
    """Makes, keeps and reads them. All but `problem` blocks."""

    def __init__(self, config: ServerConfig) -> None:
        self._url = config.manager.database
        self._keep = config.backup.keep
        self._path = Path(config.backup.directory or f"{config.state}/backups")
        self._newest: Stored | None = None  # with its digest, which is made once
        self.problem = ""  # why the last attempt failed; empty: it did not

    @property
    def path(self) -> Path:
        return self._path

    def names(self) -> list[str]:
        """The backups that are there, the oldest first; none if the folder cannot be read."""
        try:
            return sorted(name for name in os.listdir(self._path) if name.startswith(PREFIX))
        except OSError:
            return []

    def age_s(self, now_s: float) -> float | None:
        """How old the newest one is, by the wall clock; None if there is none."""
        names = self.names()
        try:
            return now_s - os.stat(self._path / names[-1]).st_mtime if names else None
        except OSError:
            return None

    def make(self, now_s: float, make: Callable[[str, Path], object] = back_up) -> Stored:
        """Makes one, and removes the oldest if there are too many. Raises `GodwitError`; then nothing was removed."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_unfinished()
            self._require_room()
            # A backup that is made within the same second has the same name, and is refused.
            name = PREFIX + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
            make(self._url, self._path / name)
            self._newest = self._stored(name)
            for old in self.names()[: -self._keep]:
                os.unlink(self._path / old)
            sync_directory(self._path)
        except OSError as error:
            raise Refused(f"no backup in {self._path}: {error_text(error, with_file=False)}", error.errno) from error
        return self._newest

    def newest(self) -> Stored | None:
        """The newest one; None if there is none. Raises `OSError`."""
        names = self.names()
        if not names:
            return None
        if self._newest is None or self._newest.name != names[-1]:
            self._newest = self._stored(names[-1])
        return self._newest

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A part of one. Raises `Refused` (ENOENT) if there is none of that name, `OSError`."""
        # Only what is in the listing: so a name leads nowhere else.
        if name not in self.names():
            raise refused(errno.ENOENT, "there is no such backup")
        with open(self._path / name, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def _stored(self, name: str) -> Stored:
        hasher, size = blake3(), 0
        with open(self._path / name, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                hasher.update(piece)
                size += len(piece)
        return Stored(name, size, hasher.digest())

    def _remove_unfinished(self) -> None:
        """Of managers that ended meanwhile."""
        for name in os.listdir(self._path):
            if name.startswith(f".{PREFIX}"):
                os.unlink(self._path / name)

    def _require_room(self) -> None:
        before = [os.stat(self._path / name).st_size for name in self.names()[-1:]]
        place = make_url(self._url)
        if place.get_backend_name() == "sqlite" and place.database and os.path.exists(place.database):
            before.append(os.stat(place.database).st_size)
        wanted, free = int(max(before, default=0) * GROWTH) + MARGIN_BYTES, shutil.disk_usage(self._path).free
        if free < wanted:
            raise Refused(
                f"no room for a backup in {self._path}: {free >> 20:,} MiB are free, {wanted >> 20:,} are wanted", errno.ENOSPC
            )


def attempt(folder: BackupFolder, now_s: float) -> str:
    """Makes one; why that failed, or nothing."""
    try:
        folder.make(now_s)
    except GodwitError as error:
        return str(error)
    return ""
