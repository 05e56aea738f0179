"""The configuration of one server: one TOML file, parsed once; unknown keys and values out of range are refused by name."""

import re
from pathlib import Path
from typing import Annotated

import msgspec

from cluster.decoding import from_toml
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Refused
from cluster.rpc.wire import parse_address

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Secret = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]

KEEP_MAX_S = 10 * 366 * 86400  # ten years: times in nanoseconds stay far from 64 bits
RENEWALS_PER_ACCESS = 2  # a holder decides at least this often within one access time

DEFAULT_CONFIG = Path("/etc/godwit/godwit.toml")
DEFAULT_STATE = "/var/lib/godwit/state"


class ManagerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[manager]`: this server's candidate for the office.

    `listen`: host:port. `database`: SQLAlchemy URL of the catalog. `term_s`: how long the office lasts without being
    extended. `session_timeout_s`: how long a silent mount keeps what it has open. `access_s`: the access time of lease tokens.
    `suspect_s`, `down_s`: after which silence of its agent a server is suspect, and when its replicas stop counting.
    `give_way_s`: for how long at most copies wait while mounts ask much.
    """

    listen: str
    database: str
    term_s: Seconds = 2.0
    session_timeout_s: Seconds = 30.0
    claim_timeout_s: Seconds = 30.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    access_s: Seconds = 15.0
    suspect_s: Seconds = 7.0
    down_s: Seconds = 600.0
    give_way_s: Annotated[float, msgspec.Meta(ge=0)] = 3.0


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agent]`: the background agent and data server.

    `listen`: host:port. `volumes`: backing directories. `trash_keep_s`: how long deleted objects are kept when space is
    not short, and those that the catalog does not know.
    """

    listen: str
    volumes: list[str] = []
    copies_at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    trash_keep_s: Annotated[float, msgspec.Meta(ge=0, le=KEEP_MAX_S)] = 604_800.0  # a week
    report_s: Seconds = 2.0


class MountConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[mount]`: the file system.

    `request_timeout_s`: how long an application may wait for a manager or another server before it gets EIO.
    `commit_s`: how often a file that stays open for writing is committed. `renew_s`: the time after which the holder of a
    lease token decides whether to renew it. `passthrough`: whether the kernel may itself read and write the objects on this
    server's disks, where it can; `unfenced`: also on volumes whose file system cannot stop programs that have files open from
    writing when their leases have ended.
    """

    mountpoint: str
    request_timeout_s: Seconds = 60.0
    commit_s: Seconds = 5.0
    renew_s: Seconds = 5.0
    passthrough: bool = True
    unfenced: bool = False


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `managers`: addresses of candidates, at least one of which is there when the server starts.

    `secret`: 32 random bytes in hexadecimal, the same on every server: lease tokens are signed with it. `state`: the directory in
    which the server's processes remember what must outlive them.
    """

    cluster: Name
    server: Name
    secret: Secret
    managers: Annotated[list[str], msgspec.Meta(min_length=1)]
    manager: ManagerConfig
    agent: AgentConfig
    mount: MountConfig
    state: str = DEFAULT_STATE


_decode = from_toml(ServerConfig)


def is_name(text: str) -> bool:
    """Whether it is good as the name of a server or a cluster."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def parse_config(text: bytes, source: str) -> ServerConfig:
    """The configuration in *text*; raises `Refused` with the key that is wrong and the *source* it stands in."""
    try:
        config = _decode(text)
    except Malformed as error:
        is_toml = isinstance(error.__cause__, msgspec.ValidationError)
        raise Refused(f"{source}: {error}" if is_toml else f"{source} is not TOML: {error}") from error
    addresses = {
        "manager.listen": config.manager.listen,
        "agent.listen": config.agent.listen,
        **{f"managers[{i}]": address for i, address in enumerate(config.managers)},
    }
    for key, address in addresses.items():
        try:
            parse_address(address)
        except ValueError as error:
            raise Refused(f"{source}: {key}: {error}") from error
    _check_times(config, source)
    paths = {"mount.mountpoint": config.mount.mountpoint, "state": config.state}
    paths |= {f"agent.volumes[{i}]": volume for i, volume in enumerate(config.agent.volumes)}
    for key, path in paths.items():
        if not path.startswith("/"):
            raise Refused(f"{source}: {key}: {path!r} is not an absolute path")
    return config


def _check_times(config: ServerConfig, source: str) -> None:
    if config.mount.renew_s * RENEWALS_PER_ACCESS > config.manager.access_s:
        raise Refused(
            f"{source}: mount.renew_s: {config.mount.renew_s:g} s must be at most half of manager.access_s, "
            f"{config.manager.access_s:g} s"
        )
    if config.manager.suspect_s > config.manager.down_s:
        raise Refused(f"{source}: manager.suspect_s: {config.manager.suspect_s:g} s is more than manager.down_s")


def load_config(path: Path) -> ServerConfig:
    """Reads a configuration file; raises `Refused` if it cannot be read or is wrong."""
    try:
        text = read_file(path)
    except OSError as error:
        raise Refused(f"cannot read the configuration {path}: {error.strerror}", error.errno) from error
    return parse_config(text, str(path))


def dump_config(config: ServerConfig) -> bytes:
    """The file that `parse_config` reads back as *config*."""
    return msgspec.toml.encode(config)


def write_config(path: Path, config: ServerConfig) -> None:
    """Replaces a server's configuration as a whole, or makes it. It holds the cluster's secret: only its owner can read it."""
    replace_file(path, dump_config(config))
