"""Mount points, looked at from outside: a dead or hung mount must never hang the lab."""

import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from lab.tools import ENVIRONMENT, tool

MOUNTINFO = Path("/proc/self/mountinfo")
POLL_S = 0.05


class Mounted(NamedTuple):
    """One mount of this machine."""

    path: Path
    kind: str


def parse_mountinfo(text: bytes) -> list[Mounted]:
    """The mounts in `/proc/self/mountinfo`, in its order (a later one lies over an earlier one)."""
    found = []
    for line in text.splitlines():
        before, _dash, after = line.partition(b" - ")
        path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
        found.append(Mounted(Path(os.fsdecode(path)), after.split(b" ")[0].decode()))
    return found


def mounts_below(root: Path) -> list[Mounted]:
    """What is mounted at *root* or below it."""
    return [mounted for mounted in parse_mountinfo(MOUNTINFO.read_bytes()) if mounted.path.is_relative_to(root)]


def is_fuse_mount(path: Path) -> bool:
    """Whether the uppermost mount at *path* is a FUSE file system, alive or dead."""
    at = [mounted.kind for mounted in parse_mountinfo(MOUNTINFO.read_bytes()) if mounted.path == path]
    return bool(at) and at[-1].startswith("fuse")


def detach(path: Path) -> None:
    """Unmounts every FUSE file system at *path*, in use or dead; applications that wait for one get errors."""
    while is_fuse_mount(path):
        tool(["umount", "--force", "--lazy", "--no-canonicalize", "--internal-only", "--", str(path)])


def answers(path: Path, timeout_s: float) -> bool:
    """Whether the FUSE mount at *path* tells its attributes and its space in time; asked by a child process."""
    if not is_fuse_mount(path):
        return False
    command = 'stat -- "$1" && stat --file-system -- "$1"'
    child = subprocess.Popen(
        ["sh", "-c", command, "sh", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    while (code := child.poll()) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if code is None:
        os.killpg(child.pid, 9)
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            return False
    return code == 0
