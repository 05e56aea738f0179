"""What a mount had not told the manager when it was killed: its server's agent tells it, and nothing of it is lost.

The journals are written here, as a mount writes them, for a mount that was really killed: its session, its numbers, its volume.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cluster.journal import JOURNALS, Journal, journal_owner
from cluster.messages import ROOT_INO, Create, Expected, NamesPolicy, Record, Unlink
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from lab.state import read_state
from tests.support.conditions import godwit, wait_until
from tests.support.labs import lab_up

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.deadline(180),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_up(tmp_path_factory.mktemp("journals") / "lab", servers=2, names=NamesPolicy.HELD) as made:
        yield made


def newest_range(lab: Lab, server: str) -> tuple[int, range, int]:
    """The session of a server's mount, the numbers that it was given last, and the sequence of its last record that was sent."""
    with closing(sqlite3.connect(f"file:{lab.root}/catalog/catalog.db?mode=ro", uri=True)) as catalog:
        first, count, session = catalog.execute(
            "SELECT first, count, session FROM ranges WHERE server = ? ORDER BY first DESC LIMIT 1", (server,)
        ).fetchone()
        sent = catalog.execute("SELECT last FROM journals WHERE session = ?", (session,)).fetchone()
    return session, range(first, first + count), 0 if sent is None else sent[0]


def new_file(ino: int, name: bytes, volume: int) -> Record:
    return Record(Create(ROOT_INO, name, ino, 0o100640, 0, 0, 0, time.time_ns(), volume))


@pytest.mark.parametrize("order", ["the agent goes on", "the agent starts after the mount"])
def test_what_a_killed_mount_had_acknowledged_is_there(lab: Lab, order: str, tmp_path: Path) -> None:
    number = len(order)
    here, there = lab.mount("s1"), lab.mount("s2")
    (here / f"old-{number}").write_bytes(b"to be removed")
    (here / f"other-{number}").write_bytes(b"so that it has numbers")
    wait_until(lambda: not godwit(lab, "where", str(here / f"old-{number}"))["dirty"], "it is committed")
    removed = godwit(lab, "where", str(here / f"old-{number}"))
    # It would send the journal as the mount has left it: empty.
    lab.kill("s1", "agent", signal.SIGSTOP if order == "the agent goes on" else signal.SIGKILL)
    lab.kill("s1", "mount")
    # The mount was alone in the root, and has made records of its own.
    session, numbers, sent = newest_range(lab, "s1")
    ino = numbers[-1]
    made = VolumeLayout(lab.volume("s1")).create_object(ino)
    os.write(made, b"never told anybody")
    os.close(made)
    journal = Journal(
        journal_owner(read_state(lab.root).cluster, "s1"), session, str(Path(lab.config("s1").state)), tmp_path / "run"
    )
    journal.append(sent + 1, new_file(ino, b"new-%d" % number, removed["home_volume"]))
    journal.append(
        sent + 2, Record(Unlink(ROOT_INO, b"old-%d" % number, time.time_ns()), [Expected(removed["ino"], removed["version"])])
    )
    (JOURNALS / journal.path.name).write_bytes(journal.path.read_bytes())
    journal.close(empty=False)
    if order == "the agent goes on":
        lab.kill("s1", "agent", signal.SIGCONT)
    else:
        lab.start("s1", "mount")
        lab.start("s1", "agent")
    # The other mount is told of it, whatever it had cached.
    wait_until(lambda: (there / f"new-{number}").exists(), "the file is there")
    wait_until(lambda: not (there / f"old-{number}").exists(), "the other is not")
    wait_until(lambda: not godwit(lab, "where", "--ino", str(ino))["dirty"], "it is settled")
    assert (there / f"new-{number}").read_bytes() == b"never told anybody"
    assert (there / f"other-{number}").read_bytes() == b"so that it has numbers"
    wait_until(lambda: not (JOURNALS / journal.path.name).exists(), "the journal is gone")
    assert "they were sent" in lab.log("s1", "agent").read_text()
    assert not any(VolumeLayout(lab.volume("s1")).unknown.glob("*"))
    lab.start("s1", "mount")
