"""What is mounted on this machine, looked at without touching any mount: a dead or hung one must hang nobody who looks."""

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")  # not `/etc/mtab` or stat: neither may touch a mount, which may hang
COVER = "godwit-unmounted"  # see `cluster.mountpoint`


class Mounted(NamedTuple):
    """One mount of this machine."""

    path: Path  # where it is mounted
    kind: str  # of file system, as `fuse.godwit` or `ext4`
    source: str  # what is mounted; COVER for a cover
    device: str  # the number of its file system, `major:minor`

    @property
    def is_fuse(self) -> bool:
        return self.kind.startswith("fuse")

    @property
    def is_cover(self) -> bool:
        """Whether it only keeps programs from the bare directory."""
        return self.source == COVER


def parse_mountinfo(text: bytes) -> list[Mounted]:
    """The mounts in `/proc/self/mountinfo`, in its order (a later one lies over an earlier one)."""
    found = []
    for line in text.split(b"\n")[:-1]:
        # Before the dash stands a varying number of optional fields, after it what has fixed places.
        before, _dash, after = line.partition(b" - ")
        # The kernel writes blank, tab, newline and backslash of a path as octal numbers.
        fields = before.split(b" ")
        path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
        kind, _space, rest = after.partition(b" ")
        source = rest.partition(b" ")[0]
        found.append(Mounted(Path(os.fsdecode(path)), os.fsdecode(kind), os.fsdecode(source), os.fsdecode(fields[2])))
    return found


def uppermost(path: Path) -> Mounted | None:
    """The mount at *path* that programs meet; None if nothing is mounted just there."""
    at = [mounted for mounted in parse_mountinfo(MOUNTINFO.read_bytes()) if mounted.path == path]
    return at[-1] if at else None


def mount_below(path: Path) -> Mounted | None:
    """The mount that *path* lies on, which must be absolute and without links; None if there is none at all."""
    # Of mounts at the same place the last lies above the others.
    lying = [mounted for mounted in parse_mountinfo(MOUNTINFO.read_bytes()) if path.is_relative_to(mounted.path)]
    return max(enumerate(lying), key=lambda each: (len(each[1].path.parts), each[0]), default=(0, None))[1]
