"""`godwit status`: the first line and the exit code say whether all is well."""

import itertools
from pathlib import Path

import msgspec
import pytest

from cli import exits
from cli.commands import status as command
from cluster.errors import Unavailable
from cluster.membership import ServerState
from cluster.messages import ServerInfo, Space, Status, Volume
from tests.support.runner import godwit

GIB = 1 << 30
VOLUME = Volume(12, "storage-server-1", "/srv/godwit", "10.0.0.1:7401", 16384 * GIB, 9999 * GIB, "")
INFO = ServerInfo("storage-server-1", ["agent", "mount"], [VOLUME], 99_999, 0, 0.4, state=ServerState.SUSPECT)
WELL = Status("c", "s1", 1, "sqlite", [msgspec.structs.replace(INFO, state=ServerState.UP)], 1, 0, 0, 0, Space(0, 0, 0))
ILL = msgspec.structs.replace(WELL, servers=[INFO])


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Status | Unavailable]:
    """What the manager says, one after the other; then Ctrl-C is typed."""
    told: list[Status | Unavailable] = []

    def ask(*_arguments: object) -> Status:
        if not told:
            raise KeyboardInterrupt
        answer = told.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    monkeypatch.setattr(command, "find_target", lambda _root: tmp_path)
    monkeypatch.setattr(command, "ask", ask)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return told


@pytest.mark.parametrize(
    ("status", "code", "first"),
    [
        (WELL, 0, "OK  1 server up, 0 files and directories, nothing left to be done"),
        (ILL, exits.ATTENTION, "ATTENTION  storage-server-1 is silent (godwit servers show storage-server-1)"),
    ],
)
def test_the_first_line_and_the_exit_code(answers: list[object], status: Status, code: int, first: str) -> None:
    answers += [status, status]
    done = godwit("status")
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (code, first, "")
    said = msgspec.json.decode(godwit("status", "--json").stdout)
    assert said["ok"] is (code == 0)
    assert [finding["look"] for finding in said["findings"]] == [] if code == 0 else ["godwit servers show storage-server-1"]


def test_it_fits_80_characters(answers: list[object]) -> None:
    answers += [WELL, WELL]
    assert max(map(len, godwit("status").stdout.splitlines())) <= 80 + len("storage-server-1") - len("s1")
    assert "/srv/godwit" in godwit("status", "--long").stdout


def test_watching_goes_on_while_nobody_answers(answers: list[object]) -> None:
    answers += [WELL, Unavailable("no manager answers"), ILL]
    done = godwit("status", "--watch")
    assert done.returncode == exits.INTERRUPTED
    lines = itertools.groupby(line.split("  ")[0] for line in done.stdout.splitlines() if line.startswith(("OK", "ATT")))
    assert [key for key, _ in lines] == ["OK", "ATTENTION"]
    assert "ATTENTION  no manager answers\n" in done.stdout


def test_a_program_does_not_watch(answers: list[object]) -> None:
    done = godwit("status", "--watch", "--json")
    assert done.returncode == 2
    assert "leave out --json" in done.stderr
