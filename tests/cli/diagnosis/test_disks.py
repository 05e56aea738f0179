"""What is said of volumes: of made-up ones, and of real directories."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.diagnosis import disks
from cli.diagnosis.checks import Check, Verdict
from cli.diagnosis.disks import Volume, examine_disks, judge
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig
from cluster.volume.layout import VolumeLayout

GIB = 1 << 30
GOOD = Volume(
    "/srv/v",
    "ext4",
    total_bytes=100 * GIB,
    free_bytes=50 * GIB,
    inodes=1000,
    free_inodes=900,
    errors=0,
    fsync_s=0.002,
    has_fence=True,
)


def config(*volumes: Path) -> ServerConfig:
    return ServerConfig(
        cluster="test",
        server="s1",
        managers=["127.0.0.1:1"],
        manager=ManagerConfig(),
        agent=AgentConfig(listen="127.0.0.1:2", volumes=[str(volume) for volume in volumes]),
        mount=MountConfig(mountpoint="/mnt/nowhere"),
    )


def judged(**fields: Any) -> list[Check]:
    return list(judge("s1 /srv/v", dataclasses.replace(GOOD, **fields)))


def test_a_good_volume_is_one_line() -> None:
    (check,) = judged()
    assert (check.verdict, check.text) == (Verdict.OK, "ext4, 50.0 GiB free of 100.0 GiB, fsync 2.0 ms")


@pytest.mark.parametrize(
    ("fields", "verdict", "text"),
    [
        ({"whose": "a volume of s2 in cluster 'test'"}, Verdict.FAILURE, "it is a volume of s2"),
        ({"errors": 3}, Verdict.FAILURE, "its file system has counted 3 errors"),
        ({"is_read_only": True}, Verdict.FAILURE, "it is read-only"),
        ({"free_bytes": GIB}, Verdict.WARNING, "nearly full: 1.0 GiB of 100.0 GiB left"),
        ({"free_inodes": 19}, Verdict.WARNING, "nearly out of inodes: 19 of 1000 left"),
        ({"kind": "nfs4"}, Verdict.WARNING, "it is on nfs4"),
        ({"kind": "fuse.sshfs"}, Verdict.WARNING, "it is on fuse.sshfs"),
        ({"lacks": {"xattrs": "Operation not supported"}}, Verdict.FAILURE, "no user extended attributes"),
        ({"lacks": {"fallocate": "Operation not supported"}}, Verdict.NOTE, "no fallocate"),
        ({"lacks": {"holes": "Operation not supported"}}, Verdict.NOTE, "holes can be neither made nor found"),
        ({"kind": "xfs", "has_fence": False}, Verdict.NOTE, "xfs cannot stop writers"),
        ({"fsync_s": 0.2}, Verdict.NOTE, "an fsync takes 200 ms"),
        ({"fsync_s": 2.0}, Verdict.WARNING, "an fsync takes 2000 ms"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_wrong_is_told_with_what_to_do(fields: dict[str, Any], verdict: Verdict, text: str) -> None:
    wrong = [check for check in judged(**fields) if check.verdict is not Verdict.OK]
    (check,) = wrong
    assert (check.verdict, text in check.text) == (verdict, True), check
    assert check.advice
    # What is no trouble leaves the figures to be seen.
    assert len(judged(**fields)) == (1 if check.is_trouble else 2)


def test_a_real_volume_is_tried(tmp_path: Path) -> None:
    VolumeLayout(tmp_path / "vol").format("test", "s1")
    found = disks.look_at(str(tmp_path / "vol"), config(tmp_path / "vol"))
    assert (found.whose, found.is_read_only, found.lacks) == ("", False, {})
    assert found.total_bytes > found.free_bytes > 0
    assert found.fsync_s > 0
    assert list((tmp_path / "vol/staging").iterdir()) == []


def test_whose_it_is(tmp_path: Path) -> None:
    VolumeLayout(tmp_path / "vol").format("test", "s2")
    (tmp_path / "empty").mkdir()
    other, none = examine_disks(config(tmp_path / "vol", tmp_path / "empty"), 10)
    assert (other.verdict, other.text) == (Verdict.FAILURE, "it is a volume of s2 in cluster 'test'")
    assert (none.verdict, "is its disk mounted?" in none.text) == (Verdict.FAILURE, True)
    (without,) = examine_disks(config(), 10)
    assert without.verdict is Verdict.NOTE


def test_a_disk_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at = disks.look_at

    def hanging(path: str, mine: ServerConfig) -> Volume:
        if path.endswith("dead"):
            threading.Event().wait()
        return look_at(path, mine)

    monkeypatch.setattr(disks, "look_at", hanging)
    VolumeLayout(tmp_path / "vol").format("test", "s1")
    dead, *alive = examine_disks(config(tmp_path / "dead", tmp_path / "vol"), 2)
    assert (dead.verdict, dead.text, "hangs" in dead.advice) == (Verdict.FAILURE, "no answer within 2 s", True)
    assert all(str(tmp_path / "vol") in check.subject for check in alive)
    assert not any(check.verdict is Verdict.FAILURE for check in alive)
