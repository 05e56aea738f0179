"""What `fsync` makes durable: all that was written to the file, on whatever server and through whatever descriptor."""

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, wait_until
from tests.support.modes import both_modes

FIEMAP, DELAYED, EXTENTS = 0xC020660B, 0x4, 64
_MAP, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII")


def is_on_disk(lab: Lab, path: Path) -> bool:
    """Whether the home's object, on s1, has no content that ext4 has yet to find a place for."""
    found = VolumeLayout(lab.volume("s1")).object_path(path.stat().st_ino)
    descriptor = os.open(found, os.O_RDONLY)
    try:
        asked = bytearray(_MAP.pack(0, 2**64 - 1, 0, 0, EXTENTS, 0) + bytes(EXTENTS * _EXTENT.size))
        fcntl.ioctl(descriptor, FIEMAP, asked)
    finally:
        os.close(descriptor)
    count = _MAP.unpack_from(asked)[3]
    flags = [_EXTENT.unpack_from(asked, _MAP.size + at * _EXTENT.size)[5] for at in range(count)]
    assert flags, "there is content"
    return not any(flag & DELAYED for flag in flags)


def is_written_but_not_on_disk(lab: Lab, path: Path) -> bool:
    """Write the file, wait until it is committed, and say whether nobody wrote its content to the disk meanwhile.

    Any sync of the file system beneath the lab does: another test's, or an agent's before it copies.
    """
    path.write_bytes(os.urandom(200_000))
    wait_until(lambda: not godwit(lab, "where", str(path))["dirty"], "it is committed")
    return not is_on_disk(lab, path)


@pytest.mark.parametrize("server", ["s1", "s2"])
@pytest.mark.parametrize("program", ["fsync", "fdatasync", "sync"])
def test_fsync_of_a_descriptor_for_reading_makes_durable_what_others_wrote(network: Lab, server: str, program: str) -> None:
    here = fresh(network.mount("s1"))
    there = network.mount(server) / here.name / "file"
    godwit(network, "policy", "set", str(here), "--copies", "1")
    wait_until(lambda: is_written_but_not_on_disk(network, here / "file"), "what is committed is not on the disk yet")
    if program == "sync":
        subprocess.run(["sync", str(there)], check=True, timeout=60)
    else:
        descriptor = os.open(there, os.O_RDONLY)
        getattr(os, program)(descriptor)
        os.close(descriptor)
    assert is_on_disk(network, here / "file")


@pytest.mark.parametrize("server", ["s1", "s2"])
def test_fsync_of_a_descriptor_for_reading_while_another_writes(network: Lab, server: str) -> None:
    here = fresh(network.mount("s1"))
    with (here / "file").open("wb") as file:
        file.write(os.urandom(200_000))
        file.flush()
        descriptor = os.open(network.mount(server) / here.name / "file", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        assert is_on_disk(network, here / "file")


@both_modes
@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
@pytest.mark.parametrize("server", ["s1", "s2"])
def test_what_is_written_synchronously_is_durable(network: Lab, server: str, flag: int) -> None:
    here = fresh(network.mount("s1"))
    with (here / "file").open("wb"):  # its home stays there
        descriptor = os.open(network.mount(server) / here.name / "file", os.O_WRONLY | flag)
        os.write(descriptor, os.urandom(200_000))
        assert is_on_disk(network, here / "file")
        os.close(descriptor)
