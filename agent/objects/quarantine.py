"""`unknown/` of a volume: objects that the catalog did not know, and damaged ones in whose place good ones were put.

The catalog is never believed over the disks when that would delete data: it may be the wrong one, or have been brought back from
an older time. So what it does not know is kept. An object whose number is below the first one of the catalog's present
generation may be older than this generation, which cannot know what became of it: it is never removed by Godwit. Others go when
the trash would let them go by time; shortage of space removes nothing here.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from agent.objects.set_aside import parts_of, set_aside
from agent.volumes.volume import LocalVolume
from cluster.durable import sync_directory
from cluster.messages import UnknownObject
from cluster.volume.fence import despite_fence
from cluster.volume.layout import ObjectRecord, read_record
from cluster.volume.regular import open_regular

log = logging.getLogger(__name__)


class Generation:
    """What the manager says of the catalog's generation: `first_ino` is its first inode number, 0 while that is not known."""

    def __init__(self) -> None:
        self.first_ino = 0  # set by each registration; without it everything counts as older and is kept


def is_older(ino: int, first_ino: int) -> bool:
    """Whether an object may be older than the catalog's generation: nobody knows, as long as that is not known."""
    return first_ino <= 0 or ino < first_ino


def to_purge(names: Iterable[str], now_ns: int, keep_s: float, first_ino: int) -> list[str]:
    """Which of the files in `unknown/` must go now."""
    before_ns = now_ns - int(keep_s * 1e9)  # in the trash's time, which never runs ahead of the wall clock
    parts = ((name, parts_of(name)) for name in names)
    return [
        name for name, known in parts if known is not None and known.when_ns <= before_ns and not is_older(known.ino, first_ino)
    ]


def why_kept(ino: int, when_ns: int, keep_s: float, first_ino: int) -> tuple[str, int]:
    """Why an object in `unknown/` is kept, and until when (nanoseconds of the wall clock; 0: for good)."""
    if first_ino <= 0:
        # 0 means for good: with no generation known, `to_purge` removes nothing.
        return "the manager has not said yet which catalog it has", 0
    if is_older(ino, first_ino):
        return "older than the catalog's generation", 0
    return "unknown to the catalog, or damaged", when_ns + int(keep_s * 1e9)


def quarantine_objects(volume: LocalVolume, inodes: Sequence[int]) -> list[bool | Exception]:
    """Moves objects into `unknown/`, durably; False for those that were not there. Blocks."""
    try:
        make_folder(volume)
    except OSError as error:
        return [error] * len(inodes)
    return set_aside(volume, inodes, volume.layout.unknown)


def make_folder(volume: LocalVolume) -> None:
    """Makes `unknown/` if it is missing; raises `OSError`."""
    # Without its disk the mount point is an empty directory of another file system: nothing may be made there.
    volume.require_there()
    with suppress(FileExistsError):
        volume.layout.unknown.mkdir(mode=0o700)
        # The folder's own name must be durable before anything is: else a crash takes the folder, with what was moved into it.
        sync_directory(volume.layout.root)


def names_in(volume: LocalVolume) -> list[str]:
    """What is in `unknown/`, oldest first. Blocks."""
    try:
        names = os.listdir(volume.layout.unknown)
    except FileNotFoundError:
        # It is made only when something is put there.
        return []
    known = [(parts.when_ns, name) for name in names if (parts := parts_of(name)) is not None]
    return [name for _when_ns, name in sorted(known)]


def purge_unknown(volume: LocalVolume, keep_s: float, first_ino: int, now_ns: int) -> int:
    """Removes what is due at *now_ns* and returns how many files went. Blocks."""
    gone = 0
    for name in to_purge(names_in(volume), now_ns, keep_s, first_ino):
        with suppress(FileNotFoundError):
            # Objects may have been fenced (immutable) when they were set aside; unlink refuses them with EPERM until the flag is
            # off.
            path = os.fspath(volume.layout.unknown / name)
            despite_fence(path, partial(os.unlink, path))
            gone += 1
    if gone:
        log.info("purged %d unknown objects from %s", gone, volume.layout.root)
    return gone


def _record_of(path: Path) -> ObjectRecord | None:
    """What the object says of itself; None if it says nothing, or cannot be read. Raises `FileNotFoundError`."""
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        return read_record(descriptor)
    finally:
        os.close(descriptor)


def describe(volume: LocalVolume, names: Iterable[str], keep_s: float, first_ino: int) -> Iterator[UnknownObject]:
    """What is known of these files in `unknown/`; those that went meanwhile are left out. Blocks."""
    for name in names:
        parts = parts_of(name)
        # Not named by Godwit: somebody else put it there, and it is theirs.
        if parts is None:
            continue
        path = volume.layout.unknown / name
        try:
            status, record = os.lstat(path), _record_of(path)
        except FileNotFoundError:
            continue
        why, until_ns = why_kept(parts.ino, parts.when_ns, keep_s, first_ino)
        yield UnknownObject(
            volume=volume.number,
            volume_path=os.fspath(volume.layout.root),
            name=name,
            ino=parts.ino,
            path=os.fsencode(record.path) if record else b"",
            size=status.st_size,
            version=record.version if record else 0,
            when_ns=parts.when_ns,
            why=why,
            until_ns=until_ns,
        )
