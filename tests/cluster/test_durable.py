"""Small files that are replaced as a whole."""

import errno
import os
import stat
from pathlib import Path

import pytest

from cluster.catalog_point import CatalogMemory
from cluster.config import load_config
from cluster.durable import SMALL_BYTES, read_file, replace_file
from cluster.errors import Refused
from cluster.rpc.candidates import known_candidates
from cluster.volume.layout import VolumeLayout
from lab.state import read_state


@pytest.mark.parametrize("synced", [True, False])
def test_a_file_is_replaced_with_the_mode_that_was_asked_for(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "file"
    old = os.umask(0o077)
    try:
        replace_file(path, b"old", mode=0o644, synced=synced)
        assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
    (tmp_path / "file.new").write_bytes(b"left by a process that was killed")
    replace_file(path, b"new", synced=synced)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_without_room_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_read_keeps_its_access_time(tmp_path: Path) -> None:
    """Mounted with `relatime`, a file that was read before it was written last would get a new one."""
    path = tmp_path / "file"
    replace_file(path, b"content")
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    assert read_file(path) == b"content"
    assert path.stat().st_atime_ns == 1
    path.read_bytes()
    assert path.stat().st_atime_ns != 1, "this file system keeps access times"
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_a_file_that_is_no_small_one_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"x" * SMALL_BYTES)
    assert len(read_file(path)) == SMALL_BYTES
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than 1 MiB") as told:
        read_file(path)
    assert told.value.errno == errno.EFBIG


def test_whoever_reads_a_small_file_says_so_of_a_large_one(tmp_path: Path) -> None:
    for name in ("catalog-agent.json", "candidates-mount.json", "lab.json", "godwit.toml", "volume.toml"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(Refused, match="larger than 1 MiB"):
        CatalogMemory(tmp_path, "agent").load()
    assert known_candidates(tmp_path, ["a:7400"]) == ["a:7400"]
    with pytest.raises(Refused, match="larger than 1 MiB"):
        load_config(tmp_path / "godwit.toml")
    for read in (read_state, lambda root: VolumeLayout(root).identity()):
        with pytest.raises(OSError, match="larger than 1 MiB"):
            read(tmp_path)


def test_a_process_whose_unit_forbids_to_give_files_away_replaces_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount's does (cli/systemd): it renews its certificate, and remembers managers and who was revoked."""

    def forbidden(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("chown", "fchown", "lchown"):
        monkeypatch.setattr(os, name, forbidden)
    path = tmp_path / "file"
    for content in (b"older", b"newer"):
        replace_file(path, content)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"newer", 0o600)
    with pytest.raises(PermissionError):
        replace_file(path, b"a group's", mode=0o640, group=0)
    assert path.read_bytes() == b"newer", "what was there stays"
    assert os.listdir(tmp_path) == ["file"]
