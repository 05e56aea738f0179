"""What a server's units may reach: the settings of systemd that depend on its configuration and on the installation.

Settings that do not are in the units themselves (`cli/systemd`). The mount has none of those that are made here, since each
gives a unit a mount namespace of its own: what is mounted in one is mounted nowhere else.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from cluster.config import ServerConfig
from cluster.rpc.wire import parse_address
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role

HOMES = ("/home", "/root", "/run/user")  # what ProtectHome hides
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 – what PrivateTmp hides
FIRST_FREE_PORT = 1024
BIND = "CAP_NET_BIND_SERVICE"


class Limits(NamedTuple):
    """Of one unit."""

    writable: list[str]  # directories; of others it may change nothing. Those that are missing when it starts are passed over
    protect_home: str  # value of ProtectHome
    private_tmp: str  # value of PrivateTmp
    capabilities: list[str]  # beside those that the unit has always
    hidden: Sequence[str] = ()  # files that it cannot read, as they were when it started


def manager_limits(config: ServerConfig, path: Path, installed: Iterable[str]) -> Limits:
    """Of the manager: the catalog, if that is a file, and its backups; the certificate of the page."""
    catalog, others = database_paths(config.manager.database)
    folders = [os.path.dirname(catalog) if catalog else "", config.backup.directory]
    writable = [config.state, *filter(None, folders), config.trust]
    return _limits(writable, [str(path), *others, *config.page.files, *installed], config.manager.listen, config.page.listen)


def agent_limits(config: ServerConfig, path: Path, installed: Iterable[str]) -> Limits:
    """Of the agent: the volumes. It must see the mount, which it ends when its process is dead.

    Whoever has the keys of a manager, or that to its database, is every server of the network: they are hidden from the agent,
    which other servers ask.
    """
    writable = [config.state, *config.agent.volumes, config.trust]
    limits = _limits(writable, [str(path), config.mount.mountpoint, *installed], config.agent.listen)
    trust = TrustFolder(config.trust)
    of_manager = map(str, (trust.authority, trust.master, trust.page_password, trust.credential(Role.MANAGER)))
    return limits._replace(hidden=[*of_manager, *config.page.files, *database_keys(config.manager.database)])


def _limits(writable: list[str], read: Sequence[str], *addresses: str) -> Limits:
    """*addresses* are those at which it listens; empty ones are none."""
    seen = [*writable, *read]
    ports = [parse_address(address)[1] for address in addresses if address]
    return Limits(
        writable,
        # Where something lies below a home, homes can be seen, and what is writable in them can be written to.
        protect_home="read-only" if _lies_below(seen, HOMES) else "tmpfs",
        private_tmp="no" if _lies_below(seen, TEMPORARY) else "yes",
        capabilities=[BIND] if min(ports) < FIRST_FREE_PORT else [],
    )


def database_paths(url: str) -> tuple[str, list[str]]:
    """The catalog's file (empty if it is none), and other paths in a database's URL, as of certificates and sockets."""
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    paths = [value for _name, value in parse_qsl(options) if value.startswith("/")]
    name = place.partition("/")[2]
    if not scheme.startswith("sqlite") or not name:
        return "", paths
    # The manager's working directory is `/`.
    return os.path.join("/", name), paths


def database_keys(url: str) -> list[str]:
    """The files with private keys in a database's URL."""
    return [value for name, value in parse_qsl(url.partition("?")[2]) if name == "sslkey"]


def missing_files(url: str) -> list[str]:
    """The files and directories in a database's URL that are not on this machine."""
    return [path for path in database_paths(url)[1] if not os.path.exists(path)]


def _lies_below(paths: Sequence[str], tops: Sequence[str]) -> bool:
    """Whether one of the paths, or what it is a link to, is in one of the directories."""
    everywhere = {place for path in paths for place in (os.path.normpath(path), os.path.realpath(path))}
    return any(place == top or place.startswith(f"{top}/") for place in everywhere for top in tops)
