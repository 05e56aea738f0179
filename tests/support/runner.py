"""Runs the command line as a shell does: a process of its own."""

import os
import subprocess
import sys


def godwit(*arguments: str, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command; *environment* is laid over a clean one."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GODWIT_")}
    return subprocess.run(
        [sys.executable, "-bb", "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**clean, **environment},
        check=False,
    )
