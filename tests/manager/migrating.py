"""Migrations by hand: agents that do what the queues say, one step after the other."""

from collections.abc import Awaitable, Callable

from cluster.messages import (
    Close,
    Closing,
    ListMigrations,
    ListMoves,
    MigrationRow,
    MoveRow,
    Node,
    StartMigration,
    Task,
)
from tests.manager.changes.test_copies import where
from tests.manager.office import Office, Peer

Agents = dict[str, Peer]
tokens = iter(range(1, 10_000))


async def start(peer: Peer, *inodes: int, source: str = "s1", target: str = "s3", token: int = 0) -> MigrationRow:
    paths = [b"/%d" % ino for ino in inodes]
    return await peer.ask(StartMigration(list(inodes), paths, source, target, token or next(tokens)))


async def show(peer: Peer, number: int) -> MigrationRow:
    (row,) = (await peer.ask(ListMigrations(number))).migrations
    return row


async def moves(peer: Peer, number: int) -> list[MoveRow]:
    return (await peer.ask(ListMoves(number))).moves


async def states(peer: Peer, number: int) -> dict[str, int]:
    return {count.state: count.files for count in (await show(peer, number)).counts}


async def make_clean(mount: Peer, name: bytes, *, size: int = 10) -> Node:
    """A file with its home on s1, committed and closed."""
    node = await mount.make(name)
    node = await mount.commit(node.ino, 1, size=size)
    await mount.ask(Close([Closing(node.ino, 9)]))
    return node


async def work(agents: Agents, *, only: str = "", servers: str = "s1 s2 s3") -> list[Task]:
    """Lets the agents do all that they can claim (of one kind), and returns it."""
    did = []
    for server in servers.split():
        for task in await agents[server].claim(64):
            if only and task.operation != only:
                raise AssertionError(f"{server} was to do {task}")
            await agents[server].done(task)
            did.append(task)
    return did


async def settle(agents: Agents) -> None:
    while await work(agents):
        pass


async def volumes_of(peer: Peer, ino: int) -> list[int]:
    return sorted(row.volume for row in (await where(peer, ino)).replicas)


async def working(office: Office, agents: Agents, condition: Callable[[], Awaitable[bool]]) -> None:
    """Lets the manager and the agents work until *condition* holds."""

    async def step() -> bool:
        await settle(agents)
        return await condition()

    await office.background(step)


def in_state(peer: Peer, number: int, state: str) -> Callable[[], Awaitable[bool]]:
    async def is_in_state() -> bool:
        return (await show(peer, number)).state == state

    return is_in_state


async def files_with_copies(mount: Peer, agents: Agents, count: int, on: int) -> list[Node]:
    """Clean files on s1 whose copy is on volume *on*."""
    found: list[Node] = []
    while len(found) < count:
        node = await make_clean(mount, b"file%d" % next(tokens))
        await settle(agents)
        if await volumes_of(mount, node.ino) == [1, on]:
            found.append(node)
    return found
