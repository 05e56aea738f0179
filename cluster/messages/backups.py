"""Backups of the catalog, which agents keep on their volumes."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Reply

BACKUP_PART_MAX = 1 << 20
"""Bytes of a backup in one reply."""


class BackupInfo(Reply, frozen=True):
    """A whole backup that the manager's server has. An empty name: it has none for volumes."""

    name: str = ""  # in the order of names they were made
    size: int = 0  # bytes
    digest: bytes = b""  # BLAKE3


class GetBackup(ManagerRequest[BackupInfo], frozen=True):
    """The newest one."""


class BackupPart(Reply, frozen=True):
    data: bytes  # shorter than was asked for only at the end


class ReadBackup(ManagerRequest[BackupPart], frozen=True):
    """A part of the one of that name. ENOENT if it is gone: a newer one is there by then."""

    name: str
    offset: int
    length: int  # at most `BACKUP_PART_MAX`
