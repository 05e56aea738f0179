"""One lab: a root folder, and the network and processes that belong to it while it is up.

Every change holds the lab's lock and writes `lab.json` before it returns. `up` either ends with a lab that answers or leaves
nothing running; `down` finds what belongs to the lab by `lab.json` and by the names in the kernel, so that it cleans up
after any crash.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cluster.config import ServerConfig, load_config, write_config
from cluster.errors import Refused
from cluster.messages import NamesPolicy
from cluster.mountpoint import make_mountpoint, shield
from cluster.trust.authority import CERTIFICATE_S, Authority
from cluster.trust.folder import MASTER_BYTES, TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue, issue_to_candidate
from cluster.volume.layout import VolumeLayout
from lab import database, network, processes, teardown
from lab.database import DATABASE
from lab.launch import WAKE, create_catalog, launch, launch_supervisor, program_of, set_names, wait_for_parts, wait_for_volumes
from lab.mounts import detach, is_fuse_mount
from lab.network import Network
from lab.processes import ProcessId
from lab.registry import lab_lock, register, registered, tag_of
from lab.state import (
    PARTS,
    PEOPLE,
    PEOPLE_SERVER,
    SUPERVISOR_LOG,
    LabState,
    Overrides,
    check_new_root,
    grown,
    host_numbers,
    left_dead,
    new_state,
    number_of,
    read_state,
    server_config,
    server_names,
    supervised,
    with_process,
    write_state,
)
from lab.tools import require_root, require_tools

DEFAULT_ROOT = Path("/var/lib/godwit/lab")
START_TIMEOUT_S = 60.0  # for all of `up`; a lab of three takes some seconds
STOP_PATIENCE_S = 15.0
# PostgreSQL has a process for each connection: those a crash or a stopped machine would hit as well
WHOLE_HOST_SIGNALS = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT})
# after these the process is waited for
ENDING_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT})


class Lab:
    """The lab at `root`. Servers are named s1, s2, …; parts are mount, agent and manager, or `all`.

    Where a host is asked for, `db` is the database that the lab has started itself. *programs* has, by name of a part, the
    command line that this object starts in the place of the part's own; `--config FILE` is put at its end. The supervisor leaves
    such a part alone.
    """

    def __init__(self, root: Path, programs: Mapping[str, Sequence[str]] | None = None) -> None:
        self.root = root  # resolved: the tag is made of this very path
        self._programs = dict(programs or {})  # for tests that put a broken part in the place of one
        self.tag = tag_of(root)  # in all names that the lab has in the kernel
        self.servers = server_names(read_state(root))  # as `lab.json` had it; `add_server` adds to it

    @classmethod
    def create(
        cls,
        root: Path | str,
        servers: int = 3,
        volumes: int = 1,
        db: str | None = None,
        overrides: Overrides | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
    ) -> "Lab":
        """Makes the folder of a new lab, which is not up yet. Raises `Refused` if *root* holds something else.

        *db* is None for SQLite, `postgresql` for a server that the lab starts, or a URL. *overrides* are laid over every
        server's configuration: `{"mount": {"commit_s": 1}}`.
        """
        path = Path(os.path.realpath(root))
        if (path / "lab.json").exists():
            raise Refused(f"{path} holds a lab already: take another root, or godwit lab down --purge --root {path}")
        check_new_root(path)
        state = new_state(servers, volumes, db, overrides or {})
        path.mkdir(parents=True, exist_ok=True)
        # Only to have wrong overrides refused now, with any network: the real one is known at `up`.
        server_config(path, state, Network(tag_of(path), "10.0.0.0/24"), "s1")
        authority, master = Authority.make(state.cluster), secrets.token_bytes(MASTER_BYTES)
        # Who types commands is at none of the servers, which may come and go.
        issue(TrustFolder(path / PEOPLE), authority, state.cluster, PEOPLE_SERVER, roles=[Role.ADMIN])
        for server in server_names(state):
            (path / server).mkdir(exist_ok=True)
            for number in range(1, volumes + 1):
                VolumeLayout(path / server / f"vol{number}").format(state.cluster, server)
            _certify(path, state, server, authority, master)
        # Last: with `lab.json` the folder is a lab.
        write_state(path, state)
        return cls(path, programs)

    @classmethod
    def load(cls, root: Path | str) -> "Lab":
        """The lab that was made at *root*; raises `Refused` if there is none."""
        return cls(Path(os.path.realpath(root)))

    # ---------------------------------------------------------------------------------------------- what is where

    def mount(self, server: str) -> Path:
        """The server's mount point."""
        return self._folder(server) / "mnt"

    def volume(self, server: str, n: int = 1) -> Path:
        """The server's backing directory number *n*."""
        return self._folder(server) / f"vol{n}"

    def log(self, server: str, part: str) -> Path:
        """The log of one process, of all its lives."""
        if server == DATABASE and self.has_database:
            return database.database_log(self.root / DATABASE)
        return self._folder(server) / "log" / f"{part}.log"

    def config_path(self, server: str) -> Path:
        return self._folder(server) / "godwit.toml"

    def config(self, server: str) -> ServerConfig:
        """The server's configuration as it is on disk; there is none before the first `up`."""
        return load_config(self.config_path(server))

    @property
    def has_database(self) -> bool:
        """Whether the lab has started a database server of its own."""
        return read_state(self.root).own_database

    def address(self, host: str) -> str:
        """The host's IP address; raises `Refused` while the lab is down."""
        return self._network().address(host_numbers(read_state(self.root))[self._host(host)])

    def parts(self, host: str, part: str = "all") -> Sequence[str]:
        """The parts of the host that *part* means; raises `Refused` for those that there are not."""
        if self._host(host) == DATABASE:
            if part not in ("all", database.PART):
                raise Refused(f"{host} has no {part}")
            return (database.PART,)
        if part != "all" and part not in PARTS:
            raise Refused(f"{part!r} is not mount, agent, manager or all")
        return PARTS if part == "all" else (part,)

    @property
    def trust(self) -> TrustFolder:
        """The certificate of who types commands."""
        return TrustFolder(self.root / PEOPLE)

    def pid(self, host: str, part: str) -> int:
        """The process id of a part; raises `Refused` if it is not running."""
        pid = self.find_pid(host, part)
        if pid is None:
            raise Refused(f"{host} {part} is not running")
        return pid

    def find_pid(self, host: str, part: str) -> int | None:
        """The process id of a part; None if it is not running."""
        process = self._process(host, part)
        return None if process is None else process.pid

    def is_running(self, host: str, part: str = "all") -> bool:
        """Whether the part (or all of the host's) is alive."""
        return all(self._process(host, name) is not None for name in self.parts(host, part))

    def supervisor(self) -> int | None:
        """The process id of the lab's supervisor; None if it is not running."""
        process = read_state(self.root).supervisor
        return process.pid if process is not None and processes.is_alive(process) else None

    def is_up(self) -> bool:
        """Whether the lab is registered as up and at least one server has all its parts."""
        return self.root in registered() and any(self.is_running(server) for server in self.servers)

    def has_network(self) -> bool:
        """Whether the server's namespaces and their switch exist."""
        return network.has_switch(self._network())

    def is_cut(self, host: str) -> bool:
        """Whether the host is cut off the network."""
        return network.is_cut(self._network(), self._host(host))

    # ------------------------------------------------------------------------------------------------ up and down

    def up(self, timeout_s: float = START_TIMEOUT_S, names: NamesPolicy | None = None) -> None:
        """Starts everything and returns when every mount answers and every volume is known to the manager.

        *names* is set in the root's policy before any mount starts; None leaves what the catalog has.
        Raises `Refused` if the lab is up, `NotReady` with the log that matters if a part does not come up; then, and when
        interrupted, nothing is left running.
        """
        require_root()
        require_tools()
        if self.has_database:
            database.require_postgres(self.root / DATABASE)
        with lab_lock(self.root):
            # Under the lock: another `up` may have ended while we waited.
            if self.is_up():
                raise Refused(f"the lab at {self.root} is up already: use it, take another --root, or godwit lab down first")
            # What a lab that was killed has left: processes, mounts, namespaces of the same names.
            teardown.end_everything(self.root)
            try:
                self._build()
                self._start_all(time.monotonic() + timeout_s, names)
            except BaseException:
                # Also Ctrl-C: half a lab would be in the way of the next.
                teardown.end_everything(self.root)
                raise

    def down(self, purge: bool = False) -> None:
        """Ends everything that belongs to the lab; with *purge* its data goes, too.

        Raises `Refused` before it does anything if data would have to be deleted below a mount that is not the lab's own.
        """
        require_root()
        if purge:
            # Before anything ends; looked at again before anything is deleted.
            teardown.require_no_foreign_mounts(self.root)
        with lab_lock(self.root):
            teardown.end_everything(self.root)
            if purge:
                teardown.delete_data(self.root)

    def _build(self) -> None:
        state = read_state(self.root)
        # Before the first name is made in the kernel: from now on `lab ls` and `down` find what is left.
        register(self.root)
        built = network.build(self.tag, host_numbers(state), route_out=state.route_out)
        write_state(self.root, msgspec.structs.replace(state, network=built))
        if state.own_database:
            database.create_database(self.root / DATABASE, state.password)
        catalog = self.root / "catalog"
        catalog.mkdir(mode=0o700, exist_ok=True)
        catalog.chmod(0o700)  # also one of an earlier release
        self._write_configs(state, built)

    def _write_configs(self, state: LabState, built: Network) -> None:
        for server in self.servers:
            make_mountpoint(self.mount(server))
            (self._folder(server) / "log").mkdir(exist_ok=True)
            # `add_server` writes all configurations again, while mounts of the others are up.
            if not is_fuse_mount(self.mount(server)):
                shield(str(self.mount(server)))
            write_config(self.config_path(server), server_config(self.root, state, built, server))

    def _start_all(self, deadline_s: float, names: NamesPolicy | None) -> None:
        """The database and the first server's manager come first, so that it takes the office; then the rest at once.

        The supervisor is the last: what dies while the lab comes up ends the attempt.
        """
        first = self.servers[0]
        if self.has_database:
            self.launch(DATABASE, database.PART)
            self._wait(DATABASE, [database.PART], deadline_s)
        self._create_catalog(first, deadline_s)
        self.launch(first, "manager")
        self._wait(first, ["manager"], deadline_s)
        if names is not None:
            set_names(self.config(first), self.trust, names, deadline_s)
        for server in self.servers:
            for part in PARTS:
                if (server, part) != (first, "manager"):
                    self.launch(server, part)
        for server in self.servers:
            self._wait(server, PARTS, deadline_s)
        expected = {server: self.config(server).agent.volumes for server in self.servers}
        wait_for_volumes(self.config(first), self.trust, expected, deadline_s)
        self._supervise()

    def _create_catalog(self, server: str, deadline_s: float) -> None:
        """Makes the catalog of a new lab, once: one that is lost later is not made anew. A lab of an older release has one."""
        state = read_state(self.root)
        if state.has_catalog:
            return
        if not (self.root / "catalog" / "catalog.db").exists():
            left_s = max(1.0, deadline_s - time.monotonic())
            create_catalog(self.config_path(server), self._network().namespace(server), left_s)
        # After it was made: a crash in between leaves tables that `db create` refuses to make again, never a catalog that is
        # believed to be there.
        write_state(self.root, msgspec.structs.replace(state, has_catalog=True))

    # ------------------------------------------------------------------------------------------------- growing

    def add_server(self, name: str | None = None, timeout_s: float = START_TIMEOUT_S) -> str:
        """Makes a further server and starts it; returns its name when its mount answers and its volumes are known.

        Servers are numbered, so *name* can only be the next one. Raises `Refused` while the lab is down, `NotReady` if a part
        does not come up: then the lab is as it was, but for a volume that stays for the next attempt.
        """
        require_root()
        with self._changing():
            before = read_state(self.root)
            after = grown(before, name)
            server = server_names(after)[-1]
            built = self._network()
            (self.root / server).mkdir(exist_ok=True)
            for number in range(1, after.volumes + 1):
                VolumeLayout(self.root / server / f"vol{number}").prepare(after.cluster, server)
            first = TrustFolder(self.root / self.servers[0] / "trust")
            _certify(self.root, after, server, first.read_authority(), first.read_master(), first.read_authorities())
            # Before its processes: the supervisor and `down` look for them by this.
            write_state(self.root, after)
            self.servers = server_names(after)
            try:
                network.plug_in(built, server, number_of(server), route_out=after.route_out)
                self._write_configs(after, built)
                self._start_added(server, time.monotonic() + timeout_s)
            except BaseException:
                self._undo_added(server, before, built)
                raise
            return server

    def _start_added(self, server: str, deadline_s: float) -> None:
        for part in PARTS:
            self.launch(server, part)
        self._wait(server, PARTS, deadline_s)
        config = self.config(server)
        wait_for_volumes(config, self.trust, {server: config.agent.volumes}, deadline_s)

    def _undo_added(self, server: str, before: LabState, built: Network) -> None:
        teardown.end_server(self.root, server)
        network.unplug(built, server)
        known = {name: process for name, process in read_state(self.root).processes.items() if not name.startswith(f"{server}/")}
        write_state(self.root, msgspec.structs.replace(before, processes=known))
        self.servers = server_names(before)
        self._write_configs(before, built)

    # ----------------------------------------------------------------------------------------------------- faults

    def kill(self, host: str, part: str = "all", number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a part, or to all of a host at once, and waits for the end if the signal ends processes.

        What was told to end stays dead until `start`, as does a part that the supervisor was about to start again. A killed
        mount stays in the mount table, dead, until `start` or `down`. Of the database, every process is killed, stopped or
        continued, but only its first one told anything else. Raises `Refused` if nothing is running.
        """
        require_root()
        ends = number in ENDING_SIGNALS
        with self._changing():
            hit = [process for name in self.parts(host, part) if (process := self._process(host, name))]
            state, names = read_state(self.root), {f"{host}/{name}" for name in self.parts(host, part)}
            if ends and names & supervised(state).keys():
                # Before the signal: the supervisor must not start it again in between.
                write_state(self.root, left_dead(state, names))
            elif not hit:
                raise Refused(f"{host} {part} is not running")
            if host == DATABASE and number in WHOLE_HOST_SIGNALS:
                pids = network.processes_in(self._network().namespace(DATABASE))
                hit = [process for pid in pids if (process := processes.identify(pid))]
            for process in hit:
                processes.send(process, number)
            if ends:
                for process in hit:
                    if not processes.wait_gone(process, STOP_PATIENCE_S):
                        raise Refused(f"process {process.pid} of {host} has not ended {STOP_PATIENCE_S:g} s after {number.name}")

    def start(self, host: str, part: str = "all", timeout_s: float = START_TIMEOUT_S) -> None:
        """Starts what is not running of a host, and the supervisor; waits until it answers.

        Raises `Refused` while the lab is down.
        """
        require_root()
        with self._changing():
            missing = [name for name in self.parts(host, part) if self._process(host, name) is None]
            self._supervise()
            for name in missing:
                self.launch(host, name)
            self._wait(host, missing, time.monotonic() + timeout_s)

    def launch(self, host: str, part: str) -> ProcessId:
        """Starts a part that is not running, and does not wait for it. The caller holds the lab's lock."""
        namespace = self._network().namespace(host)
        if host == DATABASE:
            process = database.launch_database(self.root / DATABASE, self.address(DATABASE), namespace)
        else:
            if part == "mount":
                # A mount that was killed is still in the table, and every access to it fails with ENOTCONN.
                detach(self.mount(host))
            program = self._programs.get(part) or program_of(part)
            process = launch(program, self.config_path(host), self.log(host, part), namespace)
        is_own = part not in self._programs
        self._note(process, with_process(read_state(self.root), f"{host}/{part}", process, is_own=is_own))
        return process

    def cut(self, host: str) -> None:
        """Drops every packet from and to the host, silently."""
        require_root()
        network.cut(self._network(), self._host(host))

    def mend(self, host: str) -> None:
        """Undoes `cut`."""
        require_root()
        network.mend(self._network(), self._host(host))

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs *argv* on a host's network."""
        return network.enter(self._network().namespace(self._host(host)), argv)

    def run(self, host: str, argv: Sequence[str], **kw: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` on the host's network."""
        return subprocess.run(self.command(host, argv), **kw)

    # -------------------------------------------------------------------------------------------------- internals

    def _supervise(self) -> None:
        """Starts the supervisor unless it is running."""
        if self.supervisor() is None:
            process = launch_supervisor(self.root, self.root / SUPERVISOR_LOG, self._network().switch)
            # It finds itself in `lab.json` only now: it waits for the lock, which the caller holds.
            self._note(process, msgspec.structs.replace(read_state(self.root), supervisor=process))

    def _note(self, process: ProcessId, state: LabState) -> None:
        """Writes the state that has a new process; one that cannot be noted is ended, or it would be started once more."""
        try:
            write_state(self.root, state)
        except OSError:
            processes.end([process], STOP_PATIENCE_S)
            raise

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lab's lock, and has the supervisor look at what changed."""
        try:
            with lab_lock(self.root):
                yield
        finally:
            supervisor = read_state(self.root).supervisor
            if supervisor is not None:
                # After the lock is free, or the supervisor would wake up to wait for it.
                processes.send(supervisor, WAKE)

    def _wait(self, host: str, parts: Sequence[str], deadline_s: float) -> None:
        known = read_state(self.root).processes
        waited = {part: (known[f"{host}/{part}"], self.log(host, part)) for part in parts}
        if host != DATABASE:
            wait_for_parts(host, waited, self.config(host), deadline_s)
            return
        for process, _log in waited.values():
            namespace = self._network().namespace(DATABASE)
            database.wait_for_database(process, self.root / DATABASE, self.address(DATABASE), namespace, deadline_s)

    def _folder(self, server: str) -> Path:
        return self.root / self._known(server)

    def _known(self, server: str) -> str:
        if server not in self.servers:
            raise Refused(f"the lab at {self.root} has no server {server!r}, it has {', '.join(self.servers)}")
        return server

    def _host(self, host: str) -> str:
        return host if host == DATABASE and self.has_database else self._known(host)

    def _process(self, host: str, part: str) -> ProcessId | None:
        process = read_state(self.root).processes.get(f"{self._host(host)}/{part}")
        return process if process is not None and processes.is_alive(process) else None

    def _network(self) -> Network:
        state = read_state(self.root)
        if state.network is None or self.root not in registered():
            raise Refused(f"the lab at {self.root} is down (try: godwit lab up --root {self.root})")
        return state.network


def _certify(root: Path, state: LabState, server: str, authority: Authority, master: bytes, believed: bytes = b"") -> None:
    """Gives a server its keys and certificates; all servers of a lab are candidates."""
    valid_s = state.overrides.get("manager", {}).get("certificate_s", CERTIFICATE_S)
    folder = TrustFolder(root / server / "trust")
    issue_to_candidate(folder, state.cluster, server, authority, master, valid_s=valid_s, believed=believed)
