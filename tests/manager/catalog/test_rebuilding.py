"""A catalog that is made again of volumes is what it was before, as far as they say it; and nothing that they say is trusted."""

import fcntl
import os
import random
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from sqlalchemy import insert, select, update

from cluster.catalog_point import CatalogPoint
from cluster.durable import replace_file
from cluster.errors import Refused
from cluster.messages import ROOT_INO, Link
from cluster.volume.layout import ObjectRecord, VolumeIdentity, VolumeLayout, write_record
from manager.catalog.backup import back_up
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.identity import GENERATION_INODES, read_first_ino, read_point
from manager.catalog.inodes import path_of, paths_of
from manager.catalog.rebuilding import Rebuilt, newest_backup, rebuild
from manager.catalog.schema import dentries, inodes, replicas, servers, symlinks, volume_scans, volumes, xattrs
from manager.catalog.taking_in import Found
from manager.catalog.verification import verify
from tests.manager.catalog.random_trees import grow
from tests.manager.databases import Postgres
from tests.manager.office import NOW, Peer, in_office

TERM_S = 0.01
SEED = 20261202
COLUMNS = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "version")


@pytest.fixture
def empty(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database of the kind of *url*'s."""
    if url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/again/catalog.db"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.new_database("template0 ENCODING 'UTF8'") as made:
        yield made


@contextmanager
def reading(url: str) -> Iterator[Any]:
    writer, reader = make_engines(url)
    with reader.connect() as connection:
        yield connection
    writer.dispose()
    reader.dispose()


def tree(url: str) -> dict[bytes, tuple[Any, ...]]:
    """All paths, with what is there: attributes, number and version of the content, target, extended attributes."""
    with reading(url) as connection:
        rows = {row.ino: row for row in connection.execute(select(inodes))}
        targets = {row.ino: row.target for row in connection.execute(select(symlinks))}
        attributes: dict[int, list[tuple[bytes, bytes]]] = {}
        for row in connection.execute(select(xattrs).order_by(xattrs.c.name)):
            attributes.setdefault(row.ino, []).append((row.name, row.value))
        found = {b"/": ROOT_INO}
        for row in connection.execute(select(dentries)):
            found[path_of(connection, row.parent).rstrip(b"/") + b"/" + row.name] = row.ino
    return {
        path: (*(getattr(rows[ino], name) for name in COLUMNS), targets.get(ino), attributes.get(ino))
        for path, ino in found.items()
    }


class Disks:
    """The volumes 1 to 3 of s1 to s3, with uuids u1 to u3, as `Office.three_servers` registers them."""

    def __init__(self, folder: Path, point: CatalogPoint | None) -> None:
        self.layouts = [VolumeLayout(folder / f"vol{number}") for number in (1, 2, 3)]
        for number, layout in enumerate(self.layouts, 1):
            layout.format("test", f"s{number}")
            catalog, generation = ("", 0) if point is None else (point.catalog, point.generation)
            self.label(number, VolumeIdentity(f"u{number}", "test", f"s{number}", catalog=catalog, generation=generation))

    @property
    def roots(self) -> list[Path]:
        return [layout.root for layout in self.layouts]

    def label(self, number: int, identity: VolumeIdentity) -> None:
        replace_file(self.layouts[number - 1].root / "volume.toml", msgspec.toml.encode(identity))

    def put(self, volume: int, ino: int, path: str = "", content: bytes = b"content", **fields: Any) -> Path:
        """An object with its record, as a commit leaves it."""
        layout = self.layouts[volume - 1]
        layout.remove_objects([ino])
        descriptor = layout.create_object(ino)
        os.write(descriptor, content)
        values = {"version": 1, "home_epoch": 1, "mode": stat.S_IFREG | 0o644, "mtime_ns": NOW, **fields}
        write_record(descriptor, ObjectRecord(ino, path=path, **values))
        os.utime(descriptor, ns=(NOW, values["mtime_ns"]))
        os.close(descriptor)
        return Path(layout.object_path(ino))

    def fill(self, url: str) -> None:
        """An object for each of the catalog's files at its home; those with odd numbers have the times that the catalog knows."""
        times: dict[int, int] = {}
        with reading(url) as connection:
            rows = connection.execute(select(inodes).where(inodes.c.home_volume != 0)).all()
            paths = paths_of(connection, [row.ino for row in rows])
        for row in rows:
            fields = {"mode": row.mode, "uid": row.uid, "gid": row.gid, "version": row.version, "mtime_ns": row.mtime_ns}
            path = self.put(
                row.home_volume, row.ino, os.fsdecode(paths[row.ino]), b"x" * row.size, home_epoch=row.home_epoch, **fields
            )
            if row.ino % 2:
                times[row.ino] = path.stat().st_ctime_ns
        writer, _reader = make_engines(url)
        with write_transaction(writer) as connection:
            for ino, ctime_ns in times.items():
                connection.execute(update(inodes).where(inodes.c.ino == ino).values(object_ctime_ns=ctime_ns))
        writer.dispose()


def make_again(url: str, disks: Disks, **choices: Any) -> Rebuilt:
    settings = {"backup": None, "use_backups": True, "remembered": None, "term_s": TERM_S, "dry_run": False, **choices}
    return rebuild(url, disks.roots, **settings)


def put_backup(url: str, disks: Disks, volume: int, name: str) -> Path:
    folder = disks.layouts[volume - 1].backups
    folder.mkdir(exist_ok=True)
    back_up(url, folder / name)
    return folder / name


def seen(disks: Disks) -> dict[str, bytes]:
    """Everything that is on the volumes."""
    return {str(path): path.read_bytes() for root in disks.roots for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_tree_is_as_it_was_and_goes_on(url: str, empty: str, tmp_path: Path) -> None:
    async def before() -> None:
        async with in_office(url) as office:
            await office.three_servers()
            await grow(await office.peer(), random.Random(SEED), 80)

    async def after() -> None:
        async with in_office(empty) as office:
            mount = await office.peer()
            new = await mount.make(b"new file")
            assert new.ino >= GENERATION_INODES

    trio.run(before)
    with reading(url) as connection:
        point = read_point(connection)
    disks = Disks(tmp_path, point)
    disks.fill(url)
    put_backup(url, disks, 2, "catalog-2026-12-01")
    expected, untouched = tree(url), seen(disks)
    made = make_again(empty, disks)
    assert tree(empty) == expected
    assert seen(disks) == untouched
    with reading(empty) as connection:
        homes = connection.execute(select(inodes.c.ino, inodes.c.dirty).where(inodes.c.home_volume != 0)).all()
    assert {row.dirty == row.ino % 2 for row in homes} == {False}, "what is as it was committed needs no other commit"
    files = sum(stat.S_ISREG(row[1]) for row in {row[0]: row for row in expected.values()}.values())
    assert made.counts == {Found.KNOWN: files}
    assert (made.missing, made.directories) == ([], 0)
    assert (made.point.catalog, made.point.generation) == (point.catalog, 2)
    back_up(empty, tmp_path / "again-backup")
    assert verify(tmp_path / "again-backup").rows["inodes"] == made.inodes
    trio.run(after)


async def _change_much(url: str, disks: Disks) -> dict[str, int]:
    """Makes files, a backup, and then changes of every kind, whose objects are put on the volumes. Numbers by name."""
    numbers: dict[str, int] = {}

    async def make(mount: Peer, name: bytes, parent: int = ROOT_INO) -> int:
        numbers[name.decode()] = ino = (await mount.make(name, parent)).ino
        await mount.commit(ino, 1)
        disks.put(1, ino, f"/{name.decode()}", mtime_ns=NOW + 1)
        return ino

    async with in_office(url) as office:
        await office.three_servers()
        mount = await office.peer()
        numbers["folder"] = (await mount.mkdir(b"folder")).ino
        for name in (b"same", b"rewritten", b"moved", b"linked", b"removed", b"home-moved", b"uncommitted", b"stale-copy"):
            await make(mount, name)
        await mount.one(Link(numbers["linked"], ROOT_INO, b"other", NOW))
    put_backup(url, disks, 3, "catalog-2026-12-01")
    return numbers


def test_what_came_after_the_backup_is_taken_from_the_objects(url: str, empty: str, tmp_path: Path) -> None:
    disks = Disks(tmp_path, None)
    numbers = trio.run(_change_much, url, disks)
    disks.put(
        1, numbers["rewritten"], "/rewritten", b"longer now", version=4, mode=stat.S_IFREG | 0o600, uid=7, gid=8, mtime_ns=NOW + 9
    )
    disks.put(2, numbers["rewritten"], "/rewritten", version=1)
    disks.put(1, numbers["moved"], "/folder/moved", version=2)
    disks.put(1, numbers["linked"], "/folder/third", version=2)
    disks.layouts[0].remove_objects([numbers["removed"], numbers["home-moved"]])
    disks.put(3, numbers["home-moved"], "/home-moved", version=1, checksum="ab" * 32)
    os.utime(disks.layouts[0].object_path(numbers["uncommitted"]), ns=(NOW, NOW + 77))
    disks.put(2, 5_000_000, "/new folder/deep/made", b"made", version=2, mode=stat.S_IFREG | 0o4750, uid=5, gid=6)
    disks.put(3, 5_000_000, "/new folder/deep/made", b"old", version=1)
    disks.put(2, 5_000_001, "/same", b"another with its name")
    disks.put(2, 5_000_002, "nd of a path that was too long")
    disks.put(2, 5_000_003, "/same/below a file")
    disks.layouts[1].create_object(5_000_004)
    made = make_again(empty, disks)
    found = tree(empty)
    by_path = {path: row[0] for path, row in found.items()}
    names = ("same", "rewritten", "linked", "home-moved", "uncommitted", "stale-copy")
    assert {f"/{name}".encode(): numbers[name] for name in names}.items() <= by_path.items()
    assert by_path[b"/folder/moved"] == numbers["moved"]
    assert b"/moved" not in by_path
    assert by_path[b"/other"] == numbers["linked"]
    assert b"/folder/third" not in by_path
    assert b"/removed" not in by_path
    assert by_path[b"/new folder/deep/made"] == 5_000_000
    assert by_path[b"/same.5000001"] == 5_000_001
    assert by_path[b"/lost+found/5000002"] == 5_000_002
    assert by_path[b"/lost+found/5000003"] == 5_000_003
    rewritten = dict(zip(COLUMNS, found[b"/rewritten"], strict=False))
    assert (rewritten["mode"], rewritten["uid"], rewritten["gid"], rewritten["size"]) == (stat.S_IFREG | 0o600, 7, 8, 10)
    assert (rewritten["version"], rewritten["mtime_ns"]) == (4, NOW + 9)
    assert found[b"/new folder/deep/made"][1:5] == (stat.S_IFREG | 0o4750, 1, 5, 6)
    assert found[b"/new folder"][2] == 3
    with reading(empty) as connection:
        homes = {row.ino: row for row in connection.execute(select(inodes).where(inodes.c.home_volume != 0))}
        held = {(row.ino, row.volume): row for row in connection.execute(select(replicas))}
        assert len(connection.execute(select(volume_scans)).all()) == 3
    assert homes[numbers["home-moved"]].home_volume == 3
    assert held[numbers["home-moved"], 3].checksum == bytes.fromhex("ab" * 32)
    assert homes[5_000_000].home_volume == 2
    assert {volume: held[5_000_000, volume].version for volume in (2, 3)} == {2: 2, 3: 1}
    assert all(row.dirty for row in homes.values())
    counts = {Found.KNOWN: 3, Found.NEWER: 3, Found.MADE: 4, Found.LOST: 2, Found.RENAMED: 1, Found.MOVED: 1, Found.GONE: 1}
    assert made.counts == {**counts, Found.BLANK: 1}
    assert made.examples[Found.GONE] == ["/removed"]
    back_up(empty, tmp_path / "again-backup")
    verify(tmp_path / "again-backup")


def test_without_a_backup_there_are_files_by_their_paths(url: str, empty: str, tmp_path: Path) -> None:
    del url
    known = CatalogPoint("11111111-2222-3333-4444-555555555555", 4, 9)
    disks = Disks(tmp_path, known)
    disks.put(1, 2000, "/a/b/one", mode=stat.S_IFREG | 0o640, uid=3, gid=4, version=3)
    disks.put(2, 2000, "/a/b/one", mode=stat.S_IFREG | 0o640, uid=3, gid=4, version=3, checksum="cd" * 32)
    disks.put(2, 9_000, "/a/\udcff two", home_epoch=2)
    disks.put(3, 9_000, "/a/\udcff two", version=8)
    disks.put(3, 9_001, "/a/../../etc/passwd", mode=0)
    disks.put(3, 9_002, "/a/b", b"where a directory is")
    disks.put(3, 9_003, "/lying", version=-4)
    os.mkfifo(disks.layouts[2].object_path(9_004))
    made = make_again(empty, disks)
    rows = tree(empty)
    found = {path: row[0] for path, row in rows.items() if stat.S_ISREG(row[1])}
    lost = {f"/lost+found/{ino}".encode(): ino for ino in (9_001, 9_003)}
    assert found == {b"/a/b/one": 2000, b"/a/\xff two": 9_000, b"/a/b.9002": 9_002, **lost}
    assert rows[b"/a/b/one"][1:5] == (stat.S_IFREG | 0o640, 1, 3, 4)
    assert rows[b"/lost+found"][1] == stat.S_IFDIR | 0o700
    with reading(empty) as connection:
        homes = {row.ino: row.home_volume for row in connection.execute(select(inodes).where(inodes.c.home_volume != 0))}
        assert read_point(connection) == made.point
        assert read_first_ino(connection) == 3 * 4096 + GENERATION_INODES
        assert list(connection.execute(select(servers.c.server).order_by(servers.c.server)).scalars()) == ["s1", "s2", "s3"]
        stored = connection.execute(select(volumes.c.uuid, volumes.c.server).order_by(volumes.c.volume)).all()
    # The home has no checksum of what it has just committed, and the higher epoch is newer than any version.
    assert homes == {2000: 1, 9_000: 2, 9_001: 3, 9_002: 3, 9_003: 3}
    assert [tuple(row) for row in stored] == [("u1", "s1"), ("u2", "s2"), ("u3", "s3")]
    assert (made.point.catalog, made.point.generation, made.backup) == (known.catalog, 5, None)
    assert made.counts == {Found.MADE: 5, Found.LOST: 2, Found.UNREADABLE: 1, Found.LEFT_OUT: 1}

    async def main() -> None:
        async with in_office(empty) as office:
            agent = await office.peer("s2", "agent")
            assert await agent.volume("u2") == 2

    trio.run(main)


def test_the_newest_backup_that_is_good_is_taken(sqlite_url: str, tmp_path: Path) -> None:
    async def make(name: bytes) -> None:
        async with in_office(sqlite_url) as office:
            await (await office.peer()).mkdir(name)

    disks = Disks(tmp_path, None)
    trio.run(make, b"first")
    put_backup(sqlite_url, disks, 1, "catalog-1")
    trio.run(make, b"second")
    good = put_backup(sqlite_url, disks, 2, "catalog-2")
    (disks.layouts[1].backups / "catalog-3").write_bytes(good.read_bytes()[:-5000])
    (disks.layouts[1].backups / ".catalog-4").write_bytes(good.read_bytes())
    chosen, refused = newest_backup(disks.layouts)
    assert chosen == good
    assert ["catalog-3" in why for why in refused] == [True]
    again = f"sqlite:///{tmp_path}/again.db"
    made = make_again(again, disks)
    assert (made.backup, made.refused) == (good, refused)
    assert b"/second" in tree(again)
    make_again(f"sqlite:///{tmp_path}/older.db", disks, backup=disks.layouts[0].backups / "catalog-1")
    assert b"/second" not in tree(f"sqlite:///{tmp_path}/older.db")


def test_a_backup_of_the_other_kind_of_database_is_refused(postgres_url: str, tmp_path: Path) -> None:
    disks = Disks(tmp_path, None)
    put_backup(postgres_url, disks, 1, "catalog-1")
    with pytest.raises(Refused, match="is of postgresql, and cannot be brought back into sqlite"):
        make_again(f"sqlite:///{tmp_path}/again.db", disks)


def test_nothing_is_made_where_something_is_and_a_dry_run_leaves_nothing(url: str, empty: str, tmp_path: Path) -> None:
    async def make() -> None:
        async with in_office(url) as office:
            await (await office.peer()).mkdir(b"directory")

    trio.run(make)
    disks = Disks(tmp_path, None)
    put_backup(url, disks, 1, "catalog-1")
    disks.put(1, 2000, "/file")
    before = tree(url)
    with pytest.raises(Refused, match="is not empty"):
        make_again(url, disks)
    assert tree(url) == before
    assert make_again(empty, disks, dry_run=True).counts == {Found.MADE: 1}
    # What a dry run has left would be refused now.
    with pytest.raises(Refused, match="is no backup"):
        make_again(empty, disks, backup=disks.layouts[0].root / "volume.toml")
    assert make_again(empty, disks).counts == {Found.MADE: 1}
    assert set(tree(empty)) == {b"/", b"/directory", b"/file"}


def test_volumes_that_do_not_belong_together_or_are_in_use_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    disks = Disks(tmp_path, None)
    with pytest.raises(Refused, match="name them"):
        rebuild(url, [], backup=None, use_backups=True, remembered=None, term_s=TERM_S, dry_run=False)
    disks.label(2, VolumeIdentity("u1", "test", "s2"))
    with pytest.raises(Refused, match="the same volume"):
        make_again(url, disks)
    disks.label(2, VolumeIdentity("u2", "other", "s2"))
    with pytest.raises(Refused, match="of cluster 'other'"):
        make_again(url, disks)
    disks.label(2, VolumeIdentity("u2", "test", "s2", catalog="one"))
    disks.label(3, VolumeIdentity("u3", "test", "s3", catalog="two"))
    with pytest.raises(Refused, match="several catalogs: one, two"):
        make_again(url, disks)
    disks.label(3, VolumeIdentity("u3", "test", "s3", catalog="one"))
    with ExitStack() as busy:
        file = busy.enter_context(open(disks.roots[0] / "volume.toml", "rb"))
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="an agent works with"):
            make_again(url, disks)
    assert not (tmp_path / "catalog.db").exists()
    assert make_again(url, disks).inodes == 1


def test_an_object_of_a_file_that_was_removed_before_brings_nothing_back(sqlite_url: str, tmp_path: Path) -> None:
    async def make() -> None:
        async with in_office(sqlite_url) as office:
            await office.three_servers()

    trio.run(make)
    disks = Disks(tmp_path, None)
    writer, _reader = make_engines(sqlite_url)
    with write_transaction(writer) as connection:
        connection.execute(insert(replicas).values(ino=1500, volume=1, version=1))
    writer.dispose()
    put_backup(sqlite_url, disks, 1, "catalog-1")
    disks.put(1, 1500, "/removed")
    disks.put(2, 1500, "/removed")
    again = f"sqlite:///{tmp_path}/again.db"
    assert make_again(again, disks).counts == {Found.REMOVED: 2}
    assert set(tree(again)) == {b"/"}
