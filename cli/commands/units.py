"""`godwit units`: the systemd units of this machine's server, made for its configuration and this installation."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from cli.display.render import print_line
from cli.unit_limits import Limits, agent_limits, database_paths, manager_limits
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.durable import replace_file
from cluster.errors import Refused

UNITS = ("godwit.target", "godwit-manager.service", "godwit-agent.service", "godwit-mount.service")
MANAGER_UNIT = "godwit-manager.service"  # of candidates
DIRECTORY = Path("/etc/systemd/system")  # for an administrator's own units, above those of packages
RUNNING_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3): there is a systemd to be told
# units have absolute paths; sudo's PATH may lack the sbin folders
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"


def units(
    install: Annotated[bool, typer.Option("--install", help="Write them, and tell systemd.")] = False,
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The server's configuration.")] = DEFAULT_CONFIG,
    directory: Annotated[Path, typer.Option("--directory", metavar="DIR", help="Where to write them.")] = DIRECTORY,
) -> None:
    """Show or install the systemd units of this server. Older ones are replaced; changes belong into drop-ins.

    \b
    Examples:
      godwit units
      godwit units --install && systemctl enable --now godwit.target
    """
    path = config.absolute()
    made = make_units(load_config(path), path, program(), installation())
    if not install:
        for name, text in made.items():
            print_line(f"# {directory / name}\n{text}")
        return
    for name, text in made.items():
        replace_file(directory / name, text.encode(), mode=0o644)
    # Written elsewhere they are for another machine, or an image.
    if directory == DIRECTORY and RUNNING_SYSTEMD.is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=True)
    print_line(f"installed in {directory}: {', '.join(made)}")


def program() -> list[str]:
    """How this very installation is called."""
    # Beside the interpreter of this very installation: another one in PATH may be of another release.
    script = Path(sys.executable).with_name("godwit")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", "cli.main"]


def installation() -> list[str]:
    """The directories of this very installation, and of its Python."""
    return [sys.prefix, sys.base_prefix, str(files("cli"))]


def make_units(config: ServerConfig, path: Path, command: list[str], installed: Sequence[str] = ()) -> dict[str, str]:
    """The text of every unit. *installed*: further directories that the programs are in."""
    mountpoint = config.mount.mountpoint
    read = [*installed, *(word for word in command if word.startswith("/"))]
    agent = agent_limits(config, path, read)
    manager = manager_limits(config, path, read) if config.is_candidate else agent
    catalog, _others = database_paths(config.manager.database)
    values = {
        "server": _plain(config.server),
        "admin_group": _plain(config.admin_group),
        "cluster": _plain(config.cluster),
        # systemd splits by its own rules, not by a shell's.
        "program": " ".join(map(quoted, command)),
        "config": quoted(str(path)),
        "condition": _plain(str(path)),
        "disks": " ".join(mount_units(config.agent.volumes)),
        "state": quoted(config.state),
        "state_trust": _list([config.state, config.trust]),
        "catalog": quoted_path(os.path.dirname(catalog)),
        "above_mountpoint": quoted_path(os.path.dirname(mountpoint)),
        "mountpoint": quoted(mountpoint),
        "umount": _find("umount", "mount"),
        "parts": " ".join(name for name in _names(config) if name.endswith(".service")),
        "sh": _find("sh", "dash"),
        "mkdir": _find("mkdir", "coreutils"),
        **_values("manager", manager),
        **_values("agent", agent),
    }
    folder = files("cli") / "systemd"
    return {name: Template((folder / name).read_text()).substitute(values) for name in _names(config)}


def _names(config: ServerConfig) -> list[str]:
    return [name for name in UNITS if config.is_candidate or name != MANAGER_UNIT]


def _values(part: str, limits: Limits) -> dict[str, str]:
    return {
        f"{part}_writable": _list(f"-{path}" for path in limits.writable),
        f"{part}_hidden": _list(f"-{path}" for path in limits.hidden),
        f"{part}_home": limits.protect_home,
        f"{part}_tmp": limits.private_tmp,
        f"{part}_capabilities": " ".join(limits.capabilities),
    }


def _list(paths: Iterable[str]) -> str:
    return " ".join(map(quoted_path, paths))


def mount_units(paths: Iterable[str]) -> list[str]:
    """The units that mount what these absolute paths may lie on, whether there are such or not: systemd.unit(5), String Escaping.

    To be wanted, where `RequiresMountsFor` would keep a server from starting because one of its disks is broken.
    """
    found: dict[str, None] = {}
    for path in paths:
        # As systemd itself would simplify it.
        names = [name for name in path.split("/") if name not in ("", ".")]
        for count in range(1, len(names) + 1):
            found["-".join(map(_escaped, names[:count])).replace(".", r"\x2e", names[0].startswith(".")) + ".mount"] = None
    return list(found)


def _escaped(name: str) -> str:
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_."
    return "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(name))


def quoted(word: str) -> str:
    """One word of a command line in a unit."""
    # In command lines systemd puts environment variables in.
    return quoted_path(word).replace("$", "$$")


def quoted_path(text: str) -> str:
    """One word of a list in a unit, in which nothing is put in for variables."""
    escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(letter in text for letter in " \t'\"\\;") else escaped


def _plain(text: str) -> str:
    if not text.isprintable():
        raise Refused(f"{text!r} cannot stand in a unit of systemd")
    # Specifiers such as %i are put in everywhere.
    return text.replace("%", "%%")


def _find(name: str, package: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise Refused(f"the units need {name} (package {package}), which is missing here")
    return found
