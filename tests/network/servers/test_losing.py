"""A server with content that nobody else has is declared lost, the others go on, and it comes back: both contents are there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.network.servers.test_membership import OVERRIDES, wait_for_state
from tests.support.conditions import godwit, readmit, wait_for_copies, wait_for_replicas, wait_until
from tests.support.labs import lab_up


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", overrides=OVERRIDES) as made:
        yield made


def opens(path: Path) -> bool:
    try:
        return path.read_bytes() is not None
    except OSError:
        return False


def test_both_contents_are_there_when_a_lost_server_comes_back(lab: Lab) -> None:
    here, there = lab.mount("s1"), lab.mount("s3")
    for name in ("plan", "same"):
        (there / name).write_bytes(b"what everybody had")
        wait_for_replicas(lab, str(here / name), 2)
    (there / "plan").chmod(0o640)
    writing, idle = os.open(there / "plan", os.O_RDWR), os.open(there / "same", os.O_RDWR)
    lab.cut("s3")
    try:
        os.pwrite(writing, b"WHAT ONLY S3 HAS", 0)
        os.close(writing)
        os.close(idle)
        wait_for_state(lab, "s3", "down")
        assert not opens(here / "plan"), "nothing falls back by itself"
        foreseen = godwit(lab, "servers", "lost", "s3", "--dry-run")
        assert (foreseen["older"]["files"], foreseen["only"]["files"]) == (2, 0)
        godwit(lab, "servers", "lost", "s3", "--yes")
        wait_until(lambda: opens(here / "plan") and opens(here / "same"), "the files have fallen back")
        assert (here / "plan").read_bytes() == b"what everybody had"
        assert godwit(lab, "where", str(here / "plan"))["forsaken_on"] == ["s3"]
        (here / "plan").write_bytes(b"what the others wrote since")
        wait_for_replicas(lab, str(here / "plan"), 2)
    finally:
        lab.mend("s3")
    assert readmit(lab, "s3")["outcome"] == "readmitted"
    wait_for_state(lab, "s3", "up")
    (kept,) = wait_until(lambda: godwit(lab, "servers", "show", "s3")["server"]["conflicts"], "the conflict has a name")
    assert kept.startswith("/plan.conflict-s3-")
    assert godwit(lab, "servers", "show", "s3")["server"]["forsaken"] == 0
    wait_for_replicas(lab, str(here / kept[1:]), 2)
    wait_for_copies(lab)
    for server in lab.servers:
        mount = lab.mount(server)
        assert sorted(os.listdir(mount)) == ["plan", kept[1:], "same"]
        assert (mount / "plan").read_bytes() == b"what the others wrote since"
        assert (mount / "same").read_bytes() == b"what everybody had"
        assert (mount / kept[1:]).read_bytes() == b"WHAT ONLY S3 HAS" + b"ad"
        assert (mount / kept[1:]).stat().st_mode & 0o777 == 0o640
    with (there / kept[1:]).open("ab") as file:
        file.write(b", and goes on")
    assert (here / kept[1:]).read_bytes().endswith(b", and goes on")
