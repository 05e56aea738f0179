"""What README.md and docs/mission.md have people type in a lab, typed word by word."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cli import exits
from tests.support.runner import clean_environment

ROOT = Path(__file__).resolve().parents[2]
LAB = "/var/lib/godwit/lab"  # where the documents have it
LINE_S = 180.0  # for one line
HEADERS = Path("/usr/include/linux")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.skipif(not HEADERS.is_dir(), reason=f"no {HEADERS}: package linux-libc-dev"),
]


def block_after(heading: str, before: str) -> list[str]:
    """The lines of README's first shell block behind *before*, below a heading; without comments."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition(before)[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]


def cells() -> list[tuple[str, list[str]]]:
    """Of each row of docs/mission.md: what it is about, and the lines that let a person see it."""
    rows = [line.split(" | ") for line in (ROOT / "docs/mission.md").read_text().splitlines() if line.startswith("| ")][1:]
    # What names a document, or brings up a lab of its own, is typed by other tests.
    found = [(row[0].strip("| "), re.findall(r"`([^`]+)`", row[-1])) for row in rows]
    return [(what, lines) for what, lines in found if lines and not lines[0].startswith(("docs/", "./dev lab"))]


class Shell:
    """Types lines as somebody in the checkout would, to whom the lab at *root* is the one of the documents."""

    def __init__(self, root: Path, programs: Path) -> None:
        self.root = root
        programs.mkdir()
        program = programs / "godwit"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -bb -m cli.main "$@"\n')
        program.chmod(0o755)
        path = f"{programs}:{os.environ.get('PATH', os.defpath)}"
        self._environment = clean_environment(PATH=path, GODWIT_ROOT=str(root), M=str(root), PYTHONPATH=str(ROOT))

    def type(self, line: str) -> str:
        """What the line prints. It must end well, or say that something wants attention, or that nobody is in office yet."""
        ends = {0, exits.ATTENTION, *([exits.UNREACHABLE] if "manager show" in line else [])}
        line = line.replace(".venv/bin/godwit", "godwit").replace(LAB, str(self.root))
        with subprocess.Popen(
            ["bash", "-c", line],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                printed, _ = shell.communicate(timeout=LINE_S)
            finally:
                # With what it has in the background, such as the holder of a lock.
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
        assert shell.returncode in ends, f"{line}\n{printed}"
        return printed


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("typed")
    made = Shell(folder / "lab", folder / "programs")
    try:
        made.type("godwit lab up")
        yield made
    finally:
        made.type("godwit lab down --purge")
        shutil.rmtree(folder)


@pytest.mark.parametrize("lines", [lines for _what, lines in cells()], ids=[what for what, _lines in cells()])
def test_what_the_mission_is_can_be_seen(shell: Shell, lines: list[str]) -> None:
    for line in lines:
        shell.type(line)


def test_the_first_steps_are_as_the_readme_has_them(shell: Shell) -> None:
    lines = block_after("Try it", "Then, for example:")
    assert len(lines) > 10
    for line in lines:
        shell.type(line)
