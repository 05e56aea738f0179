"""What docs/operations.md says to type is what the commands take, and what the setup of the virtual machines types."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from cli.main import app
from cluster.config import AgentConfig, ManagerConfig, MountConfig

ROOT = Path(__file__, "../../..").resolve()
TEXT = (ROOT / "docs/operations.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The words of every call of godwit in shell scripts."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"(?m)^\s*(?:GODWIT_TOKEN=\S+ )?(godwit (?:init|join|units|status|servers|manager)\b.*)$", joined)
    return [shlex.split(line, comments=True) for line in found]


DOCUMENTED = [words for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for words in commands(block)]
TYPED = [words for script in sorted((ROOT / "vagrant").glob("*.sh")) for words in commands(script.read_text())]


def options_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


@pytest.mark.parametrize("words", DOCUMENTED + TYPED, ids=" ".join)
def test_a_documented_command_exists_with_its_options(words: list[str]) -> None:
    command = typer.main.get_command(app)
    for word in words[1:]:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert command.name in words
    assert options_of(words) <= known


@pytest.mark.parametrize("verb", ["init", "join", "units"])
def test_the_virtual_machines_are_set_up_with_the_documented_commands(verb: str) -> None:
    documented = [options_of(words) for words in DOCUMENTED if words[1] == verb]
    typed = [options_of(words) for words in TYPED if words[1] == verb]
    assert typed
    assert all(options in documented for options in typed)


def test_the_settings_that_are_named_exist() -> None:
    sections = {"manager": ManagerConfig, "agent": AgentConfig, "mount": MountConfig}
    named = re.findall(r"`(manager|agent|mount)\.(\w+)`", TEXT)
    assert len(named) > 2
    assert all(name in sections[section].__struct_fields__ for section, name in named)
