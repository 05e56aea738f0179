"""Which directories an agent takes as its volumes."""

import os
import subprocess
from pathlib import Path

import pytest

from agent.volumes import open_volume, open_volumes
from cluster.errors import Refused, Unavailable


def test_an_empty_directory_becomes_a_volume_and_stays_the_same_one(tmp_path: Path) -> None:
    first = open_volume(tmp_path / "new" / "deep", "test", "s1")
    first.close()
    second = open_volume(tmp_path / "new" / "deep", "test", "s1")
    assert first.uuid == second.uuid
    state = second.opened_as
    assert 0 < state.free_bytes <= state.total_bytes
    assert state.device.endswith(f":{os.stat(tmp_path).st_dev}")
    second.close()


@pytest.mark.parametrize(("cluster", "server"), [("other", "s1"), ("test", "s2")])
def test_a_volume_of_others_is_refused(tmp_path: Path, cluster: str, server: str) -> None:
    open_volume(tmp_path, "test", "s1").close()
    with pytest.raises(Refused, match="is a volume of"):
        open_volume(tmp_path, cluster, server)


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"thesis\.tex"):
        open_volume(tmp_path, "test", "s1")


def test_a_volume_in_use_is_refused_and_free_again_after(tmp_path: Path) -> None:
    volumes = open_volumes([str(tmp_path)], "test", "s1")
    with pytest.raises(Refused, match="in use by another agent"):
        open_volume(tmp_path, "test", "s1")
    volumes.close()
    open_volume(tmp_path, "test", "s1").close()


def test_unfinished_copies_go_at_the_start(tmp_path: Path) -> None:
    volume = open_volume(tmp_path, "test", "s1")
    volume.close()
    (volume.layout.staging / "7.abc").write_bytes(b"half")
    open_volume(tmp_path, "test", "s1").close()
    assert list(volume.layout.staging.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_file_system_without_user_attributes_is_refused(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "ramfs", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("ramfs cannot be mounted here")
    try:
        with pytest.raises(Refused, match="no user extended attributes"):
            open_volume(tmp_path / "volume", "test", "s1")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_failure_leaves_no_volume_locked(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "file").touch()
    with pytest.raises(Refused):
        open_volumes([str(tmp_path / "good"), str(tmp_path / "bad")], "test", "s1")
    open_volume(tmp_path / "good", "test", "s1").close()


def test_numbers_are_the_managers(tmp_path: Path) -> None:
    table = open_volumes([str(tmp_path / "a"), str(tmp_path / "b")], "test", "s1")
    with pytest.raises(Unavailable):
        table.require(5)
    with pytest.raises(Refused):
        table.number([5])
    table.number([5, 9])
    assert table.require(9).layout.root == tmp_path / "b"
    with pytest.raises(Refused):
        table.require(6)
    table.close()
