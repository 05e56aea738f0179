"""Reaching the home of an open inode."""

from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from cluster.errors import Unavailable
from cluster.leases import LeaseToken
from cluster.messages import ExamineObject, Locate, Node, Opened, Request, Volume
from cluster.rpc.connection import Answer
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import VolumeLayout
from fusefs.caching.tokens import Held, Leases
from fusefs.content.homes import Homes
from fusefs.content.open_inode import OpenInode
from fusefs.content.peers import Peers

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)
TIMEOUT_S = 5.0
ANSWER_S = 0.01


class World:
    """A manager and an agent that say the same of an object each time."""

    def __init__(self, volume: Path) -> None:
        self.asked: set[type] = set()
        self.path = str(volume)
        self.homes = Homes(cast(ManagerSession, self), cast(Peers, self), cast(Leases, self), TIMEOUT_S)

    async def call(self, request: Request[Any], *, timeout_s: float) -> Opened:
        assert isinstance(request, Locate)
        assert timeout_s == TIMEOUT_S
        self.asked.add(Locate)
        await trio.sleep(ANSWER_S)
        return Opened(NODE, [], True, 1, 1)

    async def volume(self, number: int) -> Volume:
        return Volume(number, "s1", self.path, "s1:7401", 1 << 30, 1 << 30, "disk")

    def is_local(self, _volume: Volume) -> bool:
        return True

    async def hold(self, ino: int) -> Held:
        return Held(LeaseToken(1, ino, "W", "s1", 1, "", 3, 1, 1, 60.0, 0.0), b"", 60.0, 60.0)

    def check_content(self, _ino: int) -> None:
        """It may be read and written."""

    async def exchange(self, _volume: int, request: Request[Any], *, body: bytes, once: bool) -> Answer:
        assert isinstance(request, ExamineObject)
        assert not body
        assert not once
        self.asked.add(ExamineObject)
        await trio.sleep(ANSWER_S)
        return Answer(None, b"")


async def test_a_home_that_stays_other_than_its_record_is_given_up_in_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    made = VolumeLayout.at(str(tmp_path))
    Path(made.object_path(NODE.ino)).parent.mkdir(parents=True)
    Path(made.object_path(NODE.ino)).write_bytes(b"longer than the catalog says")
    world = World(tmp_path)
    began_s = autojump_clock.current_time()
    with pytest.raises(Unavailable, match="inode 7 was not what the catalog says for 5 s"):
        await world.homes.reach(OpenInode(NODE))
    assert TIMEOUT_S <= autojump_clock.current_time() - began_s < 2 * TIMEOUT_S
    assert world.asked == {Locate, ExamineObject}
