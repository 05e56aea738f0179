"""What a mount knows of names after its own changes: what came of them, and nothing where that is not known."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import pytest
import trio

from cluster.errors import GodwitError, Refused, Unavailable
from cluster.messages import Applied, Create, Grant, Node, Operation, Recall, Unlink
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.caching.listings import Contents
from fusefs.caching.recalls import Recalls
from tests.fusefs.holding import held_on

PARENT, DIRECTORY, FILE = 1, 10, 11


def node(ino: int, mode: int, mtime_ns: int = 0) -> Node:
    return Node(ino, mode, 1, 0, 0, 0, 0, 0, 0, mtime_ns, 0, 0)


class Manager:
    """Answers each operation with what `answer` returns or raises."""

    def __init__(self) -> None:
        self.answer: Callable[[Operation], Applied] = lambda _operation: Applied([None])
        self.serial = 0

    async def apply_for_tokens(self, operations: list[Operation], *, timeout_s: float) -> Applied:
        (operation,) = operations
        return self.answer(operation)

    def grant(self, *inodes: int) -> Grant:
        self.serial += 1
        return Grant(self.serial, 15.0, list(inodes))


class NoRecalls:
    def changing(self, *_inodes: int) -> AbstractContextManager[None]:
        return nullcontext()


class Mount:
    """`Changes` and the `Caching` beside it, in a directory that was just made."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.caching = Caching()
        self.changes = Changes(
            cast(ManagerSession, self.manager), held_on(self.caching), self.caching, cast(Recalls, NoRecalls()), 1.0
        )

    async def make_directory(self) -> None:
        directory = node(DIRECTORY, 0o040755)
        self.manager.answer = lambda _operation: Applied([directory], grant=self.manager.grant(DIRECTORY), touched=[PARENT])
        await self.changes.make(Create(PARENT, b"directory", DIRECTORY, directory.mode, 0, 0, 0, 0, 0))

    async def make_file(self, *, granted: bool = True) -> None:
        file = node(FILE, 0o100644)
        grant = self.manager.grant(DIRECTORY, FILE) if granted else None
        changed = node(DIRECTORY, 0o040755, mtime_ns=5)
        self.manager.answer = lambda _operation: Applied([file], grant=grant, touched=[DIRECTORY, FILE], directories=[changed])
        await self.changes.make(Create(DIRECTORY, b"file", FILE, file.mode, 0, 0, 0, 0, 1))

    async def unlink(self) -> None:
        await self.changes.apply(Unlink(DIRECTORY, b"file", 0), DIRECTORY, names={(DIRECTORY, b"file"): 0})

    def known(self, name: bytes) -> int | None:
        contents = self.caching.contents(DIRECTORY)
        return None if contents is None else contents.ino_of(name)


@pytest.fixture
def mount() -> Mount:
    return Mount()


async def test_all_names_are_known_in_a_directory_of_our_own_through_our_changes(mount: Mount) -> None:
    await mount.make_directory()
    assert mount.known(b"file") == 0
    await mount.make_file()
    assert (mount.known(b"file"), mount.known(b"other")) == (FILE, 0)
    kept = mount.caching.node(DIRECTORY)
    assert kept is not None
    assert kept[0].mtime_ns == 5
    mount.manager.answer = lambda _op: Applied([None], grant=mount.manager.grant(DIRECTORY), touched=[DIRECTORY, FILE])
    await mount.unlink()
    assert mount.known(b"file") == 0


async def test_without_a_grant_nothing_is_known_any_more(mount: Mount) -> None:
    await mount.make_directory()
    await mount.make_file(granted=False)
    assert mount.known(b"file") is None
    assert mount.caching.node(DIRECTORY) is None


@pytest.mark.parametrize(("error", "known"), [(Refused("no", 1), FILE), (Unavailable("no answer"), None)])
async def test_a_change_that_was_refused_did_nothing_but_one_without_an_answer_may_have(
    mount: Mount, error: GodwitError, known: int | None
) -> None:
    await mount.make_directory()
    await mount.make_file()

    def fail(_operation: Operation) -> Applied:
        raise error

    mount.manager.answer = fail
    with pytest.raises(type(error)):
        await mount.unlink()
    assert mount.known(b"file") == known


async def test_what_somebody_else_may_have_changed_during_a_change_is_not_known(mount: Mount) -> None:
    await mount.make_directory()
    await mount.make_file()

    def overtaken(_operation: Operation) -> Applied:
        mount.manager.serial += 1
        mount.caching.recalled(Recall(1, mount.manager.serial, [DIRECTORY]))
        permit = mount.caching.take(mount.manager.grant(DIRECTORY), trio.current_time())
        mount.caching.keep_contents(DIRECTORY, Contents(None, {b"other": FILE}, permit))
        return Applied([None], grant=mount.manager.grant(DIRECTORY), touched=[DIRECTORY, FILE])

    mount.manager.answer = overtaken
    await mount.unlink()
    assert mount.known(b"other") is None
