"""Making this machine a server of a network: what `init` and `join` have in common.

The configuration is written last and as a whole: a machine has one, and everything that it names, or it has none, and can be
tried again. Nothing that is there is ever overwritten.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cluster.config import DEFAULT_CONFIG, ServerConfig, dump_config, parse_config
from cluster.errors import Refused
from cluster.volume.layout import VolumeLayout, sync_directory

MANAGER_PORT = 7400
AGENT_PORT = 7401
DEFAULT_MOUNTPOINT = Path("/mnt/godwit")

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="NAME", help="This server's name.  [default: the host name]", show_default=False)
]
AddressOption = Annotated[
    str, typer.Option("--address", metavar="ADDRESS", help="Where the other servers reach this one.", show_default=False)
]
VolumeOption = Annotated[
    list[Path] | None,
    typer.Option("--volume", metavar="DIR", help="A directory for file contents; may be repeated.", show_default=False),
]
MountpointOption = Annotated[Path, typer.Option("--mountpoint", metavar="DIR", help="Where the network is mounted.")]
ConfigOption = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration to be written.")]
ManagerPortOption = Annotated[int, typer.Option("--manager-port", min=1, max=65535, help="TCP port of its manager.")]
AgentPortOption = Annotated[int, typer.Option("--agent-port", min=1, max=65535, help="TCP port of its agent.")]


@dataclass(frozen=True)
class Place:
    """Where this machine's server will be: what the command line says of it."""

    server: str
    address: str
    volumes: tuple[Path, ...]
    mountpoint: Path
    config: Path
    manager_port: int
    agent_port: int

    @property
    def manager(self) -> str:
        return f"{self._host}:{self.manager_port}"

    @property
    def agent(self) -> str:
        return f"{self._host}:{self.agent_port}"

    @property
    def _host(self) -> str:
        return f"[{self.address}]" if ":" in self.address else self.address


def make_place(
    server: str | None,
    address: str,
    volumes: list[Path] | None,
    mountpoint: Path,
    config: Path,
    manager_port: int,
    agent_port: int,
) -> Place:
    """The place with its defaults filled in; raises `Refused` for what cannot become a server here."""
    absolute = tuple(Path(os.path.abspath(volume)) for volume in volumes or ())
    name = server or socket.gethostname().partition(".")[0]
    place = Place(name, address, absolute, Path(os.path.abspath(mountpoint)), config.absolute(), manager_port, agent_port)
    if place.config.exists():
        raise Refused(f"this machine has a configuration already, {place.config}: it is left as it is")
    _check_address(address)
    _check_paths(place)
    for volume in place.volumes:
        _check_volume(VolumeLayout(volume), name)
    return place


def _check_address(address: str) -> None:
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"--address {address}: {error}") from error
    family, kind, _protocol, _name, where = found[0]
    with socket.socket(family, kind) as probe:
        try:
            probe.bind(where)
        except OSError as error:
            raise Refused(f"--address {address} is no address of this machine: {error.strerror}") from error
    if where[0] in ("0.0.0.0", "::"):  # noqa: S104 – refused
        raise Refused(f"--address {address} is no address at which others could reach this machine")


def _check_paths(place: Place) -> None:
    listed = [*place.volumes, place.mountpoint]
    for number, path in enumerate(listed):
        for other in listed[number + 1 :]:
            if path.is_relative_to(other) or other.is_relative_to(path):
                raise Refused(f"{path} and {other}: volumes and the mount must lie beside each other")
    if place.mountpoint.exists() and not place.mountpoint.is_dir():
        raise Refused(f"{place.mountpoint} is not a directory")


def _check_volume(layout: VolumeLayout, server: str) -> None:
    if not (layout.root / "volume.toml").exists():
        layout.require_empty()
    elif (identity := layout.identity()).server != server:
        raise Refused(f"{layout.root} is a volume of {identity.server} in cluster {identity.cluster!r}")


def make_config(place: Place, common: Mapping[str, Any]) -> ServerConfig:
    """The configuration: *common* has what all servers share, by section. Raises `Refused` with the key that is wrong."""
    plain: dict[str, Any] = {
        **common,
        "server": place.server,
        "manager": {**common["manager"], "listen": place.manager},
        "agent": {"listen": place.agent, "volumes": [str(volume) for volume in place.volumes]},
        "mount": {**common.get("mount", {}), "mountpoint": str(place.mountpoint)},
    }
    return parse_config(msgspec.toml.encode(plain), f"the configuration of {place.server}")


def set_up(place: Place, config: ServerConfig, *, new: bool) -> None:
    """Makes the volumes, the mount point and the configuration, or, if that fails, none of them.

    A volume of this server that exists is kept; in a *new* network it must be empty, since a catalog that does not know its
    objects has them thrown away.
    """
    with _undone_on_failure() as formatted:
        for path in place.volumes:
            layout = VolumeLayout(path)
            there = (path / "volume.toml").exists()
            layout.prepare(config.cluster, config.server)
            if not there:
                formatted.append(layout)
            elif new and any(layout.objects.rglob("*")):
                raise Refused(f"{path} holds files of an older network: choose another directory, or empty it")
        place.mountpoint.mkdir(parents=True, exist_ok=True)
        write_new_config(place.config, config)


@contextmanager
def _undone_on_failure() -> Iterator[list[VolumeLayout]]:
    formatted: list[VolumeLayout] = []
    try:
        yield formatted
    except BaseException:
        for layout in formatted:
            with suppress(OSError):
                layout.unformat()
        raise


def write_new_config(path: Path, config: ServerConfig) -> None:
    """Writes a configuration as a whole, readable by its owner only; raises `Refused` if there is one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(dump_config(config))
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise Refused(f"this machine has a configuration already, {path}: it is left as it is") from None
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def server_facts(place: Place, config: ServerConfig) -> list[tuple[str, object]]:
    """What was set up, for people."""
    return [
        ("server", f"{config.server}, at {place.address}, ports {place.manager_port} and {place.agent_port}"),
        ("cluster", config.cluster),
        ("volumes", " ".join(map(str, place.volumes)) or "none: it stores nothing itself"),
        ("mount", place.mountpoint),
        ("configuration", f"{place.config} (holds the cluster's secret: only root may read it)"),
    ]


def server_object(place: Place, config: ServerConfig) -> dict[str, object]:
    """What was set up, for JSON; see docs/cli.md."""
    return {
        "server": config.server,
        "cluster": config.cluster,
        "config": str(place.config),
        "manager": place.manager,
        "agent": place.agent,
        "managers": config.managers,
        "volumes": [str(volume) for volume in place.volumes],
        "mount": str(place.mountpoint),
    }


def start_commands(place: Place) -> list[str]:
    """What to type next, for systemd."""
    option = "" if place.config == DEFAULT_CONFIG else f" --config {place.config}"
    return [f"godwit units --install{option}", "systemctl enable --now godwit.target"]
