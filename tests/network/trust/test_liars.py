"""A member that reports copies which it does not have: whoever looks finds it, and no file is lost for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.config import credentials_of
from cluster.messages import ClaimTasks, ReportTasks, Stamp, Task, TaskOperation, TaskReport
from cluster.rpc.conversation import Asker, converse
from cluster.trust.identity import Role
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit_process

CONTENT = b"of which there is one copy" * 1000
TIMEOUT_S = 20.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", servers=2) as made:
        yield made


def lie(lab: Lab, server: str, content: bytes) -> list[Task]:
    """Does what the server's agent has to do, in its name and with its keys, by saying that it is done; what that was."""

    async def work(asker: Asker) -> list[Task]:
        tasks = (await asker(ClaimTasks(10, TIMEOUT_S / 2))).tasks
        stamp = Stamp(len(content), 1, 1)
        reports = [
            TaskReport(task.task, task.claim, "done", version=task.version, checksum=blake3(content).digest(), stamp=stamp)
            for task in tasks
        ]
        await asker(ReportTasks(reports))
        return tasks

    config = lab.config(server)
    return converse(config.managers, credentials_of(config, Role.AGENT), TIMEOUT_S, work)


def current(lab: Lab, path: Path) -> set[int]:
    """The volumes that have the file's present content, as far as the catalog knows."""
    replicas = godwit(lab, "where", str(path))["replicas"]
    return {replica["volume"] for replica in replicas if replica["current"]}


def test_a_copy_that_was_never_made_is_found_and_made(lab: Lab) -> None:
    path = lab.mount("s1") / "file"
    lab.kill("s2", "agent")
    path.write_bytes(CONTENT)
    (task,) = wait_until(lambda: lie(lab, "s2", CONTENT), "there is something to do")
    assert (task.ino, task.operation) == (path.stat().st_ino, TaskOperation.COPY)
    assert len(current(lab, path)) == 2, "it is believed until somebody looks"
    # Whoever comes back looks by itself at what it is said to have.
    lab.start("s2", "agent")
    wait_until(lambda: f"inode {task.ino} is damaged on s2" in lab.log("s1", "manager").read_text(), "it is said")
    wait_for_copies(lab)
    (copy,) = lab.volume("s2").glob(f"objects/*/{task.ino}")
    assert copy.read_bytes() == path.read_bytes() == (lab.mount("s2") / "file").read_bytes() == CONTENT
    assert len(current(lab, path)) == 2
    assert godwit_process("fsck", "--deep", "--root", str(lab.root), timeout_s=120).returncode == 0
