"""Three mounts, six processes, 50,000 operations on a few shared names: some order explains everything that was seen.

GODWIT_COHERENCE_SEED=7 GODWIT_COHERENCE_CALLS=1000000 ./dev test tests/coherence/test_coherence.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.coherence.load import Load, chosen_seed
from tests.coherence.reporting import judge

CALLS = int(os.environ.get("GODWIT_COHERENCE_CALLS", "50000"))
CALLS_ON_TMPFS = 30_000
PER_MOUNT = 2
TIMEOUT_S = 240.0 * max(1.0, CALLS / 50_000)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A folder in a file system that does not use an inode's number again, as ext4 does."""
    folder = Path("/dev/shm") / f"godwit-coherence-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for directory, _folders, files in os.walk(folder, topdown=False):
            for name in files:
                os.unlink(f"{directory}/{name}")
            os.rmdir(directory)


def test_the_machine_s_own_file_system_passes(tmpfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checker raises no false alarm: three times the same folder is coherent."""
    seed = chosen_seed(4)
    mounts = dict.fromkeys(("s1", "s2", "s3"), tmpfs)
    load = Load(mounts, "shared", tmp_path / "logs", seed=seed, calls_each=CALLS_ON_TMPFS // 6)
    try:
        history = load.finish(60)
    finally:
        load.kill()
    report = judge(history, load.count, seed, tmp_path / "logs", capsys)
    assert report.operations >= CALLS_ON_TMPFS


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_three_mounts_are_one_file_system(
    network: Lab, orderly_logs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = chosen_seed(1)
    mounts = {server: network.mount(server) for server in network.servers}
    load = Load(
        mounts, f"coherence-{seed}", tmp_path / "logs", seed=seed, per_mount=PER_MOUNT, calls_each=-(-CALLS // (3 * PER_MOUNT))
    )
    try:
        history = load.finish(TIMEOUT_S)
    finally:
        load.kill()
    report = judge(history, load.count, seed, tmp_path / "logs", capsys)
    assert report.operations >= CALLS
    assert report.unknown == 0
