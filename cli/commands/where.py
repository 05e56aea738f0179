"""`godwit where`: on which volumes a file's content is, and how current it is there."""

import stat

from cli.commands.policy import names_text, policy_object
from cli.commands.queue import print_tasks, task_object
from cli.display.render import as_bytes, as_shown, as_text, print_facts, print_json, print_line, print_table
from cli.network.ask import talk
from cli.network.names import InoOption, PathArgument, find_inode, require_one
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import GetWhere, PolicyRow, ReplicaRow, Where
from cluster.rpc.conversation import Asker

TYPES = {  # by the type bits of a mode
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def where(
    path: PathArgument = None,
    ino: InoOption = None,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show where a file's content is. Its home, its replicas and how far each is behind, its policy, and pending copies.

    PATH is a path on a mount of the network; the mount itself is not asked and may be dead.

    \b
    Examples:
      godwit where /mnt/godwit/projects/plan.txt
      godwit where --ino 4711 --json
    """
    require_one(path, ino)
    target = find_target(root)

    async def look(asker: Asker) -> Where:
        return await asker(GetWhere(await find_inode(asker, target, path, ino)))

    answer = talk(target, timeout, look)
    if as_json:
        print_json(where_object(answer))
    else:
        _print(answer)


def _print(answer: Where) -> None:
    node = answer.node
    home = next((row for row in answer.replicas if row.home), None)
    state = "being written, or not committed yet" if node.dirty else "clean"
    # Only if it is not the inode's own.
    inherited = "" if answer.policy.ino == node.ino else f", from {as_shown(answer.policy.path)}"
    print_facts(
        [
            ("path", as_shown(answer.path) or "-"),
            ("inode", f"{node.ino}, {_type(node.mode)}, {as_bytes(node.size)}"),
            ("content", f"version {node.version}, {state}"),
            ("home", f"{home.server}, volume {home.volume} (epoch {node.home_epoch})" if home else "-"),
            ("open for writing", ", ".join(answer.writers) or "nowhere"),
            ("policy", f"{_policy(answer.policy)}{inherited}"),
        ]
    )
    # Directories and links have none.
    if answer.replicas:
        print_line()
        rows = [_replica_row(row, node.version) for row in answer.replicas]
        columns = ("SERVER", "VOLUME", "VERSION", "STATE", "HOME", "UP", "OBJECT'S VOLUME")
        print_table(columns, rows, right=("VOLUME", "VERSION"))
    # The lines from here on are each about something that needs a decision, or an explanation.
    for server in answer.forsaken:
        print_line(f"{server} was declared lost, or its object is damaged: others go on; what it alone has will be kept")
    # A damaged home stays the home only when there is no other current replica.
    if any(row.home and row.fault for row in answer.replicas):
        print_line("the home's object is damaged, and no other replica is current: see godwit accept --help")
    if answer.shortfall:
        print_line(f"below its policy: {answer.shortfall}")
    if answer.pending:
        print_line()
        print_tasks(answer.pending)


def _policy(policy: PolicyRow) -> str:
    return f"copies {policy.copies}, sync copies {policy.sync_copies}, names {names_text(policy)}"


def _replica_row(row: ReplicaRow, version: int) -> tuple[object, ...]:
    state = row.fault or ("current" if row.current else f"stale, {max(0, version - row.version)} behind")
    # A lost server is not coming back, whatever its sessions are.
    up = "lost" if row.state == "lost" else "yes" if row.up else "no"
    return (row.server, row.volume, row.version, state, "yes" if row.home else "", up, row.path)


def where_object(answer: Where) -> dict[str, object]:
    """A file's whereabouts for JSON; see docs/cli.md."""
    node = answer.node
    return {
        "path": as_text(answer.path),
        "ino": node.ino,
        "type": _type(node.mode),
        "size": node.size,
        "version": node.version,
        "dirty": node.dirty,
        "home_volume": node.home_volume or None,
        "home_epoch": node.home_epoch,
        "replicas": [
            {
                "volume": row.volume,
                "server": row.server,
                "path": row.path,
                "version": row.version,
                "lag": max(0, node.version - row.version),
                "current": row.current,
                "home": row.home,
                "checksum": row.checksum.hex(),  # empty while unknown
                "up": row.up,
                "fault": row.fault,
                "server_state": row.state,
            }
            for row in answer.replicas
        ],
        "policy": policy_object(answer.policy),
        "pending": [task_object(row) for row in answer.pending],  # that would make or delete one of the replicas
        "writers": answer.writers,
        "forsaken_on": answer.forsaken,
        "shortfall": answer.shortfall,
    }


def _type(mode: int) -> str:
    return TYPES.get(stat.S_IFMT(mode), "unknown")
