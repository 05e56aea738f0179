"""Writes the units that a package has: those of a server at the default places. Run by the package's own Python.

`godwit units --install` writes those of this very server above them, in /etc/systemd/system.
"""

import sys
from pathlib import Path

from cli.commands.units import make_units
from cluster.config import DEFAULT_CONFIG, AgentConfig, ManagerConfig, MountConfig, ServerConfig

DEFAULT = ServerConfig(
    cluster="its network",
    server="%H",
    managers=["127.0.0.1:7400"],
    manager=ManagerConfig(listen="127.0.0.1:7400", database="sqlite:////var/lib/godwit/catalog.db"),
    agent=AgentConfig(listen="127.0.0.1:7401", volumes=["/srv/godwit"]),
    mount=MountConfig(mountpoint="/mnt/godwit"),
)


def main() -> None:
    """Writes them to the directory that is the one argument."""
    for name, text in make_units(DEFAULT, DEFAULT_CONFIG, ["/usr/bin/godwit"], ["/usr/lib/godwit"]).items():
        # The host's name is systemd's to put in.
        told = text.replace("%%H", "%H").replace("# Written by `godwit units`;", "# Of the package;")
        (Path(sys.argv[1]) / name).write_text(told)


if __name__ == "__main__":
    main()
