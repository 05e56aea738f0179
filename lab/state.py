"""What a lab is: the choices it was made with, where its files are, and `lab.json`, which remembers both.

DIR/lab.json  DIR/trust/admin.pem  DIR/catalog/catalog.db (or DIR/db/data)
DIR/s1/godwit.toml  DIR/s1/trust/agent.pem …  DIR/s1/mnt  DIR/s1/vol1 …  DIR/s1/log/agent.log
"""

import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cluster.config import ServerConfig, parse_config
from cluster.decoding import from_json
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Refused
from lab.database import DATABASE, database_url
from lab.network import DATABASE_HOST, SERVERS_MAX, Network
from lab.processes import ProcessId

PARTS = ("manager", "agent", "mount")  # in the order in which they are started; ended in the reverse one
POSTGRESQL = "postgresql"
SQLITE = "sqlite"
MANAGER_PORT = 7400  # the same on every server: each has an address of its own
AGENT_PORT = 7401
PAGE_PORT = 7420
VOLUMES_MAX = 16  # bounds what a typing error makes
STATE_FILE = "lab.json"
SUPERVISOR_LOG = "supervisor.log"
PEOPLE = "trust"  # the folder with the certificate of who types commands
PEOPLE_SERVER = "lab"  # which it names; there is no such server

Overrides = Mapping[str, Mapping[str, Any]]


class LabState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `lab.json`."""

    cluster: str  # random, so that parts of two labs never talk to each other
    servers: Annotated[int, msgspec.Meta(ge=1, le=SERVERS_MAX)]  # how many
    volumes: Annotated[int, msgspec.Meta(ge=0, le=VOLUMES_MAX)]  # how many each
    database: str | None = None  # None: the lab's own SQLite file; `POSTGRESQL`: a server of its own; else a URL
    overrides: dict[str, dict[str, Any]] = {}  # laid over every server's configuration
    network: Network | None = None  # None while the lab is down
    processes: dict[str, ProcessId] = {}  # those that should run, by names like `s1/agent`
    layout: int = 1  # of this file
    password: str = ""  # Godwit's, for a PostgreSQL server of the lab's own
    has_catalog: bool = False  # it was made, which happens once: what is lost afterwards is not made anew
    supervisor: ProcessId | None = None  # starts `processes` again that end by themselves
    unsupervised: list[str] = []  # but not these: told to end, or running somebody's own program

    @property
    def own_database(self) -> bool:
        return self.database == POSTGRESQL

    @property
    def route_out(self) -> bool:
        """Whether the catalog's database may be anywhere."""
        return self.database is not None and not self.own_database


_decode = from_json(LabState)


def new_state(servers: int, volumes: int, database: str | None, overrides: Overrides) -> LabState:
    """The state of a lab that has never been up; raises `Refused` for choices that make no sense."""
    database = None if database == SQLITE else database
    if not 1 <= servers <= SERVERS_MAX:
        raise Refused(f"a lab has 1 to {SERVERS_MAX} servers, not {servers}")
    if not 0 <= volumes <= VOLUMES_MAX:
        raise Refused(f"a server has 0 to {VOLUMES_MAX} volumes, not {volumes}")
    if database is not None and database != POSTGRESQL and "://" not in database:
        raise Refused(
            # Without what was given, which may be a password in the wrong place.
            f"--db is neither sqlite nor {POSTGRESQL}, which a lab starts itself, nor the URL of a database that runs, like "
            "postgresql+psycopg://user@host/name"
        )
    return LabState(
        cluster=f"lab-{secrets.token_hex(4)}",
        servers=servers,
        volumes=volumes,
        database=database,
        password=secrets.token_hex(16) if database == POSTGRESQL else "",
        overrides={section: dict(values) for section, values in overrides.items()},
    )


def grown(state: LabState, name: str | None) -> LabState:
    """The state with one server more; raises `Refused` if *name* is not the next one's."""
    # Servers are never taken away, so names and addresses are without gaps.
    number = state.servers + 1
    if number > SERVERS_MAX:
        raise Refused(f"a lab has at most {SERVERS_MAX} servers")
    if name is not None and name != f"s{number}":
        raise Refused(f"the next server of this lab is s{number}, not {name}")
    return msgspec.structs.replace(state, servers=number)


def supervised(state: LabState) -> dict[str, ProcessId]:
    """The processes that are started again when they end by themselves."""
    return {name: process for name, process in state.processes.items() if name not in state.unsupervised}


