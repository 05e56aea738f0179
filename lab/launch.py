"""Starting the parts of a server, and telling when they are ready or why they are not."""

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import trio

import cli
from cluster.config import ServerConfig
from cluster.errors import GodwitError, Unavailable
from cluster.messages import GetStatus, Status
from cluster.rpc.conversation import Asker, converse
from cluster.rpc.wire import parse_address
from lab.mounts import answers
from lab.network import enter
from lab.processes import ProcessId, is_alive, is_listening, spawn

POLL_S = 0.05
ANSWER_S = 5.0
TAIL_LINES = 15
TAIL_BYTES = 8192


class NotReady(GodwitError):
    """A part of a server ended or did not become ready in time; the message ends with the last lines of its log."""


PYTHON = (sys.executable, "-bb", "-P", "-m")


def program_of(part: str) -> list[str]:
    """The command line of a part, but for its configuration."""
    return [*PYTHON, "cli.main", "run", part]


def launch(program: Sequence[str], config: Path, log: Path, namespace: str) -> ProcessId:
    """Starts a part in a network namespace, with the code that this very process runs."""
    code = str(Path(cli.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": code, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
    return spawn(enter(namespace, [*program, "--config", str(config)]), log, environment)


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


def wait_for_volumes(config: ServerConfig, expected: Mapping[str, Collection[str]], deadline_s: float) -> None:
    """Returns when the manager knows the volumes (paths) of every server; raises `Unavailable` when it is too late."""

    async def poll(asker: Asker) -> None:
        while missing := _missing_volumes(await asker(GetStatus()), expected):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the manager did not hear in time of the volumes of {', '.join(missing)}")
            await trio.sleep(POLL_S)

    converse(config.managers, config.cluster, max(1.0, deadline_s - time.monotonic()), poll)


def _missing_volumes(status: Status, expected: Mapping[str, Collection[str]]) -> list[str]:
    known = {info.server: {volume.path for volume in info.volumes if volume.up} for info in status.servers}
    return [server for server, paths in expected.items() if not known.get(server, set()).issuperset(paths)]


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        lines = [f"(cannot be read: {error.strerror})"]
    return "\n".join(f"    {line}" for line in lines or ["(empty)"])
