"""A tree of a volume's objects: where each file comes to lie, what it is like, and what is left alone."""

import errno
import fcntl
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Refused
from cluster.volume import extents
from cluster.volume.layout import ObjectRecord, VolumeLayout, write_record
from cluster.volume.tree import LOST, Outcome, export_tree, unattended

MTIME_NS = 1_600_000_000_123_456_789


def make(layout: VolumeLayout, ino: int, path: str, content: bytes = b"content", **fields: Any) -> Path:
    """An object with its record, as an agent leaves it."""
    descriptor = layout.create_object(ino)
    os.write(descriptor, content)
    values = {"version": 1, "home_epoch": 1, "mode": stat.S_IFREG | 0o644, "mtime_ns": MTIME_NS, **fields}
    write_record(descriptor, ObjectRecord(ino, path=path, **values))
    os.close(descriptor)
    return Path(layout.object_path(ino))


@pytest.fixture
def layout(tmp_path: Path) -> VolumeLayout:
    made = VolumeLayout(tmp_path / "volume")
    made.format("cluster", "s1")
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "tree"


def exported(layout: VolumeLayout, target: Path, *, copies: bool = False) -> dict[Outcome, int]:
    return dict(Counter(one.outcome for one in export_tree(layout, target, copies=copies)))


def files(target: Path) -> dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copies", [False, True])
def test_files_lie_under_their_paths_as_they_were(layout: VolumeLayout, target: Path, copies: bool) -> None:
    source = make(layout, 7, "/a/b/file", b"one", mode=stat.S_IFREG | 0o4640)
    make(layout, 5000, "/a/\udcff\u00fc", b"two")
    assert exported(layout, target, copies=copies) == {Outcome.MADE: 2}
    assert files(target) == {"a/b/file": b"one", "a/\udcff\u00fc": b"two"}
    there = (target / "a/b/file").stat()
    assert (stat.S_IMODE(there.st_mode), there.st_mtime_ns) == (0o640, MTIME_NS), "without the set-id bit"
    assert source.samefile(target / "a/b/file") != copies
    assert not copies or stat.S_IMODE(source.stat().st_mode) == 0o600, "the volume is left as it is"


@pytest.mark.parametrize("copies", [False, True])
def test_it_may_be_repeated_and_goes_on_with_what_is_new(layout: VolumeLayout, target: Path, copies: bool) -> None:
    make(layout, 7, "/file")
    assert exported(layout, target, copies=copies) == {Outcome.MADE: 1}
    make(layout, 8, "/later")
    (target / ".godwit-export.8").write_bytes(b"left by an attempt that was killed")
    assert exported(layout, target, copies=copies) == {Outcome.THERE: 1, Outcome.MADE: 1}
    assert set(files(target)) == {"file", "later"}


@pytest.mark.parametrize("copies", [False, True])
def test_of_several_volumes_the_newest_version_stays(layout: VolumeLayout, target: Path, tmp_path: Path, copies: bool) -> None:
    other = VolumeLayout(tmp_path / "other")
    other.format("cluster", "s2")
    make(layout, 7, "/older here", b"older", version=3)
    make(other, 7, "/older here", b"newer", version=4)
    make(layout, 8, "/newer here", b"newer", version=1, home_epoch=2)
    make(other, 8, "/newer here", b"older", version=9, home_epoch=1)
    assert exported(layout, target, copies=copies) == {Outcome.MADE: 2}
    assert exported(other, target, copies=copies) == {Outcome.REPLACED: 1, Outcome.THERE: 1}
    assert files(target) == {"older here": b"newer", "newer here": b"newer"}
    assert Path(layout.object_path(7)).read_bytes() == b"older"


