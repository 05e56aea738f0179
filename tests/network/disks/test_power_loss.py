"""A home that loses power may have lost what others have read from it: they read it again when it is back.

The disk of s2 is an image that is copied at some moment: it has what had been written to the disk then, and nothing of what was
in memory only. The power "fails" when the copy takes the place of the disk.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.support.conditions import godwit, wait_until

IMAGE_BYTES = 128 << 20
OLD, NEW = b"old" * 30_000, b"new" * 30_000
LOOKED_AT_S = 15.0  # two rounds of the mount's list of volumes, and an agent that starts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


class Disk:
    """An ext4 of its own in an image, mounted at *at*."""

    def __init__(self, folder: Path, at: Path) -> None:
        self._image = folder / "image"
        self.at = at
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _do("mkfs.ext4", "-q", self._image)
        at.mkdir(parents=True)
        self._mount()
        (at / "lost+found").rmdir()

    def sync(self) -> None:
        _do("sync", "-f", self.at)

    def keep_the_journal(self) -> None:
        """Somebody's fsync has the journal keep all times, and leaves what was overwritten where it is: in memory."""
        with (self.at / "another").open("wb") as file:
            os.fsync(file.fileno())

    def copy(self) -> None:
        """What is on the disk at this moment is what will be there after the power has failed."""
        _do("cp", "--sparse=always", self._image, self._image.with_suffix(".crashed"))

    def fail(self) -> None:
        """Nobody has it open any more."""
        _do("umount", self.at)
        self._image = self._image.with_suffix(".crashed")
        self._mount()

    def _mount(self) -> None:
        _do("mount", "-o", "loop", self._image, self.at)

    def end(self) -> None:
        subprocess.run(["umount", "-l", self.at], check=False, capture_output=True, timeout=60)


def _do(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("power")
    made = Disk(folder, folder / "lab" / "s2" / "vol1")
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.create(disk.at.parents[1])
    try:
        made.up()
        yield made
    finally:
        made.down()


def content(path: Path) -> bytes:
    """What another process reads."""
    return subprocess.run(["cat", path], check=True, capture_output=True, timeout=60).stdout


def is_committed(lab: Lab, path: Path) -> bool:
    return not godwit(lab, "where", str(path))["dirty"]


def test_all_see_the_same_when_a_home_has_lost_what_others_have_read(lab: Lab, disk: Disk) -> None:
    folder = lab.mount("s2") / "folder"
    folder.mkdir()
    godwit(lab, "policy", "set", str(folder), "--copies", "1")
    names = ["open", "closed"]
    for name in names:
        (folder / name).write_bytes(OLD)
    disk.sync()
    for name in names:
        with (folder / name).open("r+b") as file:
            file.write(NEW)
    wait_until(lambda: all(is_committed(lab, folder / name) for name in names), "all is committed")
    there = lab.mount("s3") / "folder"
    with closing(os.fdopen(os.open(there / "open", os.O_RDONLY), "rb", buffering=0)) as opened:

        def through_the_descriptor() -> bytes:
            return os.pread(opened.fileno(), len(NEW), 0)

        assert through_the_descriptor() == NEW
        assert content(there / "closed") == NEW
        disk.keep_the_journal()
        disk.copy()
        lab.kill("s2")
        disk.fail()
        lab.start("s2")
        assert [content(folder / name) for name in names] == [OLD, OLD], "lost, with the stamp of what was committed"
        wait_until(lambda: through_the_descriptor() == OLD, "s3 has read the open file again", LOOKED_AT_S)
        wait_until(lambda: content(there / "closed") == OLD, "and the closed one", LOOKED_AT_S)
        assert content(lab.mount("s1") / "folder" / "closed") == OLD
