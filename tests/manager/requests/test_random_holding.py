"""Random histories of three mounts that hold directories: whoever looks sees every change that was acknowledged before.

The seed is fixed. More, or others: GODWIT_FUZZ_STEPS=5000 GODWIT_FUZZ_SEED=7.
"""

import os
import random
import stat
from contextlib import AsyncExitStack

import pytest
import trio

from cluster.messages import Expected, Grant, ReadDir, Recall, Rename, Rmdir, SetAttr, Unlink
from tests.manager.holding import HoldingMount, held_network, holding_mount
from tests.manager.office import NOW, Office
from tests.support.clocks import skip

pytestmark = pytest.mark.deadline(100_000)  # by the clock of the test, which it moves on

STEPS = int(os.environ.get("GODWIT_FUZZ_STEPS", "300"))
SEED = int(os.environ.get("GODWIT_FUZZ_SEED", "5"))
NAMES = [b"a", b"b", b"c", b"d", b"e"]
SKIPS_S = [0.6, 2.0, 20.0]


class Mount(HoldingMount):
    """Believes what it is told: until when it is alone with what."""

    def __init__(self, office: Office, peer: object) -> None:
        super().__init__(office, peer)
        self.alone: dict[int, float] = {}

    def believes(self, grant: Grant | None, asked_s: float) -> None:
        for ino in [] if grant is None else grant.inodes:
            self.alone[ino] = asked_s + (0.0 if grant is None else grant.access_s)

    def is_alone(self, *inodes: int) -> bool:
        return all(self.alone.get(ino, 0.0) > trio.current_time() for ino in inodes)

    async def flush(self) -> None:
        """Sends all that it has recorded, which nothing may refuse."""
        if len(self.journal) > self.sent:
            asked_s = trio.current_time()
            reply = await self.send()
            assert reply.lost == []
            self.believes(reply.grant, asked_s)

    async def _obey(self, recall: Recall) -> None:
        # As a mount does: nothing is changed by itself any more, then all is sent, then the answer.
        for ino in recall.inodes:
            self.alone.pop(ino, None)
        self.recalls.append(recall)
        self.unanswered.append(recall)
        await self.flush()
        for ino in recall.inodes:
            assert ino not in self.alone, "who is asked is granted nothing anew"
        await self.answer()


