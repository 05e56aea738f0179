"""`godwit status`: the network at a glance."""

import io
import sys
import time
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cli import exits
from cli.commands.servers.servers import LongOption, print_servers, server_object, space_object
from cli.display.render import as_bytes, print_facts, print_json, print_line
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, Target, TimeoutOption, find_target
from cluster.errors import Unavailable
from cluster.health import findings, summary
from cluster.messages import GetStatus, Status

WATCH_S = 2.0  # between two looks


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every two seconds, until Ctrl-C.")] = False,
    long: LongOption = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show the network at a glance. First whether all is well, or what is not, and where to look closer.

    Exits with 0 if all is well, and with 4 if something wants attention. Then come the manager, space, the servers and their
    volumes, and what the queues hold; with --long also where volumes are, and how files and names are served (see godwit servers
    ls).

    The line "names" says how names are changed below the root (godwit policy): "held", by a mount that is alone in a
    directory and tells the manager afterwards, or "through" the manager.

    \b
    Examples:
      godwit status
      godwit status --watch
      godwit status --root /var/lib/godwit/lab --json
    """
    if watch and as_json:
        raise typer.BadParameter("a program asks again by itself: leave out --json", param_hint="--watch")
    target = find_target(root)
    if watch:
        _watch(target, timeout, long=long)
    answer = ask(target, timeout, GetStatus())
    if as_json:
        print_json(status_object(answer))
    else:
        print_status(answer, long=long)
    if findings(answer):
        raise typer.Exit(exits.ATTENTION)


def _watch(target: Target, timeout_s: float, *, long: bool) -> None:
    """Shows the network until Ctrl-C: on a terminal in one place, in a pipe one look below the other."""
    try:
        if not sys.stdout.isatty():
            while True:
                print_line(_look(target, timeout_s, long=long))
                sys.stdout.flush()
                time.sleep(WATCH_S)
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                live.update(Text(_look(target, timeout_s, long=long)), refresh=True)
                time.sleep(WATCH_S)
    except KeyboardInterrupt:
        raise typer.Exit(exits.INTERRUPTED) from None


def _look(target: Target, timeout_s: float, *, long: bool) -> str:
    """What `status` prints, or who does not answer: that may change."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        print_line(time.strftime("%Y-%m-%d %H:%M:%S"))
        try:
            print_status(ask(target, timeout_s, GetStatus()), long=long)
        except Unavailable as error:
            print_line(f"ATTENTION  {error}")
    return shown.getvalue()


def print_status(answer: Status, *, long: bool = False) -> None:
    """The network for people."""
    found = findings(answer)
    for finding in found:
        print_line(f"ATTENTION  {finding.text} ({finding.look})")
    if not found:
        print_line(f"OK  {summary(answer)}")
    print_line()
    print_facts(
        [
            ("cluster", answer.cluster),
            ("manager", f"{answer.manager} (term {answer.term})"),
            ("catalog", answer.catalog),
            ("space", f"{as_bytes(answer.space.free_bytes)} free of {as_bytes(answer.space.total_bytes)}"),
            ("inodes", answer.inodes),
            ("names", _names(answer)),
            ("tasks", f"{answer.waiting_tasks} waiting, {answer.claimed_tasks} at work, {answer.dead_tasks} dead"),
        ]
    )
    print_line()
    print_servers(answer.servers, answer.manager, long=long)


def _names(answer: Status) -> str:
    """How names are changed, in one line: of what there is none it says nothing."""
    differing = f" ({answer.names_differing} policies say otherwise: godwit policy ls)" if answer.names_differing else ""
    unsent, holds = _unsent(answer), answer.holds
    parts = [f"{answer.names}{differing}"]
    if holds.held or holds.granted:
        parts.append(f"{holds.held} directories held now ({holds.granted} granted, {holds.recalled} recalled)")
    if unsent:
        parts.append(f"{unsent} changes unsent")
    if holds.lost:
        parts.append(f"{holds.lost} changes lost")
    return ", ".join(parts)


def _unsent(answer: Status) -> int:
    return sum(info.counts.unsent for info in answer.servers if info.counts is not None)


def names_object(answer: Status) -> dict[str, object]:
    """How names are changed for JSON; see docs/cli.md."""
    holds = answer.holds
    return {
        "policy": answer.names,
        "policies_differing": answer.names_differing,
        "held": holds.held,
        "granted": holds.granted,
        "refused": holds.refused,
        "recalled": holds.recalled,
        "held_s": round(holds.held_s, 1),
        "unsent": _unsent(answer),
        "applied": holds.applied,
        "lost": holds.lost,
    }


def status_object(answer: Status) -> dict[str, object]:
    """The network for JSON; see docs/cli.md."""
    found = findings(answer)
    return {
        "ok": not found,
        "findings": [finding._asdict() for finding in found],
        "cluster": answer.cluster,
        "manager": answer.manager,
        "term": answer.term,
        "catalog": answer.catalog,
        "catalog_fault": answer.catalog_fault,
        "backup": {"problem": answer.backup_problem, "age_s": answer.backup_age_s if answer.backup_age_s >= 0 else None},
        "inodes": answer.inodes,
        "space": space_object(answer.space),
        "forsaken": answer.forsaken,
        "conflicts": answer.conflicts,
        "damaged": answer.damaged,
        "below_policy": answer.below_policy,
        "tasks": {"waiting": answer.waiting_tasks, "claimed": answer.claimed_tasks, "dead": answer.dead_tasks},
        "names": names_object(answer),
        "servers": [server_object(info, answer.manager) for info in answer.servers],
    }
