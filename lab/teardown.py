"""Taking a lab away: its processes, mounts and network, and, when asked, its data.

What belongs to a lab is found by `lab.json` and by the names in the kernel, so that any crash can be cleaned up after, even
if the folder is gone. Everything here may be repeated.
"""

import re
import shutil
import signal
from pathlib import Path

import msgspec

from cluster.errors import Refused
from cluster.volume.fence import lift_below
from lab import network, processes
from lab.database import DATABASE
from lab.mounts import detach, mounts_below
from lab.registry import registered, tag_of, unregister
from lab.state import PARTS, STATE_FILE, read_state, write_state

STOP_PATIENCE_S = 15.0


def has_remains(root: Path) -> bool:
    """Whether the machine has anything of a lab at *root*, folder or no folder."""
    return root in registered() or bool(network.namespaces(tag_of(root))) or bool(own_mounts(root))


def own_mounts(root: Path) -> list[Path]:
    """The mount points of the lab's servers at which a FUSE file system is mounted, alive or dead."""
    pattern = re.compile(re.escape(str(root)) + r"/s[1-9][0-9]*/mnt")
    below = {mounted.path for mounted in mounts_below(root) if mounted.kind.startswith("fuse")}
    return sorted(path for path in below if pattern.fullmatch(str(path)))


def end_everything(root: Path) -> None:
    """Ends processes (mounts, agents, managers, the database), unmounts, and removes network and registration."""
    tag = tag_of(root)
    state = read_state(root) if (root / STATE_FILE).exists() else None
    known = state.processes if state else {}
    for part in reversed(PARTS):
        processes.end([process for name, process in known.items() if name.endswith(f"/{part}")], STOP_PATIENCE_S)
    for mountpoint in own_mounts(root):
        detach(mountpoint)
    database = [process for name, process in known.items() if name.startswith(f"{DATABASE}/")]
    processes.end(database, STOP_PATIENCE_S, signal.SIGINT)  # to PostgreSQL that is the fast shutdown
    for namespace in network.namespaces(tag):
        _end_inside(namespace)
    network.remove(tag)
    if state is not None and (state.network is not None or state.processes):
        write_state(root, msgspec.structs.replace(state, network=None, processes={}))
    unregister(root)


def end_server(root: Path, server: str) -> None:
    """Ends one server's processes and unmounts it; its namespace stays."""
    known = read_state(root).processes
    for part in reversed(PARTS):
        processes.end([known[name] for name in known if name == f"{server}/{part}"], STOP_PATIENCE_S)
    detach(root / server / "mnt")
    _end_inside(network.Network(tag_of(root), "").namespace(server))


def _end_inside(namespace: str) -> None:
    """Ends whatever runs in a namespace, also what the lab had no time to note."""
    strays = [process for pid in network.processes_in(namespace) if (process := processes.identify(pid))]
    processes.end(strays, STOP_PATIENCE_S)


def require_no_foreign_mounts(root: Path) -> None:
    """Raises `Refused` if something but the lab's own mounts is mounted at *root* or below."""
    own = own_mounts(root)
    foreign = [str(mounted.path) for mounted in mounts_below(root) if mounted.path not in own]
    if foreign:
        raise Refused(f"nothing deleted: unmount {', '.join(foreign)} first, or take the lab down without --purge")


def delete_data(root: Path) -> None:
    """Deletes what a lab that is down has made, `lab.json` last; its folder goes, too, unless it holds something else.

    Raises `Refused` if anything is mounted there, `OSError` if something cannot be deleted.
    """
    require_no_foreign_mounts(root)
    if mounted := own_mounts(root):
        raise Refused(f"nothing deleted: {mounted[0]} is still mounted")
    for folder in (root / "catalog", root / DATABASE, *root.glob("s[1-9]*")):
        if folder.is_dir() and not folder.is_symlink() and re.fullmatch(rf"catalog|{DATABASE}|s[1-9][0-9]*", folder.name):
            lift_below(str(folder))
            shutil.rmtree(folder)
    (root / STATE_FILE).unlink(missing_ok=True)
    if not any(root.iterdir()):
        root.rmdir()
