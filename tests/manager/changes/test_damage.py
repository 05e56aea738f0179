"""Damaged objects: another replica takes over, or the file says so until somebody accepts what is left."""

import errno

import pytest

from cluster.errors import Fenced, Refused
from cluster.messages import (
    MISSING,
    AcceptContent,
    Close,
    Closing,
    Commit,
    Content,
    GetStatus,
    GetWhere,
    HeldObject,
    ListForsaken,
    ListHeld,
    ListUnsettled,
    Locate,
    Node,
    Open,
    ReportDamage,
    Restamp,
    Stamp,
)
from tests.manager.office import NOW, Office, Peer

COMMITTED = Stamp(10, NOW + 1, NOW + 1)
FAULT = "its object has 3 bytes instead of 10"


class Scene:
    """A file on s1, committed and closed, with a copy or not."""

    def __init__(self, office: Office, mount: Peer, agents: tuple[Peer, Peer, Peer]) -> None:
        self.office, self.mount, self.agents = office, mount, agents

    async def file(self, *, copied: bool) -> Node:
        node = await self.mount.make(b"f")
        await self.mount.commit(node.ino, 1)
        await self.mount.ask(Close([Closing(node.ino, 9)]))
        for agent in self.agents if copied else ():
            for task in await agent.claim():
                await agent.done(task)
        return await self.mount.attr(node.ino)

    async def damage(self, ino: int, *, fault: str = FAULT, stamp: Stamp = COMMITTED) -> bool:
        return (await self.agents[0].ask(ReportDamage(1, ino, 1, stamp, fault))).pending


async def scene(office: Office) -> Scene:
    return Scene(office, await office.peer(), await office.three_servers())


async def test_a_current_replica_takes_over(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=True)
    assert not await s.damage(node.ino)
    opened = await s.mount.ask(Locate(node.ino))
    assert (opened.node.home_volume != 1, opened.node.home_epoch, opened.node.version) == (True, 2, 1)
    assert [replica.volume for replica in opened.replicas] == [opened.node.home_volume]
    assert (await s.mount.ask(GetStatus())).damaged == 0
    (left,) = (await s.agents[0].ask(ListForsaken())).objects
    assert (left.ino, left.volume, left.stamp, left.kept_checksum) == (node.ino, 1, COMMITTED, b"c" * 32)
    with pytest.raises(Fenced):
        await s.mount.one(Commit(node.ino, 1, 2, Content(3, 8, NOW, NOW), True))


async def test_while_it_may_be_written_the_home_stays(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=True)
    await s.mount.ask(Open(node.ino, True, 20))
    assert not await s.damage(node.ino)  # it is dirty: what is there may be newer
    assert (await s.mount.attr(node.ino)).home_volume == 1
    await s.mount.one(Commit(node.ino, 1, 1, None, True))
    await s.mount.ask(Close([Closing(node.ino, 21)]))
    office.state.in_grace = True
    assert await s.damage(node.ino)
    assert list(office.state.damaged_homes) == [node.ino]
    office.state.in_grace = False
    assert not await s.damage(node.ino)
    assert (await s.mount.attr(node.ino)).home_volume != 1


async def test_an_outdated_report_changes_nothing(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=True)
    assert not await s.damage(node.ino, stamp=Stamp(11, NOW, NOW))
    assert (await s.mount.attr(node.ino)).home_volume == 1
    with pytest.raises(Refused):
        await s.agents[1].ask(ReportDamage(1, node.ino, 1, COMMITTED, FAULT))


async def test_a_damaged_copy_is_made_again(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=True)
    copy = next(row for row in (await s.mount.ask(GetWhere(node.ino))).replicas if not row.home)
    agent = s.agents[copy.volume - 1]
    (held,) = (await agent.ask(ListHeld(copy.volume, 0, 10))).objects
    assert held == HeldObject(node.ino, 1, Stamp(10, 1, 1), b"c" * 32, "")
    await agent.ask(ReportDamage(copy.volume, node.ino, 1, held.stamp, MISSING))
    (task,) = await agent.claim()
    assert (task.ino, task.volume) == (node.ino, copy.volume)
    await agent.done(task)
    assert all(row.current for row in (await s.mount.ask(GetWhere(node.ino))).replicas)


async def test_what_was_touched_has_another_stamp(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=False)
    await s.damage(node.ino)
    found = Stamp(10, NOW + 1, NOW + 77)
    await s.agents[0].ask(Restamp(1, node.ino, 1, COMMITTED, found))
    assert (await s.mount.attr(node.ino)).object_ctime_ns == NOW + 77
    (held,) = (await s.agents[0].ask(ListHeld(1, 0, 10))).objects
    assert (held.stamp, held.fault) == (found, "")


async def test_without_another_replica_the_damage_is_told_until_it_is_accepted(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=False)
    with pytest.raises(Refused, match="nothing is known to be wrong"):
        await s.mount.ask(AcceptContent(node.ino))
    assert not await s.damage(node.ino)
    assert (await s.mount.ask(GetStatus())).damaged == 1
    assert (await s.mount.ask(GetWhere(node.ino))).replicas[0].fault == FAULT
    assert (await s.mount.ask(Locate(node.ino))).replicas == []
    assert (await s.mount.ask(AcceptContent(node.ino))).dirty
    assert (await s.agents[0].ask(ListUnsettled(10))).inodes == [node.ino]
    with pytest.raises(Refused, match="being written") as error:
        await s.agents[0].one(Commit(node.ino, 1, 1, None, True))
    assert error.value.errno == errno.ESTALE
    node = await s.agents[0].one(Commit(node.ino, 1, 2, Content(3, 8, NOW, NOW), True))
    assert (node.size, node.dirty) == (3, False)
    assert (await s.mount.ask(GetStatus())).damaged == 0


async def test_an_older_copy_is_taken_if_somebody_says_so(office: Office) -> None:
    s = await scene(office)
    node = await s.file(copied=True)
    await s.mount.ask(Open(node.ino, True, 20))
    await s.mount.commit(node.ino, 2, size=12)
    await s.mount.ask(Close([Closing(node.ino, 21)]))
    stamp = Stamp(12, NOW + 2, NOW + 2)
    await s.agents[0].ask(ReportDamage(1, node.ino, 2, stamp, MISSING))
    with pytest.raises(Refused, match="nothing is left"):
        await s.mount.ask(AcceptContent(node.ino))
    taken = await s.mount.ask(AcceptContent(node.ino, older=True))
    assert (taken.home_volume != 1, taken.version, taken.size) == (True, 3, 10)
    assert [item.ino for item in (await s.agents[0].ask(ListForsaken())).objects] == [node.ino]
