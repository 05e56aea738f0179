"""The volumes of a server: whether each is there, and what its disk and its file system can do.

Each is looked at in a process of its own, for a bounded time: a disk that hangs is found out, and holds up nothing else. What is
tried is tried on a file without a name, or one in `staging/`, which an agent empties when it starts.
"""

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from cli.diagnosis.checks import Check, Field, Look, Verdict, judged
from cli.display.render import as_bytes
from cluster.config import ServerConfig
from cluster.errors import GodwitError
from cluster.mounted import mount_below
from cluster.volume.extents import allocate
from cluster.volume.fence import stops_writers
from cluster.volume.layout import RECORD_XATTR, VolumeLayout
from cluster.volume.room import is_nearly_full

NETWORK_KINDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs", "glusterfs"})
"""Of file systems that are on another machine, or may be; FUSE is looked at beside."""

FSYNCS = 5  # of a few KiB, whose median counts
FSYNC_NOTED_S = 0.1  # longer than any disk that works; a disk that others use much comes to it
FSYNC_WARNED_S = 1.0
FEW_INODES_PART = 50  # as agents have it
BLOCK = 64 * 1024
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # of linux/falloc.h


@dataclass(frozen=True)
class Volume:
    """What was found at the directory of a volume. `lacks`: what its file system cannot do, by name, and why."""

    path: str
    kind: str = ""  # of its file system
    whose: str = ""  # it is another cluster's or server's volume: this one's; empty: it is the right one
    is_read_only: bool = False
    total_bytes: int = 0
    free_bytes: int = 0
    inodes: int = 0  # 0: its file system has no bound
    free_inodes: int = 0
    errors: int | None = None  # that ext4 has counted; None: it is none, or does not tell
    lacks: Mapping[str, str] = field(default_factory=dict)
    fsync_s: float = 0.0
    has_fence: bool | None = None


LACKS = {
    "xattrs": (Verdict.FAILURE, "no user extended attributes, in which objects keep their records", "use ext4, xfs or btrfs"),
    "fallocate": (Verdict.NOTE, "no fallocate: programs that reserve room are refused", "use ext4, xfs or btrfs"),
    "holes": (Verdict.NOTE, "holes can be neither made nor found: sparse files take all their room", "use ext4, xfs or btrfs"),
}
"""What each lack means, and what to do."""


def examine_disks(config: ServerConfig, looked_s: float) -> Iterator[Check]:
    """All checks of a server's volumes; all of them are looked at at once."""
    if not config.agent.volumes:
        yield Check(Field.DISKS, config.server, Verdict.NOTE, "it has no volumes", "godwit volumes add DIR, if it is to have any")
    looks = [(path, Look(partial(look_at, path, config))) for path in config.agent.volumes]
    hung = "its disk hangs: dmesg, and look at the disk and its cables"
    for path, look in looks:
        yield from judged(Field.DISKS, f"{config.server} {path}", partial(_judge, config.server, path, look, looked_s), hung=hung)


def _judge(server: str, path: str, look: Look[Volume], looked_s: float) -> Iterator[Check]:
    return judge(f"{server} {path}", look.result(looked_s))


def judge(subject: str, found: Volume) -> Iterator[Check]:
    """What is wrong with a volume; if nothing is, that, with its figures."""
    wrong = [Check(Field.DISKS, subject, *each) for each in _wrong(found)]
    yield from wrong
    if not any(check.is_trouble for check in wrong):
        room = f"{as_bytes(found.free_bytes)} free of {as_bytes(found.total_bytes)}"
        yield Check(Field.DISKS, subject, Verdict.OK, f"{found.kind}, {room}, fsync {found.fsync_s * 1000:.1f} ms")


