"""The catalog's names and attributes, on every engine."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.errors import Refused
from cluster.messages import (
    ROOT_INO,
    Create,
    GetAttr,
    GetParent,
    GetXattr,
    Link,
    ListXattr,
    Open,
    ReadDir,
    ReadLink,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from manager.rules import acl
from tests.manager.office import NOW, Peer, in_office, small_network

LATER = NOW + 1000


@contextmanager
def refuses(number: int) -> Iterator[None]:
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.errno == number, caught.value


async def rename(peer: Peer, name: bytes, new: bytes, parent: int = 1, new_parent: int = 1, flags: int = 0) -> None:
    await peer.apply(Rename(parent, name, new_parent, new, flags, LATER))


async def test_a_session_uses_only_numbers_that_it_was_given(url: str) -> None:
    async with small_network(url) as (office, mount):
        other = await office.peer("s2")
        taken = await other.new_ino()
        with refuses(errno.EINVAL):
            await mount.one(Create(1, b"d", taken, stat.S_IFDIR | 0o755, 0, 0, 0, NOW))
        await other.one(Create(1, b"d", taken, stat.S_IFDIR | 0o755, 0, 0, 0, NOW))
    async with in_office(url, "s2") as office:  # who goes on in the next term still has them
        again = Peer(office, "s2", "mount", other.number)
        await again.hello()
        await again.one(Create(1, b"e", taken + 1, stat.S_IFDIR | 0o755, 0, 0, 0, NOW))


async def test_create_and_look_up(url: str) -> None:
    async with small_network(url) as (_office, mount):
        node = await mount.make(b"a", uid=3, gid=4)
        assert (node.nlink, node.dirty, node.home_volume, node.home_epoch, node.uid, node.gid) == (1, True, 1, 1, 3, 4)
        assert await mount.lookup(b"a") == node == await mount.attr(node.ino)
        root = await mount.attr(ROOT_INO)
        assert root.mtime_ns == root.ctime_ns == NOW
        assert root.nlink == 2
        with refuses(errno.EEXIST):
            await mount.make(b"a")
        with refuses(errno.ENOENT):
            await mount.lookup(b"b")
        with refuses(errno.ENOTDIR):
            await mount.lookup(b"b", parent=node.ino)
        with refuses(errno.ENOTDIR):
            await mount.make(b"b", parent=node.ino)
        with refuses(errno.ESTALE):
            await mount.lookup(b"b", parent=999_999)
        with refuses(errno.ESTALE):
            await mount.ask(GetAttr(999_999))
        with refuses(errno.ENAMETOOLONG):
            await mount.make(b"x" * 256)
        for bad in (b"", b".", b"..", b"a/b", b"a\0b"):
            with refuses(errno.EINVAL):
                await mount.make(bad)
        with refuses(errno.EINVAL):
            await mount.one(Create(1, b"z", 5, stat.S_IFREG | 0o644, 0, 0, 0, NOW, 1))
        with refuses(errno.EINVAL):
            await mount.make(b"z", home_volume=9)
        await mount.make(b"x" * 255)


async def test_kinds(url: str) -> None:
    async with small_network(url) as (_office, mount):
        link = await mount.make(b"l", mode=stat.S_IFLNK | 0o777, target=b"to/there")
        assert link.size == 8
        assert (await mount.ask(ReadLink(link.ino))).value == b"to/there"
        fifo = await mount.make(b"p", mode=stat.S_IFIFO | 0o600)
        with refuses(errno.EINVAL):
            await mount.ask(ReadLink(fifo.ino))
        device = await mount.make(b"d", mode=stat.S_IFCHR | 0o600, rdev=0x103)
        assert (device.rdev, device.dirty) == (0x103, False)
        with refuses(errno.ENAMETOOLONG):
            await mount.make(b"m", mode=stat.S_IFLNK | 0o777, target=b"x" * 4096)


async def test_directories(url: str) -> None:
    async with small_network(url) as (_office, mount):
        d = await mount.mkdir(b"d")
        e = await mount.mkdir(b"e", d.ino)
        assert (await mount.attr(d.ino)).nlink == 3
        assert (await mount.ask(GetParent(e.ino))).ino == d.ino
        assert (await mount.ask(GetParent(ROOT_INO))).ino == ROOT_INO
        with refuses(errno.ENOTEMPTY):
            await mount.apply(Rmdir(ROOT_INO, b"d", LATER))
        with refuses(errno.EISDIR):
            await mount.apply(Unlink(ROOT_INO, b"d", LATER))
        await mount.ask(Open(e.ino, False, 1))
        await mount.apply(Rmdir(d.ino, b"e", LATER))
        assert (await mount.attr(d.ino)).nlink == 2
        assert (await mount.attr(e.ino)).nlink == 0
        with refuses(errno.ENOENT):
            await mount.make(b"f", e.ino)
        with refuses(errno.ENOTDIR):
            await mount.make(b"f")
            await mount.apply(Rmdir(ROOT_INO, b"f", LATER))


async def test_listing_goes_on_after_a_cookie(url: str) -> None:
    async with small_network(url) as (_office, mount):
        names = [b"n%d" % i for i in range(25)]
        for name in names:
            await mount.make(name)
        seen: list[bytes] = []
        after, end = 0, False
        while not end:
            page = await mount.ask(ReadDir(ROOT_INO, after, 10))
            assert all(entry.cookie > max(after, 2) for entry in page.entries)
            seen += [entry.name for entry in page.entries]
            after, end = page.entries[-1].cookie, page.end
            await mount.apply(Unlink(ROOT_INO, page.entries[0].name, LATER))
        assert seen == names


async def test_a_listing_ends_while_its_names_are_renamed(url: str) -> None:
    """Each name that does not change comes once, each that does at most once under each name: as in xfstests generic/736."""

    async with small_network(url) as (_office, mount):
        for number in range(20):
            await mount.make(b"moved%d" % number)
            await mount.make(b"stays%d" % number)
        seen: list[bytes] = []
        after, bound, end = 0, 0, False
        while not end and len(seen) < 200:
            page = await mount.ask(ReadDir(ROOT_INO, after, 7, bound))
            seen += [entry.name for entry in page.entries]
            bound, end = bound or page.newest, page.end
            after = page.entries[-1].cookie if page.entries else after
            for name in [entry.name for entry in page.entries if not entry.name.startswith(b"stays")]:
                await mount.apply(Rename(ROOT_INO, name, ROOT_INO, name + b"+", 0, LATER))
        assert end
        assert [name for name in seen if name.startswith(b"stays")] == [b"stays%d" % number for number in range(20)]
        assert len(seen) == len(set(seen)) == 40


async def test_links(url: str) -> None:
    async with small_network(url) as (_office, mount):
        a = await mount.make(b"a")
        d = await mount.mkdir(b"d")
        linked = await mount.one(Link(a.ino, d.ino, b"b", LATER))
        assert (linked.nlink, linked.ctime_ns) == (2, LATER)
        with refuses(errno.EPERM):
            await mount.one(Link(d.ino, d.ino, b"c", LATER))
        with refuses(errno.EEXIST):
            await mount.one(Link(a.ino, d.ino, b"b", LATER))
        await mount.apply(Unlink(ROOT_INO, b"a", LATER + 1))
        assert (await mount.attr(a.ino)).nlink == 1
        await mount.apply(Unlink(d.ino, b"b", LATER + 2))
        with refuses(errno.ENOENT):
            await mount.one(Link(a.ino, d.ino, b"c", LATER))


async def test_rename(url: str) -> None:
    async with small_network(url) as (_office, mount):
        a, b = await mount.make(b"a"), await mount.make(b"b")
        d, e = await mount.mkdir(b"d"), await mount.mkdir(b"e")
        inner = await mount.mkdir(b"i", d.ino)
        await rename(mount, b"a", b"c")
        assert (await mount.lookup(b"c")).ctime_ns == LATER
        assert await mount.apply(Rename(1, b"c", 1, b"b", 0, LATER)) == [None]
        assert (await mount.lookup(b"b")).ino == a.ino
        assert (await mount.attr(b.ino)).nlink == 0
        for name, new, flags, expected in (
            (b"b", b"d", 0, errno.EISDIR),
            (b"d", b"b", 0, errno.ENOTDIR),
            (b"e", b"d", 0, errno.ENOTEMPTY),
            (b"b", b"d", 1, errno.EEXIST),
            (b"b", b"none", 2, errno.ENOENT),
            (b"none", b"x", 0, errno.ENOENT),
            (b"b", b"x", 3, errno.EINVAL),
            (b"b", b"x", 8, errno.EINVAL),
        ):
            with refuses(expected):
                await rename(mount, name, new, flags=flags)
        with refuses(errno.EINVAL):
            await rename(mount, b"d", b"x", new_parent=inner.ino)
        with refuses(errno.EINVAL):
            await rename(mount, b"d", b"x", new_parent=d.ino)
        with refuses(errno.EINVAL):
            await rename(mount, b"d", b"i", new_parent=d.ino, flags=2)
        with refuses(errno.ENOTEMPTY):
            await rename(mount, b"i", b"d", parent=d.ino)
        assert (await mount.attr(ROOT_INO)).nlink == 4
        await rename(mount, b"d", b"d", new_parent=e.ino)
        assert (await mount.attr(ROOT_INO)).nlink == 3
        assert (await mount.attr(e.ino)).nlink == 3
        await rename(mount, b"i", b"i2", parent=d.ino, new_parent=d.ino)
        await mount.mkdir(b"t")
        await rename(mount, b"i2", b"t", parent=d.ino)
        assert (await mount.lookup(b"t")).ino == inner.ino
        assert ((await mount.attr(ROOT_INO)).nlink, (await mount.attr(d.ino)).nlink) == (4, 2)


async def test_rename_onto_a_link_of_the_same_inode_changes_nothing(url: str) -> None:
    async with small_network(url) as (_office, mount):
        a = await mount.make(b"a")
        await mount.one(Link(a.ino, ROOT_INO, b"b", NOW))
        await rename(mount, b"a", b"b")
        assert (await mount.lookup(b"a")) == (await mount.lookup(b"b"))


async def test_exchange(url: str) -> None:
    async with small_network(url) as (_office, mount):
        d = await mount.mkdir(b"d")
        sub, a = await mount.mkdir(b"sub", d.ino), await mount.make(b"a")
        await rename(mount, b"sub", b"a", parent=d.ino, flags=2)
        assert (await mount.lookup(b"a")).ino == sub.ino
        assert (await mount.lookup(b"sub", d.ino)).ino == a.ino
        assert ((await mount.attr(ROOT_INO)).nlink, (await mount.attr(d.ino)).nlink) == (4, 2)


async def test_a_list_is_applied_whole_or_not_at_all(url: str) -> None:
    async with small_network(url) as (office, mount):
        first, second = await mount.new_ino(), await mount.new_ino()
        with refuses(errno.EEXIST):
            await mount.apply(
                Create(1, b"d", first, stat.S_IFDIR | 0o755, 0, 0, 0, LATER),
                Create(first, b"f", second, stat.S_IFREG | 0o644, 0, 0, 0, LATER, 1),
                Create(1, b"d", await mount.new_ino(), stat.S_IFDIR | 0o755, 0, 0, 0, LATER),
            )
        with refuses(errno.ENOENT):
            await mount.lookup(b"d")
        assert not office.state.sessions.is_open(second)
        assert (await mount.attr(ROOT_INO)).nlink == 2
        nodes = await mount.apply(
            Create(1, b"d", first, stat.S_IFDIR | 0o755, 0, 0, 0, LATER),
            Create(first, b"f", second, stat.S_IFREG | 0o644, 0, 0, 0, LATER, 1),
        )
        assert [node.ino for node in nodes if node] == [first, second]


async def test_set_group_id_is_inherited(url: str) -> None:
    async with small_network(url) as (_office, mount):
        d = await mount.make(b"d", mode=stat.S_IFDIR | 0o2775, gid=50)
        f, sub = await mount.make(b"f", d.ino, gid=7), await mount.mkdir(b"s", d.ino)
        assert (f.gid, sub.gid) == (50, 50)
        assert not f.mode & stat.S_ISGID
        assert sub.mode & stat.S_ISGID


async def test_attributes(url: str) -> None:
    async with small_network(url) as (_office, mount):
        f = await mount.make(b"f")
        node = await mount.one(SetAttr(f.ino, LATER, mode=0o4711, uid=5, atime_ns=-1, mtime_ns=77))
        assert (node.mode, node.uid, node.gid) == (stat.S_IFREG | 0o4711, 5, 0)
        assert (node.atime_ns, node.mtime_ns, node.ctime_ns) == (-1, 77, LATER)
        with refuses(errno.EINVAL):
            await mount.one(SetAttr(f.ino, LATER, mode=stat.S_IFREG | 0o600))
        with refuses(errno.EINVAL):
            await mount.one(SetAttr(f.ino, LATER, uid=2**32 - 1))
        with refuses(errno.ESTALE):
            await mount.one(SetAttr(999_999, LATER, mode=0o600))


async def test_extended_attributes(url: str) -> None:
    async with small_network(url) as (_office, mount):
        f = await mount.make(b"f")
        link = await mount.make(b"l", mode=stat.S_IFLNK | 0o777, target=b"x")

        async def put(name: bytes, value: bytes, flags: int = 0, ino: int = f.ino) -> None:
            await mount.one(SetXattr(ino, name, value, flags, LATER))

        await put(b"user.a", b"\0\xff", flags=1)
        await put(b"user.a", b"2", flags=2)
        await put(b"trusted.b", b"x" * 65536)
        assert (await mount.ask(GetXattr(f.ino, b"user.a"))).value == b"2"
        assert (await mount.ask(ListXattr(f.ino))).names == [b"trusted.b", b"user.a"]
        assert (await mount.attr(f.ino)).ctime_ns == LATER
        for name, value, flags, ino, expected in (
            (b"user.a", b"", 1, f.ino, errno.EEXIST),
            (b"user.z", b"", 2, f.ino, errno.ENODATA),
            (b"user.z", b"", 3, f.ino, errno.EINVAL),
            (b"user.z", b"x" * 65537, 0, f.ino, errno.E2BIG),
            (b"system.z", b"", 0, f.ino, errno.EOPNOTSUPP),
            (b"other.z", b"", 0, f.ino, errno.EOPNOTSUPP),
            (b"user.", b"", 0, f.ino, errno.EINVAL),
            (b"user.z", b"", 0, link.ino, errno.EPERM),
            (b"user." + b"x" * 251, b"", 0, f.ino, errno.ERANGE),
        ):
            with refuses(expected):
                await put(name, value, flags, ino)
        await mount.one(RemoveXattr(f.ino, b"user.a", LATER))
        with refuses(errno.ENODATA):
            await mount.one(RemoveXattr(f.ino, b"user.a", LATER))
        with refuses(errno.ENODATA):
            await mount.ask(GetXattr(f.ino, b"user.a"))


async def test_access_lists_and_modes_agree(url: str) -> None:
    extended = acl.pack(
        (
            acl.AclEntry(acl.USER_OBJ, 6),
            acl.AclEntry(acl.USER, 7, 1000),
            acl.AclEntry(acl.GROUP_OBJ, 4),
            acl.AclEntry(acl.MASK, 6),
            acl.AclEntry(acl.OTHER, 0),
        )
    )
    plain = acl.pack((acl.AclEntry(acl.USER_OBJ, 7), acl.AclEntry(acl.GROUP_OBJ, 5), acl.AclEntry(acl.OTHER, 1)))

    async with small_network(url) as (_office, mount):
        f, d = await mount.make(b"f"), await mount.mkdir(b"d")
        assert stat.S_IMODE((await mount.one(SetXattr(f.ino, acl.ACCESS_XATTR, extended, 0, LATER))).mode) == 0o660
        await mount.one(SetAttr(f.ino, LATER, mode=0o751))
        changed = acl.parse((await mount.ask(GetXattr(f.ino, acl.ACCESS_XATTR))).value)
        assert changed is not None
        assert [entry.permissions for entry in changed] == [7, 7, 4, 5, 1]
        assert stat.S_IMODE((await mount.one(SetXattr(f.ino, acl.ACCESS_XATTR, plain, 0, LATER))).mode) == 0o751
        with refuses(errno.ENODATA):
            await mount.ask(GetXattr(f.ino, acl.ACCESS_XATTR))
        with refuses(errno.EACCES):
            await mount.one(SetXattr(f.ino, acl.DEFAULT_XATTR, extended, 0, LATER))
        with refuses(errno.EINVAL):
            await mount.one(SetXattr(d.ino, acl.DEFAULT_XATTR, extended[:-1], 0, LATER))
        await mount.one(SetXattr(d.ino, acl.DEFAULT_XATTR, extended, 0, LATER))
        inner = await mount.mkdir(b"i", d.ino, 0o755)
        child = await mount.make(b"c", inner.ino)
        assert (await mount.ask(GetXattr(inner.ino, acl.DEFAULT_XATTR))).value == extended
        assert stat.S_IMODE(child.mode) == 0o640
        assert (await mount.ask(ListXattr(child.ino))).names == [acl.ACCESS_XATTR]
        await mount.one(RemoveXattr(d.ino, acl.DEFAULT_XATTR, LATER))
        await mount.one(RemoveXattr(d.ino, acl.DEFAULT_XATTR, LATER))
        assert (await mount.ask(ListXattr((await mount.make(b"c", d.ino)).ino))).names == []
