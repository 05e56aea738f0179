"""`godwit servers …`: the member machines, how they stand, and who comes and goes."""

import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from cli.commands.drain import drain
from cli.commands.servers.lost import lost
from cli.display.render import as_age, as_bytes, as_shown, as_text, print_facts, print_json, print_line, print_table
from cli.network.ask import ask
from cli.network.completion import NameArgument
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.membership import VolumeCondition, VolumeStanding
from cluster.messages import (
    Added,
    AddServer,
    Answerer,
    DataPath,
    GetServer,
    GetStatus,
    Holdings,
    MountCounts,
    RemoveServer,
    RevokeServer,
    ServerDetails,
    ServerInfo,
    Space,
    Volume,
)

REMOVE_TIMEOUT_S = 600.0  # a server that is down is forgotten replica by replica
EXPIRES_S = 3600.0  # a token that nobody uses is worthless after an hour
MANAGERS_NAMED = 3  # in the command that joins: enough that one of them is there

app = typer.Typer(
    help="The servers of the network.\n\nA server is up, suspect (silent for a moment), down (its replicas do not count), "
    "draining (wanted empty), lost or left.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LongOption = Annotated[bool, typer.Option("--long", "-l", help="All columns; more than 80 characters wide.")]


app.command("drain")(drain)


@app.callback()
def servers() -> None:
    pass


@app.command("ls")
def list_servers(
    long: LongOption = False, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """List the servers. How they stand, their volumes, and how many tasks their queues hold; * is the manager's.

    With --long also where volumes are, which processes run, and of which release. FILES says whether the kernel reads and writes
    the files of a server's volumes itself (passthrough), those of some volumes (partly), or the mount process does (fallback);
    godwit servers show says why. NAMES says who answers lookups and opens of what a mount knows: its C extension, or its Python.

    \b
    Examples:
      godwit servers ls --long
      godwit servers ls --json
    """
    status = ask(find_target(root), timeout, GetStatus())
    if as_json:
        print_json({"servers": [server_object(info, status.manager) for info in status.servers]})
    else:
        print_servers(status.servers, status.manager, long=long)


@app.command("show")
def show_server(
    name: NameArgument, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Show everything about one server. What it holds, what its agent has to do, what is wrong with its disks.

    Example: godwit servers show s2
    """
    details = ask(find_target(root), timeout, GetServer(name))
    if as_json:
        print_json({"server": details_object(details)})
    else:
        print_details(details)


def print_details(details: ServerDetails) -> None:
    """Everything about a server for people."""
    print_facts(_facts(details))
    for volume in details.info.volumes:
        space = f"{as_bytes(volume.free_bytes)} free of {as_bytes(volume.total_bytes)}"
        # The space of a disk that is not in use says nothing; why it is not does.
        if _is_bad(volume):
            space = f"{volume.condition}, {volume.standing}"
        print_line(f"volume {volume.volume}: {volume.path}, {space}, at {volume.address}")
    for problem in details.info.problems:
        print_line(f"problem: {problem}")
    # A limited number: `godwit status` has the count of all.
    for path in details.conflicts:
        print_line(f"conflict: {as_shown(path)}")
    counted = [
        (role, name, f"{number:g}") for role, numbers in sorted(details.metrics.items()) for name, number in numbers.items()
    ]
    # Empty when none of its processes has told any.
    if counted:
        print_line()
        print_table(("PROCESS", "METRIC", "VALUE"), counted, right=("VALUE",))


@app.command("remove")
def remove_server(
    name: NameArgument, root: RootOption = None, timeout: TimeoutOption = REMOVE_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Let a server leave for good. It must be empty (drain it first), or down and needed by no file.

    Its processes are refused from then on, until it is added again.

    Example: godwit servers remove s3
    """
    answer = ask(find_target(root), timeout, RemoveServer(name))
    if as_json:
        print_json({"server": name, "forgotten_replicas": answer.count})
        return
    print_line(f"{name} has left the network; {answer.count} replicas on it were forgotten")


@app.command("revoke")
def revoke_server(
    name: NameArgument, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Make all certificates of a server void. Whoever has its keys is cut off from all others within a second.

    The server stays a member, and its files stay where they are. To let it in again, with new keys: godwit servers add, and
    godwit rejoin there. A server that comes back no more: godwit servers lost, or remove, which revoke it as well.

    Example: godwit servers revoke s3
    """
    ask(find_target(root), timeout, RevokeServer(name))
    if as_json:
        print_json({"server": name, "revoked": True})
        return
    print_line(f"{name} is not believed any more; to let it in again: godwit servers add {name}, and godwit rejoin there")


app.command("lost")(lost)


@app.command("add")
def add_server(
    name: NameArgument,
    candidate: Annotated[
        bool,
        typer.Option(
            "--candidate",
            help="It may become the manager: it gets the authority's key, the master secret and the database's URL, with its "
            "password. Files that the URL names must be made there before.",
        ),
    ] = False,
    expires: Annotated[float, typer.Option("--expires", min=1.0, help="For how many seconds the token is good.")] = EXPIRES_S,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Invite a new server, take back one that has left, or end a drain.

    The token lets in whoever has it: give it to the new machine over a way that nobody else reads.

    \b
    Examples:
      godwit servers add s4              prints what to type on the new machine
      godwit servers add s4 --candidate  the same, for a server that may become the manager
      godwit servers add s1              s1 was drained, and is to be used again
    """
    added = ask(find_target(root), timeout, AddServer(name, expires, candidate))
    if as_json:
        print_json(added_object(added))
        return
    for line in _next_steps(added):
        print_line(line)


def print_servers(infos: list[ServerInfo], manager: str, *, long: bool = False) -> None:
    """One line for each volume; a server without volumes has one, too."""
    rows = [row for info in infos for row in _rows(info, is_manager=info.server == manager)]
    shown = [column for column in Column if long or column in SHORT]
    right = [column for column in shown if column in NUMBERS]
    print_table(shown, [[row[column] for column in shown] for row in rows], right=right)


class Column(StrEnum):
    """What is told of a server and volume, in the order of the columns."""

    SERVER = "SERVER"
    """* marks the manager's."""
    STATE = "STATE"
    """See `cluster.membership`."""
    SEEN = "SEEN"
    """Age of the last heartbeat that this manager has heard."""
    ROLES = "ROLES"
    """Its processes that have a session."""
    VOLUME = "VOLUME"
    """The number, by which commands and tasks name it."""
    FREE = "FREE"
    """The disk's condition instead, if it is not in use."""
    SIZE = "SIZE"
    PATH = "PATH"
    FILES = "FILES"
    """passthrough, partly or fallback; - without a mount."""
    NAMES = "NAMES"
    """extension or python: who answers what the mount knows."""
    CACHED = "CACHED"
    """Inodes that its mount has leases for."""
    WAITING = "WAITING"
    """Tasks in its queue; repeated for each volume."""
    DEAD = "DEAD"
    """Tasks that were given up: they wait for `queue retry`."""
    RELEASE = "RELEASE"
    """As its agent said: servers may differ during an upgrade."""
    PROBLEMS = "PROBLEMS"
    """How many; `status` and `servers show` have the sentences."""


SHORT = frozenset(
    {
        Column.SERVER,
        Column.STATE,
        Column.SEEN,
        Column.VOLUME,
        Column.FREE,
        Column.SIZE,
        Column.WAITING,
        Column.DEAD,
        Column.PROBLEMS,
    }
)
"""What fits 80 characters."""
NUMBERS = frozenset({Column.VOLUME, Column.FREE, Column.SIZE, Column.CACHED, Column.WAITING, Column.DEAD, Column.PROBLEMS})


def _rows(info: ServerInfo, *, is_manager: bool) -> Iterator[dict[Column, object]]:
    common: dict[Column, object] = {
        Column.SERVER: info.server + ("*" if is_manager else ""),
        Column.STATE: _standing(info),
        Column.SEEN: _heard(info.last_seen_s),
        Column.ROLES: " ".join(sorted(info.roles)) or "-",
        Column.FILES: _data_path(info.counts),
        Column.NAMES: _answerer(info.counts),
        # No mount, no numbers: 0 would be a mount that caches nothing.
        Column.CACHED: "-" if info.counts is None else info.counts.caching,
        Column.WAITING: info.waiting_tasks,
        Column.DEAD: info.dead_tasks,
        Column.RELEASE: info.release or "-",
        Column.PROBLEMS: len(info.problems) or "-",
    }
    for volume in info.volumes:
        space = {
            Column.FREE: volume.condition if _is_bad(volume) else as_bytes(volume.free_bytes),
            Column.SIZE: "-" if _is_bad(volume) else as_bytes(volume.total_bytes),
        }
        yield {**common, Column.VOLUME: volume.volume, **space, Column.PATH: volume.path}
    # A server without a disk may still have a mount, a candidate and problems.
    if not info.volumes:
        yield {**common, **dict.fromkeys((Column.VOLUME, Column.FREE, Column.SIZE, Column.PATH), "-")}


def _is_bad(volume: Volume) -> bool:
    # What the disk says of itself, and what the network has decided about it.
    return volume.condition != VolumeCondition.GOOD or volume.standing != VolumeStanding.IN


def server_object(info: ServerInfo, manager: str) -> dict[str, object]:
    """A server for JSON; see docs/cli.md."""
    return {
        "server": info.server,
        "state": info.state,
        "since_ns": info.since_ns,
        "wanted_empty": info.wanted_empty,
        "is_manager": info.server == manager,
        "manager_address": info.manager,
        "release": info.release,
        "problems": info.problems,
        "roles": sorted(info.roles),
        "last_seen_s": _age(info.last_seen_s),
        "waiting_tasks": info.waiting_tasks,
        "dead_tasks": info.dead_tasks,
        "oldest_task_s": _age(info.oldest_task_s),
        "counts": None if info.counts is None else counts_object(info.counts),
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
                "condition": volume.condition,
                "standing": volume.standing,
            }
            for volume in info.volumes
        ],
    }


def counts_object(counts: MountCounts) -> dict[str, object]:
    """What a mount has done for JSON; see docs/cli.md."""
    return {
        "kernel_requests": counts.kernel_requests,
        "manager_requests": counts.manager_requests,
        "recalls": counts.recalls,
        "caching": counts.caching,
        "files": counts.files,
        "why_not_passed": counts.why_not_passed,
        "answerer": counts.answerer,
        "unsent": counts.unsent,
        "lost": counts.lost,
    }


def details_object(details: ServerDetails) -> dict[str, object]:
    """Everything about a server for JSON; see docs/cli.md."""
    held = details.holdings
    return {
        **server_object(details.info, details.info.server if details.is_manager else ""),
        "holds": {
            "replicas": held.replicas,
            "current": held.current,
            "bytes": held.bytes,
            "homes": held.homes,
            "dirty": held.dirty,
            "sole": held.sole,
        },
        "tasks": details.tasks,
        "leases": details.leases,
        "forsaken": details.forsaken,
        "conflicts": [as_text(path) for path in details.conflicts],
        "metrics": details.metrics,
    }


def added_object(added: Added) -> dict[str, object]:
    """What `servers add` did for JSON; see docs/cli.md."""
    return {
        "server": added.server,
        "outcome": added.outcome,
        "cluster": added.cluster,
        "managers": added.managers,
        "token": added.token or None,
        "expires_s": added.expires_s or None,
    }


def space_object(space: Space) -> dict[str, object]:
    """The network's space for JSON; see docs/cli.md."""
    return {"total_bytes": space.total_bytes, "free_bytes": space.free_bytes}


def join_command(added: Added) -> str:
    """What is typed on the machine that joins; its own address and volumes are to be filled in."""
    managers = " ".join(f"--manager {address}" for address in added.managers[:MANAGERS_NAMED])
    return f"godwit join --server {added.server} {managers} --address ADDRESS --volume DIR"


def _token_lines(added: Added) -> list[str]:
    return [f"  {join_command(added)}", "and when you are asked for the token:", f"  {added.token}"]


def _facts(details: ServerDetails) -> list[tuple[str, object]]:
    info = details.info
    # 0: not known.
    since = f" for {as_age(max(0.0, time.time() - info.since_ns / 1e9))}" if info.since_ns else ""
    return [
        ("server", info.server + (", the manager" if details.is_manager else "")),
        ("state", _standing(info) + since),
        # Heard of, and by which of its processes: a mount alone says nothing of its disks.
        ("seen", f"{_heard(info.last_seen_s)}: {' '.join(sorted(info.roles)) or 'no process'}"),
        ("release", info.release or "-"),
        ("candidate", info.manager or "-"),
        ("holds", _held(details.holdings)),
        # What would be lost, or could not be opened, if the server went now.
        ("needed for", f"{details.holdings.sole} files that have no other current replica"),
        ("abandoned", f"{details.forsaken} objects, of files that fell back when it was declared lost"),
        ("leases", f"its mount holds {details.leases}"),
        ("mount", _done_by(info.counts)),
        ("files", _files_of(info.counts)),
        ("names", _names_of(info.counts)),
        ("queue", ", ".join(f"{count} {state}" for state, count in details.tasks.items())),
    ]


def _held(held: Holdings) -> str:
    # Dirty files only if there are any: nobody else has what was written to them.
    homes = f"home of {held.homes}" + (f" ({held.dirty} being written)" if held.dirty else "")
    return f"{held.replicas} replicas, {held.current} current, {as_bytes(held.bytes)}; {homes}"


def _data_path(counts: MountCounts | None) -> str:
    return "-" if counts is None else counts.files or "-"


def _answerer(counts: MountCounts | None) -> str:
    return "-" if counts is None else counts.answerer or "-"


def _names_of(counts: MountCounts | None) -> str:
    """Who answers what the mount knows, and how its own changes get to the manager."""
    if counts is None or not counts.answerer:
        return "-"
    by = "extension" if counts.answerer == Answerer.EXTENSION else "mount process"
    lost = f", {counts.lost} lost" if counts.lost else ""
    return f"known ones answered by the {by}; {counts.unsent} changes of its own unsent{lost}"


def _files_of(counts: MountCounts | None) -> str:
    """How the mount's kernel reads and writes the objects on this server's disks."""
    if counts is None or not counts.files:
        return "-"
    how: dict[str, str] = {
        DataPath.PASSED: "passed through to the kernel",
        DataPath.PARTLY_PASSED: "passed through to the kernel on some volumes",
    }
    return how.get(counts.files, "through the mount process") + (f": {counts.why_not_passed}" if counts.why_not_passed else "")


def _done_by(counts: MountCounts | None) -> str:
    if counts is None:
        return "-"
    return (
        f"asked {counts.kernel_requests} times by its kernel, asked managers {counts.manager_requests} times, "
        f"obeyed {counts.recalls} recalls, caches {counts.caching} inodes"
    )


def _next_steps(added: Added) -> list[str]:
    match added.outcome:
        # Told by the manager's answer, since all three begin with the same command.
        case "undrained":
            return [f"{added.server} is not drained any more"]
        case "readmitted":
            return [
                f"{added.server} is a member again, with new certificates. Type there, within {as_age(added.expires_s)}:",
                "  godwit rejoin",
                "or, if the machine has lost its configuration:",
                *_token_lines(added),
            ]
        case _:
            return [f"on {added.server}, within {as_age(added.expires_s)}:", *_token_lines(added)]


def _standing(info: ServerInfo) -> str:
    # Of a server that is up the state itself says it (draining); one that is down is drained when it is back.
    return f"{info.state}, to be drained" if info.wanted_empty and info.state == "down" else info.state


def _age(seconds: float) -> float | None:
    return None if seconds < 0 else round(seconds, 1)  # -1: never, or there is none


def _heard(seconds: float) -> str:
    return "never" if seconds < 0 else f"{as_age(seconds)} ago"
