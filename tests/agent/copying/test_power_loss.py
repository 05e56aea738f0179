"""What a copy has been made of is on the disk of its source: a loss of power leaves no two contents of one version."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.copying.pulls import SMALL_BYTES
from cluster.messages import CommitObject, WriteObject
from tests.agent.network import TIMEOUT_S, Network, stamp_at
from tests.agent.tokens import token_for

pytestmark = [
    pytest.mark.deadline(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]

IMAGE_BYTES = 64 << 20


def mount(image: Path, place: Path) -> None:
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, in the image beside it."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=60)
    mount(image, place)
    (place / "lost+found").rmdir()
    yield place
    for mounted in (place, tmp_path / "afterwards"):
        subprocess.run(["umount", "-l", mounted], check=False, capture_output=True, timeout=60)


def power_fails(disk: Path) -> Path:
    """What is on the disk at this moment, mounted anew: without what the kernel had only in memory."""
    after = disk.with_name("afterwards")
    subprocess.run(["cp", "--sparse=always", disk.with_name("image"), disk.with_name("crashed")], check=True, timeout=60)
    mount(disk.with_name("crashed"), after)
    return after


@pytest.mark.parametrize("size", [5000, SMALL_BYTES + 5000])
async def test_a_source_that_loses_power_has_what_was_copied_from_it(net: Network, disk: Path, size: int) -> None:
    await net.start("s1", volumes=[str(disk)])
    await net.start("s2")
    await net.file("s1", 7, b"o" * size)
    subprocess.run(["sync", "-f", disk], check=True, timeout=60)
    channel, volume = await net.channel("s1"), net.manager.volume_of("s1")
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    await channel.call(WriteObject(7, volume, token_for(7), 1000), timeout_s=TIMEOUT_S, body=b"new")
    await channel.call(CommitObject(7, volume, token_for(7), final=True), timeout_s=TIMEOUT_S)
    # Somebody else's fsync has the journal keep the new stamp, and leaves the content where it is: in memory.
    (disk / "another").touch()
    with (disk / "another").open("r+b") as another:
        os.fsync(another.fileno())
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    after = Path(net.path("s1", 7).replace(str(disk), str(power_fails(disk))))
    assert stamp_at(str(after)) == net.manager.stamp(7)
    assert after.read_bytes() == net.content("s2", 7) == b"o" * 1000 + b"new" + b"o" * (size - 1003)
