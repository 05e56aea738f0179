"""Waiting for a descriptor, whatever its number is."""

import fcntl
import os
import resource
import time

import pytest

from cluster.readable import is_readable

BEYOND = 2000  # more than select(2) can name


@pytest.fixture
def many() -> None:
    """This process may have so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > BEYOND
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, BEYOND + 1), hard))


@pytest.mark.parametrize("number", [3, BEYOND])
def test_a_pipe_is_readable_when_it_has_data_or_nobody_writes(number: int, many: None) -> None:
    theirs, ours = os.pipe()
    high = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, number)
    os.close(theirs)
    try:
        assert not is_readable(high, 0)
        os.write(ours, b"x")
        assert is_readable(high, 10)
        assert os.read(high, 1) == b"x"
        assert not is_readable(high, 0.01)
    finally:
        os.close(ours)
        assert is_readable(high, 10)
        os.close(high)


def test_a_process_is_readable_when_it_has_ended() -> None:
    began_s = time.monotonic()
    child = os.posix_spawn("/bin/sleep", ["sleep", "0.2"], os.environ)
    process = os.pidfd_open(child)
    try:
        assert not is_readable(process, 0)
        assert is_readable(process, 30)
        assert time.monotonic() - began_s >= 0.2
    finally:
        os.close(process)
        os.waitpid(child, 0)
