"""The present content of a home's object, its lock, and commits."""

import errno
import os
import time
from pathlib import Path

import msgspec
import pytest
import trio

from cluster.errors import Fenced, Refused, refused
from cluster.messages import Commit, Content, Node, Operation
from cluster.volume.content import REALTIME_COARSE, commit_object, content_of, make_commit, object_lock, overlay, visible_ctime_ns
from cluster.volume.fence import fence, lift
from cluster.volume.layout import read_record

NODE = Node(7, 0o100644, 1, 5, 6, 0, 0, 0, 0, 0, 0, 0, dirty=True, home_volume=1, home_epoch=2)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "object").write_bytes(b"content")
    return str(tmp_path / "object")


class Catalog:
    """Takes commits as the manager does."""

    def __init__(self, node: Node, *, gone: bool = False) -> None:
        self.node = node
        self.gone = gone
        self.commits: list[Commit] = []

    async def apply(self, operation: Operation) -> Node:
        assert isinstance(operation, Commit)
        self.commits.append(operation)
        if self.gone:
            raise refused(errno.ENOENT)
        if operation.home_epoch != self.node.home_epoch:
            raise Fenced("another home")
        if operation.content is not None:
            if operation.version <= self.node.version:
                raise refused(errno.ESTALE)
            self.node = msgspec.structs.replace(
                self.node,
                version=operation.version,
                size=operation.content.size,
                object_ctime_ns=operation.content.ctime_ns,
            )
        return self.node


def commit(path: str, catalog: Catalog, node: Node, name: bytes = b"/name", *, final: bool = False) -> Node:
    async def run() -> Node:
        async with object_lock(path) as descriptor:
            return await commit_object(descriptor, node, name, final=final, apply=catalog.apply)

    return trio.run(run)


def version_of(path: str) -> int:
    with open(path, "rb") as file:
        record = read_record(file.fileno())
    return record.version if record else 0


def test_a_commit_tells_the_content_and_its_stamp(path: str) -> None:
    catalog = Catalog(NODE)
    node = commit(path, catalog, NODE)
    assert (node.version, node.size) == (1, 7)
    assert node.object_ctime_ns == os.stat(path).st_ctime_ns
    assert version_of(path) == 1


def test_without_a_change_only_the_end_is_told(path: str) -> None:
    catalog = Catalog(NODE)
    node = commit(path, catalog, NODE)
    before = os.stat(path).st_ctime_ns
    commit(path, catalog, node, final=True)
    assert catalog.commits[-1] == Commit(7, 2, 1, None, True)
    assert os.stat(path).st_ctime_ns == before


def test_where_times_are_coarse_a_commit_ends_after_the_tick_that_it_shows(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        made = make_commit(descriptor, NODE, b"", final=True, fine_times=False)
        tick = time.clock_gettime_ns(REALTIME_COARSE)
    finally:
        os.close(descriptor)
    assert made.content is not None
    assert tick > made.content.ctime_ns


def test_a_commit_with_old_knowledge_finds_the_next_version(path: str) -> None:
    catalog = Catalog(msgspec.structs.replace(NODE, version=5))
    node = commit(path, catalog, NODE)
    assert node.version > 5
    assert version_of(path) == node.version
    assert node.object_ctime_ns == os.stat(path).st_ctime_ns


def test_a_commit_whose_reply_was_lost_may_be_repeated(path: str) -> None:
    catalog = Catalog(NODE)
    commit(path, catalog, NODE)
    node = commit(path, catalog, NODE)
    assert node.version == version_of(path) == 2


def test_other_refusals_are_the_callers(path: str) -> None:
    catalog = Catalog(msgspec.structs.replace(NODE, home_epoch=3))
    with pytest.raises(Fenced):
        commit(path, catalog, NODE)

    gone = Catalog(NODE, gone=True)
    with pytest.raises(Refused):
        commit(path, gone, NODE)


def test_the_lock_lets_one_in_at_a_time_and_waiting_can_be_cancelled(path: str) -> None:
    inside = 0
    entered = 0

    async def enter() -> None:
        nonlocal inside, entered
        async with object_lock(path):
            inside += 1
            entered += 1
            assert inside == 1
            await trio.sleep(0.002)
            inside -= 1

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(enter)
        async with object_lock(path):
            with trio.fail_after(5), trio.move_on_after(0.05) as scope:
                await enter()
            assert scope.cancelled_caught

    trio.run(run)
    assert entered == 10
    with pytest.raises(FileNotFoundError):
        trio.run(lambda: object_lock(path + "x").__aenter__())


def test_overlay_shows_what_was_written_since_the_commit(path: str) -> None:
    content = content_of(os.stat(path))
    node = overlay(NODE, content)
    assert (node.size, node.mtime_ns) == (7, content.mtime_ns)
    same = msgspec.structs.replace(NODE, object_ctime_ns=content.ctime_ns, size=content.size)
    assert overlay(same, content) is same
    cut_off = msgspec.structs.replace(same, size=3)  # committed in the middle of the write that set this change time
    assert overlay(cut_off, content).size == 7


def test_an_mtime_in_the_future_does_not_become_the_change_time() -> None:
    content = Content(size=1, blocks=1, mtime_ns=900, ctime_ns=500)
    assert visible_ctime_ns(100, content) == 500
    assert visible_ctime_ns(600, content) == 600
    assert visible_ctime_ns(100, Content(1, 1, 300, 500)) == 300


MADE_NS = 5_000_000_000  # when the file was made, by the catalog


@pytest.fixture
def made_before(tmp_path: Path) -> tuple[str, Node]:
    """An empty object that was made long before its file, and the file's node."""
    path = tmp_path / "made"
    path.touch()
    ctime_ns = path.stat().st_ctime_ns
    return str(path), msgspec.structs.replace(NODE, mtime_ns=MADE_NS, ctime_ns=MADE_NS, object_ctime_ns=ctime_ns)


@pytest.mark.parametrize(
    "fenced", [False, pytest.param(True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="the fence needs root"))]
)
def test_a_file_that_was_never_written_has_its_own_times_whatever_those_of_its_object(
    made_before: tuple[str, Node], fenced: bool
) -> None:
    path, node = made_before
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert overlay(node, content_of(os.fstat(descriptor))) == node
        before = os.fstat(descriptor)
        if fenced:
            fence(descriptor)
        made = make_commit(descriptor, node, b"/made", final=True, fenced=fenced)
        record = read_record(descriptor)
        lift(descriptor)
    finally:
        os.close(descriptor)
    assert made.content is not None
    assert (made.version, made.content.size, made.content.mtime_ns) == (1, 0, before.st_mtime_ns), "the object's, for its stamp"
    assert record is not None
    assert (record.version, record.mtime_ns) == (1, MADE_NS)


@pytest.mark.parametrize("change", ["written", "written and cut", "another time"])
def test_a_file_that_was_written_has_the_times_of_its_object(made_before: tuple[str, Node], change: str) -> None:
    path, node = made_before
    descriptor = os.open(path, os.O_RDWR)
    try:
        if change == "another time":
            os.utime(descriptor, ns=(7, 8))
        else:
            os.write(descriptor, b"new")
        if change == "written and cut":
            os.ftruncate(descriptor, 0)
        written = os.fstat(descriptor)
        assert overlay(node, content_of(written)).mtime_ns == written.st_mtime_ns
        made = make_commit(descriptor, node, b"/made", final=True)
    finally:
        os.close(descriptor)
    assert made.content is not None
    assert (made.content.size, made.content.mtime_ns) == (written.st_size, written.st_mtime_ns)
