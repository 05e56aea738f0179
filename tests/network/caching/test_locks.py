"""Locks that hold on all mounts: between processes, over deaths of processes, mounts, servers and managers."""

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab.lab import Lab
from tests.conftest import fresh
from tests.network.locking import COUNT, TRANSACT, Holder, held, side_by_side
from tests.support.conditions import godwit, wait_until
from tests.support.modes import both_modes

ACCESS_S = 12.0  # locks last half of it: with an election and what else it takes they are free within it
OVERRIDES = {
    "mount": {"renew_s": 1.0, "commit_s": 1.0, "request_timeout_s": 20.0},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 8.0},
}
INCREMENTS = 300
TRANSACTIONS = int(os.environ.get("GODWIT_SQLITE_TRANSACTIONS", "80"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("locks") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def made(lab: Lab, content: bytes = b"", server: str = "s1") -> dict[str, Path]:
    """A file as each server sees it; its home is on *server*."""
    folder = fresh(lab.mount(server))
    (folder / "file").write_bytes(content)
    return {name: lab.mount(name) / folder.name / "file" for name in ("s1", "s2", "s3")}


def locks(lab: Lab, path: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = godwit(lab, "locks", "ls", str(path))["locks"]
    return listed


def waiters(lab: Lab, path: Path) -> list[str]:
    return [lock["holder"] for lock in locks(lab, path) if lock["waiting"]]


def flock_once(path: Path) -> int:
    """What `flock -n` says."""
    return subprocess.run(["flock", "-n", str(path), "true"], timeout=60).returncode


def lock_at_once(path: Path) -> int:
    """0, or why a record lock on the whole file cannot be had."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(descriptor)
    return 0


def test_flock_on_one_server_excludes_the_others(lab: Lab) -> None:
    path = made(lab)
    holder = held("flock", path["s1"])
    assert [flock_once(path[name]) for name in ("s1", "s2", "s3")] == [1, 1, 1]
    assert lock_at_once(path["s2"]) == 0
    (lock,) = locks(lab, path["s1"])
    assert (lock["holder"], lock["pid"], lock["kind"], lock["mode"]) == ("s1", holder.process.pid, "flock", "write")
    holder.end()
    wait_until(lambda: flock_once(path["s2"]) == 0, "s2 gets it", 10)
    assert [flock_once(path[name]) for name in ("s1", "s3", "s2")] == [0, 0, 0]


def test_who_waits_gets_it_when_the_holder_is_killed(lab: Lab) -> None:
    path = made(lab)
    for kind in ("flock", "record"):
        holder = held(kind, path["s1"])
        waiter = Holder(kind, path["s2"])
        wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
        holder.kill()
        assert waiter.says() == "held"
        waiter.end()
        wait_until(lambda: not locks(lab, path["s1"]), "nothing is locked", 10)


def test_ranges_are_apart_and_closing_any_descriptor_ends_them(lab: Lab) -> None:
    path = made(lab)
    first = held("record", path["s1"], 0, 10)
    second = held("record", path["s2"], 10, 10)
    assert len(locks(lab, path["s1"])) == 2
    assert lock_at_once(path["s3"]) == errno.EAGAIN
    assert second.does("unlock") == "done"
    assert [lock["holder"] for lock in locks(lab, path["s1"])] == ["s1"]
    first.end()
    second.end()
    descriptor = os.open(path["s1"], os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        assert len(locks(lab, path["s1"])) == 1
        os.close(os.open(path["s1"], os.O_RDONLY))
        assert locks(lab, path["s1"]) == []
    finally:
        os.close(descriptor)


def test_a_test_says_who_is_in_the_way(lab: Lab) -> None:
    path = made(lab)
    holder = held("record", path["s1"], 100, 50)
    for name, pid in (("s1", holder.process.pid), ("s2", 0)):
        with path[name].open("r+b") as file:
            asked = fcntl.fcntl(file, fcntl.F_GETLK, _flock(fcntl.F_RDLCK))
            assert _flock_fields(asked) == (fcntl.F_WRLCK, 100, 50, pid)
    holder.end()
    with path["s2"].open("r+b") as file:
        assert _flock_fields(fcntl.fcntl(file, fcntl.F_GETLK, _flock(fcntl.F_RDLCK)))[0] == fcntl.F_UNLCK


def _flock(kind: int) -> bytes:
    """`struct flock` for a whole file."""
    return kind.to_bytes(2, "little") + bytes(30)


def _flock_fields(packed: bytes) -> tuple[int, int, int, int]:
    kind, start, length, pid = packed[0:2], packed[8:16], packed[16:24], packed[24:28]
    return tuple(int.from_bytes(part, "little") for part in (kind, start, length, pid))  # type: ignore[return-value]


def test_an_interrupted_waiter_leaves_the_queue(lab: Lab) -> None:
    path = made(lab)
    holder = held("flock", path["s1"])
    waiter = Holder("flock", path["s2"])
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
    waiter.kill()
    wait_until(lambda: not waiters(lab, path["s1"]), "nobody waits", 10)
    holder.end()
    wait_until(lambda: flock_once(path["s3"]) == 0, "s3 gets it", 10)


def test_a_deadlock_between_servers_is_refused(lab: Lab) -> None:
    path = made(lab)
    first, second = held("record", path["s1"], 0, 1), held("record", path["s2"], 1, 1)
    assert first.process.stdin is not None
    first.process.stdin.write("more 1\n")
    wait_until(lambda: waiters(lab, path["s1"]) == ["s1"], "s1 waits", 10)
    assert second.does("more 0") == f"failed {errno.EDEADLK}"
    second.end()
    assert first.says() == "done"
    first.end()


@both_modes
def test_no_increment_is_lost_between_servers(network: Lab) -> None:
    """Who gets the lock reads what the last holder wrote, although size and time of the file may look the same."""
    path = made(network, b"00000000", server="s2")
    side_by_side(COUNT, [[str(path[name]), str(INCREMENTS)] for name in ("s1", "s2", "s3")])
    assert path["s1"].read_bytes() == b"%08d" % (3 * INCREMENTS)


@both_modes
def test_who_gets_a_lock_reads_what_was_written_although_size_and_time_are_the_same(network: Lab) -> None:
    path = made(network, b"old")
    writer, reader = os.open(path["s1"], os.O_RDWR), os.open(path["s2"], os.O_RDONLY)
    try:
        for content in (b"one", b"two", b"six"):
            os.pread(reader, 3, 0)
            fcntl.flock(writer, fcntl.LOCK_EX)
            os.pwrite(writer, content, 0)
            os.utime(writer, ns=(0, 10**18))
            fcntl.flock(writer, fcntl.LOCK_UN)
            fcntl.flock(reader, fcntl.LOCK_SH)
            assert os.pread(reader, 3, 0) == content
            fcntl.flock(reader, fcntl.LOCK_UN)
    finally:
        os.close(writer)
        os.close(reader)


@both_modes
def test_two_servers_write_one_database(network: Lab) -> None:
    folder = fresh(network.mount("s1"))
    with closing(sqlite3.connect(folder / "db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE entries (who TEXT, number INTEGER, PRIMARY KEY (who, number))")
        connection.execute("CREATE TABLE total (value INTEGER)")
        connection.execute("INSERT INTO total VALUES (0)")
    seen = {name: str(network.mount(name) / folder.name / "db") for name in ("s1", "s2", "s3")}
    side_by_side(TRANSACT, [[seen[name], name, str(TRANSACTIONS)] for name in ("s1", "s2")])
    with closing(sqlite3.connect(seen["s3"])) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT value FROM total").fetchone() == (2 * TRANSACTIONS,)
        counts = connection.execute("SELECT who, count(*) FROM entries GROUP BY who ORDER BY who").fetchall()
    assert counts == [("s1", TRANSACTIONS), ("s2", TRANSACTIONS)]


def manager_of(lab: Lab) -> str:
    shown = wait_until(lambda: godwit(lab, "manager", "show").get("server"), "there is a manager", 30)
    return str(shown)


def test_locks_are_kept_over_another_manager(lab: Lab) -> None:
    path = made(lab)
    holder = held("record", path["s1"], 0, 10)
    waiter = Holder("record", path["s2"], 5, 10)
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
    before = manager_of(lab)
    lab.kill(before, "manager")
    assert lock_at_once(path["s3"]) == errno.EAGAIN
    assert manager_of(lab) != before
    assert holder.does("write kept") == "done"
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits again", 20)
    holder.end()
    assert waiter.says() == "held"
    waiter.end()
    lab.start(before, "manager")


@pytest.mark.parametrize("with_the_manager", [False, True])
def test_a_lock_whose_server_is_killed_is_free_within_the_access_time(lab: Lab, with_the_manager: bool) -> None:
    manager = manager_of(lab)
    killed, other, third = sorted(("s1", "s2", "s3"), key=lambda name: (name == manager) != with_the_manager)
    path = made(lab, server=other)
    holder = held("flock", path[killed])
    waiter = Holder("flock", path[other])
    wait_until(lambda: waiters(lab, path[third]) == [other], "another server waits", 10)
    killed_s = time.monotonic()
    lab.kill(killed)
    assert waiter.says() == "held"
    assert time.monotonic() - killed_s < ACCESS_S
    waiter.end()
    holder.kill()
    lab.start(killed)
    assert flock_once(path[killed]) == 0


def test_a_mount_that_is_started_again_frees_them_at_once(lab: Lab) -> None:
    path = made(lab)
    holder = held("flock", path["s3"])
    waiter = Holder("flock", path["s2"])
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
    lab.kill("s3", "mount")
    lab.start("s3", "mount")
    assert waiter.says() == "held"
    waiter.end()
    holder.kill()


def test_who_is_cut_off_loses_its_lock_and_writes_no_more(lab: Lab) -> None:
    path = made(lab, b"before", server="s1")
    holder = held("record", path["s3"])
    lab.cut("s3")
    try:
        waiter = held("record", path["s2"])
        assert waiter.does("write after!") == "done"
    finally:
        lab.mend("s3")
    assert holder.does("write late!!") == f"failed {errno.EIO}"
    assert holder.does("read") == f"failed {errno.EIO}"
    assert path["s1"].read_bytes() == b"after!"
    holder.end()
    waiter.end()
    wait_until(lambda: lock_at_once(path["s3"]) == 0, "s3 locks again once the file was closed there", 20)
    assert path["s3"].read_bytes() == b"after!"


def test_who_has_lost_its_lock_at_the_home_itself_writes_no_more(lab: Lab) -> None:
    """There the kernel writes past the mount, so that the object is fenced."""
    path = made(lab, b"before", server="s3")
    holder = held("record", path["s3"])
    lab.cut("s3")
    try:
        wait_until(lambda: lock_of(lab, path["s1"]) is None, "the manager has given the lock up", 30)
        wait_until(lambda: holder.does("write late!!") != "done", "writes fail", 10)
    finally:
        lab.mend("s3")
    waiter = held("record", path["s2"])
    assert waiter.does("write after!") == "done"
    wait_until(lambda: holder.does("write late!!").startswith("failed"), "they fail again although others write", 10)
    holder.end()
    waiter.end()
    wait_until(lambda: lock_at_once(path["s3"]) == 0, "s3 locks again once the file was closed there", 20)
    path["s3"].write_bytes(b"again")
    assert path["s2"].read_bytes() == b"again"


def lock_of(lab: Lab, path: Path) -> dict[str, Any] | None:
    """The lock on a file, whose name s1 can look up at least."""
    found = locks(lab, path)
    return found[0] if found else None


def test_readers_share_a_lock_and_exclude_writers(lab: Lab) -> None:
    path = made(lab)
    first, second = held("shared", path["s1"]), held("shared", path["s2"])
    assert {lock["mode"] for lock in locks(lab, path["s1"])} == {"read"}
    writer = Holder("flock", path["s3"])
    wait_until(lambda: waiters(lab, path["s1"]) == ["s3"], "s3 waits", 10)
    first.end()
    assert waiters(lab, path["s1"]) == ["s3"]
    second.end()
    assert writer.says() == "held"
    writer.end()


def test_a_lock_of_an_open_file_ends_with_the_file_and_not_with_another_one(lab: Lab) -> None:
    path = made(lab)
    holder = held("open file", path["s1"], 0, 10)
    os.close(os.open(path["s1"], os.O_RDONLY))
    assert lock_at_once(path["s2"]) == errno.EAGAIN
    waiter = Holder("open file", path["s2"], 5, 10)
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
    holder.kill()
    assert waiter.says() == "held"
    waiter.end()


def test_who_waits_for_a_second_gives_up_after_one(lab: Lab) -> None:
    path = made(lab)
    holder = held("flock", path["s1"])
    asked_s = time.monotonic()
    assert subprocess.run(["flock", "-w", "1", str(path["s2"]), "true"], timeout=60).returncode == 1
    assert 1 <= time.monotonic() - asked_s < 10
    assert waiters(lab, path["s1"]) == []
    holder.end()


@pytest.mark.parametrize("kind", ["flock", "record", "open file"])
def test_a_signal_that_is_handled_ends_the_waiting(lab: Lab, kind: str) -> None:
    path = made(lab)
    holder, waiter = held(kind, path["s1"]), Holder(kind, path["s2"])
    wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
    waiter.process.send_signal(signal.SIGUSR1)
    assert waiter.says() == f"refused {errno.EINTR}"
    wait_until(lambda: not waiters(lab, path["s1"]), "nobody waits", 10)
    waiter.end()
    holder.end()


def test_a_signal_interrupts_who_waits(lab: Lab) -> None:
    path = made(lab)
    holder = held("flock", path["s1"])
    waiter = subprocess.Popen(["flock", "-w", "600", str(path["s2"]), "true"])
    try:
        wait_until(lambda: waiters(lab, path["s1"]) == ["s2"], "s2 waits", 10)
        waiter.send_signal(signal.SIGTERM)
        assert waiter.wait(timeout=10) == -signal.SIGTERM
    finally:
        waiter.kill()
        waiter.wait()
    wait_until(lambda: not waiters(lab, path["s1"]), "nobody waits", 10)
    holder.end()
