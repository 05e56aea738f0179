"""The virtual machines' setup: their files are sound, and their scripts make a network of machines that are namespaces.

What cannot be had here is played: systemd by a few lines that start what the units say, apt-get by nothing. The scripts, the
commands, the units' command lines, the database and the mounts are real.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import database, network, processes
from lab.registry import tag_of

VAGRANT = Path(__file__, "../../../vagrant").resolve()
SCRIPTS = sorted(VAGRANT.glob("*.sh"))
PASSWORD = "0123456789abcdef"
NUMBERS = {"db": 10, "s1": 11, "s2": 12}

# What `systemctl enable --now godwit.target` comes to: each unit's command, and then what says that it is active.
SYSTEMCTL = r"""#!/bin/bash
[ "$1" = enable ] || exit 0
for part in manager agent mount; do
    unit=/etc/systemd/system/godwit-$part.service
    environment=$(sed -n 's/^Environment=//p' "$unit")
    if ! pgrep --ns $$ --nslist net --full "run $part" >/dev/null; then
        eval "setsid env $environment $(sed -n 's/^ExecStart=//p' "$unit")" >>"$LOGS/$part.log" 2>&1 </dev/null &
        MAINPID=$!
    fi
    post=$(sed -n 's/^ExecStartPost=//p' "$unit" | sed 's/\$\$/$/g; s/%%/%/g')
    if [ -n "$post" ]; then export MAINPID ${environment?}; timeout 60 bash -c "$post" || exit 1; fi
done
"""
RUNUSER = """#!/bin/bash
shift 4
exec psql -h "$DATABASE" -U postgres "$@"
"""


def test_there_are_scripts() -> None:
    assert [path.name for path in SCRIPTS] == ["database.sh", "first.sh", "further.sh", "install.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_ruby_reads_the_vagrantfile() -> None:
    if shutil.which("ruby") is None:
        pytest.skip("no ruby here")
    done = subprocess.run(["ruby", "-wc", "Vagrantfile"], capture_output=True, text=True, check=False, cwd=VAGRANT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Syntax OK\n", "")


def test_vagrant_accepts_the_vagrantfile(tmp_path: Path) -> None:
    if shutil.which("vagrant") is None:
        pytest.skip("no vagrant here: package vagrant")
    for path in (VAGRANT / "Vagrantfile", *SCRIPTS):
        shutil.copy(path, tmp_path)
    environment = {**os.environ, "VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    secret = tmp_path / ".vagrant" / "godwit-password"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_text()) == 32


# ------------------------------------------------------------------------------------------------ the steps themselves


class Machines:
    """Namespaces that the scripts take for machines: a network and file systems of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = network.build(tag_of(folder), NUMBERS, route_out=False)
        self.environment = {
            "LC_ALL": "C.UTF-8",
            "NETWORK": self.network.subnet,
            "DATABASE": self.network.address(NUMBERS["db"]),
            "PASSWORD": PASSWORD,
            "MANAGER": f"{self.network.address(NUMBERS['s1'])}:7400",
            "OTHERS": "s2",
        }
        tools = folder / "bin"
        tools.mkdir()
        for name, text in {"systemctl": SYSTEMCTL, "runuser": RUNUSER, "apt-get": "#!/bin/sh\n"}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.environment["PATH"] = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"

    def start_database(self) -> None:
        """A fresh PostgreSQL, whose administrator the script may be."""
        folder, host = self.folder / "db", self.network.address(NUMBERS["db"])
        namespace = self.network.namespace("db")
        database.create_database(folder, "another")
        (folder / "data" / "pg_hba.conf").write_text("host all postgres samenet trust\n")
        process = database.launch_database(folder, host, namespace)
        database.wait_for_database(process, folder, host, namespace, time.monotonic() + 60)
        for _ in range(2):
            self.again("db", "database.sh")
        os.kill(process.pid, signal.SIGHUP)  # it reads pg_hba.conf again; its restart is systemd's

    def again(self, server: str, script: str) -> None:
        """The script once more, on the machine that it has made."""
        self._run(self._inside(server, ["bash", str(VAGRANT / script)]), self._about(server))

    def provision(self, server: str, script: str) -> None:
        """A script on a machine with an empty /srv, /mnt and /var/lib, and an /etc that it may change."""
        folder = self.folder / server
        for name in ("upper", "work", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        make = (
            'mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc && '
            'for empty in /mnt /srv /var/lib; do mount -t tmpfs tmpfs "$empty" || exit 1; done && exec bash "$2"'
        )
        inside = ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", make, "sh", str(folder), str(VAGRANT / script)]
        self._run(network.enter(self.network.namespace(server), inside), self._about(server))

    def on(self, server: str, command: str) -> str:
        """What a command prints on a machine that is running."""
        return self._run(self._inside(server, ["sh", "-c", command]), {})

    def _about(self, server: str) -> dict[str, str]:
        logs = str(self.folder / server / "logs")
        return {"SERVER": server, "ADDRESS": self.network.address(NUMBERS[server]), "LOGS": logs}

    def _inside(self, server: str, command: list[str]) -> list[str]:
        pid = network.processes_in(self.network.namespace(server))[0]
        return ["nsenter", f"--target={pid}", "--net", "--mount", "--", *command]

    def _run(self, command: list[str], more: dict[str, str]) -> str:
        done = subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=120, check=False, cwd="/"
        )
        logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*/logs/*.log"))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout

    def end(self) -> None:
        for name in NUMBERS:
            pids = network.processes_in(self.network.namespace(name))
            processes.end([process for pid in pids if (process := processes.identify(pid))], 15)
        network.remove(self.network.tag)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("network namespaces and mounts need root and /dev/fuse")
    if not list(database.PROGRAMS.glob("*/bin/postgres")):
        pytest.skip("no PostgreSQL: package postgresql")
    made = Machines(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_the_steps_end_with_mounted_servers(machines: Machines) -> None:
    machines.start_database()
    machines.provision("s1", "first.sh")
    machines.provision("s2", "further.sh")
    machines.on("s1", "echo from s1 > /mnt/godwit/file")
    assert machines.on("s2", "cat /mnt/godwit/file") == "from s1\n"
    assert {"objects", "volume.toml"} <= set(machines.on("s2", "ls /srv/godwit").split())
    assert "s1" in machines.on("s2", "godwit servers ls")
    assert (
        machines.on("s1", "psql -At postgresql://godwit:$PASSWORD@$DATABASE/handover -c 'SELECT count(*) FROM tokens'") == "0\n"
    )
    for server, script in (("s1", "first.sh"), ("s2", "further.sh")):
        before = machines.on(server, "cat /etc/godwit/godwit.toml")
        machines.again(server, script)
        assert machines.on(server, "cat /etc/godwit/godwit.toml") == before
    assert machines.on("s2", "cat /mnt/godwit/file") == "from s1\n"
    assert not Path("/mnt/godwit/file").exists()