def test_a_name_that_another_file_has_gets_the_number(layout: VolumeLayout, target: Path) -> None:
    make(layout, 7, "/name", b"one")
    make(layout, 8, "/name", b"two")
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    make(layout, 9, "/mine", b"three")
    make(layout, 10, "/" + "x" * 255, b"four")
    make(layout, 11, "/" + "x" * 255, b"five")
    assert exported(layout, target) == {Outcome.MADE: 5}
    found = files(target)
    assert {found.pop("name"), found.pop("name.8", b""), found.pop("name.7", b"")} == {b"one", b"two", b""}
    assert (found.pop("mine"), found.pop("mine.9")) == (b"mine", b"three")
    assert sorted(len(name) for name in found) == [255, 255]
    assert exported(layout, target) == {Outcome.THERE: 5}


BAD_PATHS = [
    "",
    "/",
    "relative",
    "/../out",
    "/a/../../out",
    "/a//b",
    "/./a",
    "/a\0b",
    "/" + "n" * 256,
    "/file/below",
    "/link/below",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_what_has_no_path_of_a_tree_is_found_by_its_number(layout: VolumeLayout, target: Path, tmp_path: Path, path: str) -> None:
    make(layout, 7, path)
    target.mkdir()
    (target / "file").write_bytes(b"file")
    (target / "link").symlink_to(tmp_path)
    before = set(os.listdir(tmp_path))
    assert exported(layout, target) == {Outcome.NAMELESS: 1}
    assert (target / LOST / "7").read_bytes() == b"content"
    assert set(os.listdir(tmp_path)) == before, "nothing has come to lie outside"
    assert exported(layout, target) == {Outcome.THERE: 1}


def test_an_object_without_a_record_keeps_its_content(layout: VolumeLayout, target: Path) -> None:
    os.close(layout.create_object(7))
    assert exported(layout, target) == {Outcome.NAMELESS: 1}
    assert files(target) == {f"{LOST}/7": b""}


def test_what_is_no_object_is_told_and_holds_up_nothing(layout: VolumeLayout, target: Path) -> None:
    make(layout, 7, "/file")
    os.mkfifo(layout.objects / "0" / "8")
    (layout.objects / "0" / "notes.txt").write_text("somebody's")
    (layout.objects / "loose").write_text("somebody's")
    results = list(export_tree(layout, target, copies=False))
    assert {one.ino: one.outcome for one in results} == {7: Outcome.MADE, 8: Outcome.FAILED}
    (why,) = [one.why for one in results if one.why]
    assert "it is not a file" in why


def test_holes_stay_holes(layout: VolumeLayout, target: Path) -> None:
    path = make(layout, 7, "/sparse", b"")
    with path.open("r+b") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    exported(layout, target, copies=True)
    copied = target / "sparse"
    assert copied.read_bytes() == path.read_bytes()
    assert copied.stat().st_blocks * 512 < 1 << 20


def test_where_the_kernel_does_not_copy_it_is_done_by_hand(
    layout: VolumeLayout, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, 7, "/file", b"x" * 3_000_000)

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(extents, "copy", refuse)
    assert exported(layout, target, copies=True) == {Outcome.MADE: 1}
    assert files(target) == {"file": b"x" * 3_000_000}


@pytest.mark.parametrize("place", [lambda root: root, lambda root: root / "objects/tree", lambda root: root.parent])
def test_a_tree_within_the_volume_or_around_it_is_refused(layout: VolumeLayout, place: Callable[[Path], Path]) -> None:
    with pytest.raises(Refused, match="neither may lie within the other"):
        exported(layout, place(layout.root))


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no other file system here")
def test_links_to_another_file_system_are_refused(layout: VolumeLayout, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"godwit-tree-{os.getpid()}"
    with pytest.raises(Refused, match=r"can be copied there \(--copy\)"):
        exported(layout, elsewhere)
    assert not elsewhere.exists()


def test_a_volume_that_an_agent_has_is_left_alone(layout: VolumeLayout) -> None:
    with (layout.root / "volume.toml").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="an agent works with"), unattended(layout):
            pass
    with unattended(layout):
        pass


def test_a_directory_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a volume"), unattended(VolumeLayout(tmp_path)):
        pass
