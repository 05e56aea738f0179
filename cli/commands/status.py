"""`godwit status`: the network at a glance."""

from cli.commands.servers.servers import print_servers, server_object, space_object
from cli.display.render import as_bytes, print_facts, print_json, print_line
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import GetStatus, Status


def status(root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False) -> None:
    """Show the network at a glance. Who is the manager, the servers, their volumes and space, and what the queues hold.

    FILES says whether the kernel reads and writes the files of a server's volumes itself (passthrough), those of some
    volumes (partly), or the mount process does (fallback); `godwit servers show` says why, and which PROBLEMS there are.

    \b
    Examples:
      godwit status
      godwit status --root /var/lib/godwit/lab --json
    """
    answer = ask(find_target(root), timeout, GetStatus())
    if as_json:
        print_json(status_object(answer))
        return
    print_facts(
        [
            ("cluster", answer.cluster),
            ("manager", f"{answer.manager} (term {answer.term})"),
            ("catalog", answer.catalog),
            ("space", f"{as_bytes(answer.space.free_bytes)} free of {as_bytes(answer.space.total_bytes)}"),
            ("inodes", answer.inodes),
            ("tasks", f"{answer.waiting_tasks} waiting, {answer.claimed_tasks} at work, {answer.dead_tasks} dead"),
        ]
    )
    if answer.forsaken or answer.conflicts:
        told = f"{answer.forsaken} objects on lost servers, {answer.conflicts} files under conflict names"
        print_line(f"to look at: {told} (godwit servers show)")
    print_line()
    print_servers(answer.servers, answer.manager)


def status_object(answer: Status) -> dict[str, object]:
    """The network for JSON; see docs/cli.md."""
    return {
        "cluster": answer.cluster,
        "manager": answer.manager,
        "term": answer.term,
        "catalog": answer.catalog,
        "inodes": answer.inodes,
        "space": space_object(answer.space),
        "forsaken": answer.forsaken,
        "conflicts": answer.conflicts,
        "tasks": {"waiting": answer.waiting_tasks, "claimed": answer.claimed_tasks, "dead": answer.dead_tasks},
        "servers": [server_object(info, answer.manager) for info in answer.servers],
    }
