"""Opening a file only if the kernel has its path in its caches."""

import os
from pathlib import Path

import pytest

from cluster.volume import cached_open
from cluster.volume.cached_open import open_cached


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_PATH], ids=["its content", "only the file"])
def test_what_was_just_opened_is_opened_from_the_caches(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"content")
    descriptor = open_cached(str(path), flags)
    assert descriptor is not None
    try:
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == b"content"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_what_may_need_the_disk_is_left_to_a_thread(tmp_path: Path) -> None:
    assert open_cached(str(tmp_path / "new"), os.O_RDWR | os.O_CREAT) is None
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_known_to_be_missing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(FileNotFoundError):
        path.stat()
    with pytest.raises(FileNotFoundError, match="missing"):
        open_cached(str(path), os.O_RDONLY)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert open_cached(str(tmp_path / "link"), os.O_RDONLY) is None


def test_a_kernel_without_it_leaves_all_to_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_open, "_OPENAT2", 4095)
    assert open_cached(str(tmp_path), os.O_RDONLY) is None
