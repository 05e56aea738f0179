"""Starting the parts of a server and the supervisor, and telling when parts are ready or why they are not."""

import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import trio

from cluster.config import ServerConfig
from cluster.errors import GodwitError, Unavailable
from cluster.messages import ROOT_INO, GetPolicy, GetStatus, NamesPolicy, SetPolicy, Status
from cluster.rpc.conversation import Asker, converse
from cluster.rpc.wire import parse_address
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.mounts import answers
from lab.network import enter
from lab.processes import ProcessId, is_alive, is_listening, spawn
from lab.tools import ToolFailed, tool

POLL_S = 0.05  # between looks at parts that come up; the looks are cheap
ANSWER_S = 5.0  # for one stat of a mount: a cold one waits for its manager
TAIL_LINES = 15  # of a log, in the message
TAIL_BYTES = 8192  # read from the end of a log, whatever its length
WAKE = signal.SIGURG
"""Has the supervisor look at `lab.json` again. Of all signals one that does nothing to a process without a handler for it yet."""


class NotReady(GodwitError):
    """A part of a server ended or did not become ready in time; the message ends with the last lines of its log."""


# -bb: bytes compared with str is an error, as in tests. -P: the working directory is no place to import from.
PYTHON = (sys.executable, "-bb", "-P", "-m")


def program_of(part: str) -> list[str]:
    """The command line of a part, but for its configuration."""
    return [*PYTHON, "cli.main", "run", part]


def launch(program: Sequence[str], config: Path, log: Path, namespace: str) -> ProcessId:
    """Starts a part in a network namespace, with the code that this very process runs."""
    return spawn(enter(namespace, [*program, "--config", str(config)]), log, _environment())


def launch_supervisor(root: Path, log: Path, namespace: str) -> ProcessId:
    """Starts the supervisor of the lab at *root*; in one of the lab's namespaces, by which `down` finds it without `lab.json`."""
    return spawn(enter(namespace, [*PYTHON, "lab.supervisor", str(root)]), log, _environment())


def _environment() -> dict[str, str]:
    # Unbuffered: what a part wrote before it was killed is in its log.
    return {**os.environ, "PYTHONPATH": _code(), "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}


def create_catalog(config: Path, namespace: str, timeout_s: float) -> None:
    """Makes the tables of a new network, on the network of the server with this configuration; raises `NotReady`."""
    program = [*PYTHON, "cli.main", "db", "create", "--config", str(config)]
    try:
        # In the server's namespace, since the database may be the lab's own, which only the lab's network reaches.
        tool(enter(namespace, ["env", f"PYTHONPATH={_code()}", *program]), timeout_s=timeout_s)
    except ToolFailed as error:
        raise NotReady(f"the catalog was not made: {error}") from error


def _code() -> str:
    """Where the code is that this very process runs."""
    return str(Path(__file__).resolve().parent.parent)


def wait_for_parts(server: str, parts: Mapping[str, tuple[ProcessId, Path]], config: ServerConfig, deadline_s: float) -> None:
    """Returns when each part listens on its port, or its mount answers; *parts* has the process and log of each.

    Raises `NotReady` as soon as one of them has ended, or when the monotonic clock has passed *deadline_s*.
    """
    waiting = list(parts)
    while waiting:
        for part, (process, log) in parts.items():
            if not is_alive(process):
                raise NotReady(f"{server} {part} ended while it was being started; the end of {log}:\n{tail(log)}")
        waiting = [part for part in waiting if not _is_ready(part, parts[part][0], config)]
        if waiting and time.monotonic() > deadline_s:
            log = parts[waiting[0]][1]
            raise NotReady(f"{server} {waiting[0]} did not become ready in time; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_S)


def _is_ready(part: str, process: ProcessId, config: ServerConfig) -> bool:
    if part == "mount":
        return answers(Path(config.mount.mountpoint), ANSWER_S)
    listen = config.manager.listen if part == "manager" else config.agent.listen
    return is_listening(process, parse_address(listen)[1])


def set_names(config: ServerConfig, trust: TrustFolder, names: NamesPolicy, deadline_s: float) -> None:
    """Sets how names are changed in the whole network, in the root's policy; raises `Unavailable` when it is too late."""

    async def change(asker: Asker) -> None:
        present = await asker(GetPolicy(ROOT_INO))
        await asker(SetPolicy(ROOT_INO, present.copies, present.sync_copies, names=names))

    converse(config.managers, Credentials(trust, Role.ADMIN), max(1.0, deadline_s - time.monotonic()), change)


def wait_for_volumes(
    config: ServerConfig, trust: TrustFolder, expected: Mapping[str, Collection[str]], deadline_s: float
) -> None:
    """Returns when the manager knows the volumes (paths) of every server; raises `Unavailable` when it is too late."""

    async def poll(asker: Asker) -> None:
        while missing := _missing_volumes(await asker(GetStatus()), expected):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the manager did not hear in time of the volumes of {', '.join(missing)}")
            await trio.sleep(POLL_S)

    converse(config.managers, Credentials(trust, Role.ADMIN), max(1.0, deadline_s - time.monotonic()), poll)


def _missing_volumes(status: Status, expected: Mapping[str, Collection[str]]) -> list[str]:
    # Registered is not enough: a volume that is not up takes no file yet.
    known = {info.server: {volume.path for volume in info.volumes if volume.up} for info in status.servers}
    return [server for server, paths in expected.items() if not known.get(server, set()).issuperset(paths)]


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    try:
        with open(log, "rb") as file:
            # The first line may be cut in two; the last TAIL_LINES hardly ever reach back that far.
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        lines = [f"(cannot be read: {error.strerror})"]
    return "\n".join(f"    {line}" for line in lines or ["(empty)"])
