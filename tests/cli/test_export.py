"""`godwit export`: what it prints and how it ends."""

import json
import os
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from tests.cluster.test_tree import make
from tests.support.runner import godwit


@pytest.fixture
def layout(tmp_path: Path) -> VolumeLayout:
    made = VolumeLayout(tmp_path / "volume")
    made.format("cluster", "s1")
    make(made, 7, "/a/file", b"x" * 2048)
    make(made, 8, "", b"y")
    return made


def test_people_are_told_what_there_is(layout: VolumeLayout, tmp_path: Path) -> None:
    done = godwit("export", str(layout.root), str(tmp_path / "tree"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["files"] == "2, 2.0 KiB"
    assert lines["made"] == "1"
    assert f"1, in {tmp_path / 'tree/lost+found'}" in done.stdout


def test_programs_are_told_numbers(layout: VolumeLayout, tmp_path: Path) -> None:
    wanted = {"made": 1, "nameless": 1, "replaced": 0, "there": 0, "failed": 0, "bytes": 2049}
    done = godwit("export", str(layout.root), str(tmp_path / "tree"), "--copy", "--json")
    assert json.loads(done.stdout) == wanted
    again = godwit("export", str(layout.root), str(tmp_path / "tree"), "--copy", "--json")
    assert json.loads(again.stdout) == {**wanted, "made": 0, "nameless": 0, "there": 2}


def test_what_could_not_be_exported_is_named_and_ends_with_1(layout: VolumeLayout, tmp_path: Path) -> None:
    os.mkfifo(layout.objects / "0" / "9")
    done = godwit("export", str(layout.root), str(tmp_path / "tree"))
    assert done.returncode == 1
    assert str(layout.objects / "0" / "9") in done.stderr
    assert "1 of 3 objects could not be exported" in done.stderr
    assert (tmp_path / "tree/a/file").read_bytes() == b"x" * 2048


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    done = godwit("export", str(tmp_path), str(tmp_path / "tree"))
    assert (done.returncode, done.stderr) == (1, f"godwit: {tmp_path} is not a volume: it has no volume.toml\n")
    assert not (tmp_path / "tree").exists()
