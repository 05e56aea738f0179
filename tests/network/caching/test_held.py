"""Held directories on real processes: what a mount has changed by itself is seen by all, whoever dies before it was sent.

The access time is three seconds, so that a server that is cut off loses its leases within a test.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.messages.admin import NamesPolicy
from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, wait_until

ACCESS_S = 3.0
OVERRIDES = {
    "mount": {"request_timeout_s": 6.0, "commit_s": 1.0, "renew_s": 0.7},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 6.0},
}
FILES = 300
SOON_S = 20.0
RECORDS = "godwit_own_changes_total"
ROUNDS = 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The manager is on s1; s3 is the one that changes things by itself."""
    lab = Lab.create(tmp_path_factory.mktemp("held") / "lab", overrides=OVERRIDES)
    try:
        lab.up(names=NamesPolicy.HELD)
        yield lab
    finally:
        lab.down(purge=True)


@pytest.fixture
def place(lab: Lab) -> Path:
    """A new directory on s3, as s3 sees it."""
    made = fresh(lab.mount("s3"))
    time.sleep(1.0)  # nobody else has touched it just now
    return made


def seen_from(lab: Lab, server: str, path: Path) -> Path:
    return lab.mount(server) / path.relative_to(lab.mount("s3"))


def recorded(lab: Lab) -> float:
    """How many changes s3 has made by itself."""
    shown = godwit(lab, "servers", "show", "s3")
    return float(shown["server"]["metrics"]["mount"].get(RECORDS, 0.0))


def lost_in_status(lab: Lab) -> bool | None:
    """Whether it is counted, and a problem of s3."""
    status = godwit(lab, "status")
    (problems,) = [server["problems"] for server in status["servers"] if server["server"] == "s3"]
    assert status["names"]["policy"] == "held"
    return (status["names"]["lost"] > 0 and any("were lost" in problem for problem in problems)) or None


def make(place: Path, count: int = FILES) -> dict[str, bytes]:
    """Files in a tree, with what is in them."""
    made = {}
    for number in range(count):
        directory = place / f"d{number % 7}"
        if number < 7:
            directory.mkdir()
        (directory / f"f{number}").write_bytes(b"content %d" % number)
        made[f"d{number % 7}/f{number}"] = b"content %d" % number
    return made


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_others_see_at_once_what_was_changed(lab: Lab, place: Path) -> None:
    before = recorded(lab)
    made = make(place)
    other = seen_from(lab, "s2", place)
    assert tree(other) == made
    wait_until(lambda: recorded(lab) >= before + FILES or None, "s3 has made the files by itself", SOON_S)


def test_every_change_is_seen_by_the_next_look(lab: Lab, place: Path) -> None:
    """What was done in a directory before it was called back, and after; the other one looks between any two changes."""
    other = seen_from(lab, "s1", place)
    for turn in range(ROUNDS):
        one, two = place / f"{turn}.one", place / f"{turn}.two"
        for _ in range(2):
            one.write_bytes(b"1")
            os.rename(one, two)
            os.link(two, one)
            os.chmod(two, 0o640)
            assert sorted(os.listdir(other)) == sorted(os.listdir(place))
            assert (other / two.name).stat() == (other / one.name).stat()
            assert (other / two.name).stat().st_mode & 0o777 == 0o640
            assert (other / two.name).stat().st_nlink == 2
            one.unlink()
            two.unlink()
            (place / "sub").mkdir()
            (place / "sub" / "x").symlink_to("y")
            assert os.readlink(other / "sub" / "x") == "y"
            (place / "sub" / "x").unlink()
            (place / "sub").rmdir()
        assert os.listdir(other) == []
        time.sleep(0.6)


