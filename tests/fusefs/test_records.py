"""Records: kept before a program is told, sent in order, and waited for by whatever could be answered without them."""

import errno
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
import trio

from cluster.counters import Counters
from cluster.errors import Refused, Unavailable, refused
from cluster.journal import UNSENT_MAX
from cluster.messages import (
    Apply,
    AskLeases,
    Commit,
    Content,
    Expected,
    GetAttr,
    Heartbeat,
    Lookup,
    LostRecord,
    Node,
    Open,
    RecallDone,
    Record,
    RecordsApplied,
    Rename,
    SetAttr,
    Sync,
    TakeInodes,
    Unlink,
)
from fusefs.caching.records import COPY_S, GATHER_S, LATE_S, TOGETHER_MAX, Records
from tests.fusefs.holding import HoldingManager, MemoryJournal

TIMEOUT_S = 5.0


def record(number: int) -> Record:
    return Record(SetAttr(number, number))


class Slow(HoldingManager):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = trio.Event()
        self.may.set()
        self.error: Exception | None = None
        self.lost: list[LostRecord] = []
        self.changed_here = 0

    def changed(self) -> None:
        self.changed_here += 1

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        await self.may.wait()
        if self.error is not None:
            raise self.error
        reply = await super().call(request, timeout_s=timeout_s)
        return RecordsApplied(reply.last, lost=self.lost)


class Mount:
    def __init__(self) -> None:
        self.manager, self.journal = Slow(), MemoryJournal()
        self.applied: list[int] = []
        self.records = Records(
            self.manager, self.journal, lambda reply, _asked_s: self.applied.append(reply.last), TIMEOUT_S, Counters()
        )

    def with_answers(self, applied: Callable[[RecordsApplied, float], None]) -> Records:
        return Records(self.manager, self.journal, applied, TIMEOUT_S, Counters())

    def add(self, *numbers: int) -> None:
        for number in numbers:
            assert self.records.add(record(number), [number])

    @property
    def sent(self) -> list[int]:
        return [item.operation.ino for batch in self.manager.batches for item in batch.records]  # type: ignore[union-attr]


@asynccontextmanager
async def mounted() -> AsyncIterator[Mount]:
    async with trio.open_nursery() as nursery:
        mount = Mount()
        nursery.start_soon(mount.records.run)
        nursery.start_soon(mount.records.copy_loop)
        yield mount
        nursery.cancel_scope.cancel()


async def test_records_gather_and_are_sent_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.add(*range(1, 2 * TOGETHER_MAX + 10))
        assert [number for number, _ in mount.journal.records] == list(range(1, 2 * TOGETHER_MAX + 10))
        await trio.sleep(GATHER_S * 2)
        assert mount.sent == list(range(1, 2 * TOGETHER_MAX + 10))
        assert [(batch.first, batch.more) for batch in mount.manager.batches] == [
            (1, True),
            (TOGETHER_MAX + 1, True),
            (2 * TOGETHER_MAX + 1, False),
        ]
        assert mount.journal.records == []
        assert len(mount.records) == 0
        assert mount.manager.changed_here == mount.records.recorded


