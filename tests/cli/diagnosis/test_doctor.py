"""`godwit doctor` without a network: what it looks at, and how it says what it has found."""

from pathlib import Path

import msgspec
import pytest

from cli import exits
from cli.commands import doctor as command
from cli.commands.doctor import NOTHING_HERE, print_findings
from cli.diagnosis.checks import Check, Field, Verdict
from cluster.errors import Refused
from lab.lab import Lab
from tests.support.runner import godwit


def test_a_configuration_that_is_wrong_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "godwit.toml"
    file.write_text('colour = "red"\n')
    done = godwit("doctor", "--config", str(file))
    assert done.returncode == exits.ATTENTION
    assert "FAILED   configuration:" in done.stdout
    assert "colour" in done.stdout
    assert " kernel: Linux " in done.stdout


def test_without_any_configuration_the_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_lab() -> Lab:
        raise Refused("no lab is up")

    monkeypatch.setattr(command, "only_lab", only_lab)
    monkeypatch.setattr(command, "DEFAULT_CONFIG", tmp_path / "godwit.toml")
    done = godwit("doctor")
    assert done.stdout.endswith(f"{NOTHING_HERE}\n")
    assert {check["field"] for check in msgspec.json.decode(godwit("doctor", "--json").stdout)["checks"]} == {"machine"}


def test_a_lab_that_is_down_is_a_finding(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    done = godwit("doctor", "--root", str(lab.root))
    assert done.returncode == exits.ATTENTION
    assert "FAILED   lab: the lab at" in done.stdout


def test_a_lab_and_a_configuration_are_too_much() -> None:
    assert godwit("doctor", "--root", "/lab", "--config", "/etc/godwit/godwit.toml").returncode == 2


CHECKS = [
    Check(Field.MACHINE, "kernel", Verdict.OK, "Linux 6.18", "nothing to do about what is ok"),
    Check(Field.DISKS, "s1 /srv/godwit", Verdict.FAILURE, "words " * 30, "advice " * 30),
    Check(Field.DISKS, "s1 /srv/other", Verdict.WARNING, "several\nlines", ""),
    Check(Field.NETWORK, "owners", Verdict.NOTE, "something", "do it"),
]


def test_it_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(CHECKS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:3] == ["machine", "ok       kernel: Linux 6.18", "disks"]
    assert lines[3].startswith("FAILED   s1 /srv/godwit: words words")
    assert lines[-4:] == ["WARNING  s1 /srv/other: several lines", "network", "note     owners: something", "         -> do it"]
    assert not any("nothing to do" in line for line in lines)


def test_quiet_leaves_out_what_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(CHECKS, quiet=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "disks"
    assert not any(line.startswith("ok") for line in lines)
