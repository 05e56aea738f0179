"""A request whose reply was lost is sent again, under its id, to the next manager: it is applied once, wherever it was lost."""

import stat
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trio

from cluster.errors import NotManager
from cluster.messages import (
    ROOT_INO,
    Apply,
    Commit,
    Content,
    Create,
    CreateUnnamed,
    GetAttr,
    Link,
    Lookup,
    Node,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetXattr,
    Unlink,
)
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.office import depose_office, read_office
from manager.catalog.store import Transaction
from tests.manager.catalog.test_lost_database import backend, engines, terminate
from tests.manager.office import NOW, Office, Peer, in_office, small_network

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


@dataclass
class Prepared:
    """What is there before the fail-over."""

    ino: int
    new_ino: int
    unnamed_ino: int


def requests(there: Prepared) -> list[Apply]:
    """Each of these fails, or has another outcome, when it is applied twice."""
    content = Content(10, 8, NOW, NOW)
    operations: list[Operation] = [
        Create(ROOT_INO, b"made", there.new_ino, FILE, 0, 0, 0, NOW, 1),
        Link(there.ino, ROOT_INO, b"linked", NOW),
        CreateUnnamed(ROOT_INO, there.unnamed_ino, FILE, 0, 0, NOW, 1),
        Link(there.unnamed_ino, ROOT_INO, b"named", NOW),
        Rename(ROOT_INO, b"old", ROOT_INO, b"renamed", 1, NOW),
        Unlink(ROOT_INO, b"doomed", NOW),
        Rmdir(ROOT_INO, b"empty", NOW),
        SetXattr(there.ino, b"user.new", b"1", 1, NOW),
        RemoveXattr(there.ino, b"user.old", NOW),
        Commit(there.ino, 1, 5, content, final=False),
    ]
    return [Apply(100 + number, 1, [operation]) for number, operation in enumerate(operations)]


async def prepare(mount: Peer) -> Prepared:
    node = await mount.make(b"file")
    for name in (b"old", b"doomed"):
        await mount.make(name)
    await mount.mkdir(b"empty")
    await mount.one(SetXattr(node.ino, b"user.old", b"", 0, NOW))
    return Prepared(node.ino, await mount.new_ino(), await mount.new_ino())


async def names(mount: Peer) -> set[bytes]:
    found = set()
    for name in (b"made", b"linked", b"named", b"old", b"renamed", b"doomed", b"empty"):
        if (await mount.ask(Lookup(ROOT_INO, name))).node is not None:
            found.add(name)
    return found


async def everything_is_there_once(mount: Peer, there: Prepared) -> None:
    assert await names(mount) == {b"made", b"linked", b"named", b"renamed"}
    node = (await mount.ask(GetAttr(there.ino))).node
    assert (node.nlink, node.version) == (2, 5)
    assert (await mount.ask(GetAttr(there.unnamed_ino))).node.nlink == 1
    assert (await mount.ask(GetAttr(ROOT_INO))).node.nlink == 2


async def send(mount: Peer, sent: list[Apply]) -> list[list[Node | None]]:
    """The nodes that are answered; lease tokens are made anew each time."""
    return [(await mount.ask(request)).nodes for request in sent]


async def repeat(mount: Peer, second: Office, sent: list[Apply]) -> list[list[Node | None]]:
    """What a session does that has found another manager."""
    mount.connection = mount.connected(second)
    await mount.hello()
    return await send(mount, sent)


async def test_the_reply_was_lost_after_the_commit(url: str) -> None:
    async with small_network(url) as (_office, mount):
        there = await prepare(mount)
        first = await send(mount, requests(there))
    async with in_office(url, "s2") as second:
        await second.three_servers()
        assert await repeat(mount, second, requests(there)) == first
        assert await repeat(mount, second, requests(there)) == first
        await everything_is_there_once(mount, there)


async def test_the_office_was_lost_before_the_commit(url: str) -> None:
    async with small_network(url) as (_office, mount):
        there = await prepare(mount)
        writer, reader = make_engines(url)
        with write_transaction(writer) as connection:
            assert depose_office(connection, read_office(connection).term, "s2", "127.0.0.1:7601")
        writer.dispose()
        reader.dispose()
        for request in requests(there):
            with pytest.raises(NotManager):
                await mount.ask(request)
    async with in_office(url, "s2") as second:
        await second.three_servers()
        mount.connection = mount.connected(second)
        await mount.hello()
        assert await names(mount) == {b"old", b"doomed", b"empty"}
        await repeat(mount, second, requests(there))
        await everything_is_there_once(mount, there)


async def test_some_were_committed_and_some_were_not(url: str) -> None:
    async with small_network(url) as (_office, mount):
        there = await prepare(mount)
        sent = requests(there)
        first = await send(mount, sent[::2])
    async with in_office(url, "s2") as second:
        await second.three_servers()
        assert (await repeat(mount, second, sent))[::2] == first
        await everything_is_there_once(mount, there)


async def test_nobody_knows_whether_it_was_committed(postgres_url: str) -> None:
    """The database connection breaks in the COMMIT of the requests' transaction."""

    with engines(postgres_url) as (_writer, other):
        async with small_network(postgres_url) as (office, mount):
            there = await prepare(mount)
            refused: list[Apply] = []

            def break_connection(tx: Transaction) -> None:
                terminate(other, backend(tx.connection))

            await all_at_once(mount, office, requests(there), break_connection, refused)
            assert refused == requests(there)
    async with in_office(postgres_url, "s2") as second:
        await second.three_servers()
        await repeat(mount, second, requests(there))
        await everything_is_there_once(mount, there)


async def all_at_once(
    mount: Peer, office: Office, sent: list[Apply], last: Callable[[Transaction], None], refused: list[Apply]
) -> None:
    """Sends requests that share a transaction, which ends with *last*."""

    async def ask(request: Apply) -> None:
        try:
            await mount.ask(request)
        except NotManager:
            refused.append(request)

    async def finish() -> None:
        with pytest.raises(NotManager):
            await office.store.write(last)

    async with trio.open_nursery() as nursery:
        for request in sent:
            nursery.start_soon(ask, request)
        nursery.start_soon(finish)
    refused.sort(key=lambda request: request.request_id)
