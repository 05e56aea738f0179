"""Reaching the home of an open inode."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from cluster.errors import Unavailable
from cluster.leases import LeaseToken
from cluster.messages import Content, ExamineObject, Locate, Node, ObjectStat, Opened, Replica, Request, Stamp, StatObject, Volume
from cluster.rpc.connection import Answer
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import VolumeLayout
from fusefs.caching.tokens import Held, Leases, Pass
from fusefs.content.homes import Homes
from fusefs.content.open_inode import OpenInode
from fusefs.content.peers import Peers

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)
AT_S2 = msgspec.structs.replace(NODE, home_volume=2)
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

    async def hold_pass(self, _ino: int, _volume: int) -> Pass:
        return Pass(b"", 60.0)

    def check_content(self, _ino: int) -> None:
        """It may be read and written."""

    async def exchange(self, volume: int, request: Request[Any], *, body: bytes, once: bool, **works: object) -> Answer:
        assert isinstance(request, ExamineObject), (volume, works)
        assert not body
        assert not once
        self.asked.add(ExamineObject)
        await trio.sleep(ANSWER_S)
        return Answer(None, b"")


class Elsewhere(World):
    """The home is on s2, whose agent answers; the agent of s1, which has a current replica, is away at first."""

    def __init__(self, volume: Path, away: int) -> None:
        super().__init__(volume)
        self.away = away

    async def call(self, request: Request[Any], *, timeout_s: float) -> Opened:
        opened = await super().call(request, timeout_s=timeout_s)
        return msgspec.structs.replace(opened, node=AT_S2, replicas=[Replica(1, NODE.version, Stamp(10, 1, 1))])

    async def volume(self, number: int) -> Volume:
        return msgspec.structs.replace(await super().volume(number), server=f"s{number}")

    def is_local(self, volume: Volume) -> bool:
        return volume.server == "s1"

    async def exchange(self, volume: int, request: Request[Any], *, body: bytes, once: bool, **works: object) -> Answer:
        if isinstance(request, StatObject):
            assert volume == AT_S2.home_volume, "the home"
            return Answer(ObjectStat(Content(10, 8, 1, 1)), b"")
        if self.away:
            self.away -= 1
            raise Unavailable("it was killed")
        return await super().exchange(volume, request, body=body, once=once, **works)


async def test_who_opens_to_write_waits_for_an_agent_that_comes_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The replica here is not what the catalog says, and only its agent can find out why."""
    world = Elsewhere(tmp_path, away=3)
    await world.homes.ready_to_write(OpenInode(AT_S2))
    assert (world.away, world.asked) == (0, {Locate, ExamineObject})
    with pytest.raises(Unavailable):
        await Elsewhere(tmp_path, away=1000).homes.ready_to_write(OpenInode(AT_S2))
    assert autojump_clock.current_time() >= TIMEOUT_S


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
