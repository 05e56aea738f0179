"""Three servers: what one writes the others read, copies appear, and a server may die."""

import filecmp
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.volume.layout import VolumeLayout, read_record
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until

STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = ["json", "email", "asyncio", "logging", "unittest"]


def object_of(lab: Lab, server: str, ino: int) -> Path:
    return Path(VolumeLayout(lab.volume(server)).object_path(ino))


def holders(lab: Lab, ino: int) -> list[str]:
    """The servers whose volumes hold an object of the inode."""
    return [server for server in lab.servers if object_of(lab, server, ino).exists()]


def assert_same_tree(left: Path, right: Path) -> None:
    done = subprocess.run(["diff", "-r", str(left), str(right)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_tree_written_on_one_server_is_the_same_on_all_and_gets_its_copies(network: Lab) -> None:
    target = network.mount("s1") / "tree"
    target.mkdir()
    for package in PACKAGES:
        subprocess.run(["cp", "-a", str(STDLIB / package), str(target)], check=True, timeout=300)
    for server in network.servers:
        for package in PACKAGES:
            assert_same_tree(STDLIB / package, network.mount(server) / "tree" / package)
    wait_for_copies(network)
    files = [path for path in target.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50
    for path in files:
        ino = path.stat().st_ino
        content = path.read_bytes()
        servers = holders(network, ino)
        assert len(servers) == 2, path
        assert "s1" in servers
        for server in servers:
            assert object_of(network, server, ino).read_bytes() == content


def test_where_shows_two_current_replicas_with_one_checksum(network: Lab) -> None:
    path = network.mount("s2") / "watched"
    path.write_bytes(b"watched" * 1000)
    where = wait_for_replicas(network, str(path), 2)
    home = [replica for replica in where["replicas"] if replica["home"]]
    assert [replica["server"] for replica in home] == ["s2"]
    assert {replica["checksum"] for replica in where["replicas"]} == {blake3(b"watched" * 1000).hexdigest()}
    assert where["policy"]["copies"] == 2


def test_a_copy_carries_a_record_that_a_person_can_read(network: Lab) -> None:
    folder = network.mount("s1") / "records"
    folder.mkdir()
    path = folder / "näme\n1"
    path.write_bytes(b"content")
    wait_for_replicas(network, str(path), 2)
    ino = path.stat().st_ino
    (copy,) = [server for server in holders(network, ino) if server != "s1"]
    with object_of(network, copy, ino).open("rb") as file:
        record = read_record(file.fileno())
    assert record is not None
    assert (record.ino, os.fsencode(record.path)) == (ino, b"/records/n\xc3\xa4me\n1")
    assert record.checksum == blake3(b"content").hexdigest()


def test_a_removed_file_leaves_all_volumes(network: Lab) -> None:
    path = network.mount("s1") / "short-lived"
    path.write_bytes(b"x" * 5000)
    wait_for_replicas(network, str(path), 2)
    ino = path.stat().st_ino
    (network.mount("s3") / "short-lived").unlink()
    assert not path.exists()
    wait_until(lambda: holders(network, ino) == [], "no volume holds the object")


def test_policy_is_inherited_and_brings_more_copies(network: Lab) -> None:
    folder = network.mount("s1") / "precious"
    (folder / "deep").mkdir(parents=True)
    path = folder / "deep" / "file"
    path.write_bytes(b"precious")
    wait_for_replicas(network, str(path), 2)
    godwit(network, "policy", "set", str(folder), "--copies", "3")
    assert godwit(network, "policy", "show", str(path))["policy"]["copies"] == 3
    wait_for_replicas(network, str(path), 3)
    assert holders(network, path.stat().st_ino) == network.servers


def test_fsync_waits_for_the_copies_that_the_policy_asks_for(network: Lab) -> None:
    folder = network.mount("s1") / "synchronous"
    folder.mkdir()
    godwit(network, "policy", "set", str(folder), "--copies", "2", "--sync-copies", "2")
    path = folder / "ledger"
    with path.open("wb") as file:
        file.write(b"entry")
        file.flush()
        os.fsync(file.fileno())
        copies = [s for s in holders(network, path.stat().st_ino) if s != "s1"]
        assert len(copies) == 1
        assert object_of(network, copies[0], path.stat().st_ino).read_bytes() == b"entry"


@pytest.mark.parametrize("server", ["s1", "s2", "s3"])
def test_every_server_writes_a_file_whose_home_is_another(network: Lab, server: str) -> None:
    path = network.mount("s1") / f"written-from-{server}"
    path.write_bytes(b"first " * 1000)
    other = network.mount(server) / path.name
    with other.open("r+b") as file:
        file.seek(100_000)
        file.write(b"beyond the end")
    with other.open("ab") as file:
        file.write(b" appended")
    expected = b"first " * 1000 + bytes(94_000) + b"beyond the end appended"
    for reader in network.servers:
        assert (network.mount(reader) / path.name).read_bytes() == expected
    os.truncate(other, 5)
    for reader in network.servers:
        assert (network.mount(reader) / path.name).read_bytes() == b"first"
    wait_for_replicas(network, str(path), 2)


def test_a_second_copy_of_a_tree_compares_equal(network: Lab, tmp_path: Path) -> None:
    """A round trip through all three servers loses neither content nor attributes."""
    first = network.mount("s2") / "round"
    subprocess.run(["cp", "-a", str(STDLIB / "json"), str(first)], check=True, timeout=120)
    shutil.copytree(network.mount("s3") / "round", tmp_path / "back", symlinks=True)
    comparison = filecmp.dircmp(STDLIB / "json", tmp_path / "back")
    assert (comparison.left_only, comparison.right_only, comparison.diff_files) == ([], [], [])
    for original in (STDLIB / "json").iterdir():
        copy = tmp_path / "back" / original.name
        assert (copy.stat().st_mode, copy.stat().st_mtime_ns) == (original.stat().st_mode, original.stat().st_mtime_ns)
