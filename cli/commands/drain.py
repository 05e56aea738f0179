"""`godwit drain`: moves away all that a server holds, for good."""

from typing import Annotated

import typer

from cli.commands.migrate import WatchOption
from cli.commands.migrations import finish
from cli.network.ask import ask
from cli.network.completion import complete_server
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import DrainServer


def drain(
    server: Annotated[str, typer.Argument(metavar="SERVER", autocompletion=complete_server, help="The server to empty.")],
    watch: WatchOption = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Empty a server. All that it holds moves to the others, and nothing new comes to it from now on.

    It stays a member, and its mount goes on working. Repeating the command lets a drain that failed or was paused go on; to take
    it back, cancel its migration.

    \b
    Examples:
      godwit drain s1 --watch
      godwit migrations cancel 7
    """
    target = find_target(root)
    # A repeat finds the drain that goes on, and has it go on (`DrainServer`).
    finish(target, timeout, ask(target, timeout, DrainServer(server)), watching=watch, as_json=as_json)
