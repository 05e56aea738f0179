"""A fourth server joins a running network and the first is drained: two commands, and nobody who works notices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from lab.state import PARTS
from tests.conftest import UNEXPECTED
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until
from tests.support.load import Load
from tests.support.runner import godwit_process as run_godwit

TREE = 300
BEFORE = 20  # operations of each worker


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.create(tmp_path / "lab")
    try:
        made.up()
        yield made
        made = Lab.load(made.root)
        for log in (made.log(server, part) for server in made.servers for part in PARTS):
            content = log.read_bytes()
            assert not any(mark in content for mark in UNEXPECTED), f"{log}:\n{content.decode(errors='replace')[-4000:]}"
    finally:
        Lab.load(made.root).down(purge=True)


def objects_on(lab: Lab, server: str) -> list[Path]:
    return [path for path in VolumeLayout(lab.volume(server)).objects.rglob("*") if path.is_file()]


def migration(lab: Lab) -> dict[str, Any]:
    row: dict[str, Any] = godwit(lab, "migrations", "show", "1")["migration"]
    return row


def test_a_fourth_server_joins_and_the_first_is_drained_by_two_commands(lab: Lab) -> None:
    tree = lab.mount("s1") / "tree"
    tree.mkdir()
    contents = {f"file{number}": b"%d" % number * (1 + 97 * number) for number in range(TREE)}
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    wait_for_copies(lab)
    load = Load([lab.mount(server) for server in ("s1", "s2", "s3")], "load")
    try:
        wait_until(lambda: load.has_done(BEFORE), "the load runs", 30)
        added = run_godwit("lab", "add", "--root", str(lab.root))
        assert added.returncode == 0, added.stderr
        drained = run_godwit("drain", "s1", "--root", str(lab.root))
        assert drained.returncode == 0, drained.stderr
        wait_until(lambda: migration(lab)["files"]["done"] >= TREE, "what nobody writes has moved", 120)
        before = load.progress()
        wait_until(lambda: load.has_done(BEFORE, before), "the load goes on", 30)
    finally:
        load.stop()
    load.check()
    wait_until(lambda: migration(lab)["state"] == "done", "what was being written has moved, too", 60)
    grown = Lab.load(lab.root)
    assert grown.servers == ["s1", "s2", "s3", "s4"]
    for name, content in contents.items():
        assert (grown.mount("s4") / "tree" / name).read_bytes() == content
    wait_until(lambda: not objects_on(grown, "s1"), "s1 holds nothing", 60)
    wait_for_copies(grown)
    shown = wait_for_replicas(grown, str(tree / "file7"), 2)
    assert "s1" not in [replica["server"] for replica in shown["replicas"]]
    servers = {server["server"]: server["state"] for server in godwit(grown, "servers", "ls")["servers"]}
    assert servers == {"s1": "draining", "s2": "up", "s3": "up", "s4": "up"}
    if godwit(grown, "manager", "show")["server"] == "s1":
        stepped = run_godwit("manager", "step-down", "--root", str(lab.root))
        assert stepped.returncode == 0, stepped.stderr
    removed = run_godwit("servers", "remove", "s1", "--root", str(lab.root))
    assert removed.returncode == 0, removed.stderr
    assert (grown.mount("s4") / "tree" / "file7").read_bytes() == contents["file7"]
