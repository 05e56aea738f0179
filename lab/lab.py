"""One lab: a root folder, and the network and processes that belong to it while it is up.

Every change holds the lab's lock and writes `lab.json` before it returns. `up` either ends with a lab that answers or leaves
nothing running; `down` finds what belongs to the lab by `lab.json` and by the names in the kernel, so that it cleans up
after any crash.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.config import ServerConfig, load_config
from cluster.errors import Refused
from cluster.volume.layout import VolumeLayout
from lab import database, network, processes, teardown
from lab.database import DATABASE
from lab.launch import launch, program_of, wait_for_parts, wait_for_volumes
from lab.mounts import detach
from lab.network import Network
from lab.processes import ProcessId
from lab.registry import lab_lock, register, registered, tag_of
from lab.state import (
    PARTS,
    LabState,
    Overrides,
    check_new_root,
    grown,
    host_numbers,
    new_state,
    number_of,
    read_state,
    server_config,
    server_names,
    write_config,
    write_state,
)
from lab.tools import require_root, require_tools

DEFAULT_ROOT = Path("/var/lib/godwit/lab")
START_TIMEOUT_S = 60.0
STOP_PATIENCE_S = 15.0
WHOLE_HOST_SIGNALS = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT})
ENDING_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGHUP})


class Lab:
    """The lab at `root`. Servers are named s1, s2, …; parts are mount, agent and manager, or `all`.

    Where a host is asked for, `db` is the database that the lab has started itself. *programs* has, by name of a part, the
    command line that this object starts in the place of the part's own; `--config FILE` is put at its end.
    """

    def __init__(self, root: Path, programs: Mapping[str, Sequence[str]] | None = None) -> None:
        self.root = root
        self._programs = dict(programs or {})
        self.tag = tag_of(root)
        self.servers = server_names(read_state(root))

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
        server_config(path, state, Network(tag_of(path), "10.0.0.0/24"), "s1")
        for server in server_names(state):
            (path / server).mkdir(exist_ok=True)
            for number in range(1, volumes + 1):
                VolumeLayout(path / server / f"vol{number}").format(state.cluster, server)
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

    def pid(self, host: str, part: str) -> int:
        """The process id of a part; raises `Refused` if it is not running."""
        process = self._process(host, part)
        if process is None:
            raise Refused(f"{host} {part} is not running")
        return process.pid

    def is_running(self, host: str, part: str = "all") -> bool:
        """Whether the part (or all of the host's) is alive."""
        return all(self._process(host, name) is not None for name in self.parts(host, part))

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

    def up(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Starts everything and returns when every mount answers and every volume is known to the manager.

        Raises `Refused` if the lab is up, `NotReady` with the log that matters if a part does not come up; then, and when
        interrupted, nothing is left running.
        """
        require_root()
        require_tools()
        if self.has_database:
            database.require_postgres(self.root / DATABASE)
        with lab_lock(self.root):
            if self.is_up():
                raise Refused(f"the lab at {self.root} is up already: use it, take another --root, or godwit lab down first")
            teardown.end_everything(self.root)
            try:
                self._build()
                self._start_all(time.monotonic() + timeout_s)
            except BaseException:
                teardown.end_everything(self.root)
                raise

    def down(self, purge: bool = False) -> None:
        """Ends everything that belongs to the lab; with *purge* its data goes, too.

        Raises `Refused` before it does anything if data would have to be deleted below a mount that is not the lab's own.
        """
        require_root()
        if purge:
            teardown.require_no_foreign_mounts(self.root)
        with lab_lock(self.root):
            teardown.end_everything(self.root)
            if purge:
                teardown.delete_data(self.root)

    def _build(self) -> None:
        state = read_state(self.root)
        register(self.root)
        built = network.build(self.tag, host_numbers(state), route_out=state.route_out)
        write_state(self.root, msgspec.structs.replace(state, network=built))
        if state.own_database:
            database.create_database(self.root / DATABASE, state.password)
        (self.root / "catalog").mkdir(exist_ok=True)
        self._write_configs(state, built)

    def _write_configs(self, state: LabState, built: Network) -> None:
        for server in self.servers:
            for folder in (self.mount(server), self._folder(server) / "log"):
                folder.mkdir(exist_ok=True)
            write_config(self.config_path(server), server_config(self.root, state, built, server))

    def _start_all(self, deadline_s: float) -> None:
        """The database and the first server's manager come first, so that it takes the office; the rest starts at once."""
        first = self.servers[0]
        if self.has_database:
            self._start_database(deadline_s)
        self._launch(first, ["manager"])
        self._wait(first, ["manager"], deadline_s)
        for server in self.servers:
            self._launch(server, [part for part in PARTS if (server, part) != (first, "manager")])
        for server in self.servers:
            self._wait(server, PARTS, deadline_s)
        expected = {server: self.config(server).agent.volumes for server in self.servers}
        wait_for_volumes(self.config(first), expected, deadline_s)

    # ------------------------------------------------------------------------------------------------- growing

    def add_server(self, name: str | None = None, timeout_s: float = START_TIMEOUT_S) -> str:
        """Makes a further server and starts it; returns its name when its mount answers and its volumes are known.

        Servers are numbered, so *name* can only be the next one. Raises `Refused` while the lab is down, `NotReady` if a part
        does not come up: then the lab is as it was, but for a volume that stays for the next attempt.
        """
        require_root()
        with lab_lock(self.root):
            before = read_state(self.root)
            after = grown(before, name)
            server = server_names(after)[-1]
            built = self._network()
            (self.root / server).mkdir(exist_ok=True)
            for number in range(1, after.volumes + 1):
                VolumeLayout(self.root / server / f"vol{number}").prepare(after.cluster, server)
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
        self._launch(server, PARTS)
        self._wait(server, PARTS, deadline_s)
        config = self.config(server)
        wait_for_volumes(config, {server: config.agent.volumes}, deadline_s)

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

        A killed mount stays in the mount table, dead, until `start` or `down`. Of the database, every process is killed,
        stopped or continued, but only its first one told anything else. Raises `Refused` if nothing is running.
        """
        require_root()
        with lab_lock(self.root):
            hit = [process for name in self.parts(host, part) if (process := self._process(host, name))]
            if not hit:
                raise Refused(f"{host} {part} is not running")
            if host == DATABASE and number in WHOLE_HOST_SIGNALS:
                pids = network.processes_in(self._network().namespace(DATABASE))
                hit = [process for pid in pids if (process := processes.identify(pid))]
            for process in hit:
                processes.send(process, number)
            if number in ENDING_SIGNALS:
                for process in hit:
                    if not processes.wait_gone(process, STOP_PATIENCE_S):
                        raise Refused(f"process {process.pid} of {host} has not ended {STOP_PATIENCE_S:g} s after {number.name}")

    def start(self, host: str, part: str = "all", timeout_s: float = START_TIMEOUT_S) -> None:
        """Starts what is not running of a host and waits until it answers. Raises `Refused` while the lab is down."""
        require_root()
        with lab_lock(self.root):
            missing = [name for name in self.parts(host, part) if self._process(host, name) is None]
            if host == DATABASE:
                if missing:
                    self._start_database(time.monotonic() + timeout_s)
                return
            self._launch(host, missing)
            self._wait(host, missing, time.monotonic() + timeout_s)

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

    def _launch(self, server: str, parts: Sequence[str]) -> None:
        for part in parts:
            if part == "mount":
                detach(self.mount(server))
            program = self._programs.get(part) or program_of(part)
            process = launch(program, self.config_path(server), self.log(server, part), self._network().namespace(server))
            self._remember(server, part, process)

    def _start_database(self, deadline_s: float) -> None:
        folder, namespace = self.root / DATABASE, self._network().namespace(DATABASE)
        left = [process for pid in network.processes_in(namespace) if (process := processes.identify(pid))]
        processes.end(left, STOP_PATIENCE_S)
        process = database.launch_database(folder, self.address(DATABASE), namespace)
        self._remember(DATABASE, database.PART, process)
        database.wait_for_database(process, folder, self.address(DATABASE), namespace, deadline_s)

    def _remember(self, host: str, part: str, process: ProcessId) -> None:
        state = read_state(self.root)
        write_state(self.root, msgspec.structs.replace(state, processes={**state.processes, f"{host}/{part}": process}))

    def _wait(self, server: str, parts: Sequence[str], deadline_s: float) -> None:
        known = read_state(self.root).processes
        waited = {part: (known[f"{server}/{part}"], self.log(server, part)) for part in parts}
        wait_for_parts(server, waited, self.config(server), deadline_s)

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