class World:
    """What is acknowledged: names of directories, modes of inodes."""

    def __init__(self, mounts: list[Mount], draw: random.Random) -> None:
        self.mounts = mounts
        self.draw = draw
        self.at_work = mounts[0]
        self.names: dict[int, dict[bytes, int]] = {}
        self.modes: dict[int, int] = {}
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    async def step(self) -> None:
        # Mostly the same one for a while: else nobody is ever let alone.
        if self.draw.random() < 0.1:
            self.at_work = self.draw.choice(self.mounts)
        mount = self.at_work if self.draw.random() < 0.9 else self.draw.choice(self.mounts)
        directory = self.draw.choice(list(self.names))
        await self.find(mount, directory)
        step = self.draw.choice([self.hold, self.look, self.stat, *[self.change] * 6])
        await step(mount, directory)
        if self.draw.random() < 0.03:
            await self.later(self.draw.choice(SKIPS_S))

    async def later(self, seconds: float) -> None:
        """Leases may end meanwhile: nothing is left unsent."""
        for mount in self.mounts:
            await mount.flush()
        await skip(seconds)

    async def find(self, mount: Mount, directory: int) -> None:
        """Looks up the names that lead to the directory, as a kernel does: else nobody knows its number."""
        parent = next((parent for parent, names in self.names.items() if directory in names.values()), None)
        if parent is None:
            return
        await self.find(mount, parent)
        name = next(name for name, ino in self.names[parent].items() if ino == directory)
        await self.look_up(mount, parent, name)

    async def look_up(self, mount: Mount, directory: int, name: bytes) -> None:
        if not mount.is_alone(directory):
            await mount.flush()
            node = (await mount.lookup(name, directory)).node
            assert (None if node is None else node.ino) == self.names[directory].get(name)

    async def hold(self, mount: Mount, directory: int) -> None:
        await mount.flush()
        asked_s = trio.current_time()
        answer = await mount.hold(directory)
        if answer.grant is None:
            await self.later(answer.wait_s + 0.1)
            asked_s = trio.current_time()
            answer = await mount.hold(directory)
        mount.believes(answer.grant, asked_s)
        if answer.grant is not None:
            self.count("held")
            assert {entry.name: entry.node.ino for entry in answer.entries} == self.names[directory]

    async def look(self, mount: Mount, directory: int) -> None:
        await mount.flush()
        found = await mount.peer.ask(ReadDir(directory, 0, 100))
        assert {entry.name: entry.node.ino for entry in found.entries} == self.names[directory]
        for entry in found.entries:
            assert stat.S_IMODE(entry.node.mode) == self.modes[entry.node.ino]

    async def stat(self, mount: Mount, directory: int) -> None:
        await mount.flush()
        assert stat.S_IMODE((await mount.peer.attr(directory)).mode) == self.modes[directory]

    async def change(self, mount: Mount, directory: int) -> None:
        """By itself if the mount can, else through the manager."""
        name = self.draw.choice(NAMES)
        await self.look_up(mount, directory, name)
        there = self.names[directory].get(name)
        if there is None:
            await self.make(mount, directory, name)
        elif self.draw.random() < 0.3:
            await self.chmod(mount, there)
        elif self.draw.random() < 0.5:
            await self.rename(mount, directory, name)
        else:
            await self.remove(mount, directory, name)

    async def make(self, mount: Mount, directory: int, name: bytes) -> None:
        is_directory = self.draw.random() < 0.3
        mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
        if mount.is_alone(directory):
            self.count("recorded")
            ino = await mount.create(name, directory, mode)
            mount.alone[ino] = mount.alone[directory]
        else:
            await mount.flush()
            volume = 0 if is_directory else int(mount.peer.server[1:])
            ino = (await mount.peer.make(name, directory, mode, home_volume=volume)).ino
        self.names[directory][name] = ino
        self.modes[ino] = stat.S_IMODE(mode)
        if is_directory:
            self.names[ino] = {}

    async def chmod(self, mount: Mount, ino: int) -> None:
        mode = self.draw.choice([0o600, 0o700, 0o755])
        if mount.is_alone(ino):
            self.count("recorded")
            mount.record(SetAttr(ino, NOW, mode=mode))
        else:
            await mount.flush()
            await mount.peer.one(SetAttr(ino, NOW, mode=mode))
        self.modes[ino] = mode

    async def rename(self, mount: Mount, directory: int, name: bytes) -> None:
        other = self.draw.choice(list(self.names))
        await self.find(mount, other)
        new_name = self.draw.choice(NAMES)
        ino = self.names[directory][name]
        # What a directory that moves, or something that is replaced, needs is tested elsewhere.
        if ino in self.names or new_name in self.names[other]:
            return
        operation = Rename(directory, name, other, new_name, 0, NOW)
        if mount.is_alone(directory, other, ino):
            self.count("recorded")
            mount.record(operation, Expected(ino, 0))
        else:
            await mount.flush()
            await mount.peer.apply(operation)
        del self.names[directory][name]
        self.names[other][new_name] = ino

    async def remove(self, mount: Mount, directory: int, name: bytes) -> None:
        ino = self.names[directory][name]
        if self.names.get(ino):
            return
        operation = (Rmdir if ino in self.names else Unlink)(directory, name, NOW)
        if mount.is_alone(directory, ino):
            self.count("recorded")
            mount.record(operation, Expected(ino, 0))
        else:
            await mount.flush()
            await mount.peer.apply(operation)
        del self.names[directory][name]
        self.names.pop(ino, None)


@pytest.mark.search
async def test_whoever_looks_sees_what_was_acknowledged(url: str) -> None:
    draw = random.Random(SEED)
    async with held_network(url) as (office, first, _second), AsyncExitStack() as stack:
        top = (await first.peer.mkdir(b"d")).ino
        mounts = [await stack.enter_async_context(holding_mount(office, f"s{n}", Mount)) for n in (1, 2, 3)]
        world = World(mounts, draw)
        world.names[top], world.modes[top] = {}, 0o755
        for _ in range(STEPS):
            await world.step()
        for mount in mounts:
            for directory in list(world.names):
                await world.look(mount, directory)
        assert world.counts["held"]
        assert world.counts["recorded"]
        assert office.state.holds.lost.value == 0
