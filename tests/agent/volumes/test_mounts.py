"""Names of mounts: what had been read before there was another one may be lost."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.volumes.mounts import mount_of

FIRST_KERNEL = (6, 8)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where something can be mounted; at the end nothing is."""
    yield tmp_path
    while subprocess.run(["umount", "-l", tmp_path], capture_output=True, check=False).returncode == 0:
        pass


def mounted(place: Path) -> str:
    """Mounts something there; its name."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    return name_at(place)


def name_at(place: Path) -> str:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        return mount_of(descriptor)
    finally:
        os.close(descriptor)


def test_a_mount_keeps_its_name_and_the_next_has_another(place: Path) -> None:
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < FIRST_KERNEL:
        pytest.skip("this kernel numbers mounts anew")
    first = mounted(place)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    assert name_at(place) == first
    subprocess.run(["umount", place], check=True)
    assert mounted(place) != first


def test_a_name_is_of_this_start_of_the_machine(place: Path) -> None:
    assert name_at(place).split()[0] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
