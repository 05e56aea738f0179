"""A network as whoever attacks it reaches it from here: one and the same of a lab, and of machines set up by the guide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from cluster.config import ServerConfig, credentials_of, load_config
from cluster.messages import PROTOCOL, AskOffice, GetWhere, Hello, Request, Where
from cluster.trust.authority import Authority
from cluster.trust.credentials import Newcomer
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from lab.state import PARTS, SUPERVISOR_LOG
from tests.support.conditions import wait_until
from tests.support.machines import Machines
from tests.support.trust import answer_to

R = TypeVar("R")

LOGGED_S = 10.0


@dataclass(frozen=True)
class Attacked:
    """What an attack needs to know. All paths are as this process reaches them, also those in the configurations."""

    configs: Mapping[str, ServerConfig]  # of each server
    log: Callable[[str, str], Path]  # of a server's part
    quiet: Sequence[Path] = ()  # logs to which nothing may be added

    @property
    def servers(self) -> list[str]:
        return sorted(self.configs)

    def mount(self, server: str) -> Path:
        return Path(self.configs[server].mount.mountpoint)

    def trust(self, server: str = "s1") -> TrustFolder:
        return TrustFolder(self.configs[server].trust)

    @property
    def authority(self) -> Authority:
        """With its key: what only candidates have."""
        return self.trust().read_authority()

    @property
    def newcomer(self) -> Newcomer:
        """Somebody without a certificate."""
        return Newcomer(self.trust().read_authorities().decode())

    @property
    def manager(self) -> ServerConfig:
        """The configuration of the server that is the manager."""
        return next(config for config in self.configs.values() if _is_manager(config))

    def answer(self, request: Request[R]) -> R:
        """The manager's to a command of its own server."""
        config = self.manager
        said: R = answer_to(
            config.manager.listen, credentials_of(config, Role.ADMIN), hello(config, config.server, Role.ADMIN), request
        )
        return said

    def where(self, path: Path) -> Where:
        """Where a file's content is."""
        return self.answer(GetWhere(path.stat().st_ino))

    def assert_logged(self, part: str, *words: str) -> None:
        """Some server's part has said so, once at least: it says each cause the first time, and whenever the count is tenfold."""

        def found() -> bool:
            lines = [line for server in self.servers for line in self.log(server, part).read_text().splitlines()]
            return any(all(word in line for word in words) for line in lines)

        wait_until(found, f"{words} in the log of a {part}", LOGGED_S)

    @property
    def logs(self) -> list[Path]:
        return [self.log(server, part) for server in self.servers for part in PARTS]


def of_lab(lab: Lab) -> Attacked:
    # Of the supervisor, which tells of processes that ended by themselves.
    return Attacked({server: lab.config(server) for server in lab.servers}, lab.log, [lab.root / SUPERVISOR_LOG])


def of_machines(machines: Machines) -> Attacked:
    """Of those that have been made servers."""
    names = [name for name in machines.numbers if machines.path(name, "/etc/godwit/godwit.toml").exists()]
    return Attacked({name: _seen_from_here(machines, name) for name in names}, machines.log)


def _seen_from_here(machines: Machines, name: str) -> ServerConfig:
    config = load_config(machines.path(name, "/etc/godwit/godwit.toml"))
    mount = msgspec.structs.replace(config.mount, mountpoint=str(machines.path(name, config.mount.mountpoint)))
    return msgspec.structs.replace(config, mount=mount, trust=str(machines.path(name, config.trust)))


def _is_manager(config: ServerConfig) -> bool:
    return bool(answer_to(config.manager.listen, credentials_of(config, Role.ADMIN), AskOffice(config.cluster)).in_office)


def hello(config: ServerConfig, server: str, role: str, session: int = 4711) -> Hello:
    return Hello(PROTOCOL, config.cluster, server, role, session)
