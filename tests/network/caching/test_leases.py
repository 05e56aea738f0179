"""Lease tokens in a network: seen from the command line, renewed while used, lapsing afterwards, ending when cut off.

The access time is two seconds, so that many of them pass during a test.
"""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_replicas, wait_until

ACCESS_S = 2.0
REQUEST_TIMEOUT_S = 4.0
ACCESS_TIMES = 5
OVERRIDES = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 0.5},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": 4.0},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("leases") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def leases(lab: Lab, path: Path, holder: str) -> list[dict[str, Any]]:
    """What `leases ls` says of a server's lease for a file."""
    return [lease for lease in godwit(lab, "leases", "ls", str(path))["leases"] if lease["holder"] == holder]


def caching_reader(lab: Lab, path: Path, descriptor: int) -> dict[str, Any] | None:
    """What `leases ls` says of s2's lease, once an answer has brought it the right to cache."""
    os.fstat(descriptor)
    (lease,) = leases(lab, path, "s2")
    return lease if lease["mode"] == "read" else None


def test_an_open_idle_file_is_renewed_and_lapses_after_its_close(lab: Lab) -> None:
    path = lab.mount("s1") / "idle"
    path.write_bytes(b"content")
    wait_for_replicas(lab, str(path), 2)
    with (lab.mount("s2") / "idle").open("rb") as file:
        assert file.read(3) == b"con"
        counted = godwit(lab, "leases", "ls")["renewed"]
        before = wait_until(
            lambda: caching_reader(lab, path, file.fileno()), "nobody has changed it for a while, so it may be cached"
        )
        assert before["open"]
        wait_until(lambda: leases(lab, path, "s2")[0]["renewals"] >= before["renewals"] + 10, "ten renewals of an idle file")
        assert godwit(lab, "leases", "ls")["renewed"] >= counted + 10
        assert file.read() == b"tent"
        expired = godwit(lab, "leases", "ls")["expired"]  # before the close: a command may take longer than the lease then
    wait_until(lambda: not leases(lab, path, "s2"), "the lease lapses after the close", 20)
    assert godwit(lab, "leases", "ls")["expired"] > expired


def test_modes_as_they_are_seen(lab: Lab) -> None:
    path = lab.mount("s1") / "modes"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        (alone,) = leases(lab, path, "s1")
        assert (alone["mode"], alone["home"], alone["home_epoch"]) == ("write", "s1", 1)
        with (lab.mount("s2") / "modes").open("ab") as other:
            other.write(b"y")
            other.flush()
            assert leases(lab, path, "s1")[0]["mode"] == "shared"
            assert leases(lab, path, "s2")[0]["mode"] == "shared"
        wait_until(lambda: leases(lab, path, "s1")[0]["mode"] == "write", "s1 is alone again", 20)
    assert path.read_bytes() == b"xy"


def test_an_application_that_holds_a_file_open_for_many_access_times_never_notices(lab: Lab) -> None:
    """It reads and appends through another server's home, so that every request carries a token."""
    path = lab.mount("s1") / "long"
    path.write_bytes(b"")
    script = """
import os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
fd = os.open(path, os.O_RDWR | os.O_APPEND)
count, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    os.write(fd, b"%08d\\n" % count)
    count += 1
    assert os.pread(fd, 9, 9 * (count - 1)) == b"%08d\\n" % (count - 1)
    time.sleep(seconds / 100)
print(count)
"""
    command = [sys.executable, "-c", script, str(lab.mount("s3") / "long"), str(ACCESS_TIMES * ACCESS_S)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 20
    assert path.read_bytes() == b"".join(b"%08d\n" % number for number in range(count))


def test_a_mount_that_is_cut_off_neither_reads_nor_writes_after_its_deadline(lab: Lab) -> None:
    """Its own disk is there, but somebody else may have become the home:
    an error in time (of the fence, or of the mount), and whole again
    when mended."""
    path = lab.mount("s3") / "cut"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"before")
        lab.cut("s3")
        try:
            cut_s = time.monotonic()
            outcome: list[int | float] = []

            def write_until_it_fails() -> None:
                try:
                    while True:
                        os.pwrite(descriptor, b"during", 6)
                        time.sleep(0.02)
                except OSError as error:
                    outcome.extend([error.errno or 0, time.monotonic() - cut_s])

            writer = threading.Thread(target=write_until_it_fails)
            writer.start()
            writer.join(ACCESS_S + REQUEST_TIMEOUT_S + 20)
            assert not writer.is_alive()
            assert outcome[0] in (errno.EPERM, errno.EIO)
            assert outcome[1] < ACCESS_S + 2 * REQUEST_TIMEOUT_S + 4
        finally:
            lab.mend("s3")
        wait_until(lambda: _writes(descriptor), "it writes again", 30)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"before" + b"after!"
    assert (lab.mount("s1") / "cut").read_bytes() == b"before" + b"after!"


def _writes(descriptor: int) -> bool:
    try:
        return os.pwrite(descriptor, b"after!", 6) == 6
    except OSError:
        return False


def test_a_second_mount_of_a_server_is_refused(lab: Lab) -> None:
    command = [sys.executable, "-m", "cli.main", "run", "mount", "--config", str(lab.config_path("s2"))]
    done = subprocess.run(lab.command("s2", command), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a mount of s2 runs already" in done.stderr


def test_no_size_is_told_that_is_older_than_what_was_seen(lab: Lab) -> None:
    """The home's agent is away: who asks for the size waits for it, and then gets EIO. The name can be used all the same."""
    path, elsewhere = lab.mount("s1") / "register", lab.mount("s2") / "register"
    with path.open("ab", buffering=0) as file:
        file.write(b"12345")
        assert elsewhere.stat().st_size == 5
        lab.kill("s1", "agent")
        file.write(b"67890")
        assert path.stat().st_size == 10
        began_s = time.monotonic()
        with pytest.raises(OSError) as raised:  # noqa: PT011
            elsewhere.stat()
        assert raised.value.errno == errno.EIO
        assert time.monotonic() - began_s < REQUEST_TIMEOUT_S * 3
        assert "register" in os.listdir(lab.mount("s2"))
        elsewhere.rename(lab.mount("s2") / "renamed")
        lab.start("s1", "agent")
        assert wait_until(lambda: _size_of(lab.mount("s2") / "renamed"), "the home answers again", 30) == 10


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
