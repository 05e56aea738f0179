"""Taking a lab away: its processes, mounts and network, and, when asked, its data.

What belongs to a lab is found by `lab.json` and by the names in the kernel, so that any crash can be cleaned up after, even
if the folder is gone. Everything here may be repeated.
"""

import re
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.errors import GodwitError, Refused
from cluster.journal import JOURNALS
from cluster.volume.fence import lift_below
from lab import network, processes
from lab.database import DATABASE
from lab.mounts import detach, mounts_below, uncover
from lab.registry import registered, tag_of, unregister
from lab.state import PARTS, PEOPLE, STATE_FILE, SUPERVISOR_LOG, read_state, without_processes, write_state

STOP_PATIENCE_S = 15.0  # a mount commits its files and an agent ends its copies first


def has_remains(root: Path) -> bool:
    """Whether the machine has anything of a lab at *root*, folder or no folder."""
    return root in registered() or bool(network.namespaces(tag_of(root))) or bool(own_mounts(root))


def own_mounts(root: Path) -> list[Path]:
    """The mount points of the lab's servers at which a FUSE file system is mounted, alive or dead, or a cover."""
    # By name, not by `lab.json`, which may be lost; and no deeper, where mounts are somebody else's.
    pattern = re.compile(re.escape(str(root)) + r"/s[1-9][0-9]*/mnt")
    below = {mounted.path for mounted in mounts_below(root) if mounted.is_fuse or mounted.is_cover}
    return sorted(path for path in below if pattern.fullmatch(str(path)))


def end_everything(root: Path) -> None:
    """Ends processes (the supervisor, mounts, agents, managers, the database), unmounts, and removes network and registration.

    What fails holds up nothing else; the first failure is raised when all is done that could be.
    """
    tag = tag_of(root)
    # Raises for a damaged `lab.json`: the processes that it names would be missed.
    state = read_state(root) if (root / STATE_FILE).exists() else None
    failures: list[OSError | GodwitError] = []

    def attempt(step: Callable[..., object], *args: object) -> None:
        try:
            step(*args)
        except (OSError, GodwitError) as error:
            failures.append(error)

    known = state.processes if state else {}
    if state is not None and state.supervisor is not None:
        processes.end([state.supervisor], STOP_PATIENCE_S)  # one that nobody noted starts nothing: it would need the lab's lock
    # Mounts first: they commit through agents and the manager, which must still be there.
    for part in reversed(PARTS):
        processes.end([process for name, process in known.items() if name.endswith(f"/{part}")], STOP_PATIENCE_S)
    for mountpoint in own_mounts(root):
        # After the mounts' processes: one that ended in order has unmounted already.
        attempt(detach, mountpoint)
        attempt(uncover, mountpoint)
    database = [process for name, process in known.items() if name.startswith(f"{DATABASE}/")]
    processes.end(database, STOP_PATIENCE_S, signal.SIGINT)  # to PostgreSQL that is the fast shutdown
    # What was started and not noted in time; a namespace can only go when nothing runs in it.
    for namespace in network.namespaces(tag):
        attempt(_end_inside, namespace)
    attempt(network.remove, tag)
    # Last but for the note: as long as it is registered, `lab ls` shows that something may be left.
    unregister(root)
    if state is not None and (state.network is not None or state.processes):
        # On a file system that is read-only now it says what was: nobody goes by it, the lab not being registered.
        with suppress(OSError):
            write_state(root, without_processes(state))
    if failures:
        raise failures[0]


def end_server(root: Path, server: str) -> None:
    """Ends one server's processes and unmounts it; its namespace stays."""
    known = read_state(root).processes
    for part in reversed(PARTS):
        processes.end([known[name] for name in known if name == f"{server}/{part}"], STOP_PATIENCE_S)
    detach(root / server / "mnt")
    uncover(root / server / "mnt")
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
    own = re.compile(rf"catalog|{DATABASE}|{PEOPLE}|s[1-9][0-9]*")
    for folder in root.iterdir():
        if folder.is_dir() and not folder.is_symlink() and own.fullmatch(folder.name):
            # Fenced objects and shielded mount points are immutable: rmtree would meet EPERM.
            lift_below(str(folder))
            shutil.rmtree(folder)
    (root / SUPERVISOR_LOG).unlink(missing_ok=True)
    if (root / STATE_FILE).exists():
        # What mounts that were killed had not told the manager: nobody is left to be told.
        for journal in JOURNALS.glob(f"{read_state(root).cluster}:*"):
            journal.unlink(missing_ok=True)
    # Last, so that a deletion that is interrupted can be repeated: without it the folder is no lab.
    (root / STATE_FILE).unlink(missing_ok=True)
    if not any(root.iterdir()):
        root.rmdir()
