"""An import into a network without processes: what comes out of it, also when it ends at any of its steps."""

import os
import random
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.importing.destination import Place as Where
from cli.importing.destination import check_source, enter, top_directory
from cli.importing.disk import Disk
from cli.importing.findings import Brick, Folder, Walk
from cli.importing.importer import Importer
from cli.importing.report import Report
from cli.importing.work import Destination
from cluster.errors import NoSpace, Refused
from cluster.messages import (
    ROOT_INO,
    GetXattr,
    ImportNames,
    ListXattr,
    Lookup,
    Node,
    ReadDir,
    ReadLink,
    RegisterVolumes,
    Request,
    VolumeState,
)
from cluster.volume.content import is_as_committed
from cluster.volume.fence import fence, lift
from cluster.volume.layout import RECORD_XATTR, VolumeLayout
from cluster.volume.takeover import How
from tests.manager.office import Office, Peer, in_office
from tests.support.choices import ACLS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="who imports changes owners: run the tests with sudo")

OLD_NS = 1_500_000_000_123_456_789
CHANGES = frozenset({"os.link", "os.remove", "os.rmdir", "os.chown", "os.chmod", "os.setxattr", "os.removexattr", "os.utime"})


class KilledError(BaseException):
    """The process is dead: nothing that it does has an effect any more."""


@dataclass
class Death:
    """Comes before a step that is counted; from then on before each."""

    left: int | None = None  # steps until then; None: never

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KilledError


DEATH = Death()
_hooked: list[bool] = []


def _before(event: str, _arguments: tuple[Any, ...]) -> None:
    if event in CHANGES:
        DEATH.step()


@contextmanager
def dying_after(steps: int | None) -> Iterator[None]:
    """The steps are the system calls that change something, and what the manager is asked."""
    if not _hooked:
        sys.addaudithook(_before)  # stays for good, and does nothing otherwise
        _hooked.append(True)
    DEATH.left = steps
    try:
        yield
    finally:
        DEATH.left = None


@dataclass
class Network:
    """A manager, the volume of its server, and directories to be imported."""

    office: Office
    mount: Peer
    layout: VolumeLayout
    volume: int
    source: Path

    async def run(self, *, keep: bool = False, steps: int | None = None, full: bool = False) -> Report:
        """Imports all of the source; *steps*: it dies after so many; *full*: the catalog takes only the top directory."""
        path = b"/data"
        admin = await self.office.peer("admin", "admin")
        folder, report = Folder(str(self.source)), Report()

        async def ask(request: Request[Any]) -> Any:
            DEATH.step()
            if full and isinstance(request, ImportNames) and len(request.names) > 1:
                raise NoSpace("the catalog is full")
            answer = await admin.ask(request)
            DEATH.step()  # the answer is lost
            return answer

        try:
            with dying_after(steps):
                walk = Walk(folder, Brick.around(folder.path))
                destination = Destination(self.layout, self.volume, os.stat(self.layout.objects).st_dev)
                disk = Disk(destination, walk, walk.survey(), report, keep=keep)
                importer = Importer(ask, walk, disk, report, keep=keep, progress=lambda: None)  # type: ignore[arg-type]
                node = (await ask(Lookup(ROOT_INO, path[1:]))).node
                place = Where(path, ROOT_INO, path[1:], node)
                ino, is_new = await enter(ask, walk, place)  # type: ignore[arg-type]
                await importer.run(top_directory(ino, place, None if is_new else await importer.listing(ino)))
        finally:
            folder.close()
            assert self.office.term is not None
            (session,) = (each for each in self.office.state.sessions.all() if each.number == admin.number)
            self.office.term.end_session(session)
        return report

    async def node(self, path: bytes) -> Node:
        ino, node = ROOT_INO, None
        for name in path.strip(b"/").split(b"/"):
            node = await self.mount.lookup(name, ino)
            ino = node.ino
        assert node is not None
        return node

    async def tree(self, path: bytes = b"/data") -> dict[bytes, Any]:
        """What programs would see there, by path."""
        top = await self.node(path)
        seen: dict[bytes, Any] = {b"": await self._seen(top)}
        waiting = [(b"", top.ino)]
        while waiting:
            inside, ino = waiting.pop()
            for entry in (await self.mount.ask(ReadDir(ino, 0, 10_000))).entries:
                below = inside + b"/" + entry.name
                seen[below] = await self._seen(entry.node)
                if stat.S_ISDIR(entry.node.mode):
                    waiting.append((below, entry.node.ino))
        return grouped(seen)

    async def _seen(self, node: Node) -> Any:
        content: Any = b""
        if stat.S_ISLNK(node.mode):
            content = (await self.mount.ask(ReadLink(node.ino))).value
        elif stat.S_ISREG(node.mode):
            content = Path(self.layout.object_path(node.ino)).read_bytes()
        xattrs = {name: (await self.mount.ask(GetXattr(node.ino, name))).value for name in await self._names(node.ino)}
        links = 0 if stat.S_ISDIR(node.mode) else node.nlink
        return (node.mode, node.uid, node.gid, node.rdev, node.mtime_ns, links, content, xattrs, node.ino)

    async def _names(self, ino: int) -> list[bytes]:
        return (await self.mount.ask(ListXattr(ino))).names

    async def assert_whole(self) -> None:
        """Each object is that of a file, and as the catalog says."""
        rows = await self.office.store.read(
            lambda connection: connection.exec_driver_sql("SELECT ino FROM inodes WHERE home_volume != 0").scalars().all()
        )
        objects = {int(path.name): path for path in self.layout.objects.glob("*/*")}
        assert set(objects) == set(rows)
        for ino in rows:
            status = objects[ino].stat()
            assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_uid) == (1, 0o600, 0)
            assert is_as_committed(await self.mount.attr(ino), status)


