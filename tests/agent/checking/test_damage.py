"""Objects that are not what the catalog says are not served, and their agent says so; those that were only touched are."""

import os
import time

import msgspec
import pytest
import trio

from agent.checking.damage import Examiner, lacking
from agent.checking.repair import Mender
from agent.keyed_locks import KeyedLocks
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.workers.own_content import has_own_block
from cluster.errors import Corrupt, Fenced, Unavailable
from cluster.leases import READ, LeaseKeys, LeaseToken
from cluster.messages import MISSING, Data, ExamineObject, HeldObject, ReadObject, Stamp, StatObject
from cluster.rpc.session import ManagerSession
from cluster.volume.fence import despite_fence
from tests.agent.network import Network, digest
from tests.agent.tokens import SECRET, token_for
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)

CONTENT = b"content" * 1000
STAMP = Stamp(10, 20, 30)


def test_what_a_stamp_says() -> None:
    held = HeldObject(7, 1, STAMP, b"digest", "")
    unknown = msgspec.structs.replace(held, checksum=b"")
    assert lacking(held, None) == MISSING
    assert lacking(held, STAMP) == ""
    assert "9 bytes instead of 10" in lacking(held, Stamp(9, 20, 30))
    assert lacking(held, Stamp(10, 20, 31)) == ""
    assert "digest is not known" in lacking(unknown, Stamp(10, 20, 31))


@pytest.mark.parametrize(
    ("mine", "theirs", "own"),
    [
        (b"", b"abc", False),
        (b"abc", b"abcdef", False),
        (b"abc", b"ab", True),
        (b"abd", b"abc", True),
        (bytes(5000), b"x" * 9000, False),
        (b"x" * 4096 + bytes(4096), b"x" * 9000, False),
        (b"x" * 4096 + b"y" * 4096, b"x" * 9000, True),
        (b"x" * 4096, b"", True),
    ],
)
def test_what_an_object_has_of_its_own(mine: bytes, theirs: bytes, own: bool) -> None:
    assert has_own_block(mine, theirs) is own


def clean_token(net: Network, ino: int) -> bytes:
    """A token that says what the catalog knows of a clean file."""
    node = net.manager.nodes[ino]
    volume, epoch, ctime_ns = node.home_volume, node.home_epoch, node.object_ctime_ns
    issued_s = time.monotonic()
    token = LeaseToken(1, ino, READ, "s9", volume, "h:1", node.version, epoch, 1, 60.0, issued_s, ctime_ns, node.size, "s1")
    return LeaseKeys(SECRET).seal(token)


def cut(net: Network, ino: int) -> None:
    despite_fence(net.path("s1", ino), lambda: os.truncate(net.path("s1", ino), 10))


async def test_a_damaged_object_is_not_served(net: Network) -> None:
    await net.start("s1")
    channel, volume = await net.channel("s1"), net.manager.volume_of("s1")
    await net.file("s1", 7, CONTENT)
    read = ReadObject(7, volume, clean_token(net, 7), 0, 100)
    assert (await channel.exchange(read, timeout_s=20)).reply == Data()
    cut(net, 7)
    net.manager.taking_over = True
    for request in (read, StatObject(7, volume, clean_token(net, 7)), ExamineObject(7, volume, token_for(7))):
        with pytest.raises(Unavailable, match="about to take over"):
            await channel.exchange(request, timeout_s=20)
    assert "10 bytes instead of 7000" in net.manager.damage[7]
    net.manager.taking_over = False
    with pytest.raises(Corrupt, match="10 bytes"):
        await channel.exchange(read, timeout_s=20)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], home_volume=99, home_epoch=2)
    with pytest.raises(Fenced):
        await channel.exchange(read, timeout_s=20)


async def test_what_is_being_written_is_served_to_old_tokens(net: Network) -> None:
    await net.start("s1")
    channel, volume = await net.channel("s1"), net.manager.volume_of("s1")
    await net.file("s1", 7, CONTENT)
    read = ReadObject(7, volume, clean_token(net, 7), 0, 100)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    cut(net, 7)
    assert (await channel.exchange(read, timeout_s=20)).body == CONTENT[:10]
    assert net.manager.damage == {}


async def test_what_was_only_touched_is_found_at_the_start_and_known_again(net: Network) -> None:
    agent = await net.start("s1")
    for ino in (7, 8, 9):
        await net.file("s1", ino, CONTENT)
    net.manager.checksums = {7: digest(CONTENT), 9: digest(CONTENT)}
    await agent.stop()
    for ino in (7, 8):
        os.chmod(net.path("s1", ino), 0o640)
    os.unlink(net.path("s1", 9))
    before = net.manager.nodes[7].object_ctime_ns
    await net.start("s1")
    await net.manager.wait_for(lambda: set(net.manager.damage) == {8, 9}, "the damage is reported")
    assert net.manager.nodes[7].object_ctime_ns == os.stat(net.path("s1", 7)).st_ctime_ns != before
    assert "digest is not known" in net.manager.damage[8]
    assert net.manager.damage[9] == MISSING


async def test_an_examination_that_fails_unexpectedly_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """The nursery is the agent's: what escaped would end all of it."""

    def broken(volume: int) -> DiskWork:
        raise ValueError(f"volume {volume} is odd")

    async with trio.open_nursery() as nursery:
        session = ManagerSession(managers=[], credentials=credentials("s1", "agent"))
        mender = Mender(broken, session, OpenObjects(1))
        examiner = Examiner(
            works=broken, session=session, locks=KeyedLocks(), mender=mender, nursery=nursery, on_damage=lambda: None
        )
        with pytest.raises(Unavailable, match="see the log of its agent"):
            await examiner.examine(ObjectKey(3, 7))
    assert "volume 3 is odd" in caplog.text
