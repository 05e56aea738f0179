"""Three mounts, six processes, 20,000 operations on a few shared names: some order explains everything that was seen.

Files are passed through; with 12,000 operations more they are not.

GODWIT_COHERENCE_SEED=7 GODWIT_COHERENCE_CALLS=1000000 ./dev test tests/coherence/test_coherence.py
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.coherence.load import Load, chosen_seed
from tests.coherence.reporting import judge
from tests.support.modes import FALLBACK, PASSTHROUGH, both_modes

CALLS = {PASSTHROUGH: 20_000, FALLBACK: 12_000}
CALLS_ON_TMPFS = 30_000
PER_MOUNT = 2
CALLS_WANTED = int(os.environ.get("GODWIT_COHERENCE_CALLS", "0"))  # in each mode
TIMEOUT_S = 240.0 * max(1.0, CALLS_WANTED / 50_000)


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


def test_the_machine_s_own_file_system_passes(tmpfs: Path, tmp_path: Path, tell: Callable[[str], None]) -> None:
    """The checker raises no false alarm: three times the same folder is coherent."""
    seed = chosen_seed(4)
    mounts = dict.fromkeys(("s1", "s2", "s3"), tmpfs)
    load = Load(mounts, "shared", tmp_path / "logs", seed=seed, calls_each=CALLS_ON_TMPFS // 6)
    try:
        history = load.finish(60)
    finally:
        load.kill()
    report = judge(history, load.count, seed, tmp_path / "logs", tell)
    assert report.operations >= CALLS_ON_TMPFS


@pytest.mark.timeout(TIMEOUT_S + 60)
@both_modes
def test_three_mounts_are_one_file_system(
    network: Lab, orderly_logs: None, way_of_files: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    seed, calls = chosen_seed(1), CALLS_WANTED or CALLS[way_of_files]
    mounts = {server: network.mount(server) for server in network.servers}
    load = Load(
        mounts, f"coherence-{seed}", tmp_path / "logs", seed=seed, per_mount=PER_MOUNT, calls_each=-(-calls // (3 * PER_MOUNT))
    )
    try:
        history = load.finish(TIMEOUT_S)
    finally:
        load.kill()
    report = judge(history, load.count, seed, tmp_path / "logs", tell, early=way_of_files == FALLBACK)
    assert report.operations >= calls
    assert report.unknown == 0
