"""`godwit join` with a real manager: a machine becomes a server, once, and what it is told is all that it needs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.invitations import new_token
from cluster.volume.layout import VolumeLayout
from lab import network, processes
from lab.database import PROGRAMS
from lab.lab import Lab
from lab.launch import launch, program_of, wait_for_parts, wait_for_volumes
from lab.mounts import detach
from lab.state import PARTS, read_state
from tests.support.conditions import wait_until
from tests.support.runner import godwit

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.skipif(not list(PROGRAMS.glob("*/bin/postgres")), reason="no PostgreSQL: package postgresql"),
]

MACHINE = "s9"
NUMBER = 9
NUMBERS = ["s4", "s5", "s6", "s7", "s8", "s9"]  # one machine plays them all, each at a port of its own


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two servers, and the network of a machine that is none yet."""
    made = Lab.create(tmp_path_factory.mktemp("join") / "lab", servers=2, db="postgresql", overrides={"mount": {"renew_s": 6}})
    try:
        made.up()
        built = read_state(made.root).network
        assert built is not None
        network.plug_in(built, MACHINE, NUMBER, route_out=False)
        yield made
    finally:
        made.down(purge=True)


def machine(lab: Lab) -> str:
    """The namespace of the machine that joins."""
    return f"godwit-{lab.tag}-{MACHINE}"


def address(lab: Lab) -> str:
    return lab.address("s1").rpartition(".")[0] + f".{NUMBER}"


def invite(lab: Lab, server: str) -> str:
    """A token for a server."""
    token: str = json.loads(_godwit(lab, "servers", "add", server))["token"]
    return token


def join(lab: Lab, folder: Path, token: str, *more: str, server: str = "s9") -> subprocess.CompletedProcess[str]:
    """The command, on the machine that joins."""
    arguments = [
        *("join", token, "--server", server, "--address", address(lab), "--manager-port", f"75{NUMBERS.index(server):02}"),
        *("--volume", str(folder / "vol"), "--mountpoint", str(folder / "mnt"), "--config", str(folder / "godwit.toml")),
    ]
    command = network.enter(machine(lab), [sys.executable, "-bb", "-m", "cli.main", *arguments, *more])
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def manager_of(lab: Lab, server: str) -> tuple[str, str]:
    return "--manager", lab.config(server).manager.listen


@pytest.fixture
def started(lab: Lab) -> Iterator[Callable[[Path], None]]:
    """Runs what systemd would run."""
    running: list[processes.ProcessId] = []
    mounts: list[Path] = []

    def start(folder: Path) -> None:
        config = load_config(folder / "godwit.toml")
        parts = {}
        for part in PARTS:
            log = folder / f"{part}.log"
            parts[part] = (launch(program_of(part), folder / "godwit.toml", log, machine(lab)), log)
            running.append(parts[part][0])
        mounts.append(Path(config.mount.mountpoint))
        deadline_s = time.monotonic() + 60
        wait_for_parts(config.server, parts, config, deadline_s)
        wait_for_volumes(config, {config.server: config.agent.volumes}, deadline_s)

    yield start
    processes.end(running, 15)
    for mount in mounts:
        detach(mount)


def test_a_machine_joins_and_works(lab: Lab, tmp_path: Path, started: Callable[[Path], None]) -> None:
    """It asks a candidate that is not the manager, and is sent on."""
    (lab.mount("s1") / "before").write_bytes(b"before")
    status = json.loads(_godwit(lab, "status"))
    other = next(server for server in lab.servers if server != status["manager"])
    token = invite(lab, "s9")
    done = join(lab, tmp_path, token, *manager_of(lab, other), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["server"] == "s9"
    secret = lab.config("s1").secret
    assert secret not in done.stdout + done.stderr
    assert (tmp_path / "godwit.toml").stat().st_mode & 0o777 == 0o600
    config = load_config(tmp_path / "godwit.toml")
    assert (config.secret, config.manager.database) == (secret, lab.config("s1").manager.database)
    assert set(config.managers) == {*lab.config("s1").managers, f"{address(lab)}:7505"}
    assert config.mount.renew_s == 6
    assert VolumeLayout(tmp_path / "vol").identity().cluster == lab.config("s1").cluster
    started(tmp_path)
    assert (tmp_path / "mnt" / "before").read_bytes() == b"before"
    (tmp_path / "mnt" / "after").write_bytes(b"after")
    assert (lab.mount("s2") / "after").read_bytes() == b"after"
    names = {info["server"] for info in json.loads(_godwit(lab, "servers", "ls"))["servers"]}
    assert names == {"s1", "s2", "s9"}


def _godwit(lab: Lab, *arguments: str) -> str:
    done = godwit(*arguments, "--json", "--root", str(lab.root))
    assert done.returncode == 0, done
    return done.stdout


def test_wrong_used_and_foreign_tokens_are_told_apart(lab: Lab, tmp_path: Path) -> None:
    done = join(lab, tmp_path, new_token(), *manager_of(lab, "s1"), server="s8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "godwit: this token is not good: it was used, taken back by a newer one, or mistyped\n"
    done = join(lab, tmp_path, invite(lab, "s7"), *manager_of(lab, "s1"), server="s8")
    assert done.stderr == "godwit: this token is for s7, not for s8\n"
    assert list(tmp_path.iterdir()) == []


def test_a_repeat_on_the_same_machine_is_let_in(lab: Lab, tmp_path: Path) -> None:
    """The first reply came, but the disk of the configuration was full, say."""
    token = invite(lab, "s6")
    assert join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s6").returncode == 0
    first = load_config(tmp_path / "godwit.toml")
    (tmp_path / "godwit.toml").unlink()
    done = join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s6")
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "godwit.toml") == first


def test_the_token_is_not_used_up_by_what_is_wrong_here(lab: Lab, tmp_path: Path) -> None:
    token = invite(lab, "s5")
    (tmp_path / "vol").mkdir()
    (tmp_path / "vol" / "photo").touch()
    done = join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s5")
    assert done.returncode == 1
    assert "photo" in done.stderr
    (tmp_path / "vol" / "photo").unlink()
    assert join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s5").returncode == 0


def test_a_manager_that_comes_back_is_waited_for(lab: Lab, tmp_path: Path) -> None:
    token = invite(lab, "s4")
    lab.kill("db")
    arguments = ["join", token, "--server", "s4", "--address", address(lab), *manager_of(lab, "s1"), *manager_of(lab, "s2")]
    places = ["--manager-port", "7500", "--mountpoint", str(tmp_path / "mnt"), "--config", str(tmp_path / "godwit.toml")]
    command = network.enter(machine(lab), [sys.executable, "-m", "cli.main", *arguments, *places, "--timeout", "60"])
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        logs = [lab.log(server, "manager") for server in lab.servers]
        wait_until(lambda: any("is over" in log.read_text() for log in logs), "the term ends")
        lab.start("db")
        assert process.wait(60) == 0


def test_nobody_there_is_3_within_the_deadline(lab: Lab, tmp_path: Path) -> None:
    done = join(lab, tmp_path, new_token(), "--manager", f"{address(lab)}:9", "--timeout", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no manager let s9 in within 1 s" in done.stderr
    assert list(tmp_path.iterdir()) == []