def grouped(seen: dict[bytes, Any]) -> dict[bytes, Any]:
    """With the first path of the same inode in the place of its number."""
    first: dict[int, bytes] = {}
    for path in sorted(seen):
        first.setdefault(seen[path][-1], path)
    return {path: (*values[:-1], first[values[-1]]) for path, values in seen.items()}


def tree_of(root: Path) -> dict[bytes, Any]:
    """As `Network.tree`, of a directory."""
    top = os.fsencode(root)
    seen = {}
    for path in [top, *(os.path.join(inside, name) for inside, *names in os.walk(top) for some in names for name in some)]:
        status = os.lstat(path)
        content: Any = b""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        names = (os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False) if name != RECORD_XATTR)
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        attributes = (status.st_mode, status.st_uid, status.st_gid, device, status.st_mtime_ns, links)
        seen[path[len(top) :]] = (*attributes, content, xattrs, status.st_ino)
    return grouped(seen)


def make_tree(root: Path, seed: int, names: int = 12) -> None:
    """A directory with a bit of everything."""
    choose = random.Random(seed)
    root.mkdir()
    folders, files = [root], list[Path]()
    for number in range(names):
        path = choose.choice(folders) / choose.choice((f"n{number}", os.fsdecode(b"\xff-%d" % number)))
        kind = choose.choice(("folder", "file", "file", "file", "hole", "link", "name", "name", "fifo", "device"))
        if kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind == "name" and files:
            os.link(choose.choice(files), path)
        elif kind == "link":
            path.symlink_to(choose.choice(("nowhere", "../n1")))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 300))
        else:
            path.write_bytes(choose.randbytes(choose.choice((0, 10, 9000))))
            if kind == "hole":
                os.truncate(path, 1 << 20)
            files.append(path)
        decorate(path, choose)
    for folder in reversed(folders):
        os.utime(folder, ns=(OLD_NS, OLD_NS - choose.randrange(10**12)))


def decorate(path: Path, choose: random.Random) -> None:
    os.lchown(path, choose.choice((0, 4001)), choose.choice((0, 5000)))
    if not path.is_symlink():
        path.chmod(choose.choice((0o644, 0o600, 0o4755, 0o2750, 0o1777)))
        if choose.random() < 0.3:
            os.setxattr(path, "system.posix_acl_access", ACLS[1])
        if path.is_file() or path.is_dir():
            os.setxattr(path, "user.colour", b"red" * choose.randrange(3))
        if path.is_dir() and choose.random() < 0.5:
            os.setxattr(path, "system.posix_acl_default", ACLS[1])
    os.utime(path, ns=(OLD_NS, OLD_NS + choose.randrange(10**12)), follow_symlinks=False)


