"""A mount that is stopped in the middle of writing and goes on when others have long gone on without it."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.volume.fence import is_fenced
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_replicas, wait_until

BLOCK = 4096
OVERRIDES = {
    "mount": {"request_timeout_s": 10.0, "commit_s": 0.5, "renew_s": 0.5},
    "manager": {"access_s": 2.0, "term_s": 2.0, "session_timeout_s": 3.0},
}


WRITER = """
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
number = 0
while not os.path.exists(sys.argv[2]):
    os.pwrite(descriptor, b"%08d" % number * 512, number * 4096)
    number += 1
    os.write(1, b"%d\\n" % number)
    time.sleep(0.001)  # the kernel would write gigabytes until the file is fenced
"""


class Writer:
    """A process (this one must not hang with it) that writes block after block, and notes how many were acknowledged."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._end = folder / "end"
        self._said = folder / "acknowledged"
        with self._said.open("wb") as said:
            command = [sys.executable, "-c", WRITER, str(path), str(self._end)]
            self._process = subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE)

    @property
    def acknowledged(self) -> int:
        return self._said.read_bytes().count(b"\n")

    @property
    def failed(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> bytes:
        """What it died of."""
        self._end.touch()
        return self._process.communicate(timeout=60)[1]


def is_fenced_at(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_fenced(descriptor)
    finally:
        os.close(descriptor)


def stop_between_commits(lab: Lab, server: str, path: str) -> None:
    """SIGSTOP. A mount that is stopped in the middle of a commit keeps the lock of the object at *path*."""
    with open(path, "rb") as file:
        while True:
            lab.kill(server, "mount", signal.SIGSTOP)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lab.kill(server, "mount", signal.SIGCONT)
            else:
                return


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
def test_what_a_mount_writes_after_it_was_stopped_harms_nobody(lab: Lab, tmp_path: Path, home: str) -> None:
    writer = Writer(lab.mount("s3") / "file", tmp_path)
    wait_until(lambda: writer.acknowledged > 20, "it writes")
    elsewhere = lab.mount("s1") / "file"
    written = VolumeLayout(lab.volume("s3")).object_path(elsewhere.stat().st_ino)
    stop_between_commits(lab, "s3", written)
    try:
        wait_for_replicas(lab, str(elsewhere), 2)
        stopped_at = writer.acknowledged
        assert is_fenced_at(written)
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
    wait_until(lambda: writer.failed or writer.acknowledged > stopped_at + 20, "it fails or goes on")
    died_of = writer.end()
    # It meets the fence itself where the kernel writes to the object, else the mount's word for it.
    assert not died_of or b"Operation not permitted" in died_of or b"Input/output error" in died_of
    expected = replaced + b"".join(map(block, range(stopped_at, writer.acknowledged)))
    wait_for_replicas(lab, str(elsewhere), 2)
    for name in lab.servers:
        assert (lab.mount(name) / "file").read_bytes()[: len(expected)] == expected, name


MAKERS = """
import os, sys, threading, time
def write(path):
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        for _ in range(500):
            os.write(descriptor, b"x")
            time.sleep(0.001)
    except OSError as error:
        failed.append(str(error))
failed = []
threads = [threading.Thread(target=write, args=(f"{sys.argv[1]}/{number}",)) for number in range(32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("; ".join(failed) or None)
"""


def test_a_file_that_is_made_while_nobody_manages_can_be_written_as_soon_as_it_is_open(lab: Lab) -> None:
    """What the new manager grants was asked for longer than an access time ago."""
    manager = godwit(lab, "status")["manager"]
    made = lab.mount("s1") / "made"
    made.mkdir()
    lab.kill(manager, "manager", signal.SIGSTOP)
    try:
        done = subprocess.run([sys.executable, "-c", MAKERS, made], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        lab.kill(manager, "manager", signal.SIGCONT)
    assert done.stderr == ""
    assert {path.read_bytes() for path in made.iterdir()} == {b"x" * 500}
