"""A server joins a running lab, stays in it, and a failed attempt leaves the lab as it was."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cli.new_server import check_paths
from cluster.errors import GodwitError, Refused
from cluster.mountpoint import make_mountpoint
from cluster.volume.layout import VolumeLayout
from lab import network
from lab.lab import Lab
from lab.launch import NotReady
from lab.mounts import is_fuse_mount
from lab.registry import tag_of
from lab.state import new_state, read_state, write_state
from tests.lab.test_lab import connect, remains
from tests.support.runner import godwit_process as godwit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.create(tmp_path / "lab", servers=1, volumes=2)
    try:
        made.up()
        yield made
    finally:
        made.down(purge=True)
    assert remains(made.root) == []
    assert not made.root.exists()


def test_a_server_joins_and_stays(lab: Lab) -> None:
    (lab.mount("s1") / "before").write_bytes(b"before")
    assert lab.add_server() == "s2"
    assert lab.servers == ["s1", "s2"]
    assert (lab.mount("s2") / "before").read_bytes() == b"before"
    assert lab.config("s1").managers == lab.config("s2").managers
    assert connect(lab, "s1", "s2")
    done = godwit("lab", "add", "s3", "--json", "--root", str(lab.root))
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["server"]
    lab = Lab.load(lab.root)
    assert (shown["server"], shown["mount"]) == ("s3", str(lab.mount("s3")))
    assert shown["volumes"] == [str(lab.volume("s3", 1)), str(lab.volume("s3", 2))]
    (lab.mount("s3") / "written").write_bytes(b"by s3")
    tree = lab.root.parent / "tree"
    refused = godwit("export", str(lab.volume("s3")), str(tree), "--copy")
    assert "an agent works with" in refused.stderr
    lab.down()
    for number in (1, 2):
        done = godwit("export", str(lab.volume("s3", number)), str(tree))
        assert done.returncode == 0, done.stderr
    assert (tree / "written").read_bytes() == b"by s3"
    lab.up()
    assert lab.is_running("s3")
    assert [(lab.mount(server) / "written").read_bytes() for server in lab.servers] == [b"by s3"] * 3
    # Its mount is dead, and whoever only looks at it gets an error.
    lab.kill("s3")
    assert lab.add_server() == "s4"
    assert (lab.mount("s4") / "before").read_bytes() == b"before"
    check_paths([lab.volume("s3")], lab.mount("s3"))
    make_mountpoint(lab.mount("s3"))


def test_only_the_next_name_is_taken(lab: Lab) -> None:
    done = godwit("lab", "add", "s7", "--root", str(lab.root))
    assert (done.returncode, done.stderr) == (1, "godwit: the next server of this lab is s2, not s7\n")
    assert Lab.load(lab.root).servers == ["s1"]


def test_a_server_that_does_not_come_up_is_taken_away_again(lab: Lab) -> None:
    before = read_state(lab.root)
    broken = {"agent": {"listen": "192.0.2.1:7401"}}
    write_state(lab.root, msgspec.structs.replace(before, overrides=broken))
    with pytest.raises(NotReady, match="s2 agent"):
        lab.add_server()
    assert lab.servers == ["s1"]
    assert read_state(lab.root).servers == 1
    assert network.namespaces(tag_of(lab.root)) == [f"godwit-{lab.tag}-{host}" for host in ("s1", "switch")]
    assert not is_fuse_mount(lab.root / "s2" / "mnt")
    ours = ["pgrep", "--full", f"--config {lab.root}/s2/"]
    assert subprocess.run(ours, capture_output=True, check=False).stdout == b""
    kept = VolumeLayout(lab.root / "s2" / "vol1").identity().uuid
    write_state(lab.root, msgspec.structs.replace(read_state(lab.root), overrides={}))
    assert lab.add_server() == "s2"
    assert VolumeLayout(lab.volume("s2")).identity().uuid == kept  # its agent notes the catalog there meanwhile


def test_a_foreign_volume_is_never_taken_over(lab: Lab) -> None:
    VolumeLayout(lab.root / "s2" / "vol1").format("another-cluster", "s2")
    with pytest.raises(Refused, match="is a volume of s2 in cluster 'another-cluster'"):
        lab.add_server()
    assert Lab.load(lab.root).servers == ["s1"]


def test_a_lab_that_is_down_does_not_grow(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    with pytest.raises(GodwitError, match="is down"):
        lab.add_server()
    assert not (lab.root / "s2").exists()


def test_a_lab_has_an_end(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    write_state(lab.root, new_state(64, 1, None, {}))
    with pytest.raises(GodwitError, match="at most 64"):
        Lab.load(lab.root).add_server()
