"""A PostgreSQL that is read-only, full, slow or lost under real processes: who is told what, and that it heals.

Its data are on a small disk of their own, and two servers use it.
"""

import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from sqlalchemy import make_url

from lab.database import PROGRAMS
from lab.lab import Lab
from lab.processes import is_alive
from lab.state import read_state
from tests.network.disks.test_catalog_disk import attempt, fault, fill, refusal
from tests.support.conditions import wait_for_copies, wait_until
from tests.support.runner import godwit_process as run_godwit

DISK_MIB = 256
OVERRIDES = {
    "mount": {"request_timeout_s": 8.0, "renew_s": 0.5},
    "manager": {"term_s": 2.0, "session_timeout_s": 3.0, "access_s": 2.0},
    "agent": {"report_s": 0.5},
}

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.skipif(not list(PROGRAMS.glob("*/bin/postgres")), reason="no PostgreSQL: package postgresql"),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("postgresql")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}M,mode=0755", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def lab(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.create(tmp_path_factory.mktemp("network") / "lab", servers=2, db="postgresql", overrides=OVERRIDES)
    (made.root / "db").symlink_to(disk)
    try:
        made.up()
        yield made
    finally:
        made.down(purge=True)


@contextmanager
def asking(lab: Lab) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the catalog's database, each of whose statements is committed at once."""
    url = make_url(lab.config("s1").manager.database).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        yield connection


class Office(NamedTuple):
    beat: int
    lasts_ms: int


def office(connection: psycopg.Connection[Any]) -> Office:
    row = connection.execute("SELECT beat, lasts_ms FROM office").fetchone()
    assert row is not None
    return Office(*row)


def is_extended(connection: psycopg.Connection[Any], since: Office) -> bool:
    return office(connection).beat > since.beat


def configure(lab: Lab, line: str) -> None:
    """As an operator does: writes into its configuration, and has it read again."""
    with (lab.root / "db" / "data" / "postgresql.conf").open("a") as file:
        file.write(f"\n{line}\n")
    lab.kill("db", number=signal.SIGHUP)


def manager(lab: Lab) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(run_godwit("manager", "show", "--json", "--root", str(lab.root)).stdout)
    return shown


def wait_for_changes(lab: Lab) -> None:
    first, second = (lab.mount(server) for server in lab.servers)
    wait_until(lambda: attempt(first) == attempt(second) == 0, "changes are made again")
    wait_until(lambda: not fault(lab), "the disk is good")


def names(lab: Lab) -> list[dict[str, str]]:
    """What files there are and what is in them, by server."""
    return [{path.name: path.read_text() for path in lab.mount(server).iterdir()} for server in lab.servers]