def with_process(state: LabState, name: str, process: ProcessId, *, is_own: bool) -> LabState:
    """The state with a process that was started; the supervisor can start it again if it is the lab's own program."""
    # Starting a part by its own program makes it supervised again, whatever killed it before.
    unsupervised = {*state.unsupervised, name} if not is_own else {*state.unsupervised} - {name}
    return msgspec.structs.replace(state, processes={**state.processes, name: process}, unsupervised=sorted(unsupervised))


def left_dead(state: LabState, names: Collection[str]) -> LabState:
    """The state in which processes stay dead when they have ended, until they are started."""
    return msgspec.structs.replace(state, unsupervised=sorted({*state.unsupervised, *names}))


def without_processes(state: LabState) -> LabState:
    """The state of a lab that is down."""
    return msgspec.structs.replace(state, network=None, processes={}, supervisor=None, unsupervised=[])


def server_names(state: LabState) -> list[str]:
    return [f"s{number}" for number in range(1, state.servers + 1)]


def host_numbers(state: LabState) -> dict[str, int]:
    """Every host of the lab's network with its number there."""
    numbers = {server: number_of(server) for server in server_names(state)}
    return numbers | ({DATABASE: DATABASE_HOST} if state.own_database else {})


def number_of(server: str) -> int:
    return int(server.removeprefix("s"))


def read_state(root: Path) -> LabState:
    """Reads `lab.json`; raises `Refused` if *root* is no lab."""
    path = root / STATE_FILE
    try:
        return _decode(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{root} is not a lab: it has no {STATE_FILE} (try: godwit lab up --root {root})") from None
    except Malformed as error:
        raise Refused(f"{path} is damaged: {error}") from error


def write_state(root: Path, state: LabState) -> None:
    """Replaces `lab.json` as a whole. It may hold a database's password: only its owner can read it."""
    # Not synced: after a loss of power none of the processes that it names runs any more.
    replace_file(root / STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n", synced=False)


def check_new_root(root: Path) -> None:
    """Raises `Refused` unless *root* is missing, empty, or holds only empty volumes (`s1/vol1`) that were put there before."""
    # `?` begins the options of a database's URL.
    if any(letter in str(root) for letter in "?\n") or not str(root).isprintable():
        raise Refused(f"{str(root)!r}: a lab's folder is named in URLs and configurations, choose a plainer name")
    if not root.exists():
        return
    if not root.is_dir():
        raise Refused(f"{root} is not a directory")
    for entry in root.iterdir():
        # ext4 puts it at the top of every file system: disks may be mounted there before.
        if entry.name == "lost+found":
            continue
        foreign = entry if not re.fullmatch(r"s[1-9][0-9]*", entry.name) or not entry.is_dir() else _foreign_in_server(entry)
        if foreign is not None:
            raise Refused(f"{root} is not empty and not a lab (it contains {foreign.relative_to(root)}): choose another --root")


def _foreign_in_server(folder: Path) -> Path | None:
    for entry in folder.iterdir():
        if not re.fullmatch(r"vol[1-9][0-9]*", entry.name) or not entry.is_dir():
            return entry
        for inner in entry.iterdir():
            if inner.name != "lost+found":
                return inner
    return None


def server_config(root: Path, state: LabState, network: Network, server: str) -> ServerConfig:
    """The configuration of one server; raises `Refused` with the key if an override is wrong."""
    numbers = range(1, state.servers + 1)
    address = network.address(number_of(server))
    plain: dict[str, Any] = {
        "cluster": state.cluster,
        "server": server,
        "managers": [f"{network.address(number)}:{MANAGER_PORT}" for number in numbers],
        "manager": {
            "listen": f"{address}:{MANAGER_PORT}",
            "database": _url(root, state, network),
        },
        "agent": {
            "listen": f"{address}:{AGENT_PORT}",
            "volumes": [f"{root}/{server}/vol{number}" for number in range(1, state.volumes + 1)],
        },
        "mount": {"mountpoint": f"{root}/{server}/mnt"},
        "page": {"listen": f"{address}:{PAGE_PORT}"},
        "state": f"{root}/{server}/state",
        "trust": f"{root}/{server}/trust",
    }
    for section, values in state.overrides.items():
        # One level deep: a table within a section is replaced as a whole.
        plain[section] = {**plain.get(section, {}), **values}
    return parse_config(msgspec.toml.encode(plain), f"the configuration of {server}")


def _url(root: Path, state: LabState, network: Network) -> str:
    if state.own_database:
        return database_url(network.address(DATABASE_HOST), state.password)
    return state.database or f"sqlite:///{root}/catalog/catalog.db"
