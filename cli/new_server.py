"""Making this machine a server of a network: what `init` and `join` have in common.

The configuration is written last and as a whole: a machine has one, and everything that it names, or it has none, and can be
tried again. Nothing that is there is ever overwritten.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cluster.catalog_point import remembered
from cluster.config import DEFAULT_CONFIG, DEFAULT_STATE, ServerConfig, parse_config, write_config
from cluster.durable import sync_directory
from cluster.errors import Refused, error_text
from cluster.mounted import uppermost
from cluster.mountpoint import make_immutable, make_mountpoint
from cluster.trust.folder import DEFAULT_TRUST, TrustFolder, group_number
from cluster.volume.layout import VolumeLayout

MANAGER_PORT = 7400  # the same default on every server
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
AdminGroupOption = Annotated[
    str,
    typer.Option("--admin-group", metavar="GROUP", help="Whose members may use godwit here as root may.", show_default=False),
]
AgentPortOption = Annotated[int, typer.Option("--agent-port", min=1, max=65535, help="TCP port of its agent.")]


@dataclass(frozen=True)
class Place:
    """Where this machine's server will be: what the command line says of it."""

    server: str  # the volumes bear it
    address: str  # at which other servers reach this one; checked by binding it
    volumes: tuple[Path, ...]  # absolute; may be empty
    mountpoint: Path  # absolute; made if it is missing
    config: Path  # where the configuration will be; nothing is there yet
    manager_port: int  # TCP
    agent_port: int  # TCP
    admin_group: str = ""  # of this machine; empty: only root administers

    @property
    def manager(self) -> str:
        return f"{self._host}:{self.manager_port}"

    @property
    def agent(self) -> str:
        return f"{self._host}:{self.agent_port}"

    @property
    def state(self) -> str:
        """Where its processes remember things: a configuration of its own has a place of its own."""
        return DEFAULT_STATE if self.config == DEFAULT_CONFIG else str(self.config.parent / "state")

    @property
    def trust(self) -> str:
        """Where its keys and certificates are."""
        return DEFAULT_TRUST if self.config == DEFAULT_CONFIG else str(self.config.parent / "trust")

    @property
    def _host(self) -> str:
        # IPv6 needs brackets before a port.
        return f"[{self.address}]" if ":" in self.address else self.address


def make_place(
    server: str | None,
    address: str,
    volumes: list[Path] | None,
    mountpoint: Path,
    config: Path,
    manager_port: int,
    agent_port: int,
    admin_group: str = "",
) -> Place:
    """The place with its defaults filled in; raises `Refused` for what cannot become a server here."""
    absolute = tuple(Path(os.path.abspath(volume)) for volume in volumes or ())
    name = server or socket.gethostname().partition(".")[0]
    place = Place(
        name, address, absolute, Path(os.path.abspath(mountpoint)), config.absolute(), manager_port, agent_port, admin_group
    )
    # Looked at early for the message; `write_new_config` makes sure of it.
    if place.config.exists():
        raise Refused(f"this machine has a configuration already, {place.config}: it is left as it is")
    # What it remembers is of another catalog, which no manager of the new network has.
    if (point := remembered(place.state)) is not None:
        raise Refused(f"this machine has been a server of another network ({point}): remove {place.state} if it is none any more")
    if admin_group:
        group_number(admin_group)  # it is there
    _check_address(address)
    check_paths(place.volumes, place.mountpoint)
    for volume in place.volumes:
        _check_volume(VolumeLayout(volume), name)
    return place


def _check_address(address: str) -> None:
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"--address {address}: {error_text(error)}") from error
    family, kind, _protocol, _name, where = found[0]
    with socket.socket(family, kind) as probe:
        try:
            # Port 0 of the very address: only an address of this machine can be bound, whatever its routes are.
            probe.bind(where)
        except OSError as error:
            raise Refused(f"--address {address} is no address of this machine: {error.strerror}") from error
    if where[0] in ("0.0.0.0", "::"):  # noqa: S104 – refused
        raise Refused(f"--address {address} is no address at which others could reach this machine")


def check_paths(volumes: Sequence[Path], mountpoint: Path) -> None:
    """Raises `Refused` if one of them lies within another, or the mount point is a file."""
    listed = [*volumes, mountpoint]
    for number, path in enumerate(listed):
        for other in listed[number + 1 :]:
            # A volume within the mount would store files in itself, and one within another among its objects.
            if path.is_relative_to(other) or other.is_relative_to(path):
                raise Refused(f"{path} and {other}: volumes and the mount must lie beside each other")
    if uppermost(mountpoint) is None and mountpoint.exists() and not mountpoint.is_dir():
        raise Refused(f"{mountpoint} is not a directory")


