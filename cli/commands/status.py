"""`godwit status`: the network at a glance."""

from cli.commands.servers.servers import print_servers, server_object, space_object
from cli.display.render import as_bytes, print_facts, print_json, print_line
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import GetStatus, Status


def status(root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False) -> None:
    """Show the network at a glance. Who is the manager, the servers, their volumes and space, and what the queues hold.

    FILES says whether the kernel reads and writes the files of a server's volumes itself (passthrough), those of some
    volumes (partly), or the mount process does (fallback); `godwit servers show` says why. PROBLEMS stand below.

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
    # Each of these lines only if there is something to do.
    if answer.catalog_fault:
        print_line(f"{answer.catalog_fault}: make room there, or mend it; nothing can be added until then")
    if answer.forsaken or answer.conflicts:
        left = f"{answer.forsaken} objects on lost servers, {answer.conflicts} files under conflict names"
        print_line(f"to look at: {left} (godwit servers show)")
    if answer.below_policy:
        print_line(f"at risk: {answer.below_policy} files have fewer copies than their policy (godwit files --below-policy)")
    if answer.damaged:
        print_line(f"damaged: {answer.damaged} objects are not what the catalog says (godwit where PATH, godwit accept PATH)")
    print_line()
    print_servers(answer.servers, answer.manager)
    problems = [(info.server, problem) for info in answer.servers for problem in info.problems]
    # Below the table, in which only their number has room.
    if problems:
        print_line()
    for server, problem in problems:
        print_line(f"problem of {server}: {problem}")


def status_object(answer: Status) -> dict[str, object]:
    """The network for JSON; see docs/cli.md."""
    return {
        "cluster": answer.cluster,
        "manager": answer.manager,
        "term": answer.term,
        "catalog": answer.catalog,
        "catalog_fault": answer.catalog_fault,
        "inodes": answer.inodes,
        "space": space_object(answer.space),
        "forsaken": answer.forsaken,
        "conflicts": answer.conflicts,
        "damaged": answer.damaged,
        "below_policy": answer.below_policy,
        "tasks": {"waiting": answer.waiting_tasks, "claimed": answer.claimed_tasks, "dead": answer.dead_tasks},
        "servers": [server_object(info, answer.manager) for info in answer.servers],
    }
