"""How labs are shown: as tables, as JSON, and with commands to try that can be pasted as they are."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from cli.display.render import print_line, print_table
from cluster.errors import GodwitError
from lab.database import DATABASE, PART
from lab.lab import DEFAULT_ROOT, Lab
from lab.registry import registered
from lab.state import PARTS


def lab_object(lab: Lab) -> dict[str, object]:
    """A lab that is up, for JSON; see docs/cli.md. Raises `GodwitError` if it is being taken down."""
    servers = [server_object(lab, server) for server in lab.servers]
    return {"root": str(lab.root), "servers": servers, "database": _database_object(lab) if lab.has_database else None}


def lab_objects(roots: list[Path]) -> list[dict[str, object]]:
    """Those of the labs at *roots* that are still there when they are looked at."""
    found = []
    for root in roots:
        try:
            found.append(lab_object(Lab.load(root)))
        except GodwitError:
            if root in registered():
                raise
    return found


def server_object(lab: Lab, server: str) -> dict[str, object]:
    """A server of a lab that is up, for JSON."""
    return {
        "server": server,
        "address": lab.address(server),
        "mount": str(lab.mount(server)),
        "volumes": lab.config(server).agent.volumes,
        "pids": {part: lab.pid(server, part) if lab.is_running(server, part) else None for part in PARTS},
        "cut": lab.has_network() and lab.is_cut(server),
    }


def _database_object(lab: Lab) -> dict[str, object]:
    return {
        "address": lab.address(DATABASE),
        "data": str(lab.root / DATABASE / "data"),
        "pid": lab.pid(DATABASE, PART) if lab.is_running(DATABASE) else None,
        "cut": lab.has_network() and lab.is_cut(DATABASE),
    }


def print_labs(roots: list[Path], lost: list[Path]) -> None:
    """One line for each server, and one for each lab whose folder is gone."""
    rows: list[tuple[object, ...]] = []
    for root in roots:
        try:
            lab = Lab.load(root)
            rows += [_host_row(lab, host) for host in [*lab.servers, *([DATABASE] if lab.has_database else [])]]
        except GodwitError:
            if root in registered():
                raise
    rows += [(root, "-", "-", "its folder is gone: godwit lab down --root DIR") for root in lost]
    if rows:
        print_table(("LAB", "HOST", "ADDRESS", "RUNNING"), rows)
    else:
        print_line("no labs")


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
    sudo = "sudo " if os.environ.get("SUDO_UID") else ""
    godwit = _this_program()
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
