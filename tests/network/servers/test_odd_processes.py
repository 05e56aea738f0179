"""What is odd without being a fault of any disk: replies, rows of the catalog, and who asks for what is not his.

The agent of s2 answers as it is told to.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from cluster.config import credentials_of
from cluster.errors import GodwitError, TokenRefused
from cluster.leases import READ, WRITE, LeaseKeys, LeaseToken, Sealer
from cluster.messages import ReadObject, WriteObject
from cluster.rpc.connection import connect
from cluster.rpc.wire import Party
from cluster.runtime import MOUNT_LOCKS, RUNTIME, mount_lock
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from lab.launch import PYTHON
from tests.network.servers.odd_agent import ODD_NUMBER, OTHER_REPLY, UNEXPECTED, oddity
from tests.support.acting import ANNA, acting_as
from tests.support.conditions import godwit, wait_for_replicas, wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit_process as run_godwit

OVERRIDES = {
    "mount": {"request_timeout_s": 8.0, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 4.0, "access_s": 3.0},
    "agent": {"report_s": 0.5},
}
CONTENT = os.urandom(20_000)
LONG_FROM_NOW_S = 1e12  # by whatever monotonic clock a manager has

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_up(tmp_path_factory.mktemp("odd") / "lab", overrides=OVERRIDES) as made:
        made.kill("s2", "agent")
        odd_lab(made).start("s2", "agent")
        yield made


def odd_lab(lab: Lab) -> Lab:
    """The same, whose agents answer as they are told to."""
    return Lab(lab.root, {"agent": [*PYTHON, "tests.network.servers.odd_agent"]})


def new_file(lab: Lab, name: str, copies: int) -> Path:
    """A file whose home is on s2, in a directory of its own."""
    folder = lab.mount("s2") / name
    folder.mkdir()
    godwit(lab, "policy", "set", str(folder), "--copies", str(copies))
    (folder / "file").write_bytes(CONTENT)
    wait_for_replicas(lab, str(folder / "file"), copies)
    return folder / "file"


def without_copy(lab: Lab, path: Path) -> Path:
    """The same file on the mount of a server that has nothing of it."""
    holders = {row["server"] for row in godwit(lab, "where", str(path))["replicas"]}
    server = min(set(lab.servers) - holders)
    return lab.mount(server) / path.relative_to(lab.mount("s2"))


@pytest.mark.parametrize("odd", [ODD_NUMBER, OTHER_REPLY, UNEXPECTED])
def test_an_odd_answer_costs_no_more_than_the_request(lab: Lab, odd: str) -> None:
    copied, alone = (without_copy(lab, new_file(lab, f"{odd}, {copies}", copies)) for copies in (2, 1))
    flag = oddity(lab.config_path("s2"))
    flag.write_text(odd)
    try:
        began_s = time.monotonic()
        assert copied.read_bytes() == CONTENT
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            alone.read_bytes()
        assert time.monotonic() - began_s < OVERRIDES["mount"]["request_timeout_s"] + 4.0
        assert os.listdir(alone.parent) == ["file"]
    finally:
        flag.unlink()
    assert alone.read_bytes() == CONTENT
    if odd == UNEXPECTED:
        said = lab.log("s2", "agent").read_text()
        assert "unexpected error while handling ReadObject" in said
        assert "ValueError: nobody had thought of this" in said
        wait_until(lambda: "unexpected" in str(godwit(lab, "servers", "show", "s2")["server"]["problems"]), "it is counted", 20)


def test_a_token_to_read_is_none_to_write(lab: Lab) -> None:
    path = new_file(lab, "capability", 1)
    ino, (home,) = path.stat().st_ino, godwit(lab, "where", str(path))["replicas"]
    config = lab.config("s2")
    master = TrustFolder(config.trust).read_master()

    def claims(mode: str) -> LeaseToken:
        address, term = config.agent.listen, int(godwit(lab, "status")["term"])
        return LeaseToken(1, ino, mode, "s1", home["volume"], address, 1, 1, term, 60.0, LONG_FROM_NOW_S, checked_by="s2")

    def token(mode: str, *, secret: bytes = master) -> bytes:
        return LeaseKeys(secret).seal(claims(mode))

    def by_agent(server: str) -> bytes:
        """What the agent of *server* can make, which knows its own key only."""
        return Sealer(LeaseKeys(master).key_of(server)).seal(claims(WRITE))

    async def answer(request: ReadObject | WriteObject) -> GodwitError | None:
        async with trio.open_nursery() as nursery:
            mount = credentials_of(lab.config("s1"), Role.MOUNT)
            channel = await connect(config.agent.listen, nursery, mount, Party(Role.AGENT, "s2"), timeout_s=5)
            try:
                await channel.exchange(request, timeout_s=5, body=b"forged" if isinstance(request, WriteObject) else b"")
            except GodwitError as error:
                return error
            finally:
                nursery.cancel_scope.cancel()
        return None

    assert trio.run(answer, ReadObject(ino, home["volume"], token(READ), 0, 100)) is None
    for sealed in (token(READ), token(WRITE, secret=bytes(32)), token(WRITE)[:-1] + b"x", by_agent("s1"), by_agent("s3")):
        refused = trio.run(answer, WriteObject(ino, home["volume"], sealed, 0))
        assert isinstance(refused, TokenRefused), refused
    assert path.read_bytes() == CONTENT


def test_a_replica_is_read_on_for_longer_than_a_pass_is_good(lab: Lab) -> None:
    """The home's agent is away: its token is no use at the other server."""
    copied = without_copy(lab, new_file(lab, "away", 2))
    access_s = OVERRIDES["manager"]["access_s"]
    lab.kill("s2", "agent")
    try:
        with copied.open("rb", buffering=0) as file:
            until_s = time.monotonic() + 2.5 * access_s
            while time.monotonic() < until_s:
                # What the kernel has kept needs no token.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(file.fileno(), len(CONTENT), 0) == CONTENT
                time.sleep(0.1)
    finally:
        odd_lab(lab).start("s2", "agent")
    wait_until(lambda: godwit(lab, "servers", "show", "s2")["server"]["state"] == "up", "s2 is back", 20)