def _check_volume(layout: VolumeLayout, server: str) -> None:
    if not (layout.root / "volume.toml").exists():
        layout.require_empty()
    elif (identity := layout.identity()).server != server:
        raise Refused(f"{layout.root} is a volume of {identity.server} in cluster {identity.cluster!r}")


def make_config(place: Place, common: Mapping[str, Any]) -> ServerConfig:
    """The configuration: *common* has what all servers share, by section. Raises `Refused` with the key that is wrong.

    A server for which it has no database is no candidate.
    """
    listen = {"listen": place.manager} if common["manager"].get("database") else {}
    plain: dict[str, Any] = {
        **common,
        "server": place.server,
        "manager": {**common["manager"], **listen},
        "agent": {"listen": place.agent, "volumes": [str(volume) for volume in place.volumes]},
        "mount": {**common.get("mount", {}), "mountpoint": str(place.mountpoint)},
        "state": place.state,
        "trust": place.trust,
        "admin_group": place.admin_group,
    }
    return parse_config(msgspec.toml.encode(plain), f"the configuration of {place.server}")


def set_up(place: Place, config: ServerConfig, certify: Callable[[TrustFolder], None], *, new: bool) -> None:
    """Makes the volumes, the mount point, the certificates and the configuration, or, if that fails, none of them.

    *certify* writes keys and certificates.

    A volume of this server that exists is kept; in a *new* network it must be empty, since a catalog that does not know its
    objects has them thrown away. Nobody can write to the bare mount point from now on, where its file system can see to that;
    the mount does it elsewhere.
    """
    trust = TrustFolder(config.trust)
    with _undone_on_failure(trust) as formatted:
        for path in place.volumes:
            layout = VolumeLayout(path)
            there = (path / "volume.toml").exists()
            layout.prepare(config.cluster, config.server)
            if not there:
                # Only what was made here is undone.
                formatted.append(layout)
            elif new and any(layout.objects.rglob("*")):
                raise Refused(f"{path} holds files of an older network: choose another directory, or empty it")
        make_mountpoint(place.mountpoint)
        certify(trust)
        # Last: without it nothing of the above is used by anybody.
        write_new_config(place.config, config)
        # Not every file system has the flag; the mount covers the bare directory there.
        with suppress(OSError):
            if uppermost(place.mountpoint) is None:
                make_immutable(str(place.mountpoint))


@contextmanager
def _undone_on_failure(trust: TrustFolder) -> Iterator[list[VolumeLayout]]:
    formatted: list[VolumeLayout] = []
    made_trust = not trust.path.exists()
    try:
        yield formatted
    except BaseException:
        # Also Ctrl-C.
        for layout in formatted:
            with suppress(OSError):
                layout.unformat()
        if made_trust:
            shutil.rmtree(trust.path, ignore_errors=True)
        raise


def write_new_config(path: Path, config: ServerConfig) -> None:
    """Writes a configuration as a whole, readable by its owner only; raises `Refused` if there is one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # In the same directory: a link cannot lead to another file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_config(temporary, config)
        os.link(temporary, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise Refused(f"this machine has a configuration already, {path}: it is left as it is") from None
    finally:
        temporary.unlink(missing_ok=True)
    # After the name: a configuration that a loss of power takes back would let `init` make a second network.
    sync_directory(path.parent)


def server_facts(place: Place, config: ServerConfig) -> list[tuple[str, object]]:
    """What was set up, for people."""
    return [
        ("server", f"{config.server}, at {place.address}, {_ports(place, config)}"),
        ("cluster", config.cluster),
        ("volumes", " ".join(map(str, place.volumes)) or "none: it stores nothing itself"),
        ("mount", place.mountpoint),
        ("configuration", place.config),
        ("keys", f"{config.trust} (only root may read them{_but_for(config)})"),
    ]


def _but_for(config: ServerConfig) -> str:
    return f", and of people's the group {config.admin_group}" if config.admin_group else ""


def _ports(place: Place, config: ServerConfig) -> str:
    if not config.is_candidate:
        return f"port {place.agent_port}; no candidate for the office of manager"
    return f"ports {place.manager_port} and {place.agent_port}"


def server_object(place: Place, config: ServerConfig) -> dict[str, object]:
    """What was set up, for JSON; see docs/cli.md."""
    return {
        "server": config.server,
        "cluster": config.cluster,
        "config": str(place.config),
        "manager": config.manager.listen or None,
        "agent": place.agent,
        "managers": config.managers,
        "volumes": [str(volume) for volume in place.volumes],
        "mount": str(place.mountpoint),
    }


def start_commands(place: Place) -> list[str]:
    """What to type next, for systemd."""
    option = "" if place.config == DEFAULT_CONFIG else f" --config {place.config}"
    return [f"godwit units --install{option}", "systemctl enable --now godwit.target"]
