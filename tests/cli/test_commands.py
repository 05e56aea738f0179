"""What the command line says of itself, and of what is wrong."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from cli import exits
from cli.main import app, main
from cluster.config import write_config
from cluster.errors import Refused
from lab.lab import Lab
from lab.network import Network
from lab.registry import register, unregister
from lab.state import LabState, read_state, server_config, server_names, write_state
from tests.support.runner import godwit, godwit_process


def all_commands() -> list[tuple[str, ...]]:
    """Every command and group, by name."""
    found: list[tuple[str, ...]] = []

    def visit(command: object, path: tuple[str, ...]) -> None:
        found.append(path)
        for name, inner in getattr(command, "commands", {}).items():
            visit(inner, (*path, name))

    visit(typer.main.get_command(app), ())
    return found


def test_the_commands_are_what_the_documentation_says() -> None:
    text = Path(__file__, "../../../docs/cli.md").resolve().read_text()
    for command in all_commands():
        assert " ".join(("godwit", *command)) in text, command


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="godwit")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: {' '.join(('godwit', *command))}")
    assert "Options:" in done.stdout
    group = "Commands:" in done.stdout
    assert group or "Example" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("queue", "ls", "--state", "asleep"),
        ("queue", "show", "seven"),
        ("queue", "retry"),
        ("queue", "retry", "7", "--all"),
        ("where",),
        ("where", "/tmp", "--ino", "1"),
        ("policy", "set", "/tmp"),
        ("policy", "set", "/tmp", "--copies", "0"),
        ("policy", "set", "/tmp", "--copies", "2", "--inherit"),
        ("policy", "set", "/tmp", "--names", "through", "--inherit"),
        ("policy", "set", "/tmp", "--names", "never"),
        ("lab", "up", "--names", "never"),
        ("status", "--timeout", "soon"),
        ("lab", "kill", "s1", "everything"),
        ("run",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, arguments, prog_name="godwit")
    assert done.exit_code == 2, done.output
    assert "Usage: godwit" in done.output


@pytest.mark.parametrize("part", ["mount", "agent", "manager"])
def test_a_wrong_configuration_key_is_named(part: str, tmp_path: Path) -> None:
    config = tmp_path / "godwit.toml"
    config.write_text('cluster = "x"\nserver = "s1"\nmanagers = ["h:1"]\ncolour = "red"\n')
    done = godwit("run", part, "--config", str(config))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(config) in done.stderr
    assert "colour" in done.stderr


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    done = godwit_process("run", "agent", "--config", str(tmp_path / "nowhere.toml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"godwit: cannot read the configuration {tmp_path}/nowhere.toml: No such file or directory\n"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_it_says_which_one_it_is(option: str) -> None:
    done = godwit(option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"godwit {version('godwit')}\n", "")


def test_a_failed_system_call_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind: with a file, with two, with none."""
    missing = tmp_path / "missing"
    for work, words in [
        (missing.read_bytes, f"{missing}: No such file or directory"),
        (lambda: missing.rename(tmp_path / "other"), f"{missing} -> {tmp_path}/other: No such file or directory"),
        (lambda: os.write(-1, b""), "Bad file descriptor"),
    ]:
        monkeypatch.setattr("cli.main.app", lambda work=work, **_: work())
        done = godwit("status")
        assert (done.returncode, done.stderr) == (exits.FAILURE, f"godwit: {words}\n")


def fake_lab(root: Path, manager: str) -> Lab:
    """A lab that seems to be up, whose managers are at *manager*."""
    lab = Lab.create(root, servers=2)
    network = Network(lab.tag, "10.64.0.0/24")
    state: LabState = msgspec.structs.replace(read_state(lab.root), network=network)
    write_state(lab.root, state)
    for server in server_names(state):
        config = msgspec.structs.replace(server_config(lab.root, state, network, server), managers=[manager])
        write_config(lab.config_path(server), config)
    register(lab.root)
    return lab


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_manager_that_does_not_answer_is_3_within_the_deadline(
    listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: how long another takes to start says how busy the machine is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        lab = fake_lab(tmp_path / "lab", address)
        try:
            for command in (("status",), ("where", str(lab.mount("s2") / "a" / "b"))):
                monkeypatch.setattr(sys, "argv", ["godwit", *command, "--root", str(lab.root), "--timeout", "1"])
                before = time.monotonic()
                with pytest.raises(SystemExit) as ended:
                    main()
                assert time.monotonic() - before < 6
                said = capsys.readouterr()
                assert (ended.value.code, said.out) == (3, ""), said
                assert said.err.count("\n") == 1
                assert address in said.err
                assert "godwit lab start" in said.err
        finally:
            unregister(lab.root)


def test_a_lab_that_is_down_is_3_at_once(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    done = godwit("status", GODWIT_ROOT=str(lab.root))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"godwit: the lab at {lab.root} is down (try: godwit lab up --root {lab.root})\n"


def test_a_path_outside_the_network_is_refused(tmp_path: Path) -> None:
    lab = fake_lab(tmp_path / "lab", "127.0.0.1:1")
    try:
        done = godwit("where", str(tmp_path), "--root", str(lab.root))
    finally:
        unregister(lab.root)
    assert done.returncode == 1
    assert "is on no mount of this network" in done.stderr


def test_json_is_one_object() -> None:
    done = godwit("lab", "ls", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["labs"], list)


def test_without_root_a_lab_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    lab = Lab.create(tmp_path / "lab", servers=1)
    actions: list[Callable[[], None]] = [
        lab.up,
        lab.down,
        partial(lab.kill, "s1"),
        partial(lab.start, "s1"),
        partial(lab.cut, "s1"),
    ]
    for action in actions:
        with pytest.raises(Refused, match=r"a lab needs root.*CAP_SYS_ADMIN"):
            action()
