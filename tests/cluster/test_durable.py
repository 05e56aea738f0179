"""Small files that are replaced as a whole."""

import errno
import os
from pathlib import Path

import pytest

from cluster.durable import read_file, replace_file


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
