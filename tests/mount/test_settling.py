"""What is done to a file right after its last close stays done, although its content is committed only afterwards."""

import os
import struct
from pathlib import Path

from lab.lab import Lab
from tests.mount.conftest import Views
from tests.support.conditions import wait_for_replicas
from tests.support.trees import differences, snapshot

FILES = 60
CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
SET_NS = 1_111_111_111_222_333_444


def fill(directory: Path) -> list[Path]:
    """Makes files and changes each one's attributes as soon as it is closed, as tar, rsync and installers do."""
    files = [directory / f"{number}" for number in range(FILES)]
    for number, path in enumerate(files):
        path.write_bytes(b"x" * number)
        os.chown(path, 4001, 5000)
        path.chmod(0o6755)
        os.setxattr(path, "security.capability", CAPABILITY)
        os.setxattr(path, "user.kind", b"program")
        os.utime(path, ns=(SET_NS, SET_NS))
    return files


def test_attributes_that_are_set_right_after_a_close_stay(network: Lab, views: Views, tmp_path: Path) -> None:
    files = fill(views.s1)
    fill(tmp_path)
    expected = snapshot(os.fsencode(tmp_path))
    del expected[b"."]  # pytest's own directory
    for path in files[:: FILES // 6]:
        wait_for_replicas(network, str(path), 2)
    for view in views.all:
        seen = snapshot(os.fsencode(view))
        found = differences({name: seen[name] for name in expected}, expected)
        assert not found, "\n".join(found)


def test_removal_right_after_a_close(views: Views) -> None:
    for number in range(FILES):
        path = views.s2 / f"{number}"
        path.write_bytes(b"x" * number)
        path.rename(views.s2 / "other")
        (views.s1 / "other").unlink()
    assert [os.listdir(view) for view in views.all] == [[], [], []]
