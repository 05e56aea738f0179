"""The same while servers are cut off, mounts are killed, and the manager is stopped: what was acknowledged stays explainable.

Each round has a folder of its own, and goes on for a while when all mounts answer again. The access time is two seconds, so
that a fault outlasts it.
"""

import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.coherence.load import Load, chosen_seed, marked_missing
from tests.coherence.records import Operation
from tests.coherence.reporting import judge
from tests.support.conditions import godwit, wait_until

ACCESS_S = 2.0
REQUEST_TIMEOUT_S = 8.0
OVERRIDES = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 0.7},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 5.0},
}
BEFORE_S = 1.5
FAULT_S = (ACCESS_S + 1.0, ACCESS_S + 2.5)
AFTER_S = 2.0
PAUSE_S = 0.01
STOP_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("coherence") / "lab", overrides=OVERRIDES)
    try:
        with marked_missing(map(lab.mount, lab.servers), [fault.__name__ for fault in FAULTS]):
            try:
                lab.up()
                yield lab
            finally:
                lab.down()
    finally:
        lab.down(purge=True)


def manager_of(lab: Lab) -> str:
    return str(godwit(lab, "status")["manager"])


def cut_a_server(lab: Lab, rng: random.Random) -> None:
    """One that is not the manager's: what a new manager does has a round of its own."""
    server = rng.choice([server for server in lab.servers if server != manager_of(lab)])
    lab.cut(server)
    try:
        time.sleep(rng.uniform(*FAULT_S))
    finally:
        lab.mend(server)


def cut_the_manager(lab: Lab, rng: random.Random) -> None:
    server = manager_of(lab)
    lab.cut(server)
    try:
        time.sleep(rng.uniform(*FAULT_S))
    finally:
        lab.mend(server)


def kill_a_mount(lab: Lab, rng: random.Random) -> None:
    server = rng.choice(lab.servers)
    lab.kill(server, "mount")
    time.sleep(rng.uniform(0.2, 2.0))
    lab.start(server, "mount")


def stop_the_manager(lab: Lab, rng: random.Random) -> None:
    """Longer than the access time; another candidate takes the office meanwhile, and the old manager wakes up in it."""
    server = manager_of(lab)
    lab.kill(server, "manager", signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(*FAULT_S))
    finally:
        lab.kill(server, "manager", signal.SIGCONT)


def kill_the_manager(lab: Lab, rng: random.Random) -> None:
    server = manager_of(lab)
    lab.kill(server, "manager")
    time.sleep(rng.uniform(*FAULT_S))
    lab.start(server, "manager")


def stop_a_mount(lab: Lab, rng: random.Random) -> None:
    """A mount process that sleeps past its deadlines must not believe its clocks of before."""
    server = rng.choice(lab.servers)
    lab.kill(server, "mount", signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(*FAULT_S))
    finally:
        lab.kill(server, "mount", signal.SIGCONT)


FAULTS = (cut_a_server, cut_the_manager, kill_a_mount, stop_the_manager, kill_the_manager, stop_a_mount)


def is_fenced(operation: Operation) -> bool:
    """A write through a descriptor that was open when its server's lease ended: refused, and without effect (docs/leases.md)."""
    outcome = operation.outcome
    return operation.call.kind == "write" and outcome is not None and outcome.errno == errno.EPERM


def answers(path: Path) -> bool:
    try:
        return bool(os.listdir(path))
    except OSError:
        return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_was_acknowledged_has_an_order(
    lab: Lab, fault: Callable[[Lab, random.Random], None], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    seed = chosen_seed(FAULTS.index(fault) + 1)
    rng = random.Random(seed)
    mounts = {server: lab.mount(server) for server in lab.servers}
    load = Load(mounts, fault.__name__, tmp_path / "logs", seed=seed, pause_s=PAUSE_S, mapping=False)
    try:
        time.sleep(BEFORE_S)
        fault(lab, rng)
        wait_until(lambda: all(answers(mount / fault.__name__) for mount in mounts.values()), "all mounts answer again", 30)
        before = load.calls()
        time.sleep(AFTER_S)
        wait_until(lambda: load.calls() > before + 100, "the workers go on", 30)
        history = load.stop(STOP_TIMEOUT_S)
    finally:
        load.kill()
    done = [operation for operation in history if not is_fenced(operation)]
    report = judge(done, load.count, seed, tmp_path / "logs", tell)
    assert report.operations > 300
