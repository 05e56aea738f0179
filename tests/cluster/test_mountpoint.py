"""What programs can do to the directory beneath a mount, on a file system with the immutable flag and on one without."""

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.mounted import COVER
from cluster.mountpoint import shield
from cluster.volume.fence import lift_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="flags and mounts need root")


@pytest.fixture
def flagless(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that has no flags."""
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", place], check=True, timeout=60)
    try:
        (place / "mnt").mkdir()
        yield place / "mnt"
    finally:
        while any(f" {place}" in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            subprocess.run(["umount", "--recursive", place], check=True, timeout=60)


def make_all_kinds(folder: Path) -> set[int | None]:
    """The errors of everything that makes a name in a directory."""

    def code(act: object, *args: object) -> int | None:
        try:
            act(*args)  # type: ignore[operator]
        except OSError as error:
            return error.errno
        return None

    outside = folder.parent / "outside"
    outside.write_bytes(b"")
    return {
        code((folder / "file").write_bytes, b"lost"),
        code(os.mkdir, folder / "directory"),
        code(os.symlink, "target", folder / "symlink"),
        code(os.mkfifo, folder / "pipe"),
        code(os.open, folder, os.O_TMPFILE | os.O_RDWR),
        code(os.rename, outside, folder / "renamed") if os.stat(folder).st_dev == os.stat(outside).st_dev else errno.EPERM,
    }


def test_nothing_can_be_made_beneath_a_mount(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    for _ in range(2):
        shield(str(folder))
    assert make_all_kinds(folder) == {errno.EPERM}
    assert os.listdir(folder) == []
    lift_below(str(folder))
    (folder / "file").write_bytes(b"it is an ordinary directory again")


def test_where_there_are_no_flags_a_read_only_file_system_covers_it(flagless: Path) -> None:
    for _ in range(2):
        shield(str(flagless))
    assert make_all_kinds(flagless) - {errno.EPERM} == {errno.EROFS}
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {flagless} " in line]
    assert len(lines) == 1
    assert COVER in lines[0]


def test_what_lies_beneath_is_said_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mnt"
    (folder / "inner").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        shield(str(folder))
    try:
        assert "is not empty" in caplog.text
        with pytest.raises(OSError, match="Read-only"):
            (folder / "inner2").mkdir()
    finally:
        subprocess.run(["umount", folder], check=True, timeout=60)
    assert os.listdir(folder) == ["inner"]


def test_what_is_mounted_there_is_left_alone(flagless: Path) -> None:
    shield(str(flagless.parent))
    (flagless.parent / "file").write_bytes(b"it can be written as before")
