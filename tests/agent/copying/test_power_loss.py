"""What a copy has been made of is on the disk of its source, and the copy on that of its target, whichever loses power."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.copying.pulls import SMALL_BYTES
from cluster.messages import CommitObject, WriteObject
from tests.agent.disks import disk_in, power_fails
from tests.agent.network import TIMEOUT_S, Network, digest, record_of, stamp_at
from tests.agent.tokens import token_for

pytestmark = [
    pytest.mark.deadline(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disk_in(tmp_path) as place:
        yield place


MANY = [*range(7, 27)]


# Those that are synced by themselves, and a batch that is synced together.
@pytest.mark.parametrize(("inos", "size"), [([7], 5000), ([7], SMALL_BYTES + 5000), (MANY, 5000)])
async def test_a_source_that_loses_power_has_what_was_copied_from_it(
    net: Network, disk: Path, inos: list[int], size: int
) -> None:
    await net.start("s1", volumes=[str(disk)])
    await net.start("s2")
    for ino in inos:
        await net.file("s1", ino, b"o" * size)
    subprocess.run(["sync", "-f", disk], check=True, timeout=60)
    channel, volume = await net.channel("s1"), net.manager.volume_of("s1")
    for ino in inos:
        net.manager.nodes[ino] = msgspec.structs.replace(net.manager.nodes[ino], dirty=True)
        await channel.call(WriteObject(ino, volume, token_for(ino), 1000), timeout_s=TIMEOUT_S, body=b"new")
        await channel.call(CommitObject(ino, volume, token_for(ino), final=True), timeout_s=TIMEOUT_S)
    # Somebody else's fsync has the journal keep the new stamps, and leaves the content where it is: in memory.
    (disk / "another").touch()
    with (disk / "another").open("r+b") as another:
        os.fsync(another.fileno())
    await copied(net, inos)
    crashed = str(power_fails(disk))
    for ino in inos:
        after = Path(net.path("s1", ino).replace(str(disk), crashed))
        assert stamp_at(str(after)) == net.manager.stamp(ino)
        assert after.read_bytes() == net.content("s2", ino) == b"o" * 1000 + b"new" + b"o" * (size - 1003)


@pytest.mark.parametrize("inos", [[7], MANY])
async def test_a_target_that_loses_power_has_what_it_has_reported(net: Network, disk: Path, inos: list[int]) -> None:
    await net.start("s1")
    await net.start("s2", volumes=[str(disk)])
    for ino in inos:
        await net.file("s1", ino, b"%d" % ino * 1000)
    await copied(net, inos)
    crashed = str(power_fails(disk))
    for ino in inos:
        after = net.path("s2", ino).replace(str(disk), crashed)
        assert Path(after).read_bytes() == b"%d" % ino * 1000
        assert record_of(after).checksum == digest(b"%d" % ino * 1000).hex()


async def copied(net: Network, inos: list[int]) -> None:
    tasks = [net.copy(ino, "s1", "s2") for ino in inos]
    for task in tasks:
        assert (await net.manager.report_of(task)).outcome == "done"
