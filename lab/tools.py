"""What a lab needs of the machine, said by name when it is missing, and how its programs are called."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import GodwitError, Refused

# program: Debian's package, for the message
TOOLS = {"ip": "iproute2", "bridge": "iproute2", "nsenter": "util-linux", "umount": "mount", "stat": "coreutils"}
TOOL_TIMEOUT_S = 20.0  # none of these waits for anything but the kernel
# LC_ALL=C: complaints are shown as they are. The sbin folders: not in the PATH of an ordinary user's sudo everywhere.
ENVIRONMENT = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"}


class ToolFailed(GodwitError):
    """A system tool said no."""


def require_root() -> None:
    """Raises `Refused` that says what a lab needs root for."""
    if os.geteuid() != 0:
        raise Refused(
            "a lab needs root, for network namespaces and FUSE mounts: try again with sudo, or in a container with "
            "CAP_SYS_ADMIN, CAP_NET_ADMIN and /dev/fuse"
        )


def require_tools() -> None:
    """Raises `Refused` with what this machine lacks for a lab."""
    missing = [f"{tool} (package {package})" for tool, package in TOOLS.items() if not _which(tool)]
    if not Path("/dev/fuse").exists():
        missing.append("/dev/fuse (modprobe fuse)")
    if missing:
        raise Refused("a lab needs what is missing here: " + ", ".join(missing))


def tool(argv: Sequence[str], feed: str = "", timeout_s: float = TOOL_TIMEOUT_S) -> str:
    """Runs a system tool and returns what it printed; raises `ToolFailed` with what it complained about."""
    try:
        done = subprocess.run(
            list(argv), input=feed, capture_output=True, text=True, timeout=timeout_s, check=False, env=ENVIRONMENT
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{' '.join(argv)} did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise ToolFailed(f"cannot run {argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        # The first line: `ip -batch` follows it up with the number of the command.
        complaint = done.stderr.strip().splitlines()
        raise ToolFailed(f"{' '.join(argv)}: {complaint[0] if complaint else f'exit code {done.returncode}'}")
    return done.stdout


def _which(name: str) -> str | None:
    return shutil.which(name, path=ENVIRONMENT["PATH"])
