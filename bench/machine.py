"""The facts about this machine that a figure means nothing without."""

import os
import platform
import subprocess
from pathlib import Path

from cli.diagnosis.machine import libfuse_version, version_of
from cluster.mounted import mount_below

SOURCE = Path(__file__).resolve().parent.parent


def machine_facts(directory: Path) -> dict[str, str | int | float]:
    """Kernel, processor, versions, and the file system that holds *directory*."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),  # those that this process may use, not those of the machine
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "pyfuse3": version_of("pyfuse3") or "none",
        "libfuse": libfuse_version() or "none",
        "git_commit": _commit(),
        "file_system": file_system(directory),
    }


def file_system(path: Path) -> str:
    """The type of the file system that holds *path*, such as ext4 or fuse.godwit."""
    mount = mount_below(Path(os.path.realpath(path)))
    return mount.kind if mount else "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        head = subprocess.run(
            # --exclude=*: the commit, never a tag. -dirty: the figures are of no commit.
            ("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
            cwd=SOURCE,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() or "unknown"
