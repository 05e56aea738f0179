"""The catalog's database is lost, or is brought back from a backup: no file goes, and nobody works with a wrong one."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.launch import NotReady
from tests.support.conditions import godwit, wait_for_copies, wait_until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab.create(tmp_path / "lab", overrides={"agent": {"trash_keep_s": 0.0}})
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def objects(lab: Lab) -> set[tuple[str, str]]:
    """All objects of all servers, by server and inode, but for the empty ones that mounts make in advance and remove."""
    return {
        (server, path.name)
        for server in lab.servers
        for path in (lab.volume(server) / "objects").rglob("*")
        if path.is_file() and path.stat().st_size
    }


def test_no_catalog_is_taken_for_the_lost_one_and_a_backup_brings_the_files_back(lab: Lab, tmp_path: Path) -> None:
    mount = lab.mount("s1")
    (mount / "kept").write_text("as it was")
    (mount / "later").write_text("first")
    wait_for_copies(lab)
    godwit(lab, "db", "backup", str(tmp_path / "backup"))
    (mount / "later").write_text("written after the backup")
    (mount / "after").write_text("made after the backup")
    number = os.stat(mount / "after").st_ino
    wait_for_copies(lab)
    term = godwit(lab, "status")["term"]
    wait_until(lambda: all((lab.root / server / "state").is_dir() for server in lab.servers), "all servers remember", 30)
    before = objects(lab)
    lab.down()

    shutil.rmtree(lab.root / "catalog")
    (lab.root / "catalog").mkdir()
    with pytest.raises(NotReady, match=r"holds no catalog.*godwit db restore"):
        lab.up()
    assert not (lab.root / "catalog/catalog.db").exists()
    shutil.copy(tmp_path / "backup", lab.root / "catalog/catalog.db")
    with pytest.raises(NotReady, match=r"older than what s1 has seen.*godwit db accept-rollback"):
        lab.up()
    assert objects(lab) == before
    (lab.root / "catalog/catalog.db").unlink()

    godwit(lab, "db", "restore", "--yes", str(tmp_path / "backup"))
    lab.up()
    shown = [{path.name: path.read_text() for path in lab.mount(server).iterdir() if path.is_file()} for server in lab.servers]
    assert shown == [{"kept": "as it was", "later": "written after the backup"}] * 3
    assert godwit(lab, "status")["term"] > term
    (lab.mount("s2") / "new").write_text("new")
    assert os.stat(lab.mount("s2") / "new").st_ino > number + 1000

    def is_set_aside() -> bool:
        return any(path.name.startswith(f"{number}.") for path in (lab.volume("s1") / "unknown").glob("*"))

    wait_until(is_set_aside, "what the catalog does not know is kept", 60)
    wait_for_copies(lab)
    kept = [path for server in lab.servers for path in (lab.volume(server) / "unknown").glob(f"{number}.*")]
    assert {path.read_text() for path in kept} == {"made after the backup"}
