"""The configuration of one server: one TOML file, parsed once; unknown keys and values out of range are refused by name."""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cluster.decoding import from_toml
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Refused
from cluster.rpc.wire import parse_address
from cluster.trust.authority import CERTIFICATE_S
from cluster.trust.credentials import Credentials
from cluster.trust.folder import DEFAULT_TRUST, TrustFolder, group_number
from cluster.trust.identity import Role

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]

KEEP_MAX_S = 10 * 366 * 86400  # ten years: times in nanoseconds stay far from 64 bits
METRICS_PORTS = (Role.MANAGER, Role.AGENT, Role.MOUNT)  # whose port is which, from the first
RENEWALS_PER_ACCESS = 2  # a holder decides at least this often within one access time

OF_OLD = (
    "this is of an older release, whose servers had no keys and certificates; now the secret is among these, and not here: see "
    "docs/operations.md, Upgrading"
)

DEFAULT_CONFIG = Path("/etc/godwit/godwit.toml")
DEFAULT_STATE = "/var/lib/godwit/state"


class ManagerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[manager]`: this server's candidate for the office, and times on which all servers must agree.

    `listen`: host:port. `database`: SQLAlchemy URL of the catalog. A server that is no candidate has neither. `term_s`: how long
    the office lasts without being extended. `session_timeout_s`: how long a silent mount keeps what it has open. `access_s`: the
    access time of lease tokens. `suspect_s`, `down_s`: after which silence of its agent a server is suspect, and when its
    replicas stop counting. `give_way_s`: for how long at most copies wait while mounts ask much.
    `certificate_s`: how long the certificates are good that it signs. `events_keep_s`: how long events are kept.
    """

    listen: str = ""
    database: str = ""
    term_s: Seconds = 2.0
    session_timeout_s: Seconds = 30.0
    claim_timeout_s: Seconds = 30.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    access_s: Seconds = 15.0
    suspect_s: Seconds = 7.0
    down_s: Seconds = 600.0
    give_way_s: Annotated[float, msgspec.Meta(ge=0)] = 3.0
    certificate_s: Annotated[float, msgspec.Meta(ge=60, le=CERTIFICATE_S)] = CERTIFICATE_S
    events_keep_s: Annotated[float, msgspec.Meta(ge=0, le=KEEP_MAX_S)] = 2_592_000.0  # 30 days


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
    writing when their leases have ended. `suid`: whether set-id bits and file capabilities on the mount give programs rights,
    `dev`: whether its device nodes can be opened. Whoever is root on one server can make both for all servers.
    """

    mountpoint: str
    request_timeout_s: Seconds = 60.0
    commit_s: Seconds = 5.0
    renew_s: Seconds = 5.0
    passthrough: bool = True
    unfenced: bool = False
    suid: bool = False
    dev: bool = False


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[network]`: what goes between servers.

    `bulk`: whether the content of large files that agents copy from each other is encrypted ("tls"), or only who they are and
    what the content must be ("plain", where both ends say so): for networks that are encrypted beneath.
    """

    bulk: Literal["tls", "plain"] = "tls"

    @property
    def is_plain(self) -> bool:
        """Whether this server lets large contents go unencrypted."""
        return self.bulk == "plain"


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`: what processes say. `level`: of the least important lines that are logged. Can be changed while they run."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: where scrapers such as Prometheus read the numbers of this server's processes.

    `listen`: host:port of the manager's; the agent's are at the port after it, the mount's at the one after that. Whoever reaches
    them can read them: there is no password and no encryption. Empty: nowhere.
    """

    listen: str = ""

    def address(self, part: Role) -> str:
        """The host:port of one part; empty if there is none."""
        if not self.listen:
            return ""
        host, _, port = self.listen.rpartition(":")
        return f"{host}:{int(port) + METRICS_PORTS.index(part)}"


class PageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[page]`: where a browser finds the page about the network, on candidates.

    `listen`: host:port; empty: nowhere. `certificate`, `key`: files (PEM) of the one that browsers are shown, which may be one
    file; empty: the manager's own, which is of the network's authority and names no host.
    """

    listen: str = ""
    certificate: str = ""
    key: str = ""

    @property
    def files(self) -> list[str]:
        """Those of the certificate; none where it is the manager's own."""
        return [path for path in (self.certificate, self.key) if path]


class BackupConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backup]`: what the manager in office backs up by itself.

    `every_s`: how often the catalog; 0: never. `keep`: how many backups stay in `directory`, on the manager's server; empty:
    `backups` within `state`. `to_volumes`: whether all volumes of all servers get the newest two, too.
    """

    every_s: Annotated[float, msgspec.Meta(ge=0, le=KEEP_MAX_S)] = 21_600.0  # 6 h
    keep: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    directory: str = ""
    to_volumes: bool = True


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `managers`: addresses of candidates, at least one of which is there when the server starts.

    `state`: the directory in which the server's processes remember what must outlive them. `trust`: the directory of its keys and
    certificates, see `cluster.trust.folder`. `admin_group`: a group of this machine whose members administer the network as root
    does; empty: only root does.
    """

    cluster: Name
    server: Name
    managers: Annotated[list[str], msgspec.Meta(min_length=1)]
    manager: ManagerConfig
    agent: AgentConfig
    mount: MountConfig
    state: str = DEFAULT_STATE
    trust: str = DEFAULT_TRUST
    admin_group: str = ""
    network: NetworkConfig = NetworkConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    page: PageConfig = PageConfig()
    backup: BackupConfig = BackupConfig()

    @property
    def is_candidate(self) -> bool:
        """Whether the server has a manager."""
        return bool(self.manager.listen)


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
        if "unknown field `secret`" in str(error):
            raise Refused(f"{source}: secret: {OF_OLD}") from error
        raise Refused(f"{source}: {error}" if is_toml else f"{source} is not TOML: {error}") from error
    if bool(config.manager.listen) != bool(config.manager.database):
        raise Refused(f"{source}: manager: a candidate needs both, listen and database, and other servers have neither")
    addresses = {
        **({"manager.listen": config.manager.listen} if config.is_candidate else {}),
        "agent.listen": config.agent.listen,
        **{f"managers[{i}]": address for i, address in enumerate(config.managers)},
    }
    for key, address in addresses.items():
        try:
            parse_address(address)
        except ValueError as error:
            raise Refused(f"{source}: {key}: {error}") from error
    _check_metrics(config, source)
    _check_page(config, source)
    _check_times(config, source)
    paths = {"mount.mountpoint": config.mount.mountpoint, "state": config.state, "trust": config.trust}
    paths |= {f"page.{name}": path for name, path in (("certificate", config.page.certificate), ("key", config.page.key)) if path}
    paths |= {f"agent.volumes[{i}]": volume for i, volume in enumerate(config.agent.volumes)}
    if config.backup.directory:
        paths["backup.directory"] = config.backup.directory
    for key, path in paths.items():
        if not path.startswith("/"):
            raise Refused(f"{source}: {key}: {path!r} is not an absolute path")
    return config


def _check_metrics(config: ServerConfig, source: str) -> None:
    listen = config.metrics.listen
    if not listen:
        return
    try:
        parse_address(listen)
        for part in METRICS_PORTS:
            parse_address(config.metrics.address(part))
    except ValueError as error:
        raise Refused(f"{source}: metrics.listen: {error}, for the ports of {len(METRICS_PORTS)} processes") from error


def _check_page(config: ServerConfig, source: str) -> None:
    page = config.page
    if page.listen:
        try:
            parse_address(page.listen)
        except ValueError as error:
            raise Refused(f"{source}: page.listen: {error}") from error
        if not config.is_candidate:
            raise Refused(f"{source}: page.listen: a manager serves the page, and this server has none (manager.listen)")
    if page.key and not page.certificate:
        raise Refused(f"{source}: page.key: there is no page.certificate that it could be of")


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


def credentials_of(config: ServerConfig, role: Role) -> Credentials:
    """The credentials of one of the server's processes; raises `Refused` if there are none, or they are of another server."""
    credentials = Credentials(TrustFolder(config.trust), role)
    credentials.require(config.cluster, config.server)
    return credentials


def differing_keys(one: ServerConfig, other: ServerConfig) -> list[str]:
    """The settings in which two configurations differ, as `mount.commit_s`."""
    mine, theirs = _settings(one), _settings(other)
    return [key for key in mine if mine[key] != theirs[key]]


def _settings(config: ServerConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in msgspec.structs.asdict(config).items():
        section = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else None
        found |= {key: value} if section is None else {f"{key}.{name}": setting for name, setting in section.items()}
    return found


def dump_config(config: ServerConfig) -> bytes:
    """The file that `parse_config` reads back as *config*."""
    return msgspec.toml.encode(config)


def write_config(path: Path, config: ServerConfig) -> None:
    """Replaces a server's configuration as a whole, or makes it.

    Only its owner can read it, and who administers the network: it may have a password. Raises `Refused` if there is no such
    group, `OSError`.
    """
    if config.admin_group:
        replace_file(path, dump_config(config), mode=0o640, group=group_number(config.admin_group))
    else:
        replace_file(path, dump_config(config))
