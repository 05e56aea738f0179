"""What all tests share: one storage network of three servers for the whole session, and fresh directories on its mounts."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fence import lift_below
from lab.lab import Lab
from lab.state import PARTS

numbers = itertools.count(1)

UNEXPECTED = (b"Traceback (most recent call last)", b"unexpected error in")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and lets `kill` end a run as Ctrl-C does: with the network taken down."""
    config.addinivalue_line("markers", "programs: real programs with their files on a mount")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(autouse=True)
def deletable(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lifts the fences in a test's directory, so that pytest can delete it."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        lift_below(str(folder))


@pytest.fixture(scope="session")
def network() -> Iterator[Lab]:
    """A storage network of three servers with one volume each; taken down and deleted at the end, whatever happened."""
    if os.geteuid() != 0:
        pytest.skip("mounts and network namespaces need root: run the tests with sudo")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: load the kernel module with modprobe fuse")
    root = tempfile.mkdtemp(prefix="godwit-tests-")
    os.chmod(root, 0o755)
    lab = Lab.create(root, servers=3, volumes=1)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def orderly_logs(network: Lab) -> Iterator[None]:
    """Fails a test during which a process of the network met an error that nobody had thought of."""
    logs = [network.log(server, part) for server in network.servers for part in PARTS]
    before = {log: log.stat().st_size for log in logs if log.exists()}
    yield
    for log in logs:
        if not log.exists():
            continue
        with log.open("rb") as file:
            file.seek(before.get(log, 0))
            added = file.read()
        assert not any(mark in added for mark in UNEXPECTED), f"{log}:\n{added.decode(errors='replace')[-4000:]}"


@pytest.fixture
def directory(network: Lab, orderly_logs: None) -> Path:
    """A fresh directory on the mount of s1."""
    return fresh(network.mount("s1"))


def fresh(parent: Path) -> Path:
    """Makes a new directory in *parent*."""
    path = parent / f"test-{next(numbers)}"
    path.mkdir()
    return path
