"""Where a file's home is after who opened it how: the table of one home per file, row by row.

Every row is checked by what `godwit where` says and by the contents on all mounts, while the file is open and afterwards.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas

HOME = "the home"
REPLICA = "the server with the other replica"
OTHER = "the server without a replica"

READING = os.O_RDONLY
WRITING = os.O_RDWR

CONTENT = b"0123456789" * 1000


@dataclass(frozen=True)
class Row:
    """*opener* opens while somebody else (or nobody) has the file open; whose server is the home then."""

    opener: str
    flags: int
    held: tuple[str, int] | None
    home: str


ROWS = {
    "the home reads": Row(HOME, READING, None, HOME),
    "the home writes": Row(HOME, WRITING, None, HOME),
    "the home writes, others read": Row(HOME, WRITING, (REPLICA, READING), HOME),
    "the home writes, others write": Row(HOME, WRITING, (OTHER, WRITING), HOME),
    "a replica is read": Row(REPLICA, READING, None, HOME),
    "a replica is read, the home writes": Row(REPLICA, READING, (HOME, WRITING), HOME),
    "without a replica, reading": Row(OTHER, READING, None, HOME),
    "without a replica, reading, the home writes": Row(OTHER, READING, (HOME, WRITING), HOME),
    "with a replica, writing": Row(REPLICA, WRITING, None, REPLICA),
    "with a replica, writing, the home reads": Row(REPLICA, WRITING, (HOME, READING), HOME),
    "with a replica, writing, others read": Row(REPLICA, WRITING, (OTHER, READING), HOME),
    "with a replica, writing, the home writes": Row(REPLICA, WRITING, (HOME, WRITING), HOME),
    "with a replica, writing, others write": Row(REPLICA, WRITING, (OTHER, WRITING), HOME),
    "without a replica, writing": Row(OTHER, WRITING, None, HOME),
    "without a replica, writing, others read": Row(OTHER, WRITING, (REPLICA, READING), HOME),
    "without a replica, writing, the home writes": Row(OTHER, WRITING, (HOME, WRITING), HOME),
}


@dataclass(frozen=True)
class Placed:
    """A clean file with two current replicas, and nothing to be done for it."""

    lab: Lab
    name: str
    servers: dict[str, str]
    epoch: int

    def at(self, role: str) -> Path:
        return self.lab.mount(self.servers[role]) / self.name / "file"

    def views(self) -> list[Path]:
        return [self.at(role) for role in self.servers]


@pytest.fixture
def placed(network: Lab, orderly_logs: None) -> Placed:
    made = fresh(network.mount("s1"))
    (made / "file").write_bytes(CONTENT)
    where = settled(network, made / "file")
    (replica,) = [row["server"] for row in where["replicas"] if not row["home"]]
    (other,) = [server for server in network.servers if server not in ("s1", replica)]
    assert home_of(where) == "s1"
    return Placed(network, made.name, {HOME: "s1", REPLICA: replica, OTHER: other}, where["home_epoch"])


def settled(lab: Lab, path: Path) -> dict[str, Any]:
    """What `where` says once two replicas are current and no task is left. Who has read the file a moment ago may be registered
    still, which must not keep its home where it is."""
    wait_for_replicas(lab, str(path), 2)
    wait_for_copies(lab)
    return wait_for_replicas(lab, str(path), 2)


def home_of(where: dict[str, Any]) -> str:
    (home,) = [row["server"] for row in where["replicas"] if row["home"]]
    assert isinstance(home, str)
    return home


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_whose_server_is_the_home_and_everybody_sees_the_same(placed: Placed, row: Row) -> None:
    path = str(placed.at(HOME))
    content = bytearray(CONTENT)
    with ExitStack() as stack:

        def opened(role: str, flags: int) -> int:
            descriptor = os.open(placed.at(role), flags | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        descriptors = []
        if row.held is not None:
            descriptors.append((opened(*row.held), row.held[1]))
        descriptors.append((opened(row.opener, row.flags), row.flags))
        where = godwit(placed.lab, "where", path)
        assert home_of(where) == placed.servers[row.home]
        assert where["home_epoch"] == placed.epoch + (row.home != HOME)
        for number, (descriptor, flags) in enumerate(descriptors):
            if flags == WRITING:
                written = b"written %d" % number
                assert os.pwrite(descriptor, written, 5000 * number) == len(written)
                content[5000 * number : 5000 * number + len(written)] = written
            for reader, _flags in descriptors:
                assert os.pread(reader, 2 * len(CONTENT), 0) == content
            for view in placed.views():
                assert view.read_bytes() == content
    for view in placed.views():
        assert view.read_bytes() == content
    where = settled(placed.lab, Path(path))
    assert home_of(where) == placed.servers[row.home]
    assert {replica["version"] for replica in where["replicas"]} == {where["version"]}
    for view in placed.views():
        assert view.read_bytes() == content


def test_the_home_follows_whoever_writes_and_comes_back(placed: Placed) -> None:
    """Each writes alone where a current replica is: one epoch for each move, and never an older content."""
    path = placed.at(HOME)
    for turn, role in enumerate((REPLICA, HOME, REPLICA), start=1):
        with placed.at(role).open("ab") as file:
            file.write(b"turn %d" % turn)
        where = settled(placed.lab, path)
        assert (home_of(where), where["home_epoch"]) == (placed.servers[role], placed.epoch + turn)
        assert {view.read_bytes() for view in placed.views()} == {CONTENT + b"".join(b"turn %d" % n for n in range(1, turn + 1))}
        settled(placed.lab, path)


def test_a_replica_is_read_without_the_home(placed: Placed) -> None:
    """Its agent is stopped: whoever asked it would hang."""
    command = [sys.executable, "-c", "import sys; sys.stdout.write(open(sys.argv[1]).read())", str(placed.at(REPLICA))]
    home = placed.servers[HOME]
    placed.lab.kill(home, "agent", signal.SIGSTOP)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reading:
        try:
            output, _errors = reading.communicate(timeout=10)
        finally:
            placed.lab.kill(home, "agent", signal.SIGCONT)
    assert output == CONTENT
