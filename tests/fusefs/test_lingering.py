"""Registrations that outlast the last close: for how long, and what ends them at once."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from cluster.messages import Grant, Node, Recall
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.content.lingering import LINGER_MAX, LINGER_S, LOOK_S, Lingering
from fusefs.content.local_object import LocalObject
from fusefs.content.open_inode import OpenInode
from tests.fusefs.delegating import Model, delegations

pytestmark = pytest.mark.usefixtures("autojump_clock")

REGULAR, DIRECTORY = 0o100644, 0o040755
ACCESS_S = 60.0


class Mount:
    def __init__(self) -> None:
        self.ended: list[int] = []
        self.caching = Caching()
        self.delegated, self.leases_used = Model(), list[int]()
        delegating = delegations(self.caching, self.delegated, use=self.leases_used.append)
        self.lingering = Lingering(self.caching, delegating, self.ended.append)
        self.serial = 0

    def read(self, ino: int, mode: int = REGULAR) -> OpenInode:
        """Has been read, and is cached."""
        self.serial += 1
        node = Node(ino, mode, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version=1, home_volume=1, home_epoch=1)
        self.caching.keep_node(node, self.caching.take(Grant(self.serial, ACCESS_S, [ino]), trio.current_time()))
        state = OpenInode(node)
        state.presented()
        return state

    def has_object(self, state: OpenInode) -> None:
        """Its home is on this server's disk."""
        descriptor = os.memfd_create("object")
        state.reach_begins()
        state.reached(LocalObject("/volume/objects/0/7", descriptor, cast(ManagerSession, None), 1.0))

    def recalls(self, ino: int) -> None:
        self.serial += 1
        self.caching.recalled(Recall(1, self.serial, [ino]))


@pytest.fixture
@asynccontextmanager
async def mount() -> AsyncIterator[Mount]:
    mount = Mount()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.lingering.run)
        yield mount
        nursery.cancel_scope.cancel()


async def test_a_file_that_is_not_opened_again_is_closed_after_a_while(mount: Mount) -> None:
    state = mount.read(7)
    assert mount.lingering.keeps(state)
    await trio.sleep(LINGER_S - LOOK_S)
    assert mount.ended == []
    assert mount.lingering.keeps(state), "opened and closed again"
    await trio.sleep(LINGER_S - LOOK_S)
    assert mount.ended == []
    await trio.sleep(3 * LOOK_S)
    assert mount.ended == [7]
    assert not mount.lingering.keeps(state)
    assert mount.lingering.keeps(state), "the next time"


async def test_what_may_not_be_cached_does_not_linger(mount: Mount) -> None:
    state = mount.read(7)
    assert mount.lingering.keeps(state)
    mount.recalls(7)
    await trio.sleep(2 * LOOK_S)
    assert mount.ended == [7]
    assert not mount.lingering.keeps(state)
    assert not mount.lingering.keeps(state)


async def test_who_is_recalled_lets_go_at_once(mount: Mount) -> None:
    state = mount.read(7)
    assert not mount.lingering.give_up(7)
    assert mount.lingering.keeps(state)
    assert mount.lingering.give_up(7)
    assert not mount.lingering.keeps(state)
    assert mount.ended == [], "the caller sees to it"


async def test_neither_directories_nor_lost_files_linger(mount: Mount) -> None:
    assert not mount.lingering.keeps(mount.read(7, DIRECTORY))
    lost = mount.read(8)
    lost.lost()
    assert not mount.lingering.keeps(lost)


async def test_of_too_many_the_first_is_closed(mount: Mount) -> None:
    for ino in range(1, LINGER_MAX + 2):
        assert mount.lingering.keeps(mount.read(ino))
    assert mount.ended == [1]


async def test_at_the_end_nothing_lingers(mount: Mount) -> None:
    state, other = mount.read(7), mount.read(8)
    assert mount.lingering.keeps(state)
    mount.lingering.stop()
    assert mount.ended == [7]
    assert not mount.lingering.keeps(state)
    assert not mount.lingering.keeps(other)


async def test_what_the_extension_opens_lingers_on(mount: Mount) -> None:
    state = mount.read(7)
    mount.has_object(state)
    assert mount.lingering.keeps(state)
    for _ in range(3):
        await trio.sleep(LINGER_S - LOOK_S)
        opened = mount.delegated.open(7)
        assert opened is not None
        assert mount.delegated.release(opened[0])
    assert mount.ended == []
    await trio.sleep(LINGER_S + 2 * LOOK_S)
    assert mount.ended == [7]


async def test_what_is_open_by_the_extension_lingers_for_as_long(mount: Mount) -> None:
    state = mount.read(7)
    mount.has_object(state)
    assert mount.lingering.keeps(state)
    assert mount.delegated.open(7) is not None
    await trio.sleep(3 * LINGER_S)
    assert mount.ended == []
    assert mount.leases_used == [7] * len(mount.leases_used)
    mount.recalls(7)
    await trio.sleep(2 * LOOK_S)
    assert mount.ended == [7], "without a lease its handles are the mount's"
