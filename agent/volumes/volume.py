"""The volumes of this server: opened and checked, each by itself, and numbered by the manager.

A volume is made once, by `godwit init`, `join` or `volumes add`, and never here: a directory without its `volume.toml` is a
volume whose disk is away. A volume is locked (`flock` on `volume.toml`) while an agent has it, so that two agents never work
on one. Only root can open what is in a volume, and so take the lock.
"""

import errno
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from agent.volumes.aging import TrashClock
from agent.volumes.disk_errors import Troubles
from agent.volumes.mounts import mount_of
from cluster.catalog_point import CatalogPoint
from cluster.clock import monotonic_s
from cluster.counters import counter, counters, gauge
from cluster.errors import Refused, Undone
from cluster.messages import VolumeState
from cluster.volume.layout import RECORD_XATTR, VolumeIdentity, VolumeLayout
from cluster.volume.regular import open_regular

log = logging.getLogger(__name__)

DISK_ERRORS = counter("godwit_disk_errors_total", "Errors of a volume's disk that requests and tasks have met.", "volume")

TRASH = gauge("godwit_trash_bytes", "Size of the deleted objects that a volume keeps for a while.", "volume")

SMALL_IO_THREADS = 16  # reads and writes of mounts on one disk at once
BULK_IO_THREADS = 8  # copies and checks: fewer, so that they leave the disk to the others


class Trash:
    """What is known of a volume's trash: how much is in it, when that was counted and when it was last looked through."""

    def __init__(self, layout: VolumeLayout) -> None:
        self.bytes = 0  # as counted last, and what came and went since
        self.counted_s = float("-inf")  # monotonic; never, at first
        self.looked_s = float("-inf")  # monotonic, for what is old enough
        self.purged_s = float("-inf")  # by `thread_s`, when something last went from it
        self.clock = TrashClock(layout.root / "trash.clock")  # ages are of this clock: the wall's may be set
        self._lock = threading.Lock()  # threads add what they discard

    def add(self, size: int) -> None:
        """So much has come, or gone; may be called in any thread."""
        with self._lock:
            self.bytes = max(0, self.bytes + size)

    def counted(self, size: int, now: float) -> None:
        """So much is there."""
        with self._lock:
            self.bytes, self.counted_s = size, now


