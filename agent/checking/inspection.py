"""Inspects objects for a comparison with the catalog: stamps, records, digests. Everything here blocks."""

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from agent.checking.comparison import Observed, judge
from agent.objects.reading import digest_of
from agent.volumes.volume import LocalVolume
from cluster.messages import ReplicaState, Stamp
from cluster.volume.content import stamp_of
from cluster.volume.layout import read_record
from cluster.volume.regular import open_regular

LOWEST_PRIORITY = 19  # nice's last
_NOTHING = Stamp(0, 0, 0)


def look_at(path: str, *, deep: bool = False) -> Observed | None:
    """The file at *path* with its record, and with *deep* its digest, unless it changes meanwhile; None if there is none."""
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Observed(_NOTHING, error=os.strerror(error.errno or 0))
    try:
        return _look(descriptor, deep=deep)
    except OSError as error:
        return Observed(_NOTHING, error=os.strerror(error.errno or 0))
    finally:
        os.close(descriptor)


def _look(descriptor: int, *, deep: bool) -> Observed:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return Observed(_NOTHING, error="it is not a file")
    digest = b""
    if deep:
        with at_low_priority():
            digest = digest_of(descriptor)
        # It changed under our eyes: the digest is of neither content.
        if stamp_of(os.fstat(descriptor)) != stamp_of(status):
            status, digest = os.fstat(descriptor), b""
    return Observed(stamp_of(status), read_record(descriptor), digest)


def suspects(volume: LocalVolume, rows: Sequence[ReplicaState]) -> list[int]:
    """Which of these replicas look different on the disk at first sight."""
    with at_low_priority():
        # By a stat alone, a page of rows at a time: only what differs is opened, under the inode's lock.
        return [row.ino for row in rows if judge(row, _glance(volume.layout.object_path(row.ino))) is not None]


def is_suspect(volume: LocalVolume, row: ReplicaState) -> bool:
    """As `suspects`, but the content is read, too."""
    if judge(row, _glance(volume.layout.object_path(row.ino))) is not None:
        return True
    # Reading all of it would be for nothing: `judge` says nothing of such a row.
    if row.task or row.wanted < 0 or row.dirty:
        return False
    return judge(row, look_at(volume.layout.object_path(row.ino), deep=True)) is not None


def _glance(path: str) -> Observed | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Observed(_NOTHING, error=os.strerror(error.errno or 0))
    return Observed(stamp_of(status)) if stat.S_ISREG(status.st_mode) else Observed(_NOTHING, error="it is not a file")


@contextmanager
def at_low_priority() -> Iterator[None]:
    """What this thread does within the block comes after everything else; also its turns at the disk, which follow from that."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with suppress(OSError):
        # Linux has a nice value for each thread; the I/O priority follows from it where none is set.
        os.setpriority(os.PRIO_PROCESS, thread, LOWEST_PRIORITY)
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, before)
