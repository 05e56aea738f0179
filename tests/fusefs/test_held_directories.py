"""What a mount makes of a change by itself is what the manager makes of it: the same random changes by both, side by side."""

import random
import stat
from pathlib import Path
from typing import cast

import pytest
import trio

from cluster.errors import Refused
from cluster.journal import UNSENT_MAX
from cluster.messages import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INO,
    Applied,
    Commit,
    Content,
    Create,
    Entry,
    Grant,
    HeldDirectory,
    Link,
    Node,
    Operation,
    ReadDir,
    RecordsApplied,
    Rename,
    Rmdir,
    SetAttr,
    Unlink,
)
from cluster.rpc.session import ManagerSession
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.caching.held import HeldDirectories, Names
from fusefs.caching.listings import Contents
from fusefs.caching.recalls import Recalls
from tests.fusefs.holding import TIMEOUT_S, HoldingManager, MemoryJournal, held_on, records_of
from tests.fusefs.test_changes import NoRecalls
from tests.manager.office import NOW, Peer, small_network

STEPS = 3000
SEEDS = [1, 2, 3]
NAMES = [b"a", b"b", b"c", b"d", b"e"]
ACCESS_S = 1e6
DIRECTORIES_MAX = 6


class Real(HoldingManager):
    """A manager in office, which lets nobody hold anything by a request of the mount."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.peer = peer
        self.applied = 0

    async def apply_for_tokens(self, operations: list[Operation], *, timeout_s: float) -> Applied:
        self.applied += 1
        return await self.peer.applied(*operations)


class Both:
    """A mount that is alone everywhere, and a manager that makes the same changes."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self.peer, self.random = peer, random.Random(seed)
        self.caching = Caching()
        self.alone = Alone(self.caching)
        self.manager, self.journal = Real(peer), MemoryJournal()
        self.records = records_of(self.manager, self.journal)
        session = cast(ManagerSession, self.manager)
        self.held = HeldDirectories(session, self.caching, self.alone, self.records, TIMEOUT_S)
        self.changes = Changes(session, self.held, self.caching, cast(Recalls, NoRecalls()), TIMEOUT_S)
        self.serial = self.now_ns = 0
        self.names: dict[int, dict[bytes, int]] = {ROOT_INO: {}}  # by directory: what the manager says
        self.alone_made = 0

    async def hold(self) -> None:
        """Alone with all that there is."""
        self.serial += 1
        now, nodes = trio.current_time(), {ROOT_INO: await self.peer.attr(ROOT_INO)}
        for directory in self.names:
            entries = (await self.peer.ask(ReadDir(directory, 0, 1000))).entries
            self.names[directory] = {entry.name: entry.node.ino for entry in entries}
            nodes |= {entry.node.ino: entry.node for entry in entries}
        grant = Grant(self.serial, ACCESS_S, list(nodes), ACCESS_S)
        permit = self.caching.take(grant, now)
        self.alone.granted(grant, now)
        for node in nodes.values():
            self.caching.keep_node(node, permit)
        for directory, names in self.names.items():
            self.caching.keep_contents(directory, Contents(None, dict(names), permit))

    async def step(self) -> None:
        operation, names = await self.draw()
        before = self.records.recorded
        try:
            changed = await self.changes.apply(operation, names=names)
        except Refused:
            await self.hold()
            return
        if self.records.recorded == before:
            await self.hold()  # the manager has made it, who grants nothing to who does not watch
        else:
            self.alone_made += 1
            (node,) = await self.peer.apply(self.journal.records[-1][1].operation)
            assert changed.node == node
        if isinstance(operation, Create) and stat.S_ISDIR(operation.mode):
            self.caching.keep_contents(operation.ino, Contents(None, {}, changed.permit))
            self.names[operation.ino] = {}
        if isinstance(operation, Rmdir):
            self.names.pop(self.names[operation.parent][operation.name], None)
        await self.compare()

    async def compare(self) -> None:
        for directory in self.names:
            entries = (await self.peer.ask(ReadDir(directory, 0, 1000))).entries
            self.names[directory] = {entry.name: entry.node.ino for entry in entries}
            contents = self.caching.contents(directory)
            if contents is not None:
                assert {name: ino for name, ino in contents.changes.items() if ino} == self.names[directory]
                assert contents.is_empty() == (not entries)
            for entry in entries:
                kept = self.caching.node(entry.node.ino)
                assert kept is None or kept[0] == entry.node
            kept = self.caching.node(directory)
            assert kept is None or kept[0] == await self.peer.attr(directory)

    async def draw(self) -> tuple[Operation, Names]:
        self.now_ns += 1000
        now, draw = NOW + self.now_ns, self.random
        parent, name = draw.choice(list(self.names)), draw.choice(NAMES)
        other, new_name = draw.choice(list(self.names)), draw.choice(NAMES)
        every = [ino for names in self.names.values() for ino in names.values()]
        match draw.choices(["create", "link", "unlink", "rmdir", "rename", "setattr", "commit"], [9, 2, 4, 2, 6, 4, 2])[0]:
            case "link" if every:
                ino = draw.choice(every)
                return Link(ino, parent, name, now), {(parent, name): ino}
            case "unlink":
                return Unlink(parent, name, now), {(parent, name): 0}
            case "rmdir":
                return Rmdir(parent, name, now), {(parent, name): 0}
            case "rename":
                flags = draw.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
                return Rename(parent, name, other, new_name, flags, now), {(parent, name): None, (other, new_name): None}
            case "setattr" if every:
                fields = {key: draw.choice([None, draw.randrange(1000)]) for key in ("uid", "gid", "atime_ns", "mtime_ns")}
                return SetAttr(draw.choice([*every, *self.names]), now, draw.choice([None, 0o2755, 0o600]), **fields), {}
            case "commit" if every:
                ino = draw.choice(every)
                return Commit(ino, 1, self.now_ns, Content(5, 8, now, now), False), {}
        return await self.draw_create(parent, name, now)

    async def draw_create(self, parent: int, name: bytes, now: int) -> tuple[Operation, Names]:
        kinds = [stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR]
        kind = self.random.choice(kinds + [stat.S_IFDIR] * 2 * (len(self.names) < DIRECTORIES_MAX))
        target = b"somewhere" if kind == stat.S_IFLNK else b""
        volume, mode = int(kind == stat.S_IFREG), kind | self.random.choice([0o777, 0o644, 0o2755])
        ino = await self.peer.new_ino()
        create = Create(parent, name, ino, mode, 3, 4, 5, now, volume, target, self.random.choice([0, 0o22, 0o77]))
        return create, {(parent, name): ino}


