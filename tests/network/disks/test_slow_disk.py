"""A disk that works and is slow: an `fsync` from another server than the home's takes as long as it takes.

It ends as soon as nobody says any more that the disk works: the disk is silent, the agent is gone, or the server is cut off.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pytest

from lab.lab import Lab
from tests.network.disks.faultydisk import FaultyDisk, lab_on
from tests.support.conditions import godwit, wait_until

REQUEST_TIMEOUT_S = 8.0
SLACK_S = 6.0  # the disk's last answer takes up to five seconds, as slow as it is
OVERRIDES = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 30.0, "down_s": 120.0},
}
ENDS_WITHIN_S = 3.0
# The agent's and the mount's own questions wait behind what is being written: with few milliseconds for each request they do so
# for less than the timeout.
SLOWNESS = "slow 50"
CHUNK_BYTES, CHUNKS = 256 * 1024, 200  # with holes between: a request each

SYNCS = """
import errno, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
sys.stdin.readline()
try:
    os.fsync(file)
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("synced")
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    folder = tmp_path_factory.mktemp("slow")
    made = FaultyDisk(folder, folder / "lab" / "s2" / "vol1", mib=512)
    made.take_few_requests()
    yield made
    made.end()


@pytest.fixture(scope="module")
def lab(disk: FaultyDisk) -> Iterator[Lab]:
    with lab_on([disk], OVERRIDES) as made:
        yield made


def made_there(lab: Lab, name: str) -> BinaryIO | None:
    """A new file of s2, open for writing so that its home stays; None if that is elsewhere, since the disk was silent."""
    path = lab.mount("s2") / name
    file = path.open("wb")
    if [replica["server"] for replica in godwit(lab, "where", str(path))["replicas"] if replica["home"]] == ["s2"]:
        return file
    file.close()
    path.unlink()
    return None


@contextmanager
def syncing(lab: Lab, disk: FaultyDisk, name: str, server: str = "s1") -> Iterator["subprocess.Popen[str]"]:
    """A program on *server* that has just begun to sync a file, of which s2 has written more than its disk can take in time."""
    disk.sync()
    with wait_until(lambda: made_there(lab, name), "new files have their home on the disk", 30) as file:
        command = [sys.executable, "-c", SYNCS, str(lab.mount(server) / name)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            disk.say(SLOWNESS)
            try:
                for number in range(CHUNKS):
                    os.pwrite(file.fileno(), os.urandom(CHUNK_BYTES), 2 * number * CHUNK_BYTES)
                process.stdin.write("\n")
                process.stdin.flush()
                yield process
            finally:
                disk.say("ok")
                process.kill()


def outcome(process: "subprocess.Popen[str]") -> tuple[str, float]:
    """What came of the `fsync`, and how long that took from now on."""
    began_s = time.monotonic()
    output = process.communicate(timeout=60)[0]
    return output.strip(), time.monotonic() - began_s


def keeps_waiting(process: "subprocess.Popen[str]") -> None:
    """Returns when it has waited for longer than a request may take of which nothing is heard."""
    with suppress(subprocess.TimeoutExpired):
        pytest.fail(f"it has ended: {process.communicate(timeout=1.1 * REQUEST_TIMEOUT_S)}")


def test_an_fsync_from_another_server_is_waited_for(lab: Lab, disk: FaultyDisk) -> None:
    with syncing(lab, disk, "waited-for") as process:
        said, took_s = outcome(process)
    assert said == "synced"
    assert took_s > 1.2 * REQUEST_TIMEOUT_S, "the disk was slow"


def test_an_fsync_at_the_home_is_waited_for_and_holds_up_nobody_who_uses_another_disk(lab: Lab, disk: FaultyDisk) -> None:
    (lab.mount("s1") / "elsewhere").write_bytes(b"")
    longest_s = 0.0
    with syncing(lab, disk, "at home", "s2") as process:
        began_s = time.monotonic()
        while process.poll() is None:
            one_s = time.monotonic()
            with (lab.mount("s2") / "elsewhere").open("ab", buffering=0) as file:
                file.write(b"x")
            assert "elsewhere" in os.listdir(lab.mount("s2"))
            longest_s = max(longest_s, time.monotonic() - one_s)
            time.sleep(0.1)  # to see how long others wait, not how much the mount can do
        took_s = time.monotonic() - began_s
        said, _ = outcome(process)
    assert said == "synced"
    assert took_s > 1.2 * REQUEST_TIMEOUT_S, "the disk was slow"
    assert longest_s < 2.0
    assert (lab.mount("s1") / "elsewhere").stat().st_size > 20


def falls_silent(_lab: Lab, disk: FaultyDisk) -> None:
    disk.say("hang")


def loses_its_agent(lab: Lab, _disk: FaultyDisk) -> None:
    lab.kill("s2", "agent")


def is_cut_off(lab: Lab, _disk: FaultyDisk) -> None:
    lab.cut("s2")


@pytest.mark.parametrize("ends", [falls_silent, loses_its_agent, is_cut_off])
def test_an_fsync_ends_in_time_when_nobody_says_that_the_disk_works(
    lab: Lab, disk: FaultyDisk, ends: Callable[[Lab, FaultyDisk], None]
) -> None:
    with syncing(lab, disk, ends.__name__) as process:
        keeps_waiting(process)
        try:
            ends(lab, disk)
            said, took_s = outcome(process)
        finally:
            disk.say("ok")
            lab.mend("s2")
            if ends is loses_its_agent:
                lab.start("s2", "agent")
    assert said == "EIO"
    assert took_s < REQUEST_TIMEOUT_S + SLACK_S


def test_a_program_that_waits_for_a_slow_disk_elsewhere_can_be_ended(lab: Lab, disk: FaultyDisk) -> None:
    with syncing(lab, disk, "interrupted") as process:
        keeps_waiting(process)
        process.terminate()
        assert process.wait(ENDS_WITHIN_S) == -signal.SIGTERM
