"""`godwit servers …`: the member machines and their volumes."""

import typer

from cli.ask import ask
from cli.render import as_age, as_bytes, print_json, print_table
from cli.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import GetStatus, ServerInfo, Space

app = typer.Typer(help="The servers of the network.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def servers() -> None:
    pass


@app.command("ls")
def list_servers(root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False) -> None:
    """List the servers. With their volumes, and how many tasks their queues hold.

    Example: godwit servers ls --json
    """
    status = ask(find_target(root), timeout, GetStatus())
    if as_json:
        print_json({"servers": [server_object(info) for info in status.servers]})
    else:
        print_servers(status.servers)


def print_servers(infos: list[ServerInfo]) -> None:
    """One line for each volume; a server without volumes has one, too."""
    rows: list[tuple[object, ...]] = []
    for info in infos:
        head = (info.server, " ".join(sorted(info.roles)) or "-", _seen(info.last_seen_s))
        tail = (info.waiting_tasks, info.dead_tasks)
        for volume in info.volumes:
            space = f"{as_bytes(volume.free_bytes)} of {as_bytes(volume.total_bytes)}"
            rows.append((*head, volume.volume, "yes" if volume.up else "no", space, volume.path, *tail))
        if not info.volumes:
            rows.append((*head, "-", "-", "-", "-", *tail))
    columns = ("SERVER", "ROLES", "SEEN", "VOLUME", "UP", "FREE", "PATH", "WAITING", "DEAD")
    print_table(columns, rows, right=("VOLUME", "FREE", "WAITING", "DEAD"))


def server_object(info: ServerInfo) -> dict[str, object]:
    """A server for JSON; see docs/cli.md."""
    return {
        "server": info.server,
        "roles": sorted(info.roles),
        "last_seen_s": _age(info.last_seen_s),
        "waiting_tasks": info.waiting_tasks,
        "dead_tasks": info.dead_tasks,
        "volumes": [
            {
                "volume": volume.volume,
                "path": volume.path,
                "uuid": volume.uuid,
                "address": volume.address,
                "total_bytes": volume.total_bytes,
                "free_bytes": volume.free_bytes,
                "device": volume.device,
                "up": volume.up,
            }
            for volume in info.volumes
        ],
    }


def space_object(space: Space) -> dict[str, object]:
    """The network's space for JSON; see docs/cli.md."""
    return {"total_bytes": space.total_bytes, "free_bytes": space.free_bytes}


def _age(seconds: float) -> float | None:
    return None if seconds < 0 else round(seconds, 1)


def _seen(seconds: float) -> str:
    return "never" if seconds < 0 else f"{as_age(seconds)} ago"
