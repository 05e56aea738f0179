"""A volume without space: the trash makes room, and what still does not fit is said, not lost."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import NoSpace
from cluster.messages import AllocateObject, CreateObject, WriteObject
from tests.agent.network import TIMEOUT_S, Network
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """A file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield str(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


async def both(net: Network, disk: str) -> int:
    await net.start("s1")
    await net.start("s2", volumes=[disk])
    return net.manager.volume_of("s2")


def fill(net: Network, name: str, size: int) -> None:
    (net.agents["s2"].layout.trash / name).write_bytes(os.urandom(size))


@pytest.mark.parametrize("size", [100_000, 5 * MIB])
async def test_a_copy_that_does_not_fit_takes_the_room_of_the_trash(net: Network, small_disk: str, size: int) -> None:
    await both(net, small_disk)
    await net.file("s1", 7, os.urandom(size))
    fill(net, "3.9999999999999999999", 8 * MIB - 150_000 if size < MIB else 6 * MIB)
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert (report.outcome, report.error) == ("done", "")
    assert net.content("s2", 7) == net.content("s1", 7)


@pytest.mark.parametrize("size", [100_000, 5 * MIB])
async def test_a_copy_that_never_fits_is_tried_again_later(net: Network, small_disk: str, size: int) -> None:
    await both(net, small_disk)
    await net.file("s1", 7, os.urandom(size))
    (Path(small_disk) / "other").write_bytes(bytes(8 * MIB - 90_000))
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "retry"
    assert os.strerror(28) in report.error
    assert report.source_error == ""
    assert net.left_over("s2") == []
    assert not os.path.exists(net.path("s2", 7))


async def test_writes_take_the_room_of_the_trash_and_then_say_that_it_is_full(net: Network, small_disk: str) -> None:
    volume = await both(net, small_disk)
    channel = await net.channel("s2")
    fill(net, "3.9999999999999999999", 5 * MIB)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    written = 0
    problem = None
    while problem is None:
        assert written <= 8 * MIB
        try:
            request = WriteObject(7, volume, token_for(7, server="s2"), written)
            reply = await channel.call(request, body=os.urandom(MIB), timeout_s=TIMEOUT_S)
            written += reply.count
        except NoSpace as error:
            problem = error
    assert problem.errno == 28
    assert written > 6 * MIB
    assert os.stat(net.path("s2", 7)).st_size == written


async def test_what_cannot_be_allocated_takes_the_room_of_the_trash_or_is_refused(net: Network, small_disk: str) -> None:
    volume = await both(net, small_disk)
    channel = await net.channel("s2")
    fill(net, "3.9999999999999999999", 5 * MIB)
    await channel.call(CreateObject(7, volume), timeout_s=TIMEOUT_S)
    await channel.call(WriteObject(7, volume, token_for(7, server="s2"), 0), body=b"content", timeout_s=TIMEOUT_S)
    await channel.call(AllocateObject(7, volume, token_for(7, server="s2"), 0, 0, 6 * MIB), timeout_s=TIMEOUT_S)
    with pytest.raises(NoSpace) as problem:
        await channel.call(AllocateObject(7, volume, token_for(7, server="s2"), 0, 0, 9 * MIB), timeout_s=TIMEOUT_S)
    assert problem.value.errno == 28
    assert net.content("s2", 7) == b"content" + bytes(6 * MIB - 7)
