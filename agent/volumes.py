"""The volumes of this server: opened, checked and formatted at the start, numbered by the manager.

A volume is locked (`flock` on `volume.toml`) while an agent has it, so that two agents never work on one.
"""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from cluster.errors import Refused, Undone, refused
from cluster.messages import VolumeState
from cluster.volume.layout import RECORD_XATTR, VolumeLayout

log = logging.getLogger(__name__)

SMALL_IO_THREADS = 16
BULK_IO_THREADS = 8


class LocalVolume:
    """One open volume. `number` is 0 until the manager has registered it; `opened_as` is what it was when it was opened."""

    def __init__(self, layout: VolumeLayout, uuid: str, lock: int) -> None:
        self.layout = layout
        self.uuid = uuid
        self.number = 0
        self.opened_as = self._state()
        # Each volume has threads of its own, so that a disk that hangs stalls no other.
        self.small_io = trio.CapacityLimiter(SMALL_IO_THREADS)
        self.bulk_io = trio.CapacityLimiter(BULK_IO_THREADS)
        self._lock = lock

    def space(self) -> tuple[int, int]:
        """Total and free bytes of the file system, the latter as unprivileged users see it."""
        status = os.statvfs(self.layout.root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    def _state(self) -> VolumeState:
        total_bytes, free_bytes = self.space()
        device = f"{machine_name()}:{os.stat(self.layout.root).st_dev}"
        return VolumeState(self.uuid, os.fspath(self.layout.root), total_bytes, free_bytes, device)

    def close(self) -> None:
        os.close(self._lock)


class VolumeTable:
    """The volumes by number."""

    def __init__(self, volumes: Sequence[LocalVolume]) -> None:
        self.volumes = list(volumes)
        self._by_number: dict[int, LocalVolume] = {}

    def number(self, numbers: Sequence[int]) -> None:
        """Takes the manager's numbers, in the order of `volumes`."""
        if len(numbers) != len(self.volumes):
            raise Refused(f"the manager numbered {len(numbers)} volumes instead of {len(self.volumes)}")
        for volume, number in zip(self.volumes, numbers, strict=True):
            if volume.number != number:
                log.info("volume %d is %s", number, volume.layout.root)
            volume.number = number
        self._by_number = {volume.number: volume for volume in self.volumes}

    def get(self, number: int) -> LocalVolume | None:
        return self._by_number.get(number)

    def require(self, number: int) -> LocalVolume:
        """The volume; raises `Refused` if it is not this server's, `Undone` before the first registration."""
        volume = self._by_number.get(number)
        if volume is None:
            if self.volumes and not self._by_number:
                raise Undone("this agent has not reached a manager yet and does not know its volumes' numbers")
            raise refused(errno.ENXIO, f"this server has no volume {number}")
        return volume

    def close(self) -> None:
        for volume in self.volumes:
            volume.close()


def machine_name() -> str:
    """What tells this machine from others: volumes of several servers of a lab may share one disk."""
    try:
        name = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        name = ""
    return name or socket.gethostname()


def open_volume(root: Path, cluster: str, server: str) -> LocalVolume:
    """Opens a volume, formatting an empty directory first. Raises `Refused` for what must not be used as one."""
    layout = VolumeLayout(root)
    try:
        if not (root / "volume.toml").exists():
            identity = layout.format(cluster, server)
            log.info("made %s a volume", root)
        identity = layout.identity()
        for what, ours, found in (("cluster", cluster, identity.cluster), ("server", server, identity.server)):
            if found != ours:
                raise Refused(f"{root} is a volume of {what} {found!r}, and this is {what} {ours!r}")
        for folder in (layout.objects, layout.staging, layout.trash):
            folder.mkdir(mode=0o700, exist_ok=True)
        lock = _lock(root)
        try:
            _empty_staging(layout)
            _require_xattrs(layout)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise Refused(f"cannot use {root} as a volume: {error}", error.errno) from error
    return LocalVolume(layout, identity.uuid, lock)


def open_volumes(roots: Sequence[str], cluster: str, server: str) -> VolumeTable:
    """All volumes, or none and the first failure."""
    volumes: list[LocalVolume] = []
    try:
        volumes += (open_volume(Path(root), cluster, server) for root in roots)
    except BaseException:
        for volume in volumes:
            volume.close()
        raise
    return VolumeTable(volumes)


def _lock(root: Path) -> int:
    descriptor = os.open(root / "volume.toml", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Refused(f"{root} is in use by another agent", errno.EBUSY) from error
    return descriptor


def _empty_staging(layout: VolumeLayout) -> None:
    left = sorted(layout.staging.iterdir())
    for path in left:
        path.unlink()
    if left:
        log.info("removed %d unfinished copies from %s", len(left), layout.staging)


def _require_xattrs(layout: VolumeLayout) -> None:
    probe = layout.staging / "xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, RECORD_XATTR, b"{}")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        raise Refused(
            f"{layout.root}: its file system has no user extended attributes, in which objects keep their records; "
            "use ext4, xfs or btrfs",
            errno.EOPNOTSUPP,
        ) from error
    finally:
        probe.unlink()