@asynccontextmanager
async def network_in(folder: Path) -> AsyncIterator[Network]:
    layout = VolumeLayout(folder / "volume")
    identity = layout.format("test", "s1")
    async with in_office(f"sqlite:///{folder}/catalog.db") as office:
        agent = await office.peer("s1", "agent")
        state = VolumeState(identity.uuid, str(layout.root), 2**40, 2**39, "device")
        volume = (await agent.ask(RegisterVolumes("127.0.0.1:7602", [state]))).volumes[0]
        yield Network(office, await office.peer(), layout, volume, folder / "source")


@pytest.fixture
def network(tmp_path: Path) -> Any:
    return network_in(tmp_path)


@pytest.mark.parametrize("keep", [False, True], ids=["moved", "kept"])
@pytest.mark.parametrize("seed", range(3))
async def test_trees_are_the_same_afterwards(network: Network, seed: int, keep: bool) -> None:
    make_tree(network.source, seed, names=60)
    before = tree_of(network.source)
    blocks = sum(path.lstat().st_blocks for path in network.source.rglob("*") if path.is_file())
    report = await network.run(keep=keep)
    assert (report.problems, report.failed, report.taken) == ([], 0, 0)
    assert await network.tree() == before
    await network.assert_whole()
    assert (tree_of(network.source) == before) if keep else os.listdir(network.source) == []
    # Holes stay holes; a record may need a block.
    objects = list(network.layout.objects.glob("*/*"))
    assert sum(path.stat().st_blocks for path in objects) <= blocks + 8 * len(objects)


async def test_what_is_on_the_same_file_system_is_not_copied(network: Network) -> None:
    make_tree(network.source, 1)
    (network.source / "last").write_bytes(b"x" * 5000)
    inode = (network.source / "last").stat().st_ino
    report = await network.run()
    assert set(report.files) == {How.LINKED}
    node = await network.node(b"/data/last")
    assert os.stat(network.layout.object_path(node.ino)).st_ino == inode


async def test_it_may_end_at_any_step_and_is_completed_by_a_repetition(tmp_path: Path) -> None:
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        folder.mkdir()
        async with network_in(folder) as network:
            make_tree(network.source, 3, names=8)
            before = tree_of(network.source)
            if not await dies(network, steps):
                break
            await assert_nothing_is_lost(network, before)
            report = await network.run()
            assert report.problems == []
            assert await network.tree() == before
            await network.assert_whole()
            assert os.listdir(network.source) == []
        steps += 1
    assert steps > 30


async def dies(network: Network, steps: int) -> bool:
    """Whether an import ends before its end."""
    try:
        await network.run(steps=steps)
    except BaseException as error:
        if not is_death(error):
            raise
        return True
    return False


def is_death(error: BaseException) -> bool:
    return isinstance(error, KilledError) or (
        isinstance(error, BaseExceptionGroup) and all(is_death(each) for each in error.exceptions)
    )


async def assert_nothing_is_lost(network: Network, before: dict[bytes, Any]) -> None:
    """Each file is where it was, or in the network, with all that is in it."""
    there = tree_of(network.source)
    try:
        made = await network.tree()
    except Refused:
        made = {}
    for path, values in before.items():
        found = [tree[path] for tree in (there, made) if path in tree]
        assert found, path
        assert all(stat.S_IFMT(each[0]) == stat.S_IFMT(values[0]) and each[6] == values[6] for each in found), path


async def test_what_the_network_has_is_never_overwritten(network: Network) -> None:
    make_tree(network.source, 1)
    (network.source / "file").write_bytes(b"first")
    (network.source / "folder").mkdir(exist_ok=True)
    await network.run()
    (network.source / "file").write_bytes(b"second")
    (network.source / "folder").write_bytes(b"no folder")
    (network.source / "new").write_bytes(b"new")
    report = await network.run()
    assert (report.taken, sorted(os.listdir(network.source))) == (2, ["file", "folder"])
    assert (await network.tree())[b"/file"][6] == b"first"
    assert (await network.tree())[b"/new"][6] == b"new"
    assert (network.source / "file").read_bytes() == b"second"
    await network.assert_whole()


@pytest.mark.parametrize("keep", [False, True], ids=["moved", "kept"])
async def test_what_was_copied_before_is_there(network: Network, keep: bool) -> None:
    make_tree(network.source, 2, names=20)
    first = await network.run(keep=True)
    assert set(first.files) <= {How.CLONED, How.COPIED}
    second = await network.run(keep=keep)
    assert (second.problems, sum(second.files.values()), second.taken) == ([], 0, 0)
    assert (os.listdir(network.source) == []) == (not keep)
    await network.assert_whole()


