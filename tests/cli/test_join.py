"""`godwit join` with a real manager: a machine becomes a server, once, and what it is told is all that it needs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import exits
from cluster.config import load_config
from cluster.trust.authority import Authority
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.tokens import JoinToken, new_secret, parse_token
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


def invite(lab: Lab, server: str, *more: str) -> str:
    """A token for a server."""
    token: str = json.loads(_godwit(lab, "servers", "add", server, *more))["token"]
    return token


def forged(lab: Lab) -> str:
    """A token of this network that no manager has made."""
    return str(JoinToken(TrustFolder(lab.config("s1").trust).read_authority().pin, new_secret()))


def join(lab: Lab, folder: Path, token: str, *more: str, server: str = "s9") -> subprocess.CompletedProcess[str]:
    """The command, on the machine that joins."""
    arguments = [
        *(
            "join",
            "--token-file",
            "-",
            "--server",
            server,
            "--address",
            address(lab),
            "--manager-port",
            f"75{NUMBERS.index(server):02}",
        ),
        *("--volume", str(folder / "vol"), "--mountpoint", str(folder / "mnt"), "--config", str(folder / "godwit.toml")),
    ]
    command = network.enter(machine(lab), [sys.executable, "-bb", "-m", "cli.main", *arguments, *more])
    return subprocess.run(command, input=token, capture_output=True, text=True, timeout=60, check=False)


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
        for part in PARTS if config.is_candidate else [part for part in PARTS if part != "manager"]:
            log = folder / f"{part}.log"
            parts[part] = (launch(program_of(part), folder / "godwit.toml", log, machine(lab)), log)
            running.append(parts[part][0])
        mounts.append(Path(config.mount.mountpoint))
        deadline_s = time.monotonic() + 60
        wait_for_parts(config.server, parts, config, deadline_s)
        wait_for_volumes(config, TrustFolder(config.trust), {config.server: config.agent.volumes}, deadline_s)

    yield start
    processes.end(running, 15)
    for mount in mounts:
        detach(mount)


def test_a_machine_joins_and_works(lab: Lab, tmp_path: Path, started: Callable[[Path], None]) -> None:
    """It asks a candidate that is not the manager, and is sent on. It becomes a candidate itself."""
    (lab.mount("s1") / "before").write_bytes(b"before")
    status = json.loads(_godwit(lab, "status"))
    other = next(server for server in lab.servers if server != status["manager"])
    token = invite(lab, "s9", "--candidate")
    done = join(lab, tmp_path, token, *manager_of(lab, other), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["server"] == "s9"
    master = TrustFolder(lab.config("s1").trust).read_master()
    assert not {word for word in (master.hex(), token, "PRIVATE") if word in done.stdout + done.stderr}
    assert (tmp_path / "godwit.toml").stat().st_mode & 0o777 == 0o600
    config = load_config(tmp_path / "godwit.toml")
    assert config.manager.database == lab.config("s1").manager.database
    trust = TrustFolder(config.trust)
    assert trust.read_master() == master
    assert trust.read_authority().pin in token
    modes = {path.name: path.stat().st_mode & 0o777 for path in trust.path.iterdir()}
    secret = {f"{role}.pem" for role in Role} | {"authority.pem", "master.key"}
    assert modes == dict.fromkeys(secret, 0o600) | {"authorities.pem": 0o644}
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
    assert done.returncode in (0, exits.ATTENTION), done
    return done.stdout


def test_wrong_used_and_foreign_tokens_are_told_apart(lab: Lab, tmp_path: Path) -> None:
    done = join(lab, tmp_path, forged(lab), *manager_of(lab, "s1"), server="s8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "godwit: this token is not good: it was used, taken back by a newer one, or mistyped\n"
    done = join(lab, tmp_path, invite(lab, "s7"), *manager_of(lab, "s1"), server="s8")
    assert done.stderr == "godwit: this token is for s7, not for s8\n"
    assert list(tmp_path.iterdir()) == []


def test_a_repeat_on_the_same_machine_is_let_in(lab: Lab, tmp_path: Path) -> None:
    """The first reply came, but the disk of the configuration was full, say."""
    token = invite(lab, "s6", "--candidate")
    assert join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s6").returncode == 0
    first = load_config(tmp_path / "godwit.toml")
    assert "was used" in join(lab, tmp_path / "elsewhere", token, *manager_of(lab, "s1"), server="s6").stderr
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
    arguments = ["join", "--server", "s4", "--address", address(lab), *manager_of(lab, "s1"), *manager_of(lab, "s2")]
    places = ["--manager-port", "7500", "--mountpoint", str(tmp_path / "mnt"), "--config", str(tmp_path / "godwit.toml")]
    command = network.enter(machine(lab), [sys.executable, "-m", "cli.main", *arguments, *places, "--timeout", "60"])
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "GODWIT_TOKEN": token}) as process:
        logs = [lab.log(server, "manager") for server in lab.servers]
        wait_until(lambda: any("is over" in log.read_text() for log in logs), "the term ends")
        lab.start("db")
        assert process.wait(60) == 0


def test_nobody_there_is_3_within_the_deadline(lab: Lab, tmp_path: Path) -> None:
    done = join(lab, tmp_path, forged(lab), "--manager", f"{address(lab)}:9", "--timeout", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no manager let s9 in within 1 s" in done.stderr
    # The keys: as far as this machine can know, the token was used for them.
    assert [path.name for path in tmp_path.iterdir()] == ["trust"]


def test_the_token_is_no_argument_and_a_wrong_pin_is_no_network(lab: Lab, tmp_path: Path) -> None:
    token = invite(lab, "s8")
    done = join(lab, tmp_path, "", token, *manager_of(lab, "s1"), server="s8")
    assert done.returncode == 2
    other = str(JoinToken(Authority.make("other").pin, parse_token(token).secret))
    done = join(lab, tmp_path, other, *manager_of(lab, "s1"), server="s8")
    assert done.returncode == 1
    assert "its certificate authority has another key" in done.stderr
    for wrong, reason in (("hunter2", "is no token to join with"), (token[:-1], "mistyped or cut off")):
        done = join(lab, tmp_path, wrong, *manager_of(lab, "s1"), server="s8")
        assert (done.returncode, reason in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
    # None of that has used it up.
    assert join(lab, tmp_path, token, *manager_of(lab, "s1"), server="s8").returncode == 0


def test_a_server_that_is_no_candidate_works_without_the_database(
    lab: Lab, tmp_path: Path, started: Callable[[Path], None]
) -> None:
    done = join(lab, tmp_path, invite(lab, "s7"), *manager_of(lab, "s1"), "--json", server="s7")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manager"] is None
    config = load_config(tmp_path / "godwit.toml")
    assert not config.is_candidate
    text = (tmp_path / "godwit.toml").read_text()
    assert not [word for word in ("postgresql", "7502") if word in text]
    kept = {path.name for path in Path(config.trust).iterdir()}
    assert kept == {"agent.pem", "mount.pem", "admin.pem", "authorities.pem"}
    started(tmp_path)
    (tmp_path / "mnt" / "from-s7").write_bytes(b"content")
    assert (lab.mount("s2") / "from-s7").read_bytes() == b"content"
    details = json.loads(_godwit(lab, "servers", "show", "s7"))["server"]
    assert (details["manager_address"], details["state"], sorted(details["roles"])) == ("", "up", ["agent", "mount"])
    run = [sys.executable, "-m", "cli.main", "run", "manager", "--config", str(tmp_path / "godwit.toml")]
    refused = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "s7 is no candidate" in refused.stderr
    units = subprocess.run(
        [*run[:3], "units", "--config", run[-1]], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    assert "run agent" in units
    assert "godwit-manager" not in units.replace("After=network-online.target godwit-manager.service", "")
    backup = [*run[:3], "db", "backup", str(tmp_path / "backup"), "--config", run[-1]]
    assert "does not know the catalog's database" in subprocess.run(backup, capture_output=True, text=True, check=False).stderr
