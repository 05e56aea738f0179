"""Servers that are down for longer than the delay, come back, flap, are drained, leave and join, with real processes."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, kinds, readmit, wait_for_copies, wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit_process as run_godwit

OVERRIDES = {
    "manager": {
        "term_s": 2.0,
        "session_timeout_s": 5.0,
        "suspect_s": 2.0,
        "down_s": 6.0,
        "access_s": 4.0,
        "claim_timeout_s": 5.0,
    },
    "agent": {"report_s": 0.5},
    "mount": {"request_timeout_s": 8.0, "commit_s": 1.0, "renew_s": 1.5},
}

Replicas = dict[int, dict[str, bool]]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A network of three servers in which silence of six seconds is long."""
    with lab_up(tmp_path / "lab", overrides=OVERRIDES) as made:
        yield made


def ask_catalog(lab: Lab, question: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{lab.root}/catalog/catalog.db?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def replicas(lab: Lab) -> Replicas:
    """For each file the servers that have a replica, and whether it is current."""
    found: Replicas = {}
    rows = ask_catalog(
        lab,
        "SELECT i.ino, v.server, r.version = i.version AND r.fault = '' FROM inodes i JOIN replicas r ON r.ino = i.ino "
        "JOIN volumes v ON v.volume = r.volume WHERE i.nlink > 0",
    )
    for ino, server, current in rows:
        found.setdefault(ino, {})[server] = bool(current)
    return found


def homes(lab: Lab) -> dict[int, str]:
    rows = ask_catalog(lab, "SELECT i.ino, v.server FROM inodes i JOIN volumes v ON v.volume = i.home_volume WHERE i.nlink > 0")
    return dict(rows)


def is_settled(lab: Lab) -> bool:
    """Whether nothing is left to look at, to copy or to delete."""
    (counts,) = ask_catalog(
        lab, "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM scans), (SELECT count(*) FROM volume_scans)"
    )
    return counts == (0, 0, 0)


def copies_queued(lab: Lab) -> bool:
    return bool(ask_catalog(lab, "SELECT 1 FROM tasks WHERE operation = 'copy'"))


def tasks_ever(lab: Lab) -> int:
    """How many tasks were ever queued."""
    rows = ask_catalog(lab, "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'")
    return int(rows[0][0]) if rows else 0


def objects(lab: Lab, server: str) -> set[int]:
    """Inodes; without the empty objects that mounts make in advance."""
    found = set()
    for path in VolumeLayout(lab.volume(server)).objects.glob("*/*"):
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                found.add(int(path.name))
    return found


def server(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in godwit(lab, "servers", "ls")["servers"] if item["server"] == name)
    return found


def wait_for_state(lab: Lab, name: str, state: str) -> None:
    wait_until(lambda: server(lab, name)["state"] == state, f"{name} is {state}", 60)


def refusal(lab: Lab, *arguments: str) -> str:
    """What a command that must fail says."""
    done = run_godwit(*arguments, "--root", str(lab.root))
    assert done.returncode == 1, done
    return done.stderr


def says(log: Path, text: str) -> bool:
    return text.encode() in log.read_bytes()


def write_files(lab: Lab, count: int) -> dict[str, bytes]:
    """Files with their homes on all servers, each with its copy."""
    contents = {}
    for name in lab.servers:
        for number in range(count):
            path = f"{name}-{number}"
            contents[path] = os.urandom(2000 + number)
            (lab.mount(name) / path).write_bytes(contents[path])
    wait_for_copies(lab)
    wait_until(lambda: all(sum(held.values()) == 2 for held in replicas(lab).values()), "two replicas each")
    wait_until(lambda: is_settled(lab), "nothing is left to do")
    return contents


def assert_contents(lab: Lab, contents: dict[str, bytes], servers: list[str]) -> None:
    for name in servers:
        for path, content in contents.items():
            assert (lab.mount(name) / path).read_bytes() == content, (name, path)


def is_healed(lab: Lab, lost: str) -> bool:
    """Whether each file is at its policy, and has its home, on other servers than *lost*."""
    healed = all(sum(current for name, current in held.items() if name != lost) >= 2 for held in replicas(lab).values())
    return healed and lost not in homes(lab).values()


def test_files_of_a_server_that_is_down_are_healed_and_nothing_else_moves_when_it_returns(lab: Lab) -> None:
    contents = write_files(lab, 12)
    before = replicas(lab)
    on_s2 = {ino for ino, held in before.items() if "s2" in held}
    paths = {(lab.mount("s1") / path).stat().st_ino: path for path in contents}
    lab.kill("s2")
    wait_for_state(lab, "s2", "down")
    wait_until(lambda: is_healed(lab, "s2") and not copies_queued(lab), "healed", 90)
    assert_contents(lab, contents, ["s1", "s3"])

    stale, removed, *_others = sorted(on_s2)
    contents[paths[stale]] = b"written while s2 was down"
    (lab.mount("s1") / paths[stale]).write_bytes(contents[paths[stale]])
    (lab.mount("s3") / paths[removed]).unlink()
    del contents[paths[removed]]
    wait_until(lambda: is_healed(lab, "s2"), "the change has its copies", 60)
    wait_until(lambda: removed not in objects(lab, "s1") | objects(lab, "s3"), "the removed file's objects are gone")
    settled_homes = homes(lab)
    elsewhere = {name: objects(lab, name) for name in ("s1", "s3")}

    lab.start("s2")
    wait_for_state(lab, "s2", "up")
    wait_until(lambda: is_settled(lab), "all that was on s2 has been looked at", 90)
    wait_until(lambda: removed not in objects(lab, "s2"), "the removed file's object is gone from s2")
    after = replicas(lab)
    assert after.keys() == settled_homes.keys()
    for ino, held in after.items():
        assert all(held.values()), f"inode {ino} has a stale replica: {held}"
        assert len(held) == 2, f"inode {ino}: {held}"
    assert homes(lab) == settled_homes
    for name in ("s1", "s3"):
        assert objects(lab, name) <= elsewhere[name], f"something has moved to {name}"
    wait_until(lambda: objects(lab, "s2") == {ino for ino, held in after.items() if "s2" in held}, "s2 has what the catalog says")
    assert_contents(lab, contents, lab.servers)
    assert kinds(lab, "server", "--server", "s2") == ["server-joined", "server-down", "server-back"]


def test_a_server_that_comes_and_goes_starts_no_copies(lab: Lab) -> None:
    contents = write_files(lab, 4)
    before, queued, where = replicas(lab), tasks_ever(lab), homes(lab)
    for _flap in range(3):
        lab.kill("s2", "agent")
        wait_for_state(lab, "s2", "suspect")
        lab.start("s2", "agent")
        wait_for_state(lab, "s2", "up")
        assert is_settled(lab)
    assert (replicas(lab), tasks_ever(lab), homes(lab)) == (before, queued, where)
    assert_contents(lab, contents, lab.servers)


def test_a_server_leaves_when_it_is_empty_waits_outside_and_is_taken_back(lab: Lab) -> None:
    contents = write_files(lab, 4)
    assert "godwit drain s3 first" in refusal(lab, "servers", "remove", "s3")
    assert "there are: s1, s2, s3" in refusal(lab, "servers", "remove", "s4")
    godwit(lab, "servers", "drain", "s3")
    wait_until(lambda: godwit(lab, "servers", "show", "s3")["server"]["holds"]["replicas"] == 0, "s3 is empty", 90)
    assert server(lab, "s3")["state"] == "draining"
    assert godwit(lab, "servers", "remove", "s3") == {"server": "s3", "forgotten_replicas": 0}
    assert server(lab, "s3")["state"] == "left"
    for part in ("agent", "mount"):
        log = lab.log("s3", part)
        wait_until(partial(says, log, f"the {part} of s3 was revoked"), f"the {part} says so")
    wait_until(lambda: server(lab, "s3")["roles"] == [], "s3 has no sessions")
    with pytest.raises(OSError, match="Input/output error"):
        (lab.mount("s3") / "s1-0").read_bytes()
    for part in ("agent", "mount"):
        # The first, tenth and hundredth time.
        assert lab.log("s3", part).read_bytes().count(b"refuses this process") <= 3
    assert_contents(lab, contents, ["s1", "s2"])

    added = readmit(lab, "s3")
    assert (added["server"], added["outcome"]) == ("s3", "readmitted")
    wait_for_state(lab, "s3", "up")
    wait_until(lambda: server(lab, "s3")["roles"] == ["agent", "mount"], "its processes are back")
    (lab.mount("s3") / "again").write_bytes(b"written on s3 again")
    contents["again"] = b"written on s3 again"
    assert_contents(lab, contents, lab.servers)
    assert (lab.mount("s3") / "again").stat().st_ino in objects(lab, "s3")


def test_a_server_that_does_not_come_back_leaves_once_nobody_needs_it(lab: Lab) -> None:
    contents = write_files(lab, 4)
    lab.kill("s2")
    wait_for_state(lab, "s2", "suspect")
    assert "godwit drain s2 first (or wait until it is down" in refusal(lab, "servers", "remove", "s2")
    wait_for_state(lab, "s2", "down")
    wait_until(lambda: is_healed(lab, "s2"), "healed", 90)
    held = godwit(lab, "servers", "show", "s2")["server"]["holds"]
    assert (held["homes"], held["sole"]) == (0, 0)
    assert godwit(lab, "servers", "remove", "s2")["forgotten_replicas"] == held["replicas"] > 0
    assert all("s2" not in names for names in replicas(lab).values())
    assert readmit(lab, "s2")["outcome"] == "readmitted"
    forgotten = objects(lab, "s2")
    assert len(forgotten) == held["replicas"]
    lab.start("s2")
    wait_for_state(lab, "s2", "up")
    wait_until(lambda: not objects(lab, "s2") & forgotten, "what nobody knows is set aside", 60)
    wait_until(lambda: {item["ino"] for item in godwit(lab, "volumes", "unknown", "s2")["unknown"]} == forgotten, "it is listed")
    assert_contents(lab, contents, lab.servers)