def test_nobody_else_can_take_what_a_lab_locks(lab: Lab) -> None:
    locks = [RUNTIME / "labs" / f"{lab.tag}.lock", MOUNT_LOCKS / mount_lock(lab.config("s1").cluster, "s1")]
    with locks[1].open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for lock in locks:
        assert lock.exists()
        with acting_as(ANNA):
            with pytest.raises(PermissionError):
                lock.open()
            with pytest.raises(PermissionError):
                lock.unlink()
            with pytest.raises(PermissionError):
                lock.with_name("another.lock").touch()


def test_damaged_rows_of_the_catalog_end_no_manager(lab: Lab) -> None:
    moved = new_file(lab, "moved", 1)
    migration = godwit(lab, "migrate", str(moved), "--from", "s2", "--to", "s3")["migration"]["migration"]
    wait_until(lambda: godwit(lab, "migrations", "show", str(migration))["migration"]["state"] == "done", "it is moved", 30)
    with closing(sqlite3.connect(lab.root / "catalog" / "catalog.db", timeout=10, isolation_level=None)) as catalog:
        catalog.execute("UPDATE migrations SET subject = '[\"damaged', kind = 'odd' WHERE migration = ?", (migration,))
        catalog.execute("INSERT INTO servers (server, state) VALUES ('s9', 'asleep')")
    before = godwit(lab, "status")["term"]
    godwit(lab, "manager", "step-down")
    wait_until(lambda: godwit(lab, "status")["term"] > before, "another term", 20)
    (listed,) = godwit(lab, "migrations", "ls")["migrations"]
    assert (listed["migration"], listed["paths"], listed["files"]["done"]) == (migration, [], 1)
    states = {row["server"]: row["state"] for row in godwit(lab, "servers", "ls")["servers"]}
    assert states == {**dict.fromkeys(lab.servers, "up"), "s9": "down"}
    assert moved.read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "command"), [("lab.json", ("status", "--root")), ("godwit.toml", ("run", "agent", "--config"))])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, command: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(b"{\xff")
    done = run_godwit(*command, str(tmp_path if name == "lab.json" else tmp_path / name))
    assert done.returncode != 0
    assert str(tmp_path / name) in done.stderr
    assert "Traceback" not in done.stderr
