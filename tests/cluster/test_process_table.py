"""Which process counts as one that was killed and cannot end, and how much processor time a process has used."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.process_table import has_dead_leader, processor_s
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


BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
THREAD = f"""
import threading
thread = threading.Thread(target=lambda: exec({BURN!r}))
thread.start()
thread.join()
input()
"""
ENDED_CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
input()
"""
LIVING_CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN + "input()"!r}])
"""


@pytest.mark.parametrize("program", [THREAD, ENDED_CHILD, LIVING_CHILD], ids=["thread", "ended child", "living child"])
def test_processor_time_has_that_of_threads_and_children(program: str) -> None:
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        wait_until(lambda: processor_s(process.pid) >= 0.3, "its thread or child has worked", 20)
    assert processor_s(process.pid) == 0.0


def test_processor_time_is_that_of_the_system_and_exact() -> None:
    before_s = time.process_time()
    found_s = processor_s(os.getpid()) - _of_ended_children_s()
    assert before_s <= found_s <= time.process_time()


def _of_ended_children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
