"""Files that are born without a name: orphans from the beginning, until they get one."""

import errno
import stat

import trio

from cluster.errors import Refused
from cluster.messages import (
    ROOT_INO,
    Apply,
    AwaitCopies,
    Close,
    Closing,
    CreateUnnamed,
    GetPolicy,
    GetXattr,
    Link,
    ListTasks,
    Node,
    OpenInode,
    ReadDir,
    SetAttr,
    SetPolicy,
    SetXattr,
    Unlink,
)
from manager.rules import acl
from tests.manager.caching import caching_mount, granted, quiet
from tests.manager.changes.test_copies import where
from tests.manager.changes.test_namespace import refuses
from tests.manager.office import NOW, Office, Peer, in_office, small_network
from tests.support.choices import ACLS

FILE = stat.S_IFREG | 0o666
LATER = NOW + 1000


async def unnamed(mount: Peer, directory: int = ROOT_INO, *, mode: int = FILE, volume: int = 1) -> Node:
    return await mount.one(CreateUnnamed(directory, await mount.new_ino(), mode, 3, 4, LATER, volume))


async def is_gone(mount: Peer, ino: int) -> bool:
    try:
        await mount.attr(ino)
    except Refused:
        return True
    return False


async def reaped(office: Office, mount: Peer, ino: int) -> None:
    """Returns when the inode is gone."""

    async def gone() -> bool:
        return await is_gone(mount, ino)

    await office.background(gone)


async def test_it_is_there_without_being_anywhere(url: str) -> None:
    async with small_network(url) as (office, mount):
        root = await mount.attr(ROOT_INO)
        node = await unnamed(mount)
        assert (node.nlink, node.uid, node.gid, node.dirty, node.home_volume, node.home_epoch) == (0, 3, 4, True, 1, 1)
        assert node.btime_ns == node.ctime_ns == LATER
        assert node == await mount.attr(node.ino)
        assert root == await mount.attr(ROOT_INO), "nothing of the directory has changed"
        assert (await mount.ask(ReadDir(ROOT_INO, 0, 10))).entries == []
        await mount.commit(node.ino, 1, final=False)
        await mount.one(SetAttr(node.ino, LATER, mode=0o600))
        await mount.ask(Close([Closing(node.ino, 1)]))
        await reaped(office, mount, node.ino)
        tasks = (await mount.ask(ListTasks(server="s1"))).tasks
        assert [(task.operation, task.ino, task.volume) for task in tasks] == [("delete", node.ino, 1)]


async def test_what_is_refused(url: str) -> None:
    async with small_network(url) as (_office, mount):
        file = await mount.make(b"file")
        with refuses(errno.EINVAL):
            await unnamed(mount, mode=stat.S_IFDIR | 0o755)
        with refuses(errno.EINVAL):
            await unnamed(mount, volume=9)
        with refuses(errno.ENOTDIR):
            await unnamed(mount, file.ino)
        with refuses(errno.ESTALE):
            await unnamed(mount, 999_999)
        node = await unnamed(mount)
        with refuses(errno.EEXIST):
            await mount.one(Link(node.ino, ROOT_INO, b"file", LATER))


async def test_it_inherits_from_its_directory(url: str) -> None:
    async with small_network(url) as (_office, mount):
        directory = await mount.make(b"d", mode=stat.S_IFDIR | 0o2755, gid=77)
        await mount.one(SetXattr(directory.ino, acl.DEFAULT_XATTR, ACLS[1], 0, NOW))
        made = await mount.make(b"f", directory.ino, mode=FILE)
        node = await unnamed(mount, directory.ino)
        assert (node.gid, node.mode) == (77, made.mode)
        lists = [(await mount.ask(GetXattr(ino, acl.ACCESS_XATTR))).value for ino in (node.ino, made.ino)]
        assert lists[0] == lists[1]


