"""Histories made by hand: right ones pass, and of each kind of wrong one the checker says what contradicts what."""

import errno
from typing import Any

import msgspec

from tests.coherence.checker import Report, check_history
from tests.coherence.records import CELL_BYTES, CELLS, DAMAGED, RECORD_BYTES, ZERO, Attributes, Call, Operation, Outcome

INO = 100
OTHER = 101


class Story:
    """Operations with times; `did` numbers them."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.did("create", 0, 1, name="a/n0", gave={"ino": INO})

    def did(
        self, kind: str, began: int, ended: int | None, *, mount: str = "s1", gave: dict[str, Any] | None = None, **call: Any
    ) -> Operation:
        number = len(self.operations) + 1
        outcome = None if ended is None else Outcome(number, ended, **(gave or {}))
        operation = Operation(number % 2 + 1, mount, Call(number, began, kind, **call), outcome)
        self.operations.append(operation)
        return operation

    def judged(self, *, early: bool = True) -> Report:
        return check_history(self.operations, 2, early=early)

    def blames(self, *operations: Operation) -> bool:
        """Whether one thing is wrong, and these operations are what shows it."""
        (finding,) = self.judged().findings
        return {operation.call.number for operation in operations} <= {each.call.number for each in finding.operations}


def written(value: int, *, first: int = 0, count: int = CELLS) -> dict[str, Any]:
    return {"ino": INO, "first": first, "count": count, "value": value}


def content(*cells: int) -> dict[str, Any]:
    return {"cells": [[number] for number in cells]}


def looks(size: int = 0, nlink: int = 1, mode: int = 0o644) -> Attributes:
    return Attributes(size, nlink, mode, 0)


def test_a_stale_read_is_found_with_the_writes_that_contradict_it() -> None:
    story = Story()
    story.did("write", 10, 11, **written(5))
    newer = story.did("write", 20, 21, **written(6))
    read = story.did("read", 30, 31, ino=INO, count=1, gave=content(5))
    assert story.blames(newer, read)


def test_reads_beside_a_write_may_see_either_until_one_has_seen_the_new() -> None:
    story = Story()
    story.did("write", 10, 11, **written(5))
    story.did("write", 20, 60, **written(6))
    story.did("read", 30, 31, ino=INO, count=1, gave=content(5))
    new = story.did("read", 40, 41, ino=INO, count=1, gave=content(6))
    assert not story.judged().findings
    old = story.did("read", 50, 51, ino=INO, count=1, gave=content(5))
    assert story.blames(new, old)


def test_what_is_read_early_on_the_writers_own_server_may_be_overtaken_by_another_servers_write() -> None:
    for reader, wrong in (("s1", False), ("s3", True)):
        story = Story()
        story.did("write", 10, 40, **written(5))
        story.did("read", 15, 16, mount=reader, ino=INO, count=1, gave=content(5))
        story.did("write", 20, 30, mount="s2", **written(6))
        story.did("read", 50, 51, mount="s2", ino=INO, count=1, gave=content(5))
        assert bool(story.judged().findings) == wrong
        assert story.judged(early=False).findings, "where nothing is written through page caches, nobody may"


def test_a_write_that_failed_may_come_late_or_never_but_not_early() -> None:
    for seen in (5, 6):
        story = Story()
        story.did("write", 10, 11, **written(5))
        story.did("write", 20, 21, gave={"errno": errno.EIO}, **written(6))
        story.did("read", 30, 31, ino=INO, count=1, gave=content(5))
        story.did("read", 90, 91, ino=INO, count=1, gave=content(seen))
        assert not story.judged().findings
    story = Story()
    story.did("write", 10, 11, **written(5))
    story.did("read", 12, 13, ino=INO, count=1, gave=content(6))
    story.did("write", 20, None, **written(6))
    assert story.judged().findings


def test_cells_are_judged_one_by_one_and_bytes_of_nobody_are_found() -> None:
    story = Story()
    story.did("write", 10, 11, **written(5))
    story.did("write", 20, 30, **written(6))
    story.did("read", 25, 26, ino=INO, count=2, gave=content(6, 5))
    assert not story.judged().findings
    torn = story.did("read", 40, 41, ino=INO, count=1, gave={"cells": [[6, DAMAGED]]})
    assert story.blames(torn)


def test_zeros_at_the_end_of_a_file_that_another_server_makes_longer_may_be_the_end() -> None:
    for mount, wrong in (("s1", True), ("s2", False)):
        story = Story()
        story.did("write", 10, 11, **written(5, count=1))
        story.did("write", 20, 40, mount=mount, **written(6, first=1, count=1))
        story.did("read", 30, 31, ino=INO, count=2, gave=content(5, ZERO))
        assert bool(story.judged().findings) == wrong


def test_a_stale_size_and_a_stale_mode_are_found() -> None:
    story = Story()
    story.did("write", 10, 11, **written(5, count=2))
    cut = story.did("truncate", 20, 21, name="a/g0", ino=INO)
    stale = story.did("fstat", 30, 31, name="a/n0", ino=INO, gave={"attributes": looks(2 * CELL_BYTES)})
    assert story.blames(cut, stale)
    story = Story()
    changed = story.did("chmod", 10, 11, ino=INO, value=0o600)
    stale = story.did("stat", 20, 21, name="a/n0", gave={"ino": INO, "attributes": looks()})
    assert story.blames(changed, stale)


def test_a_name_that_was_there_throughout_is_missed_and_one_that_went_is_not_seen() -> None:
    story = Story()
    story.did("create", 2, 3, name="a/n1", gave={"ino": OTHER})
    story.did("rename", 10, 20, name="a/n1", target="a/n0")
    missing = story.did("open", 14, 15, name="a/n0", gave={"errno": errno.ENOENT})
    assert story.blames(missing)
    story = Story()
    gone = story.did("unlink", 10, 11, name="a/n0")
    stale = story.did("open", 20, 21, name="a/n0", gave={"ino": INO})
    assert story.blames(gone, stale)


def test_a_stale_negative_entry_is_found() -> None:
    story = Story()
    story.did("stat", 2, 3, name="b/n0", gave={"errno": errno.ENOENT})
    made = story.did("link", 10, 11, ino=INO, target="b/n0")
    stale = story.did("stat", 20, 21, name="b/n0", gave={"errno": errno.ENOENT})
    assert story.blames(made, stale)


def test_a_rename_is_one_change() -> None:
    story = Story()
    story.did("rename", 10, 40, name="a/n0", target="b/n0")
    moved = story.did("stat", 20, 21, mount="s2", name="b/n0", gave={"ino": INO, "attributes": looks()})
    assert not story.judged().findings
    still = story.did("stat", 30, 31, mount="s2", name="a/n0", gave={"ino": INO, "attributes": looks()})
    assert story.blames(moved, still)


def test_link_counts_are_those_of_the_names() -> None:
    story = Story()
    linked = story.did("link", 10, 11, ino=INO, target="b/n0")
    story.did("fstat", 20, 21, ino=INO, name="a/n0", gave={"attributes": looks(nlink=2)})
    assert not story.judged().findings
    stale = story.did("fstat", 30, 31, ino=INO, name="a/n0", gave={"attributes": looks()})
    assert story.blames(linked, stale)


def test_a_mount_s_own_kernel_may_be_the_last_to_have_a_change_that_is_under_way() -> None:
    for began, wrong in ((30, False), (60, True)):
        story = Story()
        gone = story.did("unlink", 10, 50, name="a/n0")
        story.did("stat", 20, 21, mount="s2", name="a/n0", gave={"errno": errno.ENOENT})
        stale = story.did("open", began, began + 1, name="a/n0", gave={"ino": INO})
        story.operations[-1] = msgspec.structs.replace(stale, worker=gone.worker + 2)
        assert bool(story.judged().findings) == wrong
        story.operations[-1] = msgspec.structs.replace(stale, mount="s2")
        assert story.blames(stale), "another server that has seen it sees it again"


def test_so_it_is_with_attributes() -> None:
    for kind, new in (("chmod", looks(mode=0o600)), ("unlink", looks(nlink=0))):
        story = Story()
        change = story.did(kind, 10, 50, name="a/n0", ino=INO, value=0o600)
        story.did("fstat", 20, 21, mount="s2", name="a/n0", ino=INO, gave={"attributes": new})
        stale = story.did("fstat", 30, 31, mount="s2", name="a/n0", ino=INO, gave={"attributes": looks()})
        assert story.blames(stale)
        story.operations[-1] = msgspec.structs.replace(stale, mount="s1", worker=change.worker + 2)
        assert not story.judged().findings


def test_listings() -> None:
    story = Story()
    story.did("rename", 10, 20, name="a/n0", target="a/n1")
    story.did("list", 12, 13, name="a", gave={"entries": [("a/n0", INO), ("a/n1", INO)]})
    assert not story.judged().findings, "both names may be seen while a rename is under way"
    twice = story.did("list", 30, 31, name="a", gave={"entries": [("a/n1", INO), ("a/n1", INO)]})
    assert story.blames(twice)
    story.operations.pop()
    missing = story.did("list", 30, 31, name="a", gave={"entries": []})
    assert story.blames(missing)


def log_story(*numbers: int) -> Story:
    story = Story()
    story.did("create", 0, 1, name="a/l0", gave={"ino": OTHER})
    for place, number in enumerate(numbers):
        story.did("append", 10 + 10 * place, 12 + 10 * place, name="a/l0", ino=OTHER, value=number)
    return story


def test_logs() -> None:
    def reads(story: Story, began: int, *records: int) -> Operation:
        return story.did("readlog", began, began + 1, name="a/l0", ino=OTHER, gave={"records": list(records)})

    right = log_story(1, 2, 3)
    reads(right, 25, 1, 2)
    reads(right, 50, 1, 2, 3)
    assert not right.judged().findings
    for records in ((1, 2), (1, 3), (1, 2, 2, 3), (1, 2, DAMAGED), (1, 2, 3, 9)):
        story = log_story(1, 2, 3)
        wrong = reads(story, 50, *records)
        assert wrong in story.judged().findings[0].operations, records
    for mount, torn in (("s1", True), ("s2", False)):
        story = log_story(1, 2)
        story.did("append", 40, 60, mount=mount, name="a/l0", ino=OTHER, value=3)
        reads(story, 50, 1, 2, ZERO)
        assert bool(story.judged().findings) == torn, "only where another server appends"
    story = log_story(1, 2, 3)
    reads(story, 50, 2, 1, 3)
    assert story.blames(*(operation for operation in story.operations if operation.call.value in (1, 2)))
    story = log_story(1, 2, 3)
    reads(story, 50, 1, 2, 3)
    gave = {"ino": OTHER, "attributes": Attributes(2 * RECORD_BYTES, 1, 0o644, 0)}
    stale = story.did("stat", 60, 61, name="a/l0", gave=gave)
    assert story.blames(stale)


def test_an_error_that_nothing_explains_is_found() -> None:
    story = Story()
    refused = story.did("list", 10, 11, name="a", gave={"errno": errno.EACCES})
    assert story.blames(refused)
