"""What agents are told of their replicas, and what follows when one is not there."""

import errno

import pytest
import trio

from cluster.errors import ProtocolError, Refused
from cluster.messages import (
    ROOT_INO,
    Close,
    Closing,
    ListForsaken,
    ListReplicas,
    Open,
    ReplicaState,
    ReportDamage,
    Restamp,
    Stamp,
    Unlink,
)
from tests.manager.changes.test_copies import agents_of, where
from tests.manager.changes.test_membership import copied_file
from tests.manager.office import NOW, Office, Peer, small_network


async def state_of(agent: Peer, volume: int, ino: int) -> ReplicaState:
    (found,) = (await agent.ask(ListReplicas(volume, ino - 1, 1, with_paths=True))).replicas
    assert found.ino == ino
    return found


def number(server: str) -> int:
    return int(server[1:])


async def test_replicas_are_listed_by_inode_with_what_the_file_is(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        inos = [(await mount.make(b"%d" % n)).ino for n in range(5)]
        listed = (await agents["s1"].ask(ListReplicas(1, 0, 3))).replicas
        assert [item.ino for item in listed] == inos[:3]
        assert all(
            (item.version, item.stamp, item.is_home, item.dirty, item.path) == (0, None, True, True, b"") for item in listed
        )
        rest = (await agents["s1"].ask(ListReplicas(1, inos[2], 1000))).replicas
        assert [item.ino for item in rest] == inos[3:]
        assert (await agents["s1"].ask(ListReplicas(1, inos[4], 1000))).replicas == []
        with pytest.raises(Refused) as refusal:
            await agents["s1"].ask(ListReplicas(2, 0, 3))
        assert refusal.value.errno == errno.ENOENT
        with pytest.raises(Refused, match="which is for: agent"):
            await mount.ask(ListReplicas(1, 0, 3))


async def test_a_copy_that_is_missing_counts_no_more_and_is_made_again(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, target = await copied_file(office, mount, b"f")
        agents = await agents_of(office)
        found = await state_of(agents[target], number(target), ino)
        assert (found.version, found.wanted, found.is_home, found.dirty) == (1, 1, False, False)
        assert (found.others, found.task, found.path, found.checksum) == (1, "", b"/f", b"c" * 32)
        assert found.stamp is not None
        stale = ReportDamage(number(target), ino, 1, Stamp(1, 1, 1), "its object is missing")
        await agents[target].ask(stale)
        assert (await state_of(agents[target], number(target), ino)).fault == "", "it says something else by now"
        await agents[target].ask(ReportDamage(number(target), ino, 1, found.stamp, "its object is missing"))
        after = await state_of(agents[target], number(target), ino)
        assert (after.fault, after.task) == ("its object is missing", "copy")
        assert (await state_of(agents["s1"], 1, ino)).others == 0
        (task,) = await agents[target].claim()
        await agents[target].done(task)
        after = await state_of(agents[target], number(target), ino)
        assert (after.fault, after.task) == ("", "")


async def test_a_home_that_is_missing_moves_to_a_current_copy(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, target = await copied_file(office, mount, b"f")
        agents = await agents_of(office)
        home = await state_of(agents["s1"], 1, ino)
        assert (home.is_home, home.others, home.home_epoch) == (True, 1, 1)
        assert home.stamp is not None
        report = ReportDamage(1, ino, 1, home.stamp, "its object is missing")
        assert (await agents["s1"].ask(report)).pending, "the mount has not said yet that it has closed the file"
        await mount.ask(Close([Closing(ino, 2)]))
        assert not (await agents["s1"].ask(report)).pending
        after = await state_of(agents[target], number(target), ino)
        assert (after.is_home, after.home_epoch, after.others) == (True, 2, 0)
        assert (await agents["s1"].ask(ListReplicas(1, ino - 1, 1))).replicas == []
        assert [item.ino for item in (await agents["s1"].ask(ListForsaken())).objects] == [ino]


async def test_a_home_stays_while_somebody_may_write_or_nothing_else_is_current(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, target = await copied_file(office, mount, b"f")
        agents = await agents_of(office)
        home = await state_of(agents["s1"], 1, ino)
        copy = await state_of(agents[target], number(target), ino)
        assert home.stamp is not None
        assert copy.stamp is not None
        await mount.ask(Open(ino, True, 1))
        report = ReportDamage(1, ino, 1, home.stamp, "cut short")
        await agents["s1"].ask(report)
        dirty = await state_of(agents["s1"], 1, ino)
        assert (dirty.is_home, dirty.dirty, dirty.fault) == (True, True, ""), "it has content that the catalog does not know"

        alone = await mount.make(b"alone")
        await mount.commit(alone.ino, 1)
        only = await state_of(agents["s1"], 1, alone.ino)
        assert only.stamp is not None
        assert not (await agents["s1"].ask(ReportDamage(1, alone.ino, 1, only.stamp, "cut short"))).pending
        after = await state_of(agents["s1"], 1, alone.ino)
        assert (after.is_home, after.fault, after.home_epoch) == (True, "cut short", 1)


async def test_an_object_that_was_brought_back_counts_again(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, _target = await copied_file(office, mount, b"f")
        agents = await agents_of(office)
        home = await state_of(agents["s1"], 1, ino)
        assert home.stamp is not None
        found = Stamp(home.stamp.size, home.stamp.mtime_ns, home.stamp.ctime_ns + 5)
        await agents["s1"].ask(Restamp(1, ino, 1, home.stamp, Stamp(home.stamp.size + 1, 1, 1)))
        assert (await state_of(agents["s1"], 1, ino)).stamp == home.stamp, "another size is another content"
        await agents["s1"].ask(Restamp(1, ino, 1, home.stamp, found))
        after = await state_of(agents["s1"], 1, ino)
        assert (after.stamp, after.fault) == (found, "")
        assert (await where(mount, ino)).node.object_ctime_ns == found.ctime_ns
        with pytest.raises(ProtocolError):
            await agents["s1"].ask(Restamp(1, ino, 2**63, home.stamp, found))


def test_what_is_going_is_not_looked_at(url: str) -> None:
    async def main() -> None:
        async with small_network(url) as (office, mount):
            await _remove(office, mount)

    async def _remove(office: Office, mount: Peer) -> None:
        ino, target = await copied_file(office, mount, b"f")
        await mount.apply(Unlink(ROOT_INO, b"f", NOW))
        agents = await agents_of(office)
        found = await state_of(agents[target], number(target), ino)
        assert found.wanted == -1

    trio.run(main)
