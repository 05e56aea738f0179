"""The checker finds each of three deliberate defects of a mount (`broken`), and the same load finds nothing without them."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.launch import PYTHON
from tests.coherence.actions import DIRECTORIES, Actor
from tests.coherence.broken import SLOW_S, slow_flag
from tests.coherence.checker import Report, check_history
from tests.coherence.load import Load, chosen_seed
from tests.coherence.records import NEW_MODE, parse

ACCESS_S = 3.0
OVERRIDES = {
    "mount": {"request_timeout_s": 4.0, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 10.0},
}
CALLS = 6_000
FINISH_TIMEOUT_S = 120.0
QUIET_S = 1.0  # longer than the manager grants nothing of what has just been changed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("broken") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def with_mounts(lab: Lab, variant: str) -> Lab:
    """The lab with its mounts started anew as *variant*."""
    changed = Lab(lab.root, {"mount": [*PYTHON, "tests.coherence.broken", variant]})
    for server in lab.servers:
        lab.kill(server, "mount", signal.SIGTERM)
        changed.start(server, "mount")
    return changed


def judged_load(lab: Lab, variant: str, logs: Path) -> Report:
    mounts = {server: lab.mount(server) for server in lab.servers}
    load = Load(mounts, variant, logs, seed=chosen_seed(1), calls_each=CALLS // 6)
    try:
        return check_history(load.finish(FINISH_TIMEOUT_S), load.count)
    finally:
        load.kill()


@pytest.mark.parametrize("variant", ["recall-not-awaited", "kernel-not-invalidated"])
def test_a_defect_is_found_under_load(lab: Lab, variant: str, tmp_path: Path) -> None:
    report = judged_load(with_mounts(lab, variant), variant, tmp_path / "logs")
    assert report.findings, f"nothing was found in {report.operations} operations"


def test_the_same_load_is_right_without_a_defect(lab: Lab, tmp_path: Path) -> None:
    report = judged_load(with_mounts(lab, "slow"), "right", tmp_path / "logs")
    assert not report.findings, str(report)


def stat_while_cut_off(lab: Lab, folder: str, logs: Path) -> Report:
    """s3 gets an answer late, and is cut off; s1 changes what was answered, which has to wait for s3's lease to end."""
    logs.mkdir()
    for each in DIRECTORIES:
        os.makedirs(lab.mount("s1") / folder / each)
    changing = Actor(0, "s1", lab.mount("s1") / folder, logs / "0")
    with changing.opened("a/n0", os.O_RDWR | os.O_CREAT | os.O_EXCL) as made:
        assert made is not None
    file = changing.open("a/n0", os.O_RDONLY)  # of what is open for writing, nobody else may cache anything
    assert file is not None
    looking = Actor(1, "s3", lab.mount("s3") / folder, logs / "1")
    seen = looking.open("a/n0", os.O_PATH)  # not open for the mount: its lease is not renewed
    assert seen is not None
    flag = slow_flag(lab.config_path("s3"))
    try:
        time.sleep(ACCESS_S + QUIET_S)  # whatever s3 kept of the file has run out
        flag.touch()
        looking.fstat(seen)
        lab.cut("s3")
        changing.chmod(file, NEW_MODE | 0o111)
        until_s = time.monotonic() + SLOW_S
        while not looking.last_errno and time.monotonic() < until_s:
            looking.fstat(seen)
            time.sleep(0.02)
    finally:
        flag.unlink(missing_ok=True)
        lab.mend("s3")
        seen.close()
        file.close()
    return check_history([operation for log in sorted(logs.iterdir()) for operation in parse(log)], 1)


def test_a_deadline_that_counts_from_the_reply_is_found(lab: Lab, tmp_path: Path) -> None:
    broken = with_mounts(lab, "deadline-after-the-reply")
    report = stat_while_cut_off(broken, "late", tmp_path / "logs")
    assert [finding for finding in report.findings if finding.what.startswith("mode of inode")], str(report)


def test_a_deadline_that_counts_from_the_question_is_right_however_late_the_reply(lab: Lab, tmp_path: Path) -> None:
    report = stat_while_cut_off(with_mounts(lab, "slow"), "slow", tmp_path / "logs")
    assert not report.findings, str(report)