def _wrong(found: Volume) -> Iterator[tuple[Verdict, str, str]]:
    if found.whose:
        yield Verdict.FAILURE, f"it is {found.whose}", "mount the right disk there, or mend the configuration"
        return
    if found.errors:
        text = f"its file system has counted {found.errors} errors"
        yield Verdict.FAILURE, text, "dmesg, smartctl -a DISK; stop the agent, unmount it, fsck -f"
    if found.is_read_only:
        yield Verdict.FAILURE, "it is read-only", "dmesg: file systems become so by errors of their disks"
        return
    if is_nearly_full(found.total_bytes, found.free_bytes):
        text = f"nearly full: {as_bytes(found.free_bytes)} of {as_bytes(found.total_bytes)} left"
        yield Verdict.WARNING, text, "godwit migrate, a further volume (godwit volumes add), or a larger disk"
    if found.inodes and found.free_inodes < found.inodes // FEW_INODES_PART:
        text = f"nearly out of inodes: {found.free_inodes} of {found.inodes} left"
        yield Verdict.WARNING, text, "each file takes one: a file system made for more (mkfs.ext4 -i), on a further volume"
    if found.kind in NETWORK_KINDS or found.kind.startswith("fuse"):
        text = f"it is on {found.kind}: what fsync promises there, and how long it hangs, is another machine's affair"
        yield Verdict.WARNING, text, "use a disk of this machine"
    for lack, why in found.lacks.items():
        verdict, text, advice = LACKS[lack]
        yield verdict, f"{text} ({why})", advice
    if found.has_fence is False and not found.lacks:
        text = f"{found.kind} cannot stop writers whose lease has ended: files there are not passed through"
        yield Verdict.NOTE, text, "ext4 can; or [mount] unfenced (docs/passthrough.md)"
    yield from _slow(found.fsync_s)


def _slow(fsync_s: float) -> Iterator[tuple[Verdict, str, str]]:
    if fsync_s >= FSYNC_NOTED_S:
        verdict = Verdict.WARNING if fsync_s >= FSYNC_WARNED_S else Verdict.NOTE
        yield (
            verdict,
            f"an fsync takes {fsync_s * 1000:.0f} ms",
            "who uses the disk (iostat -x 1)? Is it failing (smartctl -a DISK)?",
        )


# ---------------------------------------------------------------------------------------------------------- looking


def look_at(path: str, config: ServerConfig) -> Volume:
    """What is there. Blocks, for ever if the disk does; raises `OSError`, `GodwitError` for a directory that is no volume."""
    layout = VolumeLayout(Path(path))
    try:
        identity = layout.identity()
    except GodwitError as error:
        return Volume(path, whose=f"no volume now ({error}; is its disk mounted?)")
    if (identity.cluster, identity.server) != (config.cluster, config.server):
        return Volume(path, whose=f"a volume of {identity.server} in cluster {identity.cluster!r}")
    status, mount = os.statvfs(path), mount_below(Path(os.path.realpath(path)))
    is_read_only = bool(status.f_flag & os.ST_RDONLY)
    lacks, fsync_s = ({}, 0.0) if is_read_only else _try(layout.staging)
    return Volume(
        path,
        mount.kind if mount else "unknown",
        is_read_only=is_read_only,
        total_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        inodes=status.f_files,
        free_inodes=status.f_favail,
        errors=_errors_of(os.stat(path).st_dev),
        lacks=lacks,
        fsync_s=fsync_s,
        has_fence=None if is_read_only else stops_writers(str(layout.staging)),
    )


def _errors_of(device: int) -> int | None:
    """How many errors ext4 has counted since the file system was made, or checked."""
    with suppress(OSError, ValueError):
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        return int(Path(f"/sys/fs/ext4/{name}/errors_count").read_text())
    return None


def _try(folder: Path) -> tuple[dict[str, str], float]:
    """What the file system of the folder lacks, and how long its fsync takes."""
    descriptor = _scratch(folder)
    try:
        return _lacks(descriptor), _fsync_s(descriptor)
    finally:
        os.close(descriptor)


def _scratch(folder: Path) -> int:
    """A file that nobody else sees, and that goes with its descriptor."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = folder / f"doctor-{os.getpid()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    name.unlink()
    return descriptor


def _lacks(descriptor: int) -> dict[str, str]:
    found = {}
    for name, trial in (("xattrs", _try_xattrs), ("fallocate", _try_fallocate), ("holes", _try_holes)):
        try:
            trial(descriptor)
        except OSError as error:
            # That a disk is full, or fails, is no lack.
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTTY):
                raise
            found[name] = os.strerror(error.errno)
    return found


def _try_xattrs(descriptor: int) -> None:
    os.setxattr(descriptor, RECORD_XATTR, b"{}")


def _try_fallocate(descriptor: int) -> None:
    allocate(descriptor, 0, 0, 2 * BLOCK)


def _try_holes(descriptor: int) -> None:
    os.pwrite(descriptor, b"x" * 2 * BLOCK, 0)
    allocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, BLOCK)
    if os.lseek(descriptor, 0, os.SEEK_DATA) != BLOCK:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _fsync_s(descriptor: int) -> float:
    """The median of some."""
    took = []
    for number in range(FSYNCS):
        os.pwrite(descriptor, b"%d" % number, number)
        before = time.monotonic()
        os.fsync(descriptor)
        took.append(time.monotonic() - before)
    return median(took)
