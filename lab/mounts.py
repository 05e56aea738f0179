"""Mount points, looked at from outside: a dead or hung mount must never hang the lab."""

import os
import subprocess
import time
from pathlib import Path

from cluster.mounted import MOUNTINFO, Mounted, parse_mountinfo, uppermost
from lab.tools import ENVIRONMENT, tool

POLL_S = 0.05  # a child that answers does so within milliseconds


def mounts_below(root: Path) -> list[Mounted]:
    """What is mounted at *root* or below it."""
    return [mounted for mounted in parse_mountinfo(MOUNTINFO.read_bytes()) if mounted.path.is_relative_to(root)]


def is_fuse_mount(path: Path) -> bool:
    """Whether the uppermost mount at *path* is a FUSE file system, alive or dead."""
    upper = uppermost(path)
    return upper is not None and upper.is_fuse


def detach(path: Path) -> None:
    """Unmounts every FUSE file system at *path*, in use or dead; applications that wait for one get errors."""
    # A part that is started twice mounts twice, one above the other.
    while is_fuse_mount(path):
        # --force aborts the FUSE connection, which wakes who waits for a dead mount; --lazy takes it out of the tree also while
        # it is in use. --no-canonicalize and --internal-only keep umount from a stat of the path, and from helpers, which would
        # hang.
        tool(["umount", "--force", "--lazy", "--no-canonicalize", "--internal-only", "--", str(path)])


def uncover(path: Path) -> None:
    """Unmounts the cover of the bare directory at *path*, if nothing is mounted above it."""
    # Only from the top: what lies above a cover is not ours to take.
    while (upper := uppermost(path)) is not None and upper.is_cover:
        tool(["umount", "--lazy", "--no-canonicalize", "--internal-only", "--", str(path)])


def answers(path: Path, timeout_s: float) -> bool:
    """Whether the FUSE mount at *path* tells its attributes and its space in time; asked by a child process."""
    if not is_fuse_mount(path):
        return False
    command = 'stat -- "$1" && stat --file-system -- "$1"'
    # A child, since a thread in a hung stat cannot be given up, and would keep this process from ending.
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
        # The group, with the stat that `sh` has started. SIGKILL ends a wait for FUSE, unless the daemon holds the request.
        os.killpg(child.pid, 9)
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            # It cannot be killed now; it ends when the mount is aborted, and is reaped by `subprocess` later.
            return False
    return code == 0