async def test_a_file_with_a_name_elsewhere_is_copied(network: Network) -> None:
    network.source.mkdir()
    (network.source / "file").write_bytes(b"content")
    outside = network.source.parent / "outside"
    os.link(network.source / "file", outside)
    report = await network.run()
    assert set(report.files) & {How.CLONED, How.COPIED}
    outside.write_bytes(b"changed")
    assert (await network.tree())[b"/file"][6] == b"content"
    await network.assert_whole()


async def test_a_file_that_is_open_for_writing_is_left_alone(network: Network) -> None:
    make_tree(network.source, 1)
    busy = network.source / "busy"
    with busy.open("wb") as file:
        file.write(b"half")
        file.flush()
        report = await network.run()
    assert report.problems == [(str(busy), "somebody has it open for writing")]
    assert os.listdir(network.source) == ["busy"]
    assert (await network.run()).problems == []
    assert (await network.tree())[b"/busy"][6] == b"half"


async def test_what_cannot_be_moved_stays_and_is_named(network: Network) -> None:
    network.source.mkdir()
    os.mknod(network.source / "socket", stat.S_IFSOCK | 0o600)
    fixed = network.source / "fixed"
    fixed.write_bytes(b"content")
    fixed.chmod(0o640)
    descriptor = os.open(fixed, os.O_RDONLY)
    if not fence(descriptor):
        pytest.skip("this file system has no immutable files")
    report = await network.run()
    assert (report.skipped, report.failed, sorted(os.listdir(network.source))) == (1, 1, ["fixed", "socket"])
    assert "lsattr" in report.problems[0][1]
    assert stat.S_IMODE(fixed.stat().st_mode) == 0o640
    lift(descriptor)
    os.close(descriptor)
    await network.run()
    assert (await network.tree())[b"/fixed"][6] == b"content"
    await network.assert_whole()


async def test_when_nothing_more_fits_all_is_given_back(network: Network) -> None:
    make_tree(network.source, 4, names=20)
    before = tree_of(network.source)
    with pytest.raises(NoSpace):
        await network.run(full=True)
    assert tree_of(network.source) == before
    assert list(network.layout.objects.glob("*/*")) == []
    await network.run()
    assert await network.tree() == before


async def test_a_brick_of_glusterfs(network: Network) -> None:
    gfid = bytes(range(16))
    brick = network.source
    links = brick / ".glusterfs/00/01"
    links.mkdir(parents=True)
    (brick / "file").write_bytes(b"content")
    os.setxattr(brick / "file", "trusted.gfid", gfid)
    os.setxattr(brick / "file", "user.mine", b"kept")
    os.link(brick / "file", links / "00010203-0405-0607-0809-0a0b0c0d0e0f")
    (brick / "elsewhere").touch()
    (brick / "elsewhere").chmod(0o1000)
    os.setxattr(brick / "elsewhere", "trusted.glusterfs.dht.linkto", b"volume-client-1\0")
    report = await network.run()
    assert (report.files, report.skipped, report.problems) == ({How.LINKED: 1}, 2, [])
    tree = await network.tree()
    assert sorted(tree) == [b"", b"/file"]
    assert tree[b"/file"][7] == {b"user.mine": b"kept"}
    assert os.listdir(links) == []
    await network.assert_whole()


def test_pieces_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".glusterfs").mkdir()
    (tmp_path / ".shard").mkdir()
    (tmp_path / ".shard/piece").touch()
    with pytest.raises(Refused, match="in pieces"):
        Brick.around(str(tmp_path))


def test_a_volume_is_not_imported(tmp_path: Path) -> None:
    layout = VolumeLayout(tmp_path / "below/volume")
    layout.format("test", "s1")
    for source in (tmp_path, layout.root, layout.objects):
        with pytest.raises(Refused, match="neither may lie within the other"):
            check_source(str(source), [str(layout.root)], keep=False)
    folder = Folder(str(tmp_path / "below"))
    with pytest.raises(Refused, match="is being imported already"):
        Folder(folder.path)
    with pytest.raises(Refused, match="is a volume of Godwit"):
        Walk(folder, None).survey()
    folder.close()
