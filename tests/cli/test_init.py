"""`godwit init`: everything or nothing, and never twice."""

import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.trust.folder import TrustFolder
from cluster.volume.layout import VolumeLayout
from tests.support.runner import godwit, godwit_process, heed_interrupts


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A good `init` of a single server."""
    return [
        "init",
        *("--cluster", "here", "--server", "s1", "--address", "127.0.0.1"),
        *("--volume", str(tmp_path / "vol1"), "--volume", str(tmp_path / "vol2"), "--mountpoint", str(tmp_path / "mnt")),
        *("--database", f"sqlite:///{tmp_path}/catalog.db", "--config", str(tmp_path / "etc/godwit/godwit.toml")),
    ]


def left(folder: Path) -> set[str]:
    """The names of what is in a folder."""
    return {path.name for path in folder.iterdir()}


def test_the_first_server_is_made(arguments: list[str], tmp_path: Path) -> None:
    done = godwit_process(*arguments)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "etc/godwit/godwit.toml"
    assert f"godwit units --install --config {path}\n" in done.stdout
    assert "no other server can become the manager" in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "catalog.db").stat().st_mode) == 0o600
    assert left(path.parent) == {"godwit.toml", "trust"}
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in (path.parent / "trust").iterdir()}
    secrets = {"manager.pem", "agent.pem", "mount.pem", "admin.pem", "authority.pem", "master.key"}
    assert modes == dict.fromkeys(secrets, 384) | {"authorities.pem": 0o644}
    config = load_config(path)
    assert (config.cluster, config.server, config.managers) == ("here", "s1", ["127.0.0.1:7400"])
    assert (config.manager.listen, config.agent.listen) == ("127.0.0.1:7400", "127.0.0.1:7401")
    assert config.agent.volumes == [str(tmp_path / "vol1"), str(tmp_path / "vol2")]
    assert VolumeLayout(tmp_path / "vol2").identity().cluster == "here"
    assert (tmp_path / "mnt").is_dir()


def test_each_network_has_a_secret_of_its_own_and_no_output_shows_it(arguments: list[str], tmp_path: Path) -> None:
    secrets = set()
    for number in ("one", "two"):
        here = [word.replace(str(tmp_path), str(tmp_path / number)) for word in arguments]
        (tmp_path / number).mkdir()
        done = godwit(*here, "--json")
        shown = json.loads(done.stdout)
        assert (shown["server"], shown["manager"], shown["managers"]) == ("s1", "127.0.0.1:7400", ["127.0.0.1:7400"])
        trust = TrustFolder(tmp_path / number / "etc/godwit/trust")
        master = trust.read_master()
        assert master.hex() not in done.stdout + done.stderr
        assert "PRIVATE" not in done.stdout + done.stderr
        secrets |= {master, trust.read_authority().pin.encode()}
    assert len(secrets) == 4


def test_a_configuration_is_never_overwritten(arguments: list[str], tmp_path: Path) -> None:
    assert godwit(*arguments).returncode == 0
    path = tmp_path / "etc/godwit/godwit.toml"
    before = path.read_bytes()
    done = godwit(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"godwit: this machine has a configuration already, {path}: it is left as it is\n"
    assert path.read_bytes() == before


def test_a_failed_attempt_leaves_nothing_and_can_be_repeated(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/godwit").write_text("in the way")
    assert godwit(*arguments).returncode == 1
    assert left(tmp_path / "vol1") == set()
    assert left(tmp_path / "etc") == {"godwit"}
    (tmp_path / "etc/godwit").unlink()
    done = godwit(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--cluster", "no good", "cluster"),
        ("--server", "a/b", "server"),
        ("--address", "192.0.2.1", "is no address of this machine"),
        ("--address", "0.0.0.0", "no address at which others could reach"),
        ("--address", "no.such.host.invalid", "--address no.such.host.invalid"),
        ("--database", "what", "is not the URL of a database"),
        ("--database", "sqlite:////proc/nowhere/catalog.db", "cannot open the database"),
        ("--database", "postgresql+psycopg://godwit@127.0.0.1:1/godwit", "cannot open the database"),
        ("--database", "postgresql+psycopg://godwit:hidden@127.0.0.1:1/godwit", "has a password in it"),
        ("--database", "postgresql+psycopg://godwit:hid@den@127.0.0.1:1/godwit", "has a password in it"),
        ("--database", "postgresql+psycopg://godwit@127.0.0.1/godwit?sslmode=x&password=hidden", "has a password in it"),
        ("--mountpoint", "VOLUME/mnt", "must lie beside each other"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], tmp_path: Path, option: str, value: str, reason: str
) -> None:
    arguments[arguments.index(option) + 1] = value.replace("VOLUME", str(tmp_path / "vol1"))
    done = godwit(*arguments)
    assert done.returncode in (1, 3)
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert "hidden" not in done.stderr
    assert left(tmp_path) <= {"catalog.db"}


def _without_database(arguments: list[str]) -> list[str]:
    start = arguments.index("--database")
    return arguments[:start] + arguments[start + 2 :]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://godwit:hidden@127.0.0.1:1/godwit",
        "postgresql+psycopg://godwit@127.0.0.1:1/godwit?password=hidden",
        "postgresql+psycopg://godwit@127.0.0.1:1/godwit?sslkey=/key&sslpassword=hidden",
    ],
)
def test_a_password_may_be_in_a_file_or_in_the_environment(url: str, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(url + "\n")
    by_file = godwit_process(*_without_database(arguments), "--database-file", str(tmp_path / "url"))
    by_environment = godwit_process(*_without_database(arguments), GODWIT_DATABASE=url)
    for done in (by_file, by_environment):
        assert done.returncode in (1, 3)
        # It was asked, at that address.
        assert "cannot open the database" in done.stderr
        assert "127.0.0.1" in done.stderr
        assert "hidden" not in done.stderr
    assert left(tmp_path) == {"url"}


def test_a_url_is_given_once(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text("sqlite:////nowhere")
    done = godwit_process(*arguments, "--database-file", str(tmp_path / "url"))
    assert done.returncode == 2
    assert "only one of them" in done.stderr
    done = godwit_process(*_without_database(arguments), "--ask-password")
    assert done.returncode == 2


def test_a_volume_is_asked_for(arguments: list[str]) -> None:
    start = arguments.index("--volume")
    done = godwit(*arguments[:start], *arguments[start + 4 :])
    assert done.returncode == 2
    assert "--volume" in done.stderr


def test_a_directory_with_something_else_in_it_is_left_alone(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "vol2").mkdir()
    (tmp_path / "vol2" / "thesis.tex").touch()
    done = godwit(*arguments)
    assert done.returncode == 1
    assert "thesis.tex" in done.stderr
    assert left(tmp_path) == {"vol2"}


def test_files_of_an_older_network_are_not_taken_for_strays(arguments: list[str], tmp_path: Path) -> None:
    layout = VolumeLayout(tmp_path / "vol2")
    layout.format("here", "s1")
    os.close(layout.create_object(4711))
    done = godwit(*arguments)
    assert done.returncode == 1
    assert "holds files of an older network" in done.stderr
    assert Path(layout.object_path(4711)).exists()
    assert left(tmp_path / "vol1") == set()
    assert not (tmp_path / "etc").exists()


def test_a_catalog_that_is_in_use_is_no_new_network(arguments: list[str], tmp_path: Path) -> None:
    assert godwit(*arguments).returncode == 0
    run = [sys.executable, "-m", "cli.main", "run", "manager", "--config", str(tmp_path / "etc/godwit/godwit.toml")]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as manager:
        assert manager.stderr is not None
        for line in manager.stderr:
            if "is the manager, term" in line:
                break
        manager.send_signal(signal.SIGTERM)
        manager.stderr.read()
    (tmp_path / "etc/godwit/godwit.toml").unlink()
    done = godwit(*arguments)
    assert done.returncode == 1
    assert "has been a server of another network" in done.stderr
    shutil.rmtree(tmp_path / "etc/godwit/state")
    done = godwit(*arguments)
    assert done.returncode == 1
    assert "holds the catalog of a network already, that has reached term 1" in done.stderr


def test_ctrl_c_leaves_no_configuration(arguments: list[str], tmp_path: Path) -> None:
    """The database does not answer; meanwhile somebody has had enough."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        arguments[arguments.index("--database") + 1] = f"postgresql+psycopg://godwit@127.0.0.1:{port}/godwit?connect_timeout=60"
        command = [sys.executable, "-m", "cli.main", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_interrupts) as process:
            silent.settimeout(30)
            connection, _address = silent.accept()
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(30)
            connection.close()
            assert time.monotonic() - started < 10
    assert process.returncode not in (0, None)
    assert left(tmp_path) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user needs root")