def test_a_backup_brings_a_lost_catalog_back(lab: Lab, tmp_path: Path) -> None:
    """As `docs/operations.md` has it, word by word."""
    mount = lab.mount("s1")
    (mount / "kept").write_text("as it was")
    (mount / "later").write_text("first")
    wait_for_copies(lab)
    config = ["--config", str(lab.config_path("s1"))]
    assert run_godwit("db", "backup", *config, str(tmp_path / "backup")).returncode == 0
    (mount / "later").write_text("written after the backup")
    (mount / "after").write_text("made after the backup")
    number = (mount / "after").stat().st_ino
    wait_for_copies(lab)
    wait_until(lambda: all((lab.root / server / "state").is_dir() for server in lab.servers), "all servers remember", 30)
    with asking(lab) as connection:
        for (table,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
            connection.execute(f'DROP TABLE "{table}" CASCADE')
    wait_until(lambda: not manager(lab)["server"], "nobody is in office")

    for server in lab.servers:
        lab.kill(server, "manager", signal.SIGTERM)
    done = run_godwit("db", "restore", "--yes", *config, str(tmp_path / "backup"))
    assert done.returncode == 0, done
    for server in lab.servers:
        lab.start(server, "manager")
    wait_until(lambda: manager(lab)["server"], "somebody is in office")
    assert names(lab) == [{"kept": "as it was", "later": "written after the backup"}] * 2
    (lab.mount("s2") / "new").write_text("new")
    assert (lab.mount("s2") / "new").stat().st_ino > number
    for part in ("agent", "mount"):
        lab.kill("s1", part, signal.SIGTERM)
    lab.start("s1")  # what its mount may have made just now is nobody else's business
    aside = wait_until(lambda: list((lab.volume("s1") / "unknown").glob(f"{number}.*")), "what is not known is kept")
    assert aside[0].read_text() == "made after the backup"
    wait_for_copies(lab)


def test_one_that_takes_no_changes_is_told_and_taken_up_again(lab: Lab) -> None:
    processes = read_state(lab.root).processes
    configure(lab, "default_transaction_read_only = on")
    try:
        wait_until(lambda: attempt(lab.mount("s1")) == errno.EROFS, "changes are refused", 2.0)
        wait_until(lambda: not manager(lab)["server"], "the office runs out")
        assert refusal(lab.mount("s1") / "more") == errno.EIO
        wait_until(lambda: attempt(lab.mount("s1")) == attempt(lab.mount("s2")) == errno.EIO, "what leases cover is over")
        assert "the disk of the catalog is read-only" in run_godwit("status", "--root", str(lab.root)).stderr
    finally:
        configure(lab, "default_transaction_read_only = off")
    wait_for_changes(lab)
    assert all(is_alive(process) for process in processes.values())


def test_on_a_full_disk_only_what_needs_room_is_refused(lab: Lab, disk: Path) -> None:
    processes = read_state(lab.root).processes
    first, second = (lab.mount(server) for server in lab.servers)
    (first / "read").write_text("read")
    filler = fill(disk)
    try:
        wait_until(lambda: attempt(first) == errno.ENOSPC, "the disk is full")
        assert "the disk of the catalog is full" in fault(lab)
        assert (second / "read").read_text() == "read"
    finally:
        filler.unlink()
    wait_for_changes(lab)
    assert all(is_alive(process) for process in processes.values())


def test_statements_that_take_seconds_cost_nobody_the_office(lab: Lab) -> None:
    """As on a machine that becomes too busy: its processes get the processor now and then only, and that for a moment."""
    before, over = manager(lab)["term"], threading.Event()

    def starve() -> None:
        stopped_s = 0.5
        with asking(lab) as connection:
            while not over.is_set():
                was = office(connection)
                lab.kill("db", number=signal.SIGSTOP)
                over.wait(stopped_s)
                lab.kill("db", number=signal.SIGCONT)
                over.wait(0.2)
                # However busy this machine is itself: else two stops would be one for the statement.
                wait_until(partial(is_extended, connection, was), "the office is extended")
                stopped_s = min(2.0, stopped_s * 1.3)

    starving = threading.Thread(target=starve)
    starving.start()
    try:
        ends_s, outcomes, longest_s = time.monotonic() + 5 * OVERRIDES["manager"]["term_s"], set(), 0.0
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            outcomes |= {attempt(lab.mount(server)) for server in lab.servers}
            longest_s = max(longest_s, time.monotonic() - began_s)
    finally:
        over.set()
        starving.join()
    assert longest_s > 1.0
    assert outcomes == {0}
    with asking(lab) as connection:
        assert office(connection).lasts_ms > 1000 * OVERRIDES["manager"]["term_s"]
    assert manager(lab)["term"] == before


def test_one_without_room_for_its_own_log_is_away_until_there_is_some(lab: Lab, disk: Path) -> None:
    """The last one: it stops by itself, and is started again like any that has ended."""
    (lab.mount("s1") / "before").write_text("before")
    # The connection is made while there is room: a full database may refuse new ones and still serve those it has.
    with asking(lab) as connection:
        write_log(connection, 1)
        filler = fill(disk)
        try:
            with pytest.raises(psycopg.OperationalError):
                write_log(connection, DISK_MIB)
            wait_until(lambda: stays_away(lab, disk), "nobody is in office")
            assert wait_until(lambda: attempt(lab.mount("s1")), "it is away") == errno.EIO
        finally:
            filler.unlink()
    lab.start("db")
    wait_for_changes(lab)
    assert (lab.mount("s2") / "before").read_text() == "before"


def stays_away(lab: Lab, disk: Path) -> bool:
    """Whether nobody is in office, after all room was taken that the database has given back.

    It gives some back when it stops. With that it may recover, and serve a manager again until its log is full once more.
    """
    fill(disk)
    with suppress(psycopg.OperationalError), asking(lab) as connection:
        write_log(connection, DISK_MIB)
    return not manager(lab)["server"]


def write_log(connection: psycopg.Connection[Any], mib: int) -> None:
    """Adds to the log of the database, a MiB at a time, and nothing to its tables."""
    for _ in range(mib):
        connection.execute("SELECT pg_logical_emit_message(false, 'godwit', repeat('x', 1 << 20))")
