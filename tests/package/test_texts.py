"""What goes into packages beside the program: manual pages of all commands, sound scripts, units for the default places."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.commands.units import UNITS
from cli.main import app

PACKAGE = Path(__file__, "../../../package").resolve()
SCRIPTS = [*sorted((PACKAGE / "scripts").iterdir()), PACKAGE / "in-root"]


def written(program: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PACKAGE / program), str(folder)], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """Name and command of everything that can be typed."""
    inner = getattr(command, "commands", {})
    return [(name, command), *(one for word, found in inner.items() for one in commands(found, f"{name}-{word}"))]


def test_every_command_has_a_manual_page_with_all_its_options(tmp_path: Path) -> None:
    written("manuals.py", tmp_path)
    all_of_them = commands(typer.main.get_command(app), "godwit")
    assert len(all_of_them) > 60
    assert {path.name for path in (tmp_path / "man1").iterdir()} == {f"{name}.1.gz" for name, _command in all_of_them}
    for name, command in all_of_them:
        text = gzip.decompress((tmp_path / f"man1/{name}.1.gz").read_bytes()).decode()
        for option in command.params:
            for word in option.opts if option.param_type_name == "option" and not option.hidden else []:
                assert word.replace("-", "\\-") in text, f"{name}: {word}"


def test_roff_has_nothing_to_complain_of(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("no groff: package groff-base")
    written("manuals.py", tmp_path)
    for path in (tmp_path / "man1/godwit.1.gz", tmp_path / "man1/godwit-init.1.gz", tmp_path / "man8/mount.godwit.8.gz"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", "-rLL=80n"],
            input=gzip.decompress(path.read_bytes()),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), path.name


def test_the_units_are_those_of_a_server_at_the_default_places(tmp_path: Path) -> None:
    written("units.py", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(UNITS)
    for path in tmp_path.iterdir():
        text = path.read_text()
        # Those of `godwit units` are taken away with the package, by this line.
        assert "Written by `godwit units`" not in text
        assert " of its network" in text or path.suffix == ".service"
    mount = (tmp_path / "godwit-mount.service").read_text()
    assert "ExecStart=/usr/bin/godwit run mount --config /etc/godwit/godwit.toml $GODWIT_OPTIONS\n" in mount
    assert "ConditionPathExists=/etc/godwit/godwit.toml\n" in mount


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=sh", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_dev_says_how_to_build_them() -> None:
    done = subprocess.run([str(PACKAGE.parent / "dev"), "help"], capture_output=True, text=True, check=True)
    assert "package [" in done.stdout