def test_the_members_of_a_group_administer_and_others_do_not(arguments: list[str], tmp_path: Path) -> None:
    group = grp.getgrgid(65534)
    done = godwit(*arguments, "--admin-group", group.gr_name)
    assert done.returncode == 0, done.stderr
    config, trust = tmp_path / "etc/godwit/godwit.toml", tmp_path / "etc/godwit/trust"
    readable = [path.name for path in (config, *trust.iterdir()) if path.stat().st_mode & 0o040 and path.stat().st_gid == 65534]
    assert sorted(readable) == ["admin.pem", "godwit.toml"]
    read = "credentials_of(msgspec.structs.replace(load_config(Path('godwit.toml')), trust='trust'), Role.ADMIN)\n"
    # First as root, so that all modules are there: others may have no way to this checkout. Nor to the folder, but from within.
    script = f"import os, sys; from cluster.config import *\nos.chdir(sys.argv[1])\n{read}"
    script += f"os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65533)\n{read}"
    for number, may in ((65534, True), (65533, False)):
        command = [sys.executable, "-c", script, str(config.parent), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == may, done.stderr
    missing = godwit(*arguments, "--config", str(tmp_path / "other.toml"), "--admin-group", "no-such-group")
    assert missing.returncode == 1
    assert "no group 'no-such-group'" in missing.stderr
