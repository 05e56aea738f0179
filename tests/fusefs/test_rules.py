"""The mount's small rules: cached pages, last known paths, where a new file goes, which answer is newer."""

from collections.abc import Collection
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import NoSpace
from cluster.messages import Node, Volume
from fusefs.content.handles import KernelPages
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.new_homes import homes_in_order
from fusefs.content.open_inode import OpenInode

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)


def dirty(node: Node) -> Node:
    return msgspec.structs.replace(node, dirty=True)


def at_version(node: Node, version: int) -> Node:
    return msgspec.structs.replace(node, version=version, dirty=False)


def test_pages_are_kept_only_for_the_same_clean_version() -> None:
    pages = KernelPages()
    assert not pages.opening(NODE)
    assert pages.opening(NODE)
    assert not pages.opening(at_version(NODE, 4))
    assert pages.opening(at_version(NODE, 4))


def test_pages_from_a_home_are_not_kept_when_that_was_mounted_anew_or_moved() -> None:
    pages, moved = KernelPages(), msgspec.structs.replace(NODE, home_volume=NODE.home_volume + 1)
    pages.opening(NODE, "one")
    assert pages.opening(NODE, "one")
    assert not pages.opening(NODE, "another")
    assert not pages.opening(moved, "another")
    assert pages.opening(moved, "another")


def test_pages_read_while_a_file_was_dirty_are_not_kept() -> None:
    pages = KernelPages()
    pages.opening(NODE)
    assert not pages.opening(dirty(NODE))
    assert not pages.opening(NODE)


def test_known_pages_are_bounded() -> None:
    pages = KernelPages(limit=2)
    for ino in (1, 2, 3):
        pages.opening(msgspec.structs.replace(NODE, ino=ino))
    assert not pages.opening(msgspec.structs.replace(NODE, ino=1))
    assert pages.opening(msgspec.structs.replace(NODE, ino=3))


def test_a_path_is_put_together_from_the_names_that_were_seen() -> None:
    paths = LastKnownPaths()
    paths.note(10, 1, b"home")
    paths.note(11, 10, b"\xff.txt")
    assert paths.path(11) == b"/home/\xff.txt"
    paths.note(10, 1, b"moved")
    assert paths.path(11) == b"/moved/\xff.txt"


def test_a_path_with_a_forgotten_part_is_not_known() -> None:
    paths = LastKnownPaths(limit=1)
    paths.note(10, 1, b"home")
    paths.note(11, 10, b"file")
    assert paths.path(11) == b""


def test_a_loop_of_names_out_of_date_ends() -> None:
    paths = LastKnownPaths()
    paths.note(10, 11, b"a")
    paths.note(11, 10, b"b")
    assert paths.path(10) == b""


def volume(number: int, server: str, free: int, **changes: Any) -> Volume:
    return msgspec.structs.replace(Volume(number, server, f"/{number}", f"{server}:1", 100, free, str(number)), **changes)


def order(*volumes: Volume, avoided: Collection[int] = ()) -> list[int]:
    return [found.volume for found in homes_in_order("s1", volumes, avoided)]


def test_a_new_file_goes_to_the_own_volume_with_most_space_then_to_others() -> None:
    assert order(volume(1, "s1", 15), volume(2, "s1", 19), volume(3, "s2", 50), volume(4, "s3", 60)) == [2, 1, 4, 3]
    assert order(volume(3, "s2", 50), volume(4, "s3", 60, up=False)) == [3]


def test_a_new_file_goes_elsewhere_when_the_own_volumes_are_nearly_full_bad_or_have_just_failed() -> None:
    assert order(volume(1, "s1", 1), volume(2, "s2", 50), volume(3, "s3", 2)) == [2, 1, 3]
    assert order(volume(1, "s1", 90, accepts=False), volume(2, "s1", 20), volume(3, "s3", 50)) == [2, 3]
    assert order(volume(1, "s1", 90), volume(2, "s1", 20), volume(3, "s3", 50), avoided=[1]) == [2, 3, 1]


def test_without_any_volume_a_create_is_refused() -> None:
    with pytest.raises(NoSpace, match="nowhere to go"):
        order()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12))
def test_an_answer_that_was_overtaken_changes_nothing(answers: list[tuple[int, bool]]) -> None:
    """Whatever the order of the answers: the version never goes back, and dirty ends only with a newer version."""
    state = OpenInode(NODE)
    for version, is_dirty in answers:
        before = state.node
        state.answered(msgspec.structs.replace(NODE, version=version, dirty=is_dirty))
        assert state.node.version >= before.version
        if before.dirty and not state.node.dirty:
            assert state.node.version > before.version
