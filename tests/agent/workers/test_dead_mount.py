"""Which process counts as one that was killed and cannot end."""

import os
import subprocess
from pathlib import Path

from agent.workers.dead_mount import has_dead_leader
from cluster.runtime import holder_of, only_process
from tests.support.conditions import wait_until
from tests.support.leaderless import leaderless


def test_a_process_of_which_other_threads_are_left_cannot_end() -> None:
    with leaderless() as pid:
        wait_until(lambda: has_dead_leader(pid), "its first thread has ended", 20)


def test_one_that_runs_or_that_only_its_parent_keeps_is_none() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert not has_dead_leader(process.pid)
    process.kill()
    # Not reaped yet: a zombie without threads.
    wait_until(lambda: ") Z " in Path(f"/proc/{process.pid}/stat").read_text(), "it is a zombie", 20)
    assert not has_dead_leader(process.pid)
    process.wait()
    assert not has_dead_leader(process.pid)


def test_the_lock_of_a_mount_says_whose_it_was(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "a.lock") is None
    with only_process(tmp_path, "a.lock", "a mount"):
        own = holder_of(tmp_path / "a.lock")
    assert own == holder_of(tmp_path / "a.lock") == os.getpid()
    (tmp_path / "a.lock").write_bytes(b"\xff nobody")
    assert holder_of(tmp_path / "a.lock") is None
