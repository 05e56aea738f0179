"""`godwit volumes add`: a further volume of this server, or one in the place of a disk that was replaced."""

import os
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli.display.render import as_bytes, print_facts, print_json, print_line
from cli.network.target import JsonOption
from cli.new_server import ConfigOption, check_paths
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config, parse_config, write_config
from cluster.volume.layout import VolumeLayout


def add(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory, its disk mounted.", show_default=False)],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a directory a volume of this server, and add it to the configuration. For a further disk, or a replaced one.

    An agent never makes a volume by itself: a directory without one means that its disk is not mounted. In a directory that
    the configuration names already, where a new disk is mounted now, a new volume is made, which the agent takes up by itself;
    for a further directory its unit is written anew and it is restarted. A volume of this server that has moved is kept as it is.

    \b
    Examples:
      godwit volumes add /srv/godwit2
      godwit volumes add /srv/godwit        after the disk was replaced, formatted and mounted
    """
    path = Path(os.path.abspath(directory))
    known = load_config(config)
    is_listed = str(path) in known.agent.volumes  # then a disk was replaced: the agent looks for it by itself
    grown = known if is_listed else with_volume(config, path)
    check_paths([Path(volume) for volume in grown.agent.volumes], Path(grown.mount.mountpoint))
    # Before the configuration: one that names a directory without a volume is an agent with a problem.
    identity = VolumeLayout(path).prepare(known.cluster, known.server)
    # Writing it anew would lose comments, since TOML's are not part of what is parsed.
    is_written = not is_listed and not _has_comments(config)
    if is_written:
        write_config(config, grown)
    status = os.statvfs(path)
    if as_json:
        print_json({"volume": str(path), "uuid": identity.uuid, "configured": is_listed or is_written, "restart": not is_listed})
        return
    size = f"{as_bytes(status.f_bavail * status.f_frsize)} free of {as_bytes(status.f_blocks * status.f_frsize)}"
    print_facts([("volume", path), ("uuid", identity.uuid), ("disk", f"{size}, mounted at {mounted_at(path)}")])
    print_line()
    if is_listed:
        print_line("The agent takes it up within seconds: godwit servers show " + known.server)
        return
    if not is_written:
        print_line(f'{config} has comments and is left as it is: add "{path}" to volumes in its section [agent].')
    print_line("Then:" if not is_written else "Next:")
    option = "" if config == DEFAULT_CONFIG else f" --config {config}"
    print_line(f"  godwit units --install{option}")  # the agent's unit lets it write to volumes that are named in it
    print_line("  systemctl restart godwit-agent")


def with_volume(config: Path, path: Path) -> ServerConfig:
    """The configuration of a file with one volume more; raises `Refused`."""
    plain = tomllib.loads(config.read_text(encoding="utf-8"))
    plain["agent"]["volumes"] = [*plain["agent"].get("volumes", []), str(path)]
    return parse_config(msgspec.toml.encode(plain), str(config))


def mounted_at(path: Path) -> Path:
    """Where the file system of *path* is mounted."""
    # Shown, since the usual mistake is a disk that is not mounted: then this is `/`.
    while not os.path.ismount(path):
        path = path.parent
    return path


def _has_comments(config: Path) -> bool:
    return any(line.lstrip().startswith("#") for line in config.read_text(encoding="utf-8").splitlines())
