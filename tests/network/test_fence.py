"""A mount that is stopped in the middle of writing and goes on when others have long gone on without it."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fence import is_fenced
from cluster.volume import VolumeLayout
from lab.lab import Lab
from tests.network.conditions import godwit, wait_for_replicas, wait_until

BLOCK = 4096
OVERRIDES = {
    "mount": {"request_timeout_s": 10.0, "commit_s": 0.5, "renew_s": 0.5},
    "manager": {"access_s": 2.0, "term_s": 2.0, "session_timeout_s": 3.0},
}


class Writer(threading.Thread):
    """Writes blocks one after the other, each full of its number, and notes which were acknowledged, until it is told to end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        self._end = threading.Event()
        self.acknowledged = 0
        self.error = 0

    def run(self) -> None:
        try:
            while not self._end.wait(0.001):
                os.pwrite(self._descriptor, block(self.acknowledged), self.acknowledged * BLOCK)
                self.acknowledged += 1
        except OSError as error:
            self.error = error.errno or 0

    def end(self) -> None:
        self._end.set()
        self.join(60)
        assert not self.is_alive()
        os.close(self._descriptor)


def is_fenced_at(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_fenced(descriptor)
    finally:
        os.close(descriptor)


def block(number: int) -> bytes:
    return b"%08d" % number * (BLOCK // 8)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab.create(tmp_path / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.kill("s3", "mount", signal.SIGCONT)
        lab.down(purge=True)


@pytest.mark.parametrize("home", ["stays", "moves"])
def test_what_a_mount_writes_after_it_was_stopped_harms_nobody(lab: Lab, home: str) -> None:
    writer = Writer(lab.mount("s3") / "file")
    writer.start()
    wait_until(lambda: writer.acknowledged > 20, "it writes")
    lab.kill("s3", "mount", signal.SIGSTOP)
    elsewhere = lab.mount("s1") / "file"
    try:
        where = wait_for_replicas(lab, str(elsewhere), 2)
        stopped_at = writer.acknowledged
        assert is_fenced_at(VolumeLayout(lab.volume("s3")).object_path(where["ino"]))
        assert elsewhere.read_bytes()[: stopped_at * BLOCK] == b"".join(map(block, range(stopped_at)))
        if home == "moves":
            godwit(lab, "migrate", str(elsewhere), "--from", "s3", "--to", "s1")
            wait_until(lambda: "s3" not in {row["server"] for row in godwit(lab, "where", str(elsewhere))["replicas"]}, "moved")
        replaced = b"n" * (stopped_at * BLOCK)
        with elsewhere.open("wb") as file:
            file.write(replaced)
        wait_for_replicas(lab, str(elsewhere), 2)
    finally:
        lab.kill("s3", "mount", signal.SIGCONT)
    wait_until(lambda: writer.error or writer.acknowledged > stopped_at + 20, "it fails or goes on")
    writer.end()
    assert writer.error in (0, errno.EIO)
    expected = replaced + b"".join(map(block, range(stopped_at, writer.acknowledged)))
    wait_for_replicas(lab, str(elsewhere), 2)
    for name in lab.servers:
        assert (lab.mount(name) / "file").read_bytes()[: len(expected)] == expected, name
