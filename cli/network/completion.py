"""What the shell completes names of servers with (`godwit --install-completion`). Paths it completes itself."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.network.ask import ask
from cli.network.target import find_target, only_lab
from cluster.errors import GodwitError
from cluster.messages import GetStatus
from lab.database import DATABASE
from lab.lab import Lab

PATIENCE_S = 1.0  # nobody waits longer for a Tab


def complete_server(context: typer.Context, incomplete: str) -> list[str]:
    """The network's servers that begin so; none if nobody answers soon."""
    try:
        answer = ask(find_target(_root(context)), PATIENCE_S, GetStatus())
    except (GodwitError, OSError):
        return []
    return [info.server for info in answer.servers if info.server.startswith(incomplete)]


def complete_host(context: typer.Context, incomplete: str) -> list[str]:
    """The lab's servers, and its database, that begin so."""
    root = _root(context)
    try:
        lab = only_lab() if root is None else Lab.load(root)
    except (GodwitError, OSError):
        return []
    return [name for name in (*lab.servers, *([DATABASE] if lab.has_database else [])) if name.startswith(incomplete)]


NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=complete_server, help="The server's name, as in servers ls.", show_default=False
    ),
]


def _root(context: typer.Context) -> Path | None:
    # Of a command that is not complete yet, the environment is not looked at.
    named = context.params.get("root") or os.environ.get("GODWIT_ROOT")
    return Path(named) if named else None
