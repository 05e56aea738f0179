"""Opening: what is asked of whom, once, and what is left when it fails."""

import os
from typing import Any, cast

import msgspec
import pytest
import trio

from cluster.errors import Fenced, GodwitError, Refused, Unavailable
from cluster.leases import LeaseToken
from cluster.messages import Grant, Node, Open, Opened, Request
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Held, Leases
from fusefs.content.homes import Homes
from fusefs.content.objects import Object
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode, Stage
from fusefs.content.opening import Opener
from fusefs.content.privileges import Privileges
from tests.fusefs.delegating import delegations

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)
TIMEOUT_S = 5.0


class Home:
    """An object."""

    def __init__(self, world: "World", *, is_remote: bool) -> None:
        self.is_remote = is_remote
        self._world = world

    async def truncate(self, size: int) -> None:
        assert size == 0
        self._world.log.append("truncate")
        if self._world.failure is not None:
            raise self._world.failure

    def close(self) -> None:
        return


class World:
    """The manager, the homes and the leases; notes in `log` what they are asked."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.node = NODE
        self.is_remote = False
        self.token_epoch = 1
        self.failure: GodwitError | None = None
        self.settled: list[int] = []
        self.caching = Caching()
        self.open_files = OpenFiles(self.settled.append, delegations(self.caching))
        self.opener = Opener(
            cast(ManagerSession, self),
            cast(Leases, self),
            self.caching,
            cast(Homes, self),
            self.open_files,
            cast(Privileges, self),
            TIMEOUT_S,
        )

    async def call(self, request: Request[Any], *, timeout_s: float) -> Opened:
        assert isinstance(request, Open)
        assert timeout_s == TIMEOUT_S
        self.log.append(f"open {'to write' if request.write else 'to read'}")
        return Opened(self.node, [], True, 1, 1, b"", Grant(1, 60.0, [NODE.ino]))

    def granted(self, _sealed: bytes, _asked_s: float) -> None:
        """The lease that came with an open."""

    async def hold(self, ino: int) -> Held:
        self.log.append("lease")
        return Held(LeaseToken(1, ino, "W", "s1", 1, "", 3, self.token_epoch, 1, 60.0, 0.0), b"", 60.0, 60.0)

    def check_content(self, ino: int) -> None:
        assert ino == NODE.ino

    async def ask(self, ino: int) -> Opened:
        assert ino == NODE.ino
        self.log.append("locate")
        return Opened(self.node, [], True, 1, 1)

    async def ready_to_write(self, _state: OpenInode) -> None:
        self.log.append("ready")
        if isinstance(self.failure, Unavailable):
            raise self.failure

    async def reach(self, state: OpenInode) -> Object:
        self.log.append("reach")
        home = cast(Object, Home(self, is_remote=self.is_remote))
        state.reach_begins()
        state.reached(home)
        return home

    async def reach_here(self, _state: OpenInode) -> None:
        self.log.append("here")

    async def drop_capabilities(self, _state: OpenInode) -> None:
        self.log.append("capabilities")

    async def drop_set_id(self, _state: OpenInode) -> None:
        self.log.append("set-id")

    async def asked(self, flags: int, uid: int = 0) -> list[str]:
        """What is asked for one more open."""
        self.log = []
        await self.opener.open(NODE.ino, flags, uid)
        return self.log

    def close_all(self) -> None:
        self.open_files.release_all()


@pytest.fixture
def world() -> World:
    return World()


async def test_reading_asks_where_it_is_and_registers_once(world: World) -> None:
    assert await world.asked(os.O_RDONLY) == ["locate", "open to read", "here"]
    assert await world.asked(os.O_RDONLY) == ["here"]


async def test_writing_reaches_the_home_before_the_manager_is_told_and_after(world: World) -> None:
    assert await world.asked(os.O_WRONLY) == ["locate", "ready", "open to write", "reach", "lease"]
    assert await world.asked(os.O_WRONLY) == ["ready", "reach", "lease"]
    assert await world.asked(os.O_RDONLY) == ["here"]


async def test_a_reader_becomes_a_writer_by_registering_again(world: World) -> None:
    await world.asked(os.O_RDONLY)
    assert await world.asked(os.O_RDWR) == ["ready", "open to write", "reach", "lease"]


async def test_what_lingers_is_opened_without_asking_while_it_is_kept(world: World) -> None:
    await world.asked(os.O_RDONLY)
    world.close_all()
    assert world.settled == [NODE.ino]
    assert await world.asked(os.O_RDONLY) == ["here"]
    world.close_all()
    world.caching.drop_node(NODE.ino)
    assert await world.asked(os.O_RDONLY) == ["open to read", "here"]


@pytest.mark.parametrize("is_remote", [False, True])
async def test_who_opens_a_file_whose_last_commit_may_have_begun_elsewhere_registers_again(world: World, is_remote: bool) -> None:
    """An agent commits when the registration to write was taken back, whatever the stage says here."""
    world.is_remote = is_remote
    await world.asked(os.O_WRONLY)
    world.close_all()
    registers = ["open to write"] if is_remote else []
    assert await world.asked(os.O_WRONLY) == ["ready", *registers, "reach", "lease"]


async def test_what_is_dirty_is_read_at_its_home_alone(world: World) -> None:
    world.node = msgspec.structs.replace(NODE, dirty=True)
    assert await world.asked(os.O_RDONLY) == ["locate", "reach", "open to read", "here"]


@pytest.mark.parametrize("uid", [0, 1000])
async def test_truncating_comes_before_there_is_a_handle(world: World, uid: int) -> None:
    asked = await world.asked(os.O_WRONLY | os.O_TRUNC, uid)
    assert asked[-3 if uid else -2 :] == ["truncate", "capabilities", *(["set-id"] if uid else [])]
    state = world.open_files.get(NODE.ino)
    assert state is not None
    assert (state.stage, state.writers) == (Stage.WRITTEN, 1)


@pytest.mark.parametrize(
    ("failure", "epoch", "stage"),
    [
        (Unavailable("the home is away"), 1, Stage.ENTERED),
        (GodwitError("the disk is bad"), 1, Stage.WRITTEN),
        (None, 2, Stage.WRITING),
    ],
    ids=["not reached", "not truncated", "moved meanwhile"],
)
async def test_an_open_that_fails_leaves_no_handle(world: World, failure: GodwitError | None, epoch: int, stage: Stage) -> None:
    world.failure, world.token_epoch = failure, epoch
    with pytest.raises(GodwitError if failure else Fenced):
        await world.opener.open(NODE.ino, os.O_WRONLY | os.O_TRUNC)
    state = world.open_files.get(NODE.ino)
    assert state is not None
    assert (state.stage, state.handles) == (stage, 0)
    assert world.settled == [NODE.ino]


async def test_two_who_open_at_the_same_time_share_one_state(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(world.opener.open, NODE.ino, os.O_RDONLY)
    assert world.log.count("open to read") == 1
    state = world.open_files.get(NODE.ino)
    assert state is not None
    assert state.readers == 2


async def test_a_home_that_failed_is_registered_anew_by_the_first_who_met_it(world: World) -> None:
    await world.asked(os.O_WRONLY)
    state = world.open_files.get(NODE.ino)
    assert state is not None
    failed = state.home
    world.log = []
    await world.opener.reopen(state, failed)
    await world.opener.reopen(state, failed)
    assert world.log == ["open to write", "reach", "reach"]


async def test_what_was_left_meanwhile_is_not_registered_again(world: World) -> None:
    """A request whose program was interrupted goes on, and nobody would close what it opens."""
    await world.asked(os.O_RDONLY)
    state = world.open_files.get(NODE.ino)
    assert state is not None
    world.close_all()
    world.open_files.leave(state)
    world.log = []
    with pytest.raises(Refused, match="closed here"):
        await world.opener.reopen(state, state.home)
    assert world.log == []
