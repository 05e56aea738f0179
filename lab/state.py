"""What a lab is: the choices it was made with, where its files are, and `lab.json`, which remembers both.

DIR/lab.json  DIR/catalog/catalog.db (or DIR/db/data)  DIR/s1/godwit.toml  DIR/s1/mnt  DIR/s1/vol1 …  DIR/s1/log/agent.log
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cluster.config import ServerConfig, dump_config, parse_config
from cluster.errors import Refused
from lab.database import DATABASE, database_url
from lab.network import DATABASE_HOST, SERVERS_MAX, Network
from lab.processes import ProcessId

PARTS = ("manager", "agent", "mount")
POSTGRESQL = "postgresql"
SQLITE = "sqlite"
MANAGER_PORT = 7400
AGENT_PORT = 7401
VOLUMES_MAX = 16
STATE_FILE = "lab.json"

Overrides = Mapping[str, Mapping[str, Any]]


class LabState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `lab.json`. `network` is None while the lab is down; `processes` are named `s1/agent`.

    `database` is None for the lab's own SQLite file, `POSTGRESQL` for a server of the lab's own, whose password for Godwit
    is `password`, else a URL. `overrides` are laid over every server's configuration.
    """

    cluster: str
    secret: str
    servers: Annotated[int, msgspec.Meta(ge=1, le=SERVERS_MAX)]
    volumes: Annotated[int, msgspec.Meta(ge=0, le=VOLUMES_MAX)]
    database: str | None = None
    overrides: dict[str, dict[str, Any]] = {}
    network: Network | None = None
    processes: dict[str, ProcessId] = {}
    layout: int = 1
    password: str = ""

    @property
    def own_database(self) -> bool:
        return self.database == POSTGRESQL

    @property
    def route_out(self) -> bool:
        """Whether the catalog's database may be anywhere."""
        return self.database is not None and not self.own_database


def new_state(servers: int, volumes: int, database: str | None, overrides: Overrides) -> LabState:
    """The state of a lab that has never been up; raises `Refused` for choices that make no sense."""
    database = None if database == SQLITE else database
    if not 1 <= servers <= SERVERS_MAX:
        raise Refused(f"a lab has 1 to {SERVERS_MAX} servers, not {servers}")
    if not 0 <= volumes <= VOLUMES_MAX:
        raise Refused(f"a server has 0 to {VOLUMES_MAX} volumes, not {volumes}")
    if database is not None and database != POSTGRESQL and "://" not in database:
        raise Refused(
            f"--db {database!r} is neither sqlite nor {POSTGRESQL}, which a lab starts itself, nor the URL of a database that "
            "runs, like postgresql+psycopg://user@host/name"
        )
    return LabState(
        cluster=f"lab-{secrets.token_hex(4)}",
        secret=secrets.token_hex(32),
        servers=servers,
        volumes=volumes,
        database=database,
        password=secrets.token_hex(16) if database == POSTGRESQL else "",
        overrides={section: dict(values) for section, values in overrides.items()},
    )


def grown(state: LabState, name: str | None) -> LabState:
    """The state with one server more; raises `Refused` if *name* is not the next one's."""
    number = state.servers + 1
    if number > SERVERS_MAX:
        raise Refused(f"a lab has at most {SERVERS_MAX} servers")
    if name is not None and name != f"s{number}":
        raise Refused(f"the next server of this lab is s{number}, not {name}")
    return msgspec.structs.replace(state, servers=number)


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
        return msgspec.json.decode(path.read_bytes(), type=LabState)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{root} is not a lab: it has no {STATE_FILE} (try: godwit lab up --root {root})") from None
    except msgspec.DecodeError as error:
        raise Refused(f"{path} is damaged: {error}") from error


def write_state(root: Path, state: LabState) -> None:
    """Replaces `lab.json` as a whole. It holds the cluster's secret: only its owner can read it."""
    temporary = root / f"{STATE_FILE}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    temporary.rename(root / STATE_FILE)


def check_new_root(root: Path) -> None:
    """Raises `Refused` unless *root* is missing, empty, or holds only empty volumes (`s1/vol1`) that were put there before."""
    if any(letter in str(root) for letter in "?\n") or not str(root).isprintable():
        raise Refused(f"{str(root)!r}: a lab's folder is named in URLs and configurations, choose a plainer name")
    if not root.exists():
        return
    if not root.is_dir():
        raise Refused(f"{root} is not a directory")
    for entry in root.iterdir():
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
        "secret": state.secret,
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
    }
    for section, values in state.overrides.items():
        plain[section] = {**plain.get(section, {}), **values}
    return parse_config(msgspec.toml.encode(plain), f"the configuration of {server}")


def _url(root: Path, state: LabState, network: Network) -> str:
    if state.own_database:
        return database_url(network.address(DATABASE_HOST), state.password)
    return state.database or f"sqlite:///{root}/catalog/catalog.db"


def write_config(path: Path, config: ServerConfig) -> None:
    """Replaces a server's configuration as a whole. It holds the cluster's secret: only its owner can read it."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(dump_config(config))
    temporary.rename(path)
