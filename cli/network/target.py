"""Which network a command speaks to, and through which mounts a path of this machine leads into it.

`--root DIR` or `GODWIT_ROOT` names a lab; without them it is the machine's own configuration, else the only lab that is up.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.errors import Refused, Unavailable
from cluster.rpc.candidates import known_candidates
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from lab.registry import REGISTRY, registered

RootOption = Annotated[
    Path | None,
    typer.Option("--root", envvar="GODWIT_ROOT", metavar="DIR", help="The lab to speak to (its folder).", show_default=False),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long to wait for the manager.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, as docs/cli.md describes it.")]

DEFAULT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Target:
    """A network: its candidates' addresses, the mounts of it on this machine, and what to try if nobody answers."""

    trust: Path  # the folder in which the certificate of this command is
    managers: tuple[str, ...]  # all that are known, candidates learned later included
    mounts: tuple[Path, ...]  # of this machine; a lab has one for each server
    advice: str  # appended to the error
    people: Path | None = None  # the folder with the certificate of commands, if it is another
    volumes: tuple[tuple[str, ...], ...] = ()  # directories of the volumes on the server of each mount

    @cached_property
    def credentials(self) -> Credentials:
        """Who this command is; raises `Refused` if the user may not read that."""
        return Credentials(TrustFolder(self.people or self.trust), Role.ADMIN)


def find_target(root: Path | None, machine: Path = DEFAULT_CONFIG, labs: Path = REGISTRY) -> Target:
    """The network that a command means; raises `Refused` or `Unavailable` if there is none or more than one.

    *machine*: the machine's own configuration. *labs*: the registry of those that are up.
    """
    if root is not None:
        return lab_target(Lab.load(root), labs)
    # Before labs: on a server the network is meant that it serves.
    if machine.exists():
        return machine_target(machine)
    return lab_target(only_lab(labs), labs)


def find_configs(root: Path | None, machine: Path = DEFAULT_CONFIG, labs: Path = REGISTRY) -> list[ServerConfig]:
    """The configurations of the servers that a command means, as `find_target`: this machine's, or all of a lab."""
    if root is None and machine.exists():
        return [load_config(machine)]
    lab = Lab.load(root) if root is not None else only_lab(labs)
    return [lab.config(server) for server in lab.servers]


def machine_target(path: Path) -> Target:
    """The network of the server whose configuration is at *path*; raises `Refused`."""
    return _target([load_config(path)], f"is a manager running? (godwit run manager --config {path})")


def only_lab(labs: Path = REGISTRY) -> Lab:
    """The one lab that is up; raises `Refused` with a list if there is not exactly one."""
    roots = registered(labs)
    if len(roots) == 1:
        return Lab.load(roots[0])
    if not roots:
        raise Refused("no network here: this machine has no configuration and no lab is up (try: godwit lab up)")
    raise Refused("more than one lab is up, say which with --root: " + ", ".join(map(str, roots)))


def lab_target(lab: Lab, labs: Path = REGISTRY) -> Target:
    """The network of a lab; raises `Unavailable` if it is down."""
    if lab.root not in registered(labs):
        raise Unavailable(f"the lab at {lab.root} is down (try: godwit lab up --root {lab.root})")
    advice = f"look at godwit lab ls, and start what is missing: godwit lab start s1 --root {lab.root}"
    return _target([lab.config(server) for server in lab.servers], advice, lab.trust.path)


def _target(configs: Sequence[ServerConfig], advice: str, people: Path | None = None) -> Target:
    return Target(
        trust=Path(configs[0].trust),
        managers=tuple(known_candidates(configs[0].state, configs[0].managers)),
        mounts=tuple(Path(config.mount.mountpoint) for config in configs),
        advice=advice,
        people=people,
        volumes=tuple(tuple(config.agent.volumes) for config in configs),
    )


def read_link(path: bytes) -> bytes | None:
    """Where a symbolic link points to; None for anything else, and for what cannot be read."""
    try:
        # EINVAL for what is no link is the usual case.
        return os.readlink(path)
    except OSError:
        return None


def split_at_mount(
    path: Path, mounts: Sequence[Path], read: Callable[[bytes], bytes | None] = read_link
) -> tuple[Path, list[bytes]]:
    """The mount that *path* lies on and the names below it, without touching the mount, which may be dead.

    Symbolic links before the mount are followed, as *read* finds them. Raises `Refused` if *path* is on none of *mounts*.
    """
    wanted = {os.fsencode(mount) for mount in mounts}
    # abspath and readlink only: stat of what lies on a dead mount would hang.
    left = os.fsencode(os.path.abspath(path)).split(b"/")[:0:-1]
    here = b""
    links = 0
    while left:
        name = left.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            here = os.path.dirname(here).rstrip(b"/")
            continue
        here += b"/" + name
        # Nothing beyond the mount point is touched.
        if here in wanted:
            return Path(os.fsdecode(here)), [part for part in reversed(left) if part not in (b"", b".")]
        target = read(here)
        if target is not None:
            links += 1
            if links > 40:  # MAXSYMLINKS of Linux
                raise Refused(f"{path}: too many symbolic links")
            here = b"" if target.startswith(b"/") else os.path.dirname(here).rstrip(b"/")
            left += target.split(b"/")[::-1]
    names = ", ".join(map(str, mounts))
    raise Refused(f"{path} is on no mount of this network (its mounts: {names})")
