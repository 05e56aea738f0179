"""Running programs, and saying what is missing when one is."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

TIMEOUT_S = 240
SHOWN_CHARACTERS = 6000


def need(program: str, package: str) -> str:
    """The path of *program*; fails the test with what to install if there is none."""
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is missing: apt-get install {package}, or let ./dev setup do it")
    return found


def run(argv: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """Runs a program to its end; returns what it printed. Fails the test with its words if the program fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GIT_", "PIP_"))}
    done = subprocess.run(
        [os.fspath(part) if isinstance(part, Path) else str(part) for part in argv],
        cwd=cwd,
        env={**inherited, "LC_ALL": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout[-SHOWN_CHARACTERS:]}"
    return done.stdout