class LocalVolume:
    """One open volume. `number` is 0 until the manager has registered it; `opened_as` is what it was when it was opened.

    `troubles` are the errors of its disk that were met; `is_unswept`: it has objects that were to be removed and could not be.
    """

    def __init__(self, layout: VolumeLayout, identity: VolumeIdentity, lock: int) -> None:
        self.layout = layout  # its paths
        self.identity = identity  # as in `volume.toml`; replaced by `remember`
        self.number = 0  # of the manager, by which messages name the volume
        self._lock = lock  # a descriptor of `volume.toml`: the lock on it lasts as long
        self.opened_as = self._state()  # for reports while the disk does not answer
        self.troubles = Troubles()  # changed in the event loop, read by the probe's thread
        self.trash = Trash(layout)  # changed by threads, under a lock of its own
        self.is_unswept = False
        # Each volume has threads of its own, so that a disk that hangs stalls no other.
        self.small_io = trio.CapacityLimiter(SMALL_IO_THREADS)
        self.bulk_io = trio.CapacityLimiter(BULK_IO_THREADS)
        self._exchange = threading.Lock()  # held while `volume.toml` and `_lock`, its descriptor, are replaced or compared

    @property
    def uuid(self) -> str:
        return self.identity.uuid

    def remember(self, point: CatalogPoint) -> None:
        """Writes down which catalog, in which generation, knows the volume's objects. Raises `OSError`. Blocks."""
        identity = msgspec.structs.replace(self.identity, catalog=point.catalog, generation=point.generation)
        with self._exchange:
            # The new file is locked before the old one is closed: no other agent comes in between.
            before, self._lock = self._lock, self.layout.rewrite_identity(identity)
            self.identity = identity
            os.close(before)

    def space(self) -> tuple[int, int]:
        """Total and free bytes of the file system, the latter as unprivileged users see it."""
        status = os.statvfs(self.layout.root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    def _state(self) -> VolumeState:
        total_bytes, free_bytes = self.space()
        # With the machine's name: a device number says something on one machine only.
        device = f"{machine_name()}:{os.stat(self.layout.root).st_dev}"
        root, mount = os.fspath(self.layout.root), mount_of(self._lock)
        return VolumeState(self.uuid, root, total_bytes, free_bytes, device, mount=mount)

    def is_read_only(self) -> bool:
        """Whether its file system takes no writes. Raises `OSError`."""
        return bool(os.statvfs(self.layout.root).f_flag & os.ST_RDONLY)

    def is_what_was_opened(self) -> bool:
        """Whether the directory's `volume.toml` is the one that was opened, not of what was mounted since. Raises `OSError`."""
        with self._exchange:
            return os.path.samestat(os.stat(self.layout.root / "volume.toml"), os.fstat(self._lock))

    def require_there(self) -> None:
        """Raises `OSError` if the disk is away: an object that is not found then is not missing. Blocks."""
        if not self.is_what_was_opened():
            raise OSError(errno.ENODEV, "another volume is there now", os.fspath(self.layout.root))

    def close(self) -> None:
        os.close(self._lock)


class VolumeTable:
    """The volumes that are open, in the order of their directories; those that have a number by it."""

    def __init__(self, volumes: Sequence[LocalVolume] = ()) -> None:
        self.volumes = list(volumes)
        self._by_number: dict[int, LocalVolume] = {}  # without those that have none yet

    def number(self, numbers: Sequence[int], reported: Sequence[LocalVolume]) -> None:
        """Takes the manager's numbers, in the order of what was *reported*; some of that may have been closed meanwhile."""
        if len(numbers) != len(reported):
            raise Refused(f"the manager numbered {len(numbers)} volumes instead of {len(reported)}")
        for volume, number in zip(reported, numbers, strict=True):
            if volume.number != number:
                log.info("volume %d is %s", number, volume.layout.root)
            volume.number = number
        self._index()

    def met(self, number: int, error: OSError) -> None:
        """Takes note of an error that may be the disk's."""
        volume = self._by_number.get(number)
        if volume is not None and volume.troubles.met(error, monotonic_s()):
            counters.cell(DISK_ERRORS, str(volume.layout.root)).value += 1
            log.warning("volume %d, %s: %s", number, volume.layout.root, error)

    def set(self, volumes: Sequence[LocalVolume]) -> None:
        """These are open from now on, and no others."""
        self.volumes = list(volumes)
        for volume in volumes:
            counters.cell(DISK_ERRORS, str(volume.layout.root))  # 0 from the beginning: so the first error is a rise
        self._index()

    def _index(self) -> None:
        self._by_number = {volume.number: volume for volume in self.volumes if volume.number}

    def get(self, number: int) -> LocalVolume | None:
        return self._by_number.get(number)

    def require(self, number: int) -> LocalVolume:
        """The volume; raises `Undone` if this server does not have it now: its disk may come back, and others have replicas."""
        volume = self._by_number.get(number)
        if volume is None:
            if any(not volume.number for volume in self.volumes):
                raise Undone("this agent has not reached a manager yet and does not know its volumes' numbers")
            raise Undone(f"this server has no volume {number} now: its disk may be away")
        return volume


def machine_name() -> str:
    """What tells this machine from others: volumes of several servers of a lab may share one disk."""
    try:
        name = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        name = ""
    return name or socket.gethostname()


def open_volume(root: Path, cluster: str, server: str) -> LocalVolume:
    """Opens a volume that was made before. Raises `Refused` for what is none, or must not be used. Blocks.

    One that is read-only is opened as it is: its objects can be read. (ext4 does not always say so after an error, but refuses
    what would change it.)
    """
    layout = VolumeLayout(root)
    try:
        identity = layout.identity()
        for what, ours, found in (("cluster", cluster, identity.cluster), ("server", server, identity.server)):
            if found != ours:
                raise Refused(f"{root} is a volume of {what} {found!r}, and this is {what} {ours!r}")
        with _unless_read_only(root):
            # Before anything in it is opened: others must not get in by a folder that was open to them.
            layout.close_to_others()
        # Before `staging/` is emptied: another agent's copies would be taken from under it.
        lock = _lock(root)
        try:
            with _unless_read_only(root):
                _prepare(layout)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise Refused(f"cannot use {root} as a volume: {error.strerror}", error.errno) from error
    return LocalVolume(layout, identity, lock)


@contextmanager
def _unless_read_only(root: Path) -> Iterator[None]:
    """Ignores EROFS within the block, which changes the volume: a read-only one stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        log.warning("%s is read-only", root)


def _lock(root: Path) -> int:
    descriptor = open_regular(root / "volume.toml", os.O_RDONLY)
    try:
        # Never waited for: a second agent of this volume is a mistake that must be told.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Refused(f"{root} is in use by another agent", errno.EBUSY) from error
    return descriptor


def _prepare(layout: VolumeLayout) -> None:
    for folder in (layout.objects, layout.staging, layout.trash):
        folder.mkdir(mode=0o700, exist_ok=True)
    _empty_staging(layout)
    _require_xattrs(layout)


def _empty_staging(layout: VolumeLayout) -> None:
    left = sorted(layout.staging.iterdir())
    for path in left:
        # Nobody writes here without the lock: what is left is of an agent that was killed.
        path.unlink()
    if left:
        log.info("removed %d unfinished copies from %s", len(left), layout.staging)


def _require_xattrs(layout: VolumeLayout) -> None:
    probe = layout.staging / "xattr-probe"
    probe.touch()
    try:
        # On a real file of this file system: no flag of statfs says whether it takes user attributes.
        os.setxattr(probe, RECORD_XATTR, b"{}")
    except OSError as error:
        # EPERM, too: what some file systems say that have none for this kind of file.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        raise Refused(
            f"{layout.root}: its file system has no user extended attributes, in which objects keep their records; "
            "use ext4, xfs or btrfs",
            errno.EOPNOTSUPP,
        ) from error
    finally:
        probe.unlink()