async def test_a_first_name_makes_it_a_file_like_others(url: str) -> None:
    async with small_network(url) as (office, mount):
        directory = await mount.mkdir(b"d")
        await mount.ask(SetPolicy(directory.ino, 3, 1))
        node = await unnamed(mount)
        await mount.commit(node.ino, 1, final=False)
        linked = await mount.one(Link(node.ino, directory.ino, b"named", LATER))
        assert linked.nlink == 1
        assert (await mount.ask(GetPolicy(node.ino))).ino == directory.ino
        assert len((await where(mount, node.ino)).pending) == 2, "what was committed before is copied as the policy says"
        await mount.one(Link(node.ino, ROOT_INO, b"second", LATER))
        await mount.ask(Close([Closing(node.ino, 1)]))
        other = await unnamed(mount)
        await mount.ask(Close([Closing(other.ino, 2)]))
        await reaped(office, mount, other.ino)
        assert (await mount.lookup(b"second")).nlink == 2, "what had no name any more was reaped, and not this"


async def test_what_had_a_name_gets_none_again(url: str) -> None:
    async with small_network(url) as (office, mount):
        node = await unnamed(mount)
        await mount.one(Link(node.ino, ROOT_INO, b"named", LATER))
        await mount.apply(Unlink(ROOT_INO, b"named", LATER))
        with refuses(errno.ENOENT):
            await mount.one(Link(node.ino, ROOT_INO, b"again", LATER))
        await mount.ask(Close([Closing(node.ino, 1)]))
        await reaped(office, mount, node.ino)


async def test_it_goes_with_the_mount_that_has_it_open(url: str) -> None:
    async with small_network(url) as (office, mount):
        node = await unnamed(mount)
        restarted = await office.peer("s1")
        await reaped(office, restarted, node.ino)


async def test_it_outlives_a_manager_if_its_mount_does(url: str) -> None:
    async with small_network(url) as (_office, mount):
        kept, lost = await unnamed(mount), await unnamed(mount)
    async with in_office(url, "s2") as second:
        await second.three_servers()
        mount.connection = mount.connected(second)
        await mount.hello([OpenInode(kept.ino, True)])
        assert second.term is not None
        await second.term.end_grace()
        await reaped(second, mount, lost.ino)
        await mount.one(Link(kept.ino, ROOT_INO, b"named", LATER))
        await mount.ask(Close([Closing(kept.ino, 1)]))
        assert (await mount.lookup(b"named")).ino == kept.ino
        await second.term.end_grace()
        assert not second.state.orphaned


async def test_nobody_waits_for_copies_of_what_has_no_name(url: str) -> None:
    async with small_network(url) as (_office, mount):
        node = await unnamed(mount)
        await mount.commit(node.ino, 1, final=False)
        with trio.fail_after(10):
            await mount.ask(AwaitCopies(node.ino, 1, 2, 1000.0))


async def test_a_repeat_finds_it_open(url: str) -> None:
    """The session does not know of it yet, so it does not present it when it introduces itself again."""

    async with small_network(url) as (office, mount):
        request = Apply(7, 1, [CreateUnnamed(ROOT_INO, await mount.new_ino(), FILE, 0, 0, LATER, 1)])
        first = await mount.ask(request)
        assert len(first.tokens) == 1
        await mount.hello()
        again = await mount.ask(request)
        assert (again.nodes, len(again.tokens)) == (first.nodes, 1)
        (node,) = again.nodes
        assert node is not None
        doomed = await unnamed(mount)
        await mount.ask(Close([Closing(doomed.ino, 1)]))
        await reaped(office, mount, doomed.ino)
        assert (await mount.attr(node.ino)).nlink == 0


async def test_nothing_is_recalled_for_it_and_nobody_may_cache_it(url: str) -> None:
    async with small_network(url) as (office, mount), caching_mount(office, "s2") as other:
        directory = await mount.mkdir(b"d")
        await quiet()
        assert directory.ino in granted(await other.listing(directory.ino))
        node = await unnamed(mount, directory.ino)
        assert other.recalls == []
        assert granted(await other.attr(node.ino)) == set()
