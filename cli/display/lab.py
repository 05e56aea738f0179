"""How labs are shown: as tables, as JSON, and with commands to try that can be pasted as they are."""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cli.display.render import print_line, print_table
from cluster.errors import GodwitError
from lab.database import DATABASE, PART
from lab.lab import DEFAULT_ROOT, Lab
from lab.registry import registered
from lab.state import PARTS

T = TypeVar("T")


def lab_object(lab: Lab) -> dict[str, object]:
    """A lab that is up, for JSON; see docs/cli.md. Raises `GodwitError` if it is being taken down."""
    servers = [server_object(lab, server) for server in lab.servers]
    own_database = _database_object(lab) if lab.has_database else None
    return {"root": str(lab.root), "servers": servers, "database": own_database, "supervisor": lab.supervisor()}


def shown(roots: list[Path], show: Callable[[Lab], T]) -> tuple[list[T], dict[Path, str]]:
    """What *show* says of the labs at *roots* that are still there when they are looked at, and why others cannot be read."""
    labs, damaged = [], {}
    for root in roots:
        try:
            labs.append(show(Lab.load(root)))
        except GodwitError as error:
            # A lab that was taken down between `registered` and here is no problem, one that cannot be read is.
            if root in registered():
                damaged[root] = str(error)
    return labs, damaged


def server_object(lab: Lab, server: str) -> dict[str, object]:
    """A server of a lab that is up, for JSON."""
    return {
        "server": server,
        "address": lab.address(server),
        "mount": str(lab.mount(server)),
        "volumes": lab.config(server).agent.volumes,
        "pids": {part: lab.find_pid(server, part) for part in PARTS},
        # A lab that was killed is listed, too, when its namespaces may be gone.
        "cut": lab.has_network() and lab.is_cut(server),
    }


def _database_object(lab: Lab) -> dict[str, object]:
    return {
        "address": lab.address(DATABASE),
        "data": str(lab.root / DATABASE / "data"),
        "pid": lab.find_pid(DATABASE, PART),
        "cut": lab.has_network() and lab.is_cut(DATABASE),
    }


def print_labs(roots: list[Path], lost: list[Path]) -> None:
    """One line for each host and the supervisor of each lab, and one for each lab that cannot be read or whose folder is gone."""
    labs, damaged = shown(roots, _lab_rows)
    rows = [row for lab in labs for row in lab]
    rows += [(root, "-", "-", f"cannot be read: {problem}") for root, problem in damaged.items()]
    rows += [(root, "-", "-", "its folder is gone: godwit lab down --root DIR") for root in lost]
    if rows:
        print_table(("LAB", "HOST", "ADDRESS", "RUNNING"), rows)
    else:
        print_line("no labs")


def _lab_rows(lab: Lab) -> list[tuple[object, ...]]:
    hosts = [_host_row(lab, host) for host in [*lab.servers, *([DATABASE] if lab.has_database else [])]]
    return [*hosts, (lab.root, "-", "-", "supervisor" if lab.supervisor() else f"no supervisor: {_revive(lab)}")]


def _revive(lab: Lab) -> str:
    return f"godwit lab start {lab.servers[0]} --root {shlex.quote(str(lab.root))}"


def _host_row(lab: Lab, host: str) -> tuple[object, ...]:
    running = [part for part in lab.parts(host) if lab.is_running(host, part)]
    cut = " (cut off)" if lab.has_network() and lab.is_cut(host) else ""
    return (lab.root, host, lab.address(host) + cut, ", ".join(running) or "nothing")


def print_up(lab: Lab) -> None:
    """The servers of a lab that has just come up, and what to try."""
    rows: list[tuple[object, ...]] = [
        (
            server,
            lab.address(server),
            lab.mount(server),
            " ".join(lab.config(server).agent.volumes) or "-",
            " ".join(f"{part} {lab.pid(server, part)}" for part in PARTS),
        )
        for server in lab.servers
    ]
    # Only labs that have started their own; of another database nothing is known here.
    if lab.has_database:
        rows.append((DATABASE, lab.address(DATABASE), "-", lab.root / DATABASE / "data", f"{PART} {lab.pid(DATABASE, PART)}"))
    print_table(("SERVER", "ADDRESS", "MOUNT", "VOLUMES", "PROCESSES"), rows)
    print_line()
    print_line("One namespace, whichever mount you take. Try:")
    for command in _to_try(lab):
        print_line(f"  {command}")


def _to_try(lab: Lab) -> list[str]:
    first, last = lab.servers[0], lab.servers[-1]
    source, target = (shlex.quote(str(lab.mount(server))) for server in (first, last))
    folder = Path(sysconfig.get_path("stdlib"), "email")
    sample, name = shlex.quote(str(folder)), folder.name
    # The mount belongs to root: whoever came by sudo needs it again for the commands to be pasted.
    sudo = "sudo " if os.environ.get("SUDO_UID") else ""
    godwit = _this_program()
    # With two labs up a command without --root is refused.
    root = "" if lab.root == DEFAULT_ROOT and registered() == [lab.root] else f" --root {shlex.quote(str(lab.root))}"
    return [
        f"{sudo}cp -a {sample} {source}/ && diff -r {sample} {target}/{name} && echo the same",
        f"{godwit} queue ls{root}",
        f"{godwit} where {target}/{name}/__init__.py{root}",
        f"{sudo}{godwit} lab kill {first}{root} && ls {target}/{name} && {sudo}{godwit} lab start {first}{root}",
        f"{sudo}{godwit} lab down{root}",
    ]


def _this_program() -> str:
    """How to call this program again: by name if the shell finds it, else by its path."""
    own = Path(sys.argv[0]).absolute()
    found = shutil.which("godwit")
    if own.name != "godwit" or (found is not None and Path(found).resolve() == own.resolve()):
        return "godwit"
    return shlex.quote(str(own))