@pytest.mark.parametrize("parts", [["mount"], ["mount", "agent"]], ids=lambda parts: "+".join(parts))
def test_a_killed_mount_loses_nothing(lab: Lab, place: Path, parts: list[str]) -> None:
    made = make(place)
    for part in parts:
        lab.kill("s3", part)
    try:
        # While the mount is away: its agent, or the next one, sends what it had not.
        if parts == ["mount"]:
            assert wait_until(lambda: tree(seen_from(lab, "s2", place)) or None, "s2 sees the files", SOON_S) == made
    finally:
        for part in parts:
            lab.start("s3", part)
    assert tree(seen_from(lab, "s2", place)) == made
    assert tree(place) == made


def test_a_killed_manager_loses_nothing(lab: Lab, place: Path) -> None:
    made = make(place)
    server = str(godwit(lab, "status")["manager"])
    lab.kill(server, "manager")
    try:
        more = {f"after{number}": b"x" for number in range(20)}
        for name, content in more.items():
            (place / name).write_bytes(content)
        assert tree(seen_from(lab, "s2", place)) == made | more
    finally:
        lab.start(server, "manager")
    assert tree(place) == made | more


def test_cut_off_past_its_lease_it_conflicts_with_nobody(lab: Lab, place: Path) -> None:
    """What was made before others were let in stays, under another name where its own was taken."""
    if godwit(lab, "status")["manager"] == "s3":
        lab.kill("s3", "manager")
        wait_until(lambda: godwit(lab, "status")["manager"] != "s3" or None, "another manager", SOON_S)
        lab.start("s3", "manager")
    make(place, 20)
    other = seen_from(lab, "s2", place)
    lab.cut("s3")
    try:
        for number in range(20):
            (place / f"mine{number}").write_bytes(b"mine")
        (place / "both").write_bytes(b"from s3")
        time.sleep(ACCESS_S + 1.0)

        def made_there() -> bool:
            (other / "both").write_bytes(b"from s2")
            return True

        wait_until(made_there, "the lease of s3 is over", SOON_S)
        assert not (other / "mine0").exists()
    finally:
        lab.mend("s3")

    def names() -> list[str] | None:
        found = sorted(os.listdir(other))
        return found if "mine19" in found else None

    found = wait_until(names, "s3 has sent what it had recorded", SOON_S)
    assert {f"mine{number}" for number in range(20)} <= set(found)
    (kept,) = [name for name in found if name.startswith("both.conflict-s3-")]
    assert ((other / "both").read_bytes(), (other / kept).read_bytes()) == (b"from s2", b"from s3")
    assert all((other / f"mine{number}").read_bytes() == b"mine" for number in range(20))
    wait_until(lambda: lost_in_status(lab), "status says that something was lost", SOON_S)


def test_an_orderly_stop_sends_everything(lab: Lab, place: Path) -> None:
    made = make(place)
    lab.kill("s3", "mount", signal.SIGTERM)
    wait_until(lambda: not lab.is_running("s3", "mount") or None, "the mount has ended", SOON_S)
    try:
        assert tree(seen_from(lab, "s2", place)) == made
    finally:
        lab.start("s3", "mount")


def test_two_mounts_at_work_in_one_directory(lab: Lab, place: Path) -> None:
    other = seen_from(lab, "s2", place)

    def work(place: Path, name: str) -> None:
        for number in range(FILES):
            (place / f"{name}{number}").write_bytes(b"x")
            os.rename(place / f"{name}{number}", place / f"{name}.{number}")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, place, "here"), pool.submit(work, other, "there")]:
            done.result()
    assert len(os.listdir(place)) == len(os.listdir(other)) == 2 * FILES


def test_a_policy_ends_it(lab: Lab, place: Path) -> None:
    make(place, 20)
    godwit(lab, "policy", "set", str(place), "--names", "through")
    wait_until(lambda: recorded(lab) or None, "s3 tells its counts", SOON_S)
    time.sleep(1.5)
    before = recorded(lab)
    make(place / "d0", 30)
    time.sleep(1.5)
    assert recorded(lab) == before
