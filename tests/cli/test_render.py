"""How names, sizes and tables are shown."""

import json
import os

import pytest

from cli.display.render import as_age, as_bytes, as_shown, as_text, print_facts, print_json, print_table


def test_names_survive_json(capsys: pytest.CaptureFixture[str]) -> None:
    name = b"caf\xc3\xa9 \xff\n\x1b[31m"
    print_json({"path": as_text(name)})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert os.fsencode(json.loads(printed)["path"]) == name


def test_names_cannot_command_the_terminal() -> None:
    assert as_shown(b"caf\xc3\xa9") == "café"
    assert as_shown(b"\x1b[31m\n\xff") == r"\x1b[31m\n\xff"


def test_a_piped_table_is_plain_and_never_wraps(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "SIZE"), [("x" * 300, 1), ("[bold]y[/bold]", 20)], right=("SIZE",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE"]
    assert lines[1].split() == ["x" * 300, "1"]
    assert lines[2].split() == ["[bold]y[/bold]", "20"]
    assert len({len(line) for line in lines}) == 1


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", 1), ("long", "two")])
    assert capsys.readouterr().out == "a     1\nlong  two\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (2**60, "1024.0 PiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert as_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (120, "2 min"), (7200, "2.0 h"), (31536000, "365 days")]
)
def test_ages(seconds: float, text: str) -> None:
    assert as_age(seconds) == text
