"""What `stat` says of a file that is being written elsewhere: what it is now, or nothing, and never what it was."""

import stat
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from cluster.errors import GodwitError, Unavailable
from cluster.messages import Content, Described, GetAttr, Node
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.tokens import Leases
from fusefs.content.attributes import GLANCE_S, Attributes
from fusefs.content.open_files import OpenFiles
from fusefs.content.peers import Peers
from tests.fusefs.delegating import delegations

INO = 7
TIMEOUT_S = 5.0
COMMITTED = msgspec.structs.replace(Node(INO, stat.S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), size=10, dirty=True)


class World:
    """The manager, which knows *COMMITTED* or what it is told, and the home, which is away until *back_s*."""

    def __init__(self, back_s: float) -> None:
        self.back_s = back_s
        self.catalog = COMMITTED
        self.size = 20
        self.is_silent = False

    async def call(self, request: GetAttr, *, timeout_s: float) -> Described:
        assert (request.ino, timeout_s) == (INO, TIMEOUT_S)
        return Described(self.catalog)


class Away(Attributes):
    """Whose homes are those of a `World`."""

    def __init__(self, world: World) -> None:
        nothing: Any = None
        files = OpenFiles(lambda _ino: None, delegations(Caching()))
        super().__init__(cast(ManagerSession, world), cast(Peers, nothing), cast(Leases, nothing), files, TIMEOUT_S)
        self._world = world

    async def _content(self, *_of: object) -> Content:
        if self._world.is_silent:
            await trio.sleep_forever()
        if trio.current_time() < self._world.back_s:
            raise Unavailable("the agent does not answer")
        return Content(size=self._world.size, blocks=8, mtime_ns=1, ctime_ns=1)


def run(world: World, work: Any) -> Any:
    async def main() -> Any:
        world.back_s += trio.current_time()
        return await work(Away(world))

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_it_waits_for_the_home() -> None:
    assert run(World(TIMEOUT_S / 2), lambda attributes: attributes.live(COMMITTED)).size == 20


def test_it_fails_rather_than_say_the_last_committed_size() -> None:
    with pytest.raises(GodwitError, match="cannot say how large") as raised:
        run(World(TIMEOUT_S * 2), lambda attributes: attributes.live(COMMITTED))
    assert raised.value.errno == 5


def test_a_file_that_is_committed_meanwhile_is_what_the_catalog_says() -> None:
    world = World(TIMEOUT_S * 2)
    world.catalog = msgspec.structs.replace(COMMITTED, size=30, dirty=False)
    assert run(world, lambda attributes: attributes.live(COMMITTED)).size == 30


def test_a_name_is_given_without_waiting_and_without_what_may_be_old() -> None:
    assert run(World(TIMEOUT_S * 2), lambda attributes: attributes.glance(COMMITTED)) == (COMMITTED, False)
    present, current = run(World(0.0), lambda attributes: attributes.glance(COMMITTED))
    assert (present.size, current) == (20, True)


def test_a_glance_does_not_wait_for_a_home_that_is_silent() -> None:
    world = World(0.0)
    world.is_silent = True

    async def glance(attributes: Attributes) -> tuple[tuple[Node, bool], float]:
        began_s = trio.current_time()
        return await attributes.glance(COMMITTED), trio.current_time() - began_s

    found, took_s = run(world, glance)
    assert found == (COMMITTED, False)
    assert took_s == pytest.approx(GLANCE_S)
