"""What a write takes from a file, also through another server than its home: capabilities and set-id bits, as on ext4."""

import mmap
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.conftest import fresh
from tests.support.acting import ANNA, acting_as
from tests.support.modes import both_modes

CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)


def append(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"other")


def overwrite_at_length(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(bytes(1 << 20))


def overwrite_directly(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        os.write(descriptor, page)
    os.close(descriptor)


def truncate(path: Path) -> None:
    os.truncate(path, 3)


def truncate_at_opening(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def allocate(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)


def copy_range(path: Path) -> None:
    with path.with_name("source").open("rb") as source, path.open("r+b", buffering=0) as file:
        os.copy_file_range(source.fileno(), file.fileno(), 4)


WAYS = [append, overwrite, overwrite_at_length, overwrite_directly, truncate, truncate_at_opening, allocate, copy_range]


@both_modes
@pytest.mark.parametrize("server", ["s1", "s2"])
@pytest.mark.parametrize("change", WAYS)
def test_a_write_takes_capabilities_and_set_id_bits(network: Lab, server: str, change: Callable[[Path], None]) -> None:
    here = fresh(network.mount("s1"))
    here.chmod(0o777)
    for name in ("file", "source"):
        (here / name).write_bytes(b"content")
    path = network.mount(server) / here.name / "file"
    with (here / "file").open("rb"):  # its home stays there
        (here / "file").chmod(0o6777)
        os.setxattr(here / "file", "security.capability", CAPABILITY)
        assert "security.capability" in os.listxattr(path)
        with acting_as(ANNA):
            change(path)
        for mount in ("s1", "s2", "s3"):
            seen = network.mount(mount) / here.name / "file"
            assert os.listxattr(seen) == [], mount
            assert stat.S_IMODE(seen.stat().st_mode) == 0o777, mount


@pytest.mark.parametrize("server", ["s1", "s2"])
def test_another_owner_takes_capabilities(network: Lab, server: str) -> None:
    here = fresh(network.mount("s1"))
    (here / "file").write_bytes(b"content")
    os.setxattr(here / "file", "security.capability", CAPABILITY)
    os.chown(network.mount(server) / here.name / "file", ANNA.uid, ANNA.uid)
    assert os.listxattr(here / "file") == []