async def test_what_comes_while_others_are_sent_gathers_too(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.manager.may = trio.Event()
        mount.add(1)
        await trio.sleep(2 * GATHER_S)
        mount.add(2)
        mount.manager.may.set()
        await trio.sleep(GATHER_S / 2)
        mount.add(3)
        await trio.sleep(GATHER_S)
        assert [len(batch.records) for batch in mount.manager.batches] == [1, 2]
        mount.manager.may = trio.Event()
        mount.add(4)
        await trio.sleep(2 * GATHER_S)
        mount.add(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.records.flush)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            mount.manager.may.set()
        assert (mount.sent, trio.current_time()) == ([1, 2, 3, 4, 5], before), "whoever waits is not held up"


async def test_what_is_waited_for_does_not_gather(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.add(1)
        before = trio.current_time()
        await mount.records.flush()
        assert (mount.sent, trio.current_time()) == ([1], before)
        await mount.records.flush()  # nothing


async def test_a_full_journal_takes_none_until_all_was_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.add(1)
        mount.journal.is_full = True
        assert not mount.records.add(record(2), [2])
        await mount.records.flush()
        mount.journal.is_full = False
        mount.add(3)
        await mount.records.flush()
        assert mount.sent == [1, 3]


async def test_while_a_manager_is_told_that_nothing_is_unsent_nothing_is_recorded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mounted() as mount:
        assert not mount.records.present()
        assert not mount.records.add(record(1), [1]), "a new manager answers others from its catalog already"
        mount.records.welcomed()
        mount.add(2)
        assert mount.records.present()
        await mount.records.flush()
        assert mount.sent == [2]


async def test_only_what_was_there_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.add(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.records.flush)
            await trio.testing.wait_all_tasks_blocked()
        mount.manager.may = trio.Event()
        mount.add(2)
        assert mount.sent == [1]


@pytest.mark.parametrize("error", [Refused("not now", errno.EPERM), Unavailable("nobody")], ids=["refused", "away"])
async def test_what_fails_is_sent_again_and_nothing_overtakes_it(
    error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    async with mounted() as mount:
        mount.manager.error = error
        mount.add(1, 2)
        with pytest.raises(Unavailable, match=str(error)):
            await mount.records.flush(2.0)
        mount.add(3)
        mount.manager.error = None
        await mount.records.flush()
        assert mount.sent == [1, 2, 3]
        assert mount.applied[-1] == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
async def test_who_waits_is_told_that_the_catalog_takes_nothing_and_what_was_recorded_is_kept(
    number: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with mounted() as mount:
        mount.manager.error = refused(number, "the catalog's disk")
        mount.add(1)
        began_s = trio.current_time()
        with pytest.raises(Refused) as told:
            await mount.records.flush(30.0)
        assert told.value.errno == number
        assert trio.current_time() - began_s < 1.0
        assert len(mount.records) == 1
        mount.manager.error = None
        await mount.records.flush(30.0)
        assert len(mount.records) == 0


async def test_an_answer_that_makes_no_sense_holds_up_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.records = mount.with_answers(_raise)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.records.run)
            mount.add(1)
            await mount.records.flush(1.0)
            nursery.cancel_scope.cancel()
        assert mount.sent == [1]
        assert all(batch.durable for batch in mount.manager.batches)


def _raise(_reply: RecordsApplied, _asked_s: float) -> None:
    raise ValueError("a token of three bytes")


async def test_too_many_or_no_room_and_the_manager_must_be_asked(autojump_clock: trio.testing.MockClock) -> None:
    mount = Mount()
    mount.journal.error = OSError(errno.ENOSPC, "no room")
    assert not mount.records.add(record(1), [1])
    mount.journal.error = None
    mount.add(*range(UNSENT_MAX))
    assert not mount.records.add(record(1), [1])
    assert [number for number, _ in mount.journal.records] == list(range(1, UNSENT_MAX + 1))


CONCERNED = [
    (GetAttr(5), True),
    (GetAttr(6), False),
    (Open(5, False, 1), True),
    (Open(6, False, 1), False),
    (AskLeases([6, 5]), True),
    (AskLeases([6]), False),
    (Apply(1, 1, [Commit(5, 1, 1, None, True)]), True),
    (Apply(1, 1, [Commit(6, 1, 1, None, True)]), False),
    (Apply(1, 1, [Unlink(6, b"x", 0)]), True),
    (Lookup(6, b"x"), True),
    (Sync(), True),
    (Heartbeat(), False),
    (RecallDone([]), False),
    (TakeInodes(1), False),
]


@pytest.mark.parametrize(("request_", "waits"), CONCERNED)
async def test_what_could_be_answered_without_the_records_waits(
    request_: Any, waits: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with mounted() as mount:
        await mount.records.before(request_, 1.0)
        mount.manager.may = trio.Event()
        mount.add(5)
        if waits:
            with pytest.raises(Unavailable):
                await mount.records.before(request_, 1.0)
        else:
            await mount.records.before(request_, 1.0)


async def test_a_request_that_nobody_has_thought_of_waits(autojump_clock: trio.testing.MockClock) -> None:
    """New requests are safe until somebody has looked at them."""
    mount = Mount()
    mount.add(5)
    with pytest.raises(Unavailable):
        await mount.records.before(cast(Any, object()), 1.0)


async def test_what_was_lost_is_said_once_of_each_inode(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.manager.lost = [LostRecord(2, errno.EEXIST, "taken", b"x.conflict")]
        mount.add(1, 2)
        await mount.records.flush()
        mount.records.check(1)
        with pytest.raises(Refused) as caught:
            mount.records.check(2)
        assert caught.value.errno == errno.EIO
        mount.records.check(2)
        assert mount.records.lost == 1
        (problem,) = mount.records.problems
        assert problem.startswith("1 changes that programs had been told of were lost")


async def test_a_rename_that_was_lost_is_said_of_all_that_it_concerns(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.manager.lost = [LostRecord(1, errno.ESTALE, "others have changed it")]
        assert mount.records.add(Record(Rename(1, b"a", 2, b"b", 0, 0), [Expected(5, 1), Expected(6, 1)]), [1, 2, 5, 6])
        await mount.records.flush()
        for ino in (1, 2, 5, 6):
            with pytest.raises(Refused):
                mount.records.check(ino)


async def test_a_record_tells_of_the_commit_that_may_be_under_way() -> None:
    mount, node = Mount(), Node(5, stat.S_IFREG | 0o600, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version=3)
    assert mount.records.expected(node) == Expected(5, 3)
    content = Content(0, 0, 0, 0)
    for version in (4, 5):
        await mount.records.before(Apply(version, 1, [Commit(5, 2, version, content, final=False)]), TIMEOUT_S)
    await mount.records.before(Apply(9, 1, [Commit(6, 1, 8, content, final=False), Commit(5, 2, 9, None, final=True)]), TIMEOUT_S)
    assert mount.records.expected(node) == Expected(5, 3, 5, 2)
    assert mount.records.expected(msgspec.structs.replace(node, version=5)) == Expected(5, 5), "it has heard of it"


async def test_what_is_unsent_for_long_is_a_problem_until_it_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.manager.error = Refused("the catalog is older", errno.ESTALE)
        mount.add(1, 2)
        await trio.sleep(LATE_S)
        assert mount.records.problems == []
        await trio.sleep(1.0)
        assert mount.records.problems == ["2 changes of its mount have been unsent for 6 s: the catalog is older"]
        mount.manager.error = None
        await mount.records.flush()
        assert mount.records.problems == []


async def test_what_cannot_be_sent_is_copied_to_the_disk(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # of real time: a thread copies
    async with mounted() as mount:
        mount.manager.may = trio.Event()
        mount.add(1, 2)
        await trio.sleep(COPY_S / 2)
        assert mount.journal.copy == []
        await trio.sleep(2 * COPY_S)
        assert [number for number, _ in mount.journal.copy] == [1, 2]
        mount.add(3)
        await trio.sleep(2 * COPY_S)
        assert [number for number, _ in mount.journal.copy] == [1, 2, 3]
        mount.manager.may.set()
        await mount.records.flush()
        await trio.sleep(2 * COPY_S)
        assert mount.journal.copy == []


@pytest.mark.parametrize("away", [False, True])
async def test_an_orderly_end_sends_or_leaves_it_on_the_disk(away: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.add(1)
        mount.manager.error = Unavailable("nobody") if away else None
        await mount.records.end()
        assert mount.journal.closed_empty is not away
        assert [number for number, _ in mount.journal.copy] == [1] * away
        assert mount.sent == [1] * (not away)


async def test_what_the_manager_may_not_know_yet(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as mount:
        mount.records.add(record(1), [1, 9], born=9)
        assert mount.records.is_unknown(9)
        assert not mount.records.is_unknown(1)
        await mount.records.flush()
        assert not mount.records.is_unknown(9)
