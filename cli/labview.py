"""How labs are shown: as tables, as JSON, and with commands to try that can be pasted as they are."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from cli.render import print_line, print_table
from cluster.errors import GodwitError
from lab.lab import DEFAULT_ROOT, Lab
from lab.registry import registered
from lab.state import PARTS


def lab_object(lab: Lab) -> dict[str, object]:
    """A lab that is up, for JSON; see docs/cli.md. Raises `GodwitError` if it is being taken down."""
    return {"root": str(lab.root), "servers": [_server_object(lab, server) for server in lab.servers]}


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


def _server_object(lab: Lab, server: str) -> dict[str, object]:
    return {
        "server": server,
        "address": lab.address(server),
        "mount": str(lab.mount(server)),
        "volumes": lab.config(server).agent.volumes,
        "pids": {part: lab.pid(server, part) if lab.is_running(server, part) else None for part in PARTS},
        "cut": lab.has_network() and lab.is_cut(server),
    }


def print_labs(roots: list[Path], lost: list[Path]) -> None:
    """One line for each server, and one for each lab whose folder is gone."""
    rows: list[tuple[object, ...]] = []
    for root in roots:
        try:
            lab = Lab.load(root)
            rows += [_server_row(lab, server) for server in lab.servers]
        except GodwitError:
            if root in registered():
                raise
    rows += [(root, "-", "-", "its folder is gone: godwit lab down --root DIR") for root in lost]
    if rows:
        print_table(("LAB", "SERVER", "ADDRESS", "RUNNING"), rows)
    else:
        print_line("no labs")


def _server_row(lab: Lab, server: str) -> tuple[object, ...]:
    running = [part for part in PARTS if lab.is_running(server, part)]
    cut = " (cut off)" if lab.has_network() and lab.is_cut(server) else ""
    return (lab.root, server, lab.address(server) + cut, ", ".join(running) or "nothing")


def print_up(lab: Lab) -> None:
    """The servers of a lab that has just come up, and what to try."""
    rows = [
        (
            server,
            lab.address(server),
            lab.mount(server),
            " ".join(lab.config(server).agent.volumes) or "-",
            " ".join(f"{part} {lab.pid(server, part)}" for part in PARTS),
        )
        for server in lab.servers
    ]
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
