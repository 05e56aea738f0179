"""The facts about this machine that a figure means nothing without."""

import ctypes
import ctypes.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
        "pyfuse3": _package("pyfuse3"),
        "libfuse": _libfuse(),
        "git_commit": _commit(),
        "file_system": file_system(directory),
    }


def file_system(path: Path) -> str:
    """The type of the file system that holds *path*, such as ext4 or fuse.godwit."""
    best, kind = -1, "unknown"
    real = os.path.realpath(path)
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
        fields, _, rest = line.partition(" - ")
        # Octal escapes for blanks, as in `/proc/mounts`.
        mountpoint = fields.split()[4].encode(errors="surrogateescape").decode("unicode_escape")
        # The longest wins; of two at the same place the later, which lies above.
        if (real == mountpoint or real.startswith(mountpoint.rstrip("/") + "/")) and len(mountpoint) >= best:
            best, kind = len(mountpoint), rest.split()[0]
    return kind


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _libfuse() -> str:
    # Asked of the library itself: the package's version may be another than what is loaded.
    name = ctypes.util.find_library("fuse3")
    try:
        function = ctypes.CDLL(name).fuse_pkgversion if name else None
    except (OSError, AttributeError):
        function = None
    if function is None:
        return "none"
    function.restype = ctypes.c_char_p
    return str(function().decode())


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
