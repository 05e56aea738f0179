"""Names and inodes of files that were there before the network."""

import stat
from typing import Any

import msgspec
import pytest

from cluster.errors import Refused
from cluster.messages import (
    ROOT_INO,
    Commit,
    Content,
    FinishImport,
    GetXattr,
    ImportedAs,
    ImportedName,
    ImportedXattr,
    ImportNames,
    ImportOutcome,
    ListUnsettled,
    Lookup,
    TakeInodes,
    Unlink,
)
from tests.manager.office import NOW, Office, Peer, small_network
from tests.support.choices import ACLS

OLD = NOW - 10**18
CONTENT = Content(10, 8, OLD, NOW)
ACCESS = b"system.posix_acl_access"


def file(ino: int, name: bytes = b"file", parent: int = ROOT_INO, **more: Any) -> ImportedName:
    fields = {"mode": stat.S_IFREG | 0o640, "uid": 3, "gid": 4, "mtime_ns": OLD, "home_volume": 1, "content": CONTENT}
    return ImportedName(parent, name, ino, **{**fields, **more})


def folder(ino: int, name: bytes = b"folder", **more: Any) -> ImportedName:
    return ImportedName(ROOT_INO, name, ino, **{"mode": stat.S_IFDIR | 0o750, "mtime_ns": OLD, **more})


async def imported(peer: Peer, *names: ImportedName) -> list[ImportedAs]:
    return (await peer.ask(ImportNames(list(names), NOW))).names


async def numbers(peer: Peer) -> int:
    return (await peer.ask(TakeInodes(100))).first


async def test_what_is_made_is_as_it_was(url: str) -> None:
    async with small_network(url) as (office, mount):
        first = await numbers(office.admin)
        xattrs = [ImportedXattr(b"user.colour", b"red"), ImportedXattr(ACCESS, ACLS[1])]
        made, inside = await imported(office.admin, folder(first), file(first + 1, parent=first, xattrs=xattrs))
        assert (made.outcome, inside.outcome) == (ImportOutcome.MADE, ImportOutcome.MADE)
        node = await mount.lookup(b"file", first)
        assert (node.mode, node.uid, node.gid, node.size, node.dirty) == (stat.S_IFREG | 0o750, 3, 4, 10, True)
        assert (await mount.ask(GetXattr(node.ino, ACCESS))).value == ACLS[1]
        # Nobody has made anything in it since it was brought.
        assert (await mount.attr(first)).mtime_ns == OLD
        await office.admin.ask(FinishImport([Commit(first + 1, 1, 1, Content(10, 8, OLD, NOW + 5), True)]))
        node = await mount.attr(first + 1)
        assert (node.version, node.dirty, node.mtime_ns, node.object_ctime_ns) == (1, False, OLD, NOW + 5)
        assert not office.state.sessions.is_open(first + 1)
        copying = [task.ino for server in ("s2", "s3") for task in await (await office.peer(server, "agent")).claim()]
        assert copying == [first + 1]


async def test_a_repetition_makes_nothing_twice(url: str) -> None:
    async with small_network(url) as (office, mount):
        first = await numbers(office.admin)
        names = [folder(first), file(first + 1), ImportedName(ROOT_INO, b"second", first + 1, home_volume=1)]
        for outcome in (ImportOutcome.MADE, ImportOutcome.THERE):
            assert {each.outcome for each in await imported(office.admin, *names)} == {outcome}
        assert ((await mount.attr(first + 1)).nlink, (await mount.attr(ROOT_INO)).nlink) == (2, 3)


async def test_each_name_stands_for_itself(url: str) -> None:
    async with small_network(url) as (office, mount):
        there = await mount.make(b"there")
        first = await numbers(office.admin)
        wrong = [
            file(first, b"not/a name"),
            file(there.ino + 10**6, b"foreign"),
            file(first, b"nowhere", home_volume=9),
            file(first, b"attribute", xattrs=[ImportedXattr(b"system.other", b"")]),
            file(first, b"list", xattrs=[ImportedXattr(ACCESS, b"rubbish")]),
            file(first, b"inside", parent=there.ino),
            msgspec.structs.replace(folder(first), content=CONTENT),
            ImportedName(ROOT_INO, b"link", first, mode=stat.S_IFLNK | 0o777),
            ImportedName(ROOT_INO, b"socket", first, mode=stat.S_IFSOCK | 0o600),
        ]
        answers = await imported(office.admin, *wrong, file(first, b"there"), file(first, b"good"))
        assert [each.outcome for each in answers[: len(wrong)]] == [ImportOutcome.REFUSED] * len(wrong)
        assert all(each.reason for each in answers[: len(wrong)])
        assert [each.outcome for each in answers[len(wrong) :]] == [ImportOutcome.TAKEN, ImportOutcome.MADE]
        assert answers[-2].node is not None
        assert answers[-2].node.ino == there.ino


async def test_a_name_for_what_is_gone_is_unknown(url: str) -> None:
    async with small_network(url) as (office, mount):
        first = await numbers(office.admin)
        again = ImportedName(ROOT_INO, b"again", first, home_volume=1)
        assert (await imported(office.admin, again))[0].outcome == ImportOutcome.UNKNOWN
        await imported(office.admin, file(first))
        await mount.apply(Unlink(ROOT_INO, b"file", NOW))
        assert (await imported(office.admin, again))[0].outcome == ImportOutcome.UNKNOWN
        assert (await mount.ask(Lookup(ROOT_INO, b"again"))).node is None


async def test_what_a_dead_import_leaves_is_committed_by_the_agent(url: str) -> None:
    async with small_network(url) as (office, _mount):
        agent = await office.peer("s1", "agent")
        admin = await office.peer("admin", "admin")
        ino = await numbers(admin)
        await imported(admin, file(ino))
        assert ino not in (await agent.ask(ListUnsettled(10))).inodes
        end(office, admin)
        assert ino in (await agent.ask(ListUnsettled(10))).inodes


def end(office: Office, peer: Peer) -> None:
    assert office.term is not None
    session = office.state.sessions.get(peer.number)
    assert session is not None
    office.term.end_session(session)


async def test_numbers_stay_when_a_mount_begins_anew(url: str) -> None:
    async with small_network(url) as (office, _mount):
        admin = await office.peer("s1", "admin")
        ino = await numbers(admin)
        await office.peer("s1")
        await admin.hello()
        assert (await imported(admin, file(ino)))[0].outcome == ImportOutcome.MADE


async def test_mounts_and_agents_import_nothing(url: str) -> None:
    async with small_network(url) as (_office, mount):
        with pytest.raises(Refused, match="ImportNames"):
            await mount.connection.handle(ImportNames([], NOW), b"", nobody)


async def nobody(_reply: object, _body: object) -> None:
    raise AssertionError("nothing is sent to who may not ask")
