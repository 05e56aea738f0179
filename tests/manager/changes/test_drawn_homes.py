"""The home of a file follows who opens it for writing, where that cannot harm anybody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import select, update

from cluster.leases import read_token
from cluster.messages import AskLeases, Close, Closing, Node, Open, Opened, StartMigration
from manager.catalog.homes import switch_home
from manager.catalog.inodes import get_inode
from manager.catalog.schema import moves, replicas
from manager.catalog.store import Transaction
from manager.changes.alignment import replicas_of
from manager.rules.moves import ACTIVE
from tests.manager.caching import caching_mount
from tests.manager.office import Office, Peer, small_network


@asynccontextmanager
async def file_with_copies(url: str) -> AsyncIterator[tuple[Office, Peer, Peer, Node]]:
    """An office, the mounts of s1 and s2, and a file with its home on s1, closed, and a current replica on every server."""
    async with small_network(url) as (office, mount):
        agents = {}
        for number in (1, 2, 3):
            agents[f"s{number}"] = await office.peer(f"s{number}", "agent")
            await agents[f"s{number}"].volume(f"u{number}")
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        await mount.ask(Close([Closing(made.ino, 1)]))
        for agent in agents.values():
            for task in await agent.claim():
                await agent.done(task)
        yield office, mount, await office.peer("s2"), made


async def change_replica(office: Office, volume: int, **values: object) -> None:
    def work(tx: Transaction) -> None:
        tx.execute(update(replicas).where(replicas.c.volume == volume).values(**values))

    await office.store.write(work)


async def open_to_write(peer: Peer, node: Node, sequence: int = 10) -> Opened:
    return await peer.ask(Open(node.ino, True, sequence))


async def test_the_home_moves_to_a_lone_writer_with_a_current_replica(url: str) -> None:
    async with file_with_copies(url) as (office, mount, other, made):
        opened = await open_to_write(other, made)
        home = office.state.members.get(opened.node.home_volume)
        assert home is not None
        assert (home.server, opened.node.home_epoch, opened.node.dirty) == ("s2", 2, True)
        token = read_token(opened.token)
        assert (token.home_volume, token.home_epoch) == (opened.node.home_volume, 2)
        assert {replica.volume for replica in opened.replicas} >= {1, 2}
        back = await open_to_write(mount, made)
        assert back.node.home_volume == opened.node.home_volume, "it is being written there"


async def test_the_home_stays_while_anybody_else_uses_the_file(url: str) -> None:
    async with file_with_copies(url) as (_office, mount, other, made):
        await mount.ask(Open(made.ino, False, 5))
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_the_home_stays_where_a_vanished_writer_may_still_be_writing(url: str) -> None:
    async with file_with_copies(url) as (office, mount, other, made):
        await open_to_write(mount, made)
        await mount.commit(made.ino, 2, final=False)
        session = office.state.sessions.get(mount.number)
        assert session is not None
        assert office.term is not None
        office.term.end_session(session)
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_a_stale_or_faulty_replica_becomes_no_home(url: str) -> None:
    async with file_with_copies(url) as (office, _, other, made):
        await change_replica(office, 2, fault="bad")
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_a_replica_without_committed_content_becomes_no_home(url: str) -> None:
    async with file_with_copies(url) as (office, _, other, made):
        await change_replica(office, 2, version=0)
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_a_server_that_takes_no_new_files_gets_no_home(url: str) -> None:
    async with file_with_copies(url) as (office, _, other, made):
        office.state.members.close("s2")
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_a_volume_that_a_migration_empties_or_that_has_a_task_gets_no_home(url: str) -> None:
    async with file_with_copies(url) as (office, mount, other, made):
        await mount.ask(StartMigration([made.ino], [b"/file"], "s2", "s3", 1))

        async def under_way() -> bool:
            states = await office.store.read(lambda connection: list(connection.execute(select(moves.c.state)).scalars()))
            return any(state in ACTIVE for state in states)

        await office.background(under_way)
        assert (await open_to_write(other, made)).node.home_volume == 1


async def test_who_reads_at_an_earlier_home_is_told_before_anybody_writes_at_the_new_one(url: str) -> None:
    """A migration moved the home of a file that s3 has open for reading; it caches nothing, but its token says where to read."""

    async with file_with_copies(url) as (office, mount, other, made), caching_mount(office, "s3") as reader:
        await reader.peer.ask(Open(made.ino, False, 1))
        await reader.peer.ask(AskLeases([made.ino]))
        await move_home(office, made.ino)
        opened = await open_to_write(other, made)
        assert opened.node.home_epoch == 2
        assert {ino for recall in reader.recalls for ino in recall.inodes} == {made.ino}
        again = len(reader.recalls)
        await open_to_write(mount, made)
        assert len(reader.recalls) == again, "it knows"


async def move_home(office: Office, ino: int) -> None:
    """As `manager.changes.alignment.align` does for a migration."""

    def work(tx: Transaction) -> None:
        (replica,) = [row for row in replicas_of(tx.connection, ino) if row.volume == 2]
        switch_home(tx, get_inode(tx.connection, ino), replica)

    await office.store.write(work)