async def test_a_time_that_the_catalog_cannot_have_is_left_to_the_manager(tmp_path: Path) -> None:
    async with small_network(f"sqlite:///{tmp_path}/catalog.db") as (_office, mount):
        both = Both(mount, 1)
        await both.hold()
        for time_ns in (2**63, -(2**63) - 1, 2**70):
            assert both.held.apply(SetAttr(ROOT_INO, NOW, atime_ns=time_ns)) is None
        assert both.held.apply(SetAttr(ROOT_INO, NOW, atime_ns=2**63 - 1)) is not None


@pytest.mark.usefixtures("autojump_clock")
async def test_leases_of_entries_that_have_ended_are_asked_for_again_with_their_directory() -> None:
    caching, manager = Caching(), HoldingManager()
    held = held_on(caching, manager)
    directory, file = (
        Node(10, 0o40755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, xattrs=0),
        Node(11, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, xattrs=0),
    )
    manager.held[10] = HeldDirectory(directory, [Entry(b"file", 5, file)], Grant(1, 15.0, [10, 11], 15.0))
    change = SetAttr(11, NOW, mode=0o600)

    assert held.apply(change) is None
    assert not await held.prepare((10,))
    assert await held.prepare((10,)), "the second change in short time"
    assert held.apply(change) is not None
    await trio.sleep(10)
    held.applied(RecordsApplied(1, grant=Grant(1, 15.0, [10], 15.0)), trio.current_time())
    await trio.sleep(6)
    assert held.apply(change) is None, "only the directory was used"
    assert not await held.prepare((10,))
    assert await held.prepare((10,))
    assert held.apply(change) is not None
    assert held.apply(SetAttr(12, NOW, mode=0o600)) is None
    assert not await held.prepare((10,)), "which would not be known either if it was asked for again at once"
    assert manager.asked == [10, 10]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_mount_makes_of_a_change_what_the_manager_makes_of_it(tmp_path: Path, seed: int) -> None:
    async with small_network(f"sqlite:///{tmp_path}/catalog.db") as (_office, mount):
        async with trio.open_nursery() as nursery:
            both = Both(mount, seed)
            nursery.start_soon(both.records.run)
            await both.hold()
            for _ in range(STEPS):
                await both.step()
                if len(both.records) > UNSENT_MAX // 2:
                    await both.records.flush()
            nursery.cancel_scope.cancel()
        assert both.alone_made > STEPS / 4
