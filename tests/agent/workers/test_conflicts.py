"""What a server alone had when it was declared lost, as its agent finds it; killed and started again at each step."""

import os
from pathlib import Path

import msgspec
import pytest

from cluster.messages import ForgetForsaken, ForsakenObject, KeepForsaken, NameForsaken, Stamp
from cluster.volume.content import stamp_of
from cluster.volume.fence import is_fenced
from tests.agent.fakemanager import CONFLICTS
from tests.agent.network import Network, digest, record_of, stamp_at

pytestmark = pytest.mark.deadline(60)

CONTENT = b"what only s1 has"
MTIME_NS = 1_700_000_000_000_000_000


async def abandon(net: Network, ino: int, *, stamp: Stamp | None = None, kept: bytes = b"") -> str:
    """Says that the object of *ino* is abandoned; the file fell back to *kept*."""
    volume = net.manager.volume_of("s1")
    checksum = digest(kept) if kept else b""
    net.manager.abandoned[ino] = ForsakenObject(volume, ino, 0o100640, 7, 8, stamp, len(kept), checksum, 0)
    net.manager.settled_ns += 1
    return net.path("s1", ino)


def make(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(content)
    os.utime(path, ns=(MTIME_NS, MTIME_NS))


def assert_kept(net: Network, ino: int) -> None:
    number, content = net.manager.named[ino]
    assert number == ino + CONFLICTS
    path = net.path("s1", number)
    assert Path(path).read_bytes() == CONTENT
    assert not os.path.exists(net.path("s1", ino))
    found = stamp_of(os.stat(path))
    assert (content.size, content.mtime_ns, content.ctime_ns) == (found.size, MTIME_NS, found.ctime_ns)
    record = record_of(path)
    assert (record.ino, record.version, record.home_epoch, record.mode, record.uid, record.gid) == (number, 1, 1, 0o100640, 7, 8)


async def test_what_is_new_is_kept_and_a_mount_that_has_it_open_cannot_change_it(net: Network) -> None:
    await net.start("s1")
    make(net.path("s1", 7), CONTENT)
    silent = os.open(net.path("s1", 7), os.O_RDWR)
    await abandon(net, 7, kept=b"x" * len(CONTENT))
    await net.manager.wait_for(lambda: 7 in net.manager.named, "named")
    assert_kept(net, 7)
    with pytest.raises(PermissionError):
        os.pwrite(silent, b"late", 0)
    assert is_fenced(silent)
    os.close(silent)


async def test_what_is_nothing_new_goes_to_the_trash(net: Network) -> None:
    running = await net.start("s1")
    for ino in (7, 8, 9):
        make(net.path("s1", ino), CONTENT)
    stamp = stamp_at(net.path("s1", 7))
    other = Stamp(stamp.size, stamp.mtime_ns, stamp.ctime_ns - 1)
    await abandon(net, 7, stamp=stamp)
    await abandon(net, 8, kept=CONTENT)
    await abandon(net, 9, stamp=other)
    await abandon(net, 10)
    await net.manager.wait_for(lambda: not net.manager.abandoned, "all are resolved")
    assert set(net.manager.named) == {9}, "only 9 was written since its last commit"
    assert_kept(net, 9)
    trash = {name.partition(".")[0] for name in os.listdir(running.layout.trash)}
    assert trash == {"7", "8"}


@pytest.mark.parametrize("held_up", [KeepForsaken, NameForsaken])
async def test_it_is_kept_once_wherever_the_agent_dies(net: Network, held_up: type) -> None:
    running = await net.start("s1")
    make(net.path("s1", 7), CONTENT)
    net.manager.hold_abandoned = held_up
    await abandon(net, 7)
    renamed = net.path("s1", 7 + CONFLICTS)
    reached = renamed if held_up is NameForsaken else net.path("s1", 7)
    await net.manager.wait_for(lambda: os.path.exists(reached) and fenced(reached), "the step is reached")
    await running.kill()
    net.manager.hold_abandoned = None
    await net.start_with(running.config)
    await net.manager.wait_for(lambda: 7 in net.manager.named, "named")
    assert_kept(net, 7)


@pytest.mark.parametrize("step", ["number drawn", "renamed", "record written"])
async def test_it_is_kept_once_when_it_died_between_two_requests(net: Network, step: str) -> None:
    running = await net.start("s1")
    await running.stop()
    old, new = net.path("s1", 7), net.path("s1", 7 + CONFLICTS)
    make(old if step == "number drawn" else new, CONTENT)
    if step == "record written":
        os.setxattr(new, "user.godwit", b'{"ino": 10007, "version": 1, "home_epoch": 1}')
    await abandon(net, 7)
    net.manager.abandoned[7] = msgspec.structs.replace(net.manager.abandoned[7], conflict=7 + CONFLICTS)
    await net.start_with(running.config)
    await net.manager.wait_for(lambda: 7 in net.manager.named, "named")
    assert_kept(net, 7)


async def test_a_trashed_object_is_reported_once_when_the_agent_dies_before_it_can(net: Network) -> None:
    running = await net.start("s1")
    make(net.path("s1", 7), CONTENT)
    net.manager.hold_abandoned = ForgetForsaken
    await abandon(net, 7, kept=CONTENT)
    await net.manager.wait_for(lambda: not os.path.exists(net.path("s1", 7)), "it is in the trash")
    await running.kill()
    net.manager.hold_abandoned = None
    await net.start_with(running.config)
    await net.manager.wait_for(lambda: not net.manager.abandoned, "told")
    assert len(os.listdir(running.layout.trash)) == 1
    assert net.manager.named == {}


def fenced(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_fenced(descriptor)
    finally:
        os.close(descriptor)
