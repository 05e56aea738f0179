"""Waiting for what a network does in the background, always with a deadline; stopping a manager where it does no harm."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

import msgspec

from cli import exits
from lab import network
from lab.lab import Lab
from tests.support.runner import godwit_process as run_godwit

T = TypeVar("T")

POLL_S = 0.05


def wait_until(condition: Callable[[], T | None], what: str, timeout_s: float = 60.0) -> T:
    """The first true value of *condition*; fails the test after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def godwit(lab: Lab, *arguments: str) -> dict[str, Any]:
    """What a `godwit … --json` command says of the lab, whether all is well there or not."""
    done = run_godwit(*arguments, "--json", "--root", str(lab.root))
    assert done.returncode in (0, exits.ATTENTION), done
    result: dict[str, Any] = msgspec.json.decode(done.stdout)
    return result


def happened(lab: Lab, kind: str, *arguments: str) -> list[dict[str, Any]]:
    """The events of a kind, or of a group of kinds, the newest last."""
    done = run_godwit("events", "--json", "--kind", kind, *arguments, "--root", str(lab.root))
    assert done.returncode == 0, done
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


def kinds(lab: Lab, kind: str, *arguments: str) -> list[str]:
    """The same, only what kinds they are of."""
    return [event["kind"] for event in happened(lab, kind, *arguments)]


def readmit(lab: Lab, server: str) -> dict[str, Any]:
    """Lets a server in again that has left, was lost or was revoked: what `servers add` said. It gets new certificates."""
    added = godwit(lab, "servers", "add", server, "--candidate")
    command = [sys.executable, "-bb", "-m", "cli.main", "rejoin", "--token-file", "-", "--config", str(lab.config_path(server))]
    there = network.enter(f"godwit-{lab.tag}-{server}", command)
    done = subprocess.run(there, input=added["token"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    return added


def copies_done(lab: Lab) -> bool:
    """Whether no task is left in any queue."""
    return not godwit(lab, "queue", "ls")["tasks"]


def wait_for_copies(lab: Lab, timeout_s: float = 120.0) -> None:
    """Returns when every queue is empty and every file that was closed is committed."""
    wait_until(lambda: copies_done(lab), "the queues run empty", timeout_s)


def wait_for_replicas(lab: Lab, path: str, count: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """What `where` says of *path* once *count* current replicas exist and nobody writes it."""

    def settled() -> dict[str, Any] | None:
        where = godwit(lab, "where", path)
        current = [replica for replica in where["replicas"] if replica["current"]]
        return where if len(current) == count and not where["dirty"] else None

    return wait_until(settled, f"{path} has {count} current replicas", timeout_s)


def wait_for_caching(lab: Lab, server: str) -> None:
    """Until the mount of *server* may cache what it looks at: a new manager grants nothing before it knows what earlier ones had
    granted.
    """

    def may_cache() -> bool:
        os.listdir(lab.mount(server))
        return any(lease["holder"] == server and lease["cached"] for lease in godwit(lab, "leases", "ls")["leases"])

    wait_until(may_cache, f"what {server} looks at is cached there")


def stop_between_transactions(lab: Lab, server: str) -> None:
    """SIGSTOP. On SQLite a process that is stopped inside a transaction keeps the database's lock, so nobody could follow."""
    while True:
        lab.kill(server, "manager", signal.SIGSTOP)
        if lab.config(server).manager.database.startswith("postgresql") or _may_write(lab):
            return
        lab.kill(server, "manager", signal.SIGCONT)


def _may_write(lab: Lab) -> bool:
    with closing(sqlite3.connect(lab.root / "catalog" / "catalog.db", timeout=0.5, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
