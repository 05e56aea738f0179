"""Trees that go into a mount and come out again, with tar, rsync and cp, and are still the same trees."""

import os
import stat
from pathlib import Path

import pytest

from tests.support.modes import both_modes
from tests.support.running import need, run
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.programs, both_modes]

WHOLE_SECONDS = 1_234_567_890


def plant(root: Path) -> None:
    """Makes a tree with everything in it that a tree can have. The times are set at the end."""
    for n in range(40):
        folder = root / f"folder-{n % 5}" / "inner"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{n}").write_bytes(bytes([97 + n % 26]) * (n * n * 37))
    (root / "empty").mkdir()
    (root / "hard-link").hardlink_to(root / "folder-1" / "inner" / "file-1")
    (root / "folder-2" / "hard-link").hardlink_to(root / "folder-1" / "inner" / "file-1")
    (root / "symlink").symlink_to("folder-1/inner")
    (root / "dangling").symlink_to("nowhere/at all")
    os.mkdir(os.fsencode(root) + b"/\xff\xfe \n")
    (root / ("long" * 60)).write_bytes(b"long name")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(3_000_000)
        sparse.write(b"end")
    (root / "program").write_bytes(b"#!/bin/true\n")
    (root / "program").chmod(0o4755)
    (root / "folder-3").chmod(0o2750)
    (root / "folder-4").chmod(0o1777)
    os.chown(root / "folder-1" / "inner" / "file-6", 4001, 5000)
    os.setxattr(root / "program", "user.kind", b"program")
    os.setxattr(root / "folder-3", "trusted.kind", b"\0\xff")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        time_ns = (WHOLE_SECONDS + number) * 10**9 + 123_456_789
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
    os.utime(root, ns=(0, WHOLE_SECONDS * 10**9))


def assert_same(here: Path, there: Path, ignore: tuple[str, ...] = ()) -> None:
    names = (here.name, there.name)
    found = differences(snapshot(os.fsencode(here)), snapshot(os.fsencode(there)), ignore, names)
    assert not found, "\n".join(found)


def test_tar_in_and_out(directory: Path, tmp_path: Path) -> None:
    tar = need("tar", "tar")
    options = ("--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-permissions", "--sparse")
    source, back = tmp_path / "source", tmp_path / "back"
    inside = directory / "inside"
    for folder in (source, back, inside):
        folder.mkdir()
    plant(source)
    run([tar, "--format=pax", *options, "-cf", tmp_path / "in.tar", "."], cwd=source)
    run([tar, *options, "-xf", tmp_path / "in.tar"], cwd=inside)
    assert_same(inside, source)
    run([tar, "--format=pax", *options, "-cf", directory / "out.tar", "."], cwd=inside)
    run([tar, *options, "-xf", directory / "out.tar"], cwd=back)
    assert_same(back, source)
    run([tar, "-df", tmp_path / "in.tar"], cwd=inside)


def test_rsync_in_and_out(directory: Path, tmp_path: Path) -> None:
    rsync = need("rsync", "rsync")
    options = ("-aHS", "-X", "--numeric-ids")
    source, inside, back = tmp_path / "source", directory / "inside", tmp_path / "back"
    source.mkdir()
    plant(source)
    run([rsync, *options, f"{source}/", f"{inside}/"], cwd=tmp_path)
    assert_same(inside, source)
    run([rsync, *options, f"{inside}/", f"{back}/"], cwd=tmp_path)
    assert_same(back, source)
    assert run([rsync, *options, "--checksum", "--itemize-changes", "--dry-run", f"{source}/", f"{inside}/"], cwd=tmp_path) == ""
    (source / "symlink").unlink()
    (source / "folder-1" / "inner" / "file-16").write_bytes(b"changed")
    os.utime(source / "folder-1" / "inner" / "file-16", ns=(1, 1))
    os.utime(source / "folder-1" / "inner", ns=(2, 2))
    os.utime(source, ns=(3, 3))
    run([rsync, *options, "--delete", f"{source}/", f"{inside}/"], cwd=tmp_path)
    assert_same(inside, source)


def test_cp_and_rm(directory: Path, tmp_path: Path) -> None:
    source, inside = tmp_path / "source", directory / "inside"
    source.mkdir()
    plant(source)
    run(["cp", "-a", source, inside], cwd=tmp_path)
    assert_same(inside, source)
    run(["cp", "-a", inside, directory / "again"], cwd=tmp_path)
    assert_same(directory / "again", source)
    run(["mv", inside, tmp_path / "back"], cwd=tmp_path)
    assert_same(tmp_path / "back", source)
    assert sorted(os.listdir(directory)) == ["again"]
    run(["rm", "-r", directory / "again"], cwd=tmp_path)
    assert os.listdir(directory) == []
