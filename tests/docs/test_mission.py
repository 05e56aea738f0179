"""What the documentation names is there: files, tests, and the commands that let a person see it."""

import re
from pathlib import Path

import pytest
import typer

from cli.main import app

ROOT = Path(__file__).resolve().parents[2]
MISSION = (ROOT / "docs/mission.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:cluster|manager|agent|fusefs|cli|lab|vagrant|tests|docs)/[\w./:]+)`", MISSION)))
COMMANDS = sorted(set(re.findall(r"`godwit ([a-z][a-z -]*[a-z])", MISSION)))


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).exists()
    assert not test or f"def {test}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("words", COMMANDS)
def test_the_commands_exist(words: str) -> None:
    command = typer.main.get_command(app)
    for word in words.split():
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            break
        assert word in subcommands, f"godwit {words}"
        command = subcommands[word]


def test_something_is_named() -> None:
    assert len(NAMED) > 40
    assert len(COMMANDS) > 8
