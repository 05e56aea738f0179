"""`godwit volumes …`: objects that agents set aside because the catalog did not know them."""

import time
from typing import Annotated

import typer

from cli.commands.volumes import add, lost
from cli.display.render import as_bytes, as_shown, as_text, print_json, print_line, print_table
from cli.network.agents import addresses_of, ask_agent, ask_agents
from cli.network.completion import complete_server
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.errors import GodwitError
from cluster.messages import Count, Done, ListUnknown, SweepVolumes, UnknownObject, UnknownObjects

SWEEP_TIMEOUT_S = 600.0  # of silence: a sweep counts all objects before it moves the first

app = typer.Typer(
    help="The volumes of servers, and what lies in them unknown.\n\nAn object that the catalog does not know is not deleted: it "
    "is moved to the directory unknown/ of its volume. godwit fsck brings back what the catalog knows after all.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def volumes() -> None:
    pass


app.command("add")(add.add)
app.command("lost")(lost.lost)
app.command("remove")(lost.remove)


@app.command("unknown")
def list_unknown(
    server: Annotated[
        str | None, typer.Argument(metavar="[SERVER]", help="Only what this server has.", show_default=False)
    ] = None,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List what was set aside as unknown, the oldest first. With the last known path, and until when it is kept.

    \b
    Examples:
      godwit volumes unknown
      godwit volumes unknown s2 --json
    """
    target = find_target(root)
    found: list[tuple[str, UnknownObject]] = []

    def take(name: str, reply: UnknownObjects) -> None:
        found.extend((name, item) for item in reply.objects)

    addresses = addresses_of(target, timeout, [server] if server else [])
    outcomes = ask_agents(target, addresses, lambda _server: ListUnknown(), Done, take, timeout)
    # By server only: sort is stable, and each server's came oldest first.
    found.sort(key=lambda pair: pair[0])
    if as_json:
        print_json({"unknown": [unknown_object(name, item) for name, item in found]})
    elif found:
        columns = ("SERVER", "VOLUME", "INODE", "VERSION", "SIZE", "SINCE", "LAST PATH", "KEPT")
        print_table(columns, [_row(name, item) for name, item in found], right=("INODE", "VERSION", "SIZE"))
    else:
        print_line("nothing is set aside")
    for outcome in outcomes.values():
        if isinstance(outcome, GodwitError):
            raise outcome  # what the others said is worth showing all the same


@app.command("sweep")
def sweep(
    server: Annotated[
        str,
        typer.Argument(
            metavar="SERVER", autocompletion=complete_server, help="The server's name, as in servers ls.", show_default=False
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = SWEEP_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Set aside all objects of a server that the catalog does not know, however many. In one sweep, which is waited for.

    An agent that finds many unknown objects at once moves none, since the catalog may be the wrong one. That is right for a
    server that had left and was added again. Nothing is deleted: see volumes unknown.

    Example: godwit volumes sweep s3
    """
    if as_json and not yes:
        raise typer.BadParameter("--json needs --yes: it does not ask", param_hint="--json")
    target = find_target(root)
    # The long patience is for the agent; the manager answers at once or not.
    address = addresses_of(target, min(timeout, DEFAULT_TIMEOUT_S), [server])[server]
    if not yes:
        typer.confirm(f"is the catalog the right one, and may what it does not know on {server} be set aside?", abort=True)
    swept = ask_agent(target, server, address, SweepVolumes(server), Count, lambda _server, _reply: None, timeout)
    if as_json:
        print_json({"server": server, "set_aside": swept.count})
        return
    print_line(f"{swept.count} objects were set aside" + (f": godwit volumes unknown {server}" if swept.count else ""))


def unknown_object(server: str, item: UnknownObject) -> dict[str, object]:
    """An object that was set aside for JSON; see docs/cli.md."""
    return {
        "server": server,
        "volume": item.volume,
        "volume_path": item.volume_path,
        "name": item.name,
        "ino": item.ino,
        "path": as_text(item.path),
        "version": item.version,
        "size": item.size,
        "when_ns": item.when_ns,
        "why": item.why,
        "until_ns": item.until_ns or None,  # null: for good
    }


def _row(server: str, item: UnknownObject) -> tuple[object, ...]:
    kept = f"until {_day(item.until_ns)}: {item.why}" if item.until_ns else item.why
    path = as_shown(item.path) or "-"
    return server, item.volume_path, item.ino, item.version, as_bytes(item.size), _day(item.when_ns), path, kept


def _day(when_ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(when_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return "-"  # the name of a file that somebody else has put there
