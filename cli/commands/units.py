"""`godwit units`: the systemd units of this machine's server, made for its configuration and this installation."""

import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from cli.display.render import print_line
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.durable import replace_file
from cluster.errors import Refused

UNITS = ("godwit.target", "godwit-manager.service", "godwit-agent.service", "godwit-mount.service")
DIRECTORY = Path("/etc/systemd/system")  # for an administrator's own units, above those of packages
RUNNING_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3): there is a systemd to be told
FUSE_MAGIC = "65735546"  # what stat(1) calls a FUSE file system: beneath it may be another mount, read-only
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
    made = make_units(load_config(path), path, program())
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


def make_units(config: ServerConfig, path: Path, command: list[str]) -> dict[str, str]:
    """The text of every unit."""
    mountpoint = config.mount.mountpoint
    values = {
        "server": _plain(config.server),
        "cluster": _plain(config.cluster),
        # systemd splits by its own rules, not by a shell's.
        "program": " ".join(map(quoted, command)),
        "config": quoted(str(path)),
        "volumes": " ".join(quoted_path(volume) for volume in config.agent.volumes),
        "above_mountpoint": quoted_path(os.path.dirname(mountpoint)),
        "mountpoint": quoted(mountpoint),
        "environment": quoted_path(f"GODWIT_MOUNTPOINT={mountpoint}"),
        "umount": _find("umount", "mount"),
        "stat": _find("stat", "coreutils"),
        "fuse": FUSE_MAGIC,
        "sh": _find("sh", "dash"),
    }
    folder = files("cli") / "systemd"
    return {name: Template((folder / name).read_text()).substitute(values) for name in UNITS}


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
