"""Three servers whose catalog is on PostgreSQL: the main job, and a database that goes away for a while and comes back."""

import os
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.database import PROGRAMS
from lab.lab import Lab
from lab.state import PARTS
from tests.conftest import UNEXPECTED
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until

STDLIB = Path(sysconfig.get_path("stdlib"))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.skipif(not list(PROGRAMS.glob("*/bin/postgres")), reason="no PostgreSQL: package postgresql"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.create(tmp_path_factory.mktemp("postgresql") / "lab", db="postgresql")
    try:
        made.up()
        yield made
        for log in (made.log(server, part) for server in made.servers for part in PARTS):
            content = log.read_bytes()
            assert not any(mark in content for mark in UNEXPECTED), f"{log}:\n{content.decode(errors='replace')[-4000:]}"
    finally:
        made.down(purge=True)


def object_of(lab: Lab, server: str, ino: int) -> Path:
    return Path(VolumeLayout(lab.volume(server)).object_path(ino))


class Load:
    """Creates, renames, reads, lists and removes in a directory of its own on one mount until it is told to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        folder.mkdir()
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._once(self.done)
                self.done += 1
        except BaseException as failure:
            self.failure = failure

    def _once(self, number: int) -> None:
        path = self.folder / f"{number:06}"
        with path.open("xb") as file:
            file.write(b"%d" % number)
        path.rename(path.with_suffix(".done"))
        assert path.with_suffix(".done").read_bytes() == b"%d" % number
        if number % 3 == 2:
            path.with_suffix(".done").unlink()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive()

    def expected(self) -> list[str]:
        return [f"{number:06}.done" for number in range(self.done) if number % 3 != 2]


def test_a_tree_is_the_same_on_all_servers_and_gets_its_copies(lab: Lab) -> None:
    assert godwit(lab, "status")["catalog"].startswith("postgresql+psycopg://godwit:***@")
    target = lab.mount("s1") / "json"
    subprocess.run(["cp", "-a", str(STDLIB / "json"), str(target)], check=True, timeout=120)
    for server in lab.servers:
        there = lab.mount(server) / "json"
        done = subprocess.run(["diff", "-r", str(STDLIB / "json"), str(there)], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_for_copies(lab)
    for path in target.rglob("*.py"):
        ino, content = path.stat().st_ino, path.read_bytes()
        holders = [object_of(lab, server, ino) for server in lab.servers if object_of(lab, server, ino).exists()]
        assert [held.read_bytes() for held in holders] == [content, content]


def test_other_servers_write_and_remove(lab: Lab) -> None:
    path = lab.mount("s1") / "shared"
    path.write_bytes(b"one ")
    with (lab.mount("s2") / "shared").open("ab") as file:
        file.write(b"two ")
    with (lab.mount("s3") / "shared").open("ab") as file:
        file.write(b"three")
    assert path.read_bytes() == b"one two three"
    where = wait_for_replicas(lab, str(path), 2)
    assert where["size"] == 13
    (lab.mount("s2") / "shared").unlink()
    wait_until(lambda: not any(object_of(lab, s, where["ino"]).exists() for s in lab.servers), "no volume holds it")


@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_operations_wait_for_a_database_that_comes_back(lab: Lab, fault: str) -> None:
    """It is away for longer than the office lasts. Nothing fails, nothing is lost, nothing is applied twice."""
    faults: dict[str, tuple[Callable[[str], None], Callable[[str], None]]] = {
        "kill": (lab.kill, lab.start),
        "cut": (lab.cut, lab.mend),
    }
    begin, end = faults[fault]
    before_fault = godwit(lab, "status")
    log, over = lab.log(before_fault["manager"], "manager"), f"is not the manager any more, term {before_fault['term']} is over"
    loads = [Load(lab.mount(server) / f"{fault}-{server}") for server in lab.servers]
    try:
        wait_until(lambda: all(load.done > 20 for load in loads), "the loads run")
        begin("db")
        wait_until(lambda: over in log.read_text(), "the term ends")
        end("db")
        before = [load.done for load in loads]
        wait_until(lambda: all(load.done > n + 20 for load, n in zip(loads, before, strict=True)), "the loads go on", 30)
    finally:
        for load in loads:
            load.stop()
    assert [load.failure for load in loads] == [None, None, None]
    assert godwit(lab, "status")["term"] > before_fault["term"]
    for load in loads:
        for server in lab.servers:
            assert sorted(os.listdir(lab.mount(server) / load.folder.name)) == load.expected()
    wait_for_copies(lab)
