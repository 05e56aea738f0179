"""Which process counts as one that was killed and cannot end."""

import subprocess
from pathlib import Path

from cluster.process_table import has_dead_leader
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
