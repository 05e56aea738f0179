"""Namespaces that commands and scripts take for machines: each with a network, an /etc, /mnt, /srv and /var/lib of its own.

What cannot be had here is played: systemd by a program that starts what the units say, apt-get by nothing but the database that
Debian's package makes, scp by what the other machine sees. The commands, the units' command lines, the database and the mounts
are real.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import database, network, processes
from lab.registry import tag_of
from tests.support.fresh_roots import SYSTEMCTL

VAGRANT = Path(__file__, "../../../vagrant").resolve()
DATABASE = "db"
PROVISIONED = {DATABASE: 10, "s1": 11, "s2": 12, "s3": 13}
PASSWORD = "0123456789abcdef"
COMMAND_S = 120.0  # that any one may take; a script is one
PATIENCE_S = 15.0  # for what is told to end

# The package's cluster is made anew, in this machine's own /etc and /var/lib.
APT_GET = r"""#!/bin/bash
case " $* " in *" postgresql "*) ;; *) exit 0 ;; esac
[ ! -e "/etc/postgresql/$POSTGRES/main" ] || exit 0
pg_createcluster "$POSTGRES" main --start >/dev/null
"""
SCP = r"""#!/bin/bash
at() { case "$1" in *:*) echo "/proc/$(cat "$MACHINES/${1%%:*}")/root${1#*:}" ;; *) echo "$1" ;; esac; }
exec cp -- "$(at "$1")" "$(at "$2")"
"""
# What a machine is, until its last process has ended: $1 is its folder here.
MAKE = r"""
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc || exit 1
rm -rf /etc/postgresql/* /etc/godwit
mkdir -p /run/godwit /run/postgresql /var/log/postgresql
for empty in /mnt /srv /var/lib /run/godwit /run/postgresql /var/log/postgresql; do
    mount -t tmpfs -o mode=755 tmpfs "$empty" || exit 1
done
chown postgres /run/postgresql /var/log/postgresql
echo made
exec sleep infinity >/dev/null
"""


class Machines:
    """Several of them, by name, and the last byte of each one's address; `end` leaves nothing."""

    def __init__(self, folder: Path, numbers: Mapping[str, int]) -> None:
        self.folder = folder
        self.numbers = dict(numbers)
        # The newest, as the package `postgresql` is.
        self.postgres = max((path.name for path in database.PROGRAMS.glob("*") if (path / "bin/postgres").exists()), key=float)
        self._holders: dict[str, subprocess.Popen[str]] = {}  # keep the namespaces of machines on which nothing runs
        self.network = network.build(tag_of(folder), numbers, route_out=False)
        tools = folder / "bin"
        tools.mkdir()
        for name, text in {"systemctl": SYSTEMCTL.read_text(), "apt-get": APT_GET, "scp": SCP}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.environment = {
            "LC_ALL": "C.UTF-8",
            "POSTGRES": self.postgres,
            "MACHINES": str(folder),
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def boot(self) -> None:
        """Makes all of them; nothing runs on any."""
        for name in self.numbers:
            folder = self.folder / name
            for inner in ("upper", "work", "logs"):
                (folder / inner).mkdir(parents=True)
            make = ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", MAKE, "sh", str(folder)]
            entered = network.enter(self.network.namespace(name), make)
            # In a session of its own: an interrupted test run takes the machines down itself.
            holder = subprocess.Popen(entered, stdout=subprocess.PIPE, text=True, start_new_session=True)
            self._holders[name] = holder
            assert holder.stdout is not None
            assert holder.stdout.readline() == "made\n"
            (self.folder / self.address(name)).write_text(str(holder.pid))

    def address(self, name: str) -> str:
        return self.network.address(self.numbers[name])

    def log(self, name: str, part: str) -> Path:
        return self.folder / name / "logs" / f"{part}.log"

    def path(self, name: str, path: str) -> Path:
        """A path of a machine as this process reaches it, mounts included."""
        return Path(f"/proc/{self._holders[name].pid}/root{path}")

    def tried(self, name: str, command: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command line typed on a machine, and *given* when it asks for something."""
        inside = ["nsenter", f"--target={self._holders[name].pid}", "--net", "--mount", "--", "bash", "-c", command]
        own = {name_of: str(self.folder / name / place) for name_of, place in {"LOGS": "logs", "PLAYED": "played"}.items()}
        about = {**self.environment, **own, **environment}
        # What is started here, and goes on, has files of its own: its end is not waited for.
        return subprocess.run(
            inside, env=about, input=given, capture_output=True, text=True, timeout=COMMAND_S, check=False, cwd="/"
        )

    def on(self, name: str, command: str, given: str = "", **environment: str) -> str:
        """The same: what it prints; fails the test if the command fails."""
        done = self.tried(name, command, given, **environment)
        logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*/logs/*.log"))
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout

    def end(self) -> None:
        # The database last: PostgreSQL ends when its clients have.
        for name in sorted(self.numbers, key=lambda name: name == DATABASE):
            if name == DATABASE and name in self._holders:
                self.tried(name, "pg_ctlcluster $POSTGRES main stop -m fast")
            pids = network.processes_in(self.network.namespace(name))
            processes.end([process for pid in pids if (process := processes.identify(pid))], PATIENCE_S)
            if name in self._holders:
                self._holders[name].wait()
        network.remove(self.network.tag)


def need_machines() -> None:
    """Skips the test where there can be no machines."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("network namespaces and mounts need root and /dev/fuse")
    if not list(database.PROGRAMS.glob("*/bin/postgres")):
        pytest.skip("no PostgreSQL: package postgresql")


class Provisioned(Machines):
    """Machines on which the scripts run that Vagrant runs on its."""

    def provision(self, name: str, script: str) -> None:
        """Runs a script; once more does no harm."""
        about = {
            "SERVER": name,
            "ADDRESS": self.address(name),
            "NETWORK": self.network.subnet,
            "DATABASE": self.address(DATABASE),
            "PASSWORD": PASSWORD,
            "MANAGER": f"{self.address('s1')}:7400",
            "OTHERS": "s2 s3",
        }
        self.on(name, f"exec bash {VAGRANT / script}", **about)


@contextmanager
def provisioned_machines(folder: Path) -> Iterator[Provisioned]:
    """Three servers and a database, as Vagrant would make them; *folder* is theirs alone."""
    made = Provisioned(folder, PROVISIONED)
    try:
        made.boot()
        for _ in range(2):
            made.provision(DATABASE, "database.sh")
        made.provision("s1", "first.sh")
        made.provision("s2", "further.sh")
        made.provision("s3", "further.sh")
        yield made
    finally:
        made.end()
