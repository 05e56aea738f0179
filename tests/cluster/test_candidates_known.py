"""What processes learn of candidates outlives them; damaged files cost nothing else."""

from pathlib import Path

import pytest

from cluster.rpc.candidates import Candidates, known_candidates

CONFIGURED = ["10.0.0.1:7400"]
LEARNT = ["10.0.0.2:7400", "10.0.0.1:7400", "10.0.0.3:7400"]


def test_what_is_learnt_is_kept(tmp_path: Path) -> None:
    assert known_candidates(tmp_path / "state", CONFIGURED) == CONFIGURED
    mount = Candidates(tmp_path / "state", "mount")
    mount.learn(LEARNT)
    Candidates(tmp_path / "state", "agent").learn(LEARNT)
    assert known_candidates(tmp_path / "state", CONFIGURED) == [*CONFIGURED, "10.0.0.2:7400", "10.0.0.3:7400"]
    mount.learn(LEARNT[:2])
    Candidates(tmp_path / "state", "agent").learn(LEARNT[:2])
    assert known_candidates(tmp_path / "state", CONFIGURED) == [*CONFIGURED, "10.0.0.2:7400"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b'["no address"]', b'{"a": 1}', b"[" * 100_000])
def test_a_damaged_file_is_done_without(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "candidates-mount.json").write_bytes(content)
    assert known_candidates(tmp_path, CONFIGURED) == CONFIGURED


def test_a_disk_that_takes_nothing_is_no_reason_to_end(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    Candidates(tmp_path / "state", "mount").learn(LEARNT)
