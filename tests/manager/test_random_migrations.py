"""Random work on real catalogs: files are written, moved, drained and lost while agents claim, report, fail and forget.

After each step the catalog must be one from which nothing can be lost; in the end everything has come to rest.
"""

import math
import random
from functools import partial

import pytest
import trio
from sqlalchemy import Connection, select

from cluster.errors import Fenced, Refused
from cluster.messages import (
    ROOT_INO,
    ChangeMigration,
    Close,
    Closing,
    Commit,
    Content,
    ListMigrations,
    ListTasks,
    MigrationChange,
    Open,
    ReportTasks,
    RetryTasks,
    StartMigration,
    Task,
    TaskOperation,
    TaskReport,
    Unlink,
)
from manager.catalog.schema import inodes, replicas, tasks
from manager.changes.tasks import release_claims
from manager.term import reap
from manager.workers.migrations import Migrator
from tests.manager.office import NOW, Office, Peer, in_office

SERVERS = ("s1", "s2", "s3", "s4")
COPIES = 2
FILES = 12
STEPS = 350
SEEDS = range(6)


class World:
    """Four servers, some files, and disks: which version is on which volume, whatever the catalog believes."""

    def __init__(self, office: Office, mount: Peer, agents: dict[str, Peer], seed: int) -> None:
        self.office, self.mount, self.agents = office, mount, agents
        self.draw = random.Random(seed)
        self.sequence = 1
        self.files: dict[int, bytes] = {}
        self.open: set[int] = set()
        self.disks: dict[tuple[int, int], int] = {}
        self.held: list[tuple[str, Task]] = []
        self.tokens = iter(range(1, 10_000))
        assert office.term is not None
        self.migrator = Migrator(office.term)

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    # ------------------------------------------------------------------------------------------------------ steps

    async def create(self) -> None:
        if len(self.files) >= FILES:
            return
        volume = self.draw.randint(1, len(SERVERS))
        name = b"f%d" % self.next()
        node = await self.mount.make(name, home_volume=volume)
        self.files[node.ino] = name
        self.open.add(node.ino)

    def pick(self) -> int:
        return self.draw.choice(sorted(self.files)) if self.files else 0

    async def open_or_write_or_close(self) -> None:
        ino = self.pick()
        if not ino:
            return
        if ino not in self.open:
            await self.mount.ask(Open(ino, True, self.next()))
            self.open.add(ino)
            return
        node = await self.mount.attr(ino)
        final = self.draw.random() < 0.6
        stamp = NOW + self.next()
        self.disks[ino, node.home_volume] = node.version + 1
        await self.mount.one(Commit(ino, node.home_epoch, node.version + 1, Content(10, 8, stamp, stamp), final))
        if final:
            await self.mount.ask(Close([Closing(ino, self.next())]))
            self.open.discard(ino)

    async def unlink(self) -> None:
        ino = self.pick()
        if ino and ino not in self.open and self.draw.random() < 0.2:
            await self.mount.apply(Unlink(ROOT_INO, self.files.pop(ino), NOW))

    async def claim(self) -> None:
        server = self.draw.choice(SERVERS)
        self.held += [(server, task) for task in await self.agents[server].claim(self.draw.randint(1, 4))]

    async def do(self) -> None:
        """An agent does one of the things that it was ever given, and reports it, or fails, or is not heard."""
        if not self.held:
            return
        server, task = self.held.pop(self.draw.randrange(len(self.held)))
        luck = self.draw.random()
        if luck < 0.1:
            await self.report(server, task, self.draw.choice(["retry", "changed", "failed"]))
        elif luck < 0.2:
            # The claim runs out; the agent has the task still, and may carry it out at any later time.
            await self.office.store.write(lambda tx: release_claims(tx, self.office.state, {task.task: task.claim}))
            self.held.append((server, task))
        elif task.operation == TaskOperation.DELETE:
            self.disks.pop((task.ino, task.volume), None)
            await self.agents[server].done(task)
        else:
            await self.copy(server, task)

    async def copy(self, server: str, task: Task) -> None:
        sources = [source for source in task.sources if self.disks.get((task.ino, source.volume)) == source.version]
        try:
            at_home = (await self.mount.attr(task.ino)).home_volume == task.volume
        except Refused:
            at_home = False
        if at_home and (task.ino, task.volume) in self.disks:
            await self.report(server, task, "failed")
        elif self.disks.get((task.ino, task.volume), 0) >= task.version:
            await self.agents[server].done(task)
        elif sources:
            self.disks[task.ino, task.volume] = task.version
            await self.agents[server].done(task)
        else:
            await self.report(server, task, "changed")

    async def report(self, server: str, task: Task, outcome: str) -> None:
        await self.agents[server].ask(ReportTasks([TaskReport(task.task, task.claim, outcome, "bad luck")]))

    async def order(self) -> None:
        source, target = self.draw.sample(SERVERS, 2)
        chosen = self.draw.sample(sorted(self.files), min(4, len(self.files)))
        if chosen and self.draw.random() < 0.3:
            await self.mount.ask(StartMigration(chosen, [b"/x"] * len(chosen), source, target, next(self.tokens)))

    async def steer(self) -> None:
        rows = (await self.mount.ask(ListMigrations())).migrations
        if rows and self.draw.random() < 0.4:
            try:
                action = self.draw.choice(
                    [MigrationChange.PAUSE, MigrationChange.RESUME, MigrationChange.RESUME, MigrationChange.CANCEL]
                )
                await self.mount.ask(ChangeMigration(self.draw.choice(rows).migration, action))
            except Refused:
                return

    async def background(self) -> None:
        await self.migrator.run_once()

    async def retry(self) -> None:
        await self.mount.ask(RetryTasks())

    # ------------------------------------------------------------------------------------------------- what must hold

    async def check(self) -> None:
        await self.office.store.read(self._check)

    def _check(self, connection: Connection) -> None:
        for inode in connection.execute(select(inodes).where(inodes.c.ino.in_(self.files))).all():
            held = {row.volume: row for row in connection.execute(select(replicas).where(replicas.c.ino == inode.ino))}
            queued = {row.volume: row for row in connection.execute(select(tasks).where(tasks.c.ino == inode.ino))}
            deletions = {volume for volume, row in queued.items() if row.operation == TaskOperation.DELETE}
            assert inode.home_volume in held
            assert inode.home_volume not in deletions
            if not inode.version:
                continue
            assert self.disks.get((inode.ino, inode.home_volume)) == inode.version, "the home's object is the newest"
            current = {volume for volume, row in held.items() if row.version == inode.version}
            assert inode.home_volume in current
            for volume in current - deletions:
                assert self.disks.get((inode.ino, volume), 0) >= inode.version, "what the catalog counts is there"
            unclaimed = {volume for volume in deletions if not queued[volume].claim}
            if unclaimed & current:
                assert len(current - deletions) >= COPIES

    async def come_to_rest(self) -> None:
        """Everything ends well once nobody disturbs it."""
        for ino in sorted(self.open):
            node = await self.mount.attr(ino)
            self.disks[ino, node.home_volume] = node.version + 1
            await self.mount.one(Commit(ino, node.home_epoch, node.version + 1, Content(10, 8, NOW, NOW), True))
            await self.mount.ask(Close([Closing(ino, self.next())]))
        self.draw = random.Random(0)
        for _ in range(60):
            await self.resume()
            await self.retry()
            await self.reap()
            await self.migrator.run_once()
            held, self.held = self.held, []
            for server in SERVERS:
                held += [(server, task) for task in await self.agents[server].claim(64)]
            for server, task in held:
                if task.operation == TaskOperation.COPY:
                    await self.copy(server, task)
                else:
                    self.disks.pop((task.ino, task.volume), None)
                    await self.agents[server].done(task)
            await self.check()
            rows = (await self.mount.ask(ListMigrations())).migrations
            if not (await self.mount.ask(ListTasks())).total and all(row.ended_ns for row in rows):
                break
            await trio.sleep(0.05)
        left = [(row.migration, row.state, row.counts, row.problem) for row in rows if not row.ended_ns]
        assert not left
        await self.office.store.read(self._check_end)

    async def resume(self) -> None:
        """What a person does: a migration may also end as failed now, by a move that failed while others went on."""
        for row in (await self.mount.ask(ListMigrations())).migrations:
            if row.state in ("paused", "failed"):
                await self.mount.ask(ChangeMigration(row.migration, MigrationChange.RESUME))

    async def reap(self) -> None:
        """What the manager's own loop does with files that have no name any more."""
        state = self.office.state
        doomed = state.take_doomed(math.inf, len(state.orphaned))
        await self.office.store.write(partial(reap, state=state, doomed=doomed))
        state.reaping.difference_update(doomed)

    def _check_end(self, connection: Connection) -> None:
        for inode in connection.execute(select(inodes).where(inodes.c.ino.in_(self.files))).all():
            held = connection.execute(select(replicas).where(replicas.c.ino == inode.ino)).all()
            assert len(held) == COPIES
            assert all(row.version == inode.version for row in held)


@pytest.mark.search
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_whatever_happens(sqlite_url: str, seed: int) -> None:
    async with in_office(sqlite_url, max_attempts=3) as office:
        agents = {}
        for number, server in enumerate(SERVERS, 1):
            agents[server] = await office.peer(server, "agent")
            assert await agents[server].volume(f"u{number}") == number
        world = World(office, await office.peer(), agents, seed)
        steps = {
            world.create: 2,
            world.open_or_write_or_close: 6,
            world.unlink: 1,
            world.claim: 5,
            world.do: 10,
            world.order: 2,
            world.steer: 1,
            world.background: 3,
            world.retry: 1,
        }
        for _ in range(STEPS):
            (step,) = world.draw.choices(list(steps), weights=list(steps.values()))
            try:
                await step()
            except Fenced as error:
                raise AssertionError("the only mount always knows the home") from error
            await world.check()
        await world.come_to_rest()
