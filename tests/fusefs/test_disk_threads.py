"""Calls at a disk that hangs end in time, and what they work with is kept until the disk has answered."""

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from cluster.errors import GodwitError
from fusefs.content.disk_threads import ANSWERING_S, WATCH_S, DiskThreads, DiskWatch


async def test_a_call_that_hangs_ends_in_time_and_is_over_when_the_disk_answers() -> None:
    threads, answered = DiskThreads("/disk"), threading.Event()
    ended: list[float] = []

    async def hang() -> None:
        await threads.run("reading", lambda: answered.wait(30), lambda: ended.append(trio.current_time()), 0.1)

    with trio.fail_after(10):
        with pytest.raises(GodwitError, match=r"has not answered for 0\.1 s"):
            await hang()
        assert ended == []
        answered.set()
        while not ended:
            await trio.sleep(0.01)
        assert len(ended) == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_that_ends_is_over_once(fails: bool) -> None:
    ended: list[int] = []

    def call() -> int:
        if fails:
            raise OSError(5, "broken")
        return 7

    threads = DiskThreads("/disk")
    if fails:
        with pytest.raises(OSError, match="broken"):
            await threads.run("reading", call, lambda: ended.append(1), 10)
    else:
        assert await threads.run("reading", call, lambda: ended.append(1), 10) == 7
    await trio.testing.wait_all_tasks_blocked()
    assert ended == [1]


async def test_a_call_that_takes_long_is_waited_for_while_the_disk_answers_others(tmp_path: Path) -> None:
    threads, done, answers = DiskThreads(str(tmp_path)), threading.Event(), threading.Event()
    answers.set()

    def ask(_path: str) -> OSError | None:
        answers.wait(60)
        return None

    outcomes: list[object] = []

    async def call() -> None:
        try:
            outcomes.append(await threads.run("syncing", lambda: done.wait(60), lambda: None, 2 * WATCH_S))
        except GodwitError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskWatch(lambda: [threads], nursery, ask).run)
        nursery.start_soon(call)
        await trio.sleep(6 * WATCH_S)
        assert outcomes == []
        done.set()
        with trio.fail_after(10):
            while not outcomes:
                await trio.sleep(0.01)
        assert outcomes == [True]
        # The same with a disk that falls silent meanwhile.
        done.clear()
        answers.clear()
        with trio.fail_after(10 * ANSWERING_S):
            await call()
        assert isinstance(outcomes[1], GodwitError)
        done.set()
        answers.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answers", ["in time", "too late", "with an error"])
async def test_descriptors_that_nobody_waits_for_are_closed(tmp_path: Path, answers: str) -> None:
    threads, answered = DiskThreads(str(tmp_path)), threading.Event()
    made: list[int] = []

    def open_two(opened: list[int]) -> str:
        opened.extend(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b"))
        made.extend(opened)
        if answers == "with an error":
            raise OSError(errno.EIO, "broken")
        if answers == "too late":
            answered.wait(30)
        return "found"

    def are_open() -> list[bool]:
        return [os.path.lexists(f"/proc/self/fd/{descriptor}") for descriptor in made]

    if answers == "in time":
        assert await threads.open_several("opening", open_two, 10) == ("found", made)
        assert are_open() == [True, True]
        for descriptor in made:
            os.close(descriptor)
        return
    with pytest.raises(OSError if answers == "with an error" else GodwitError):
        await threads.open_several("opening", open_two, 0.1)
    answered.set()
    with trio.fail_after(10):
        while any(are_open()):
            await trio.sleep(0.01)


async def test_what_waits_for_a_thread_is_given_up_without_having_begun() -> None:
    threads, answered, begun = DiskThreads("/disk"), threading.Event(), []
    async with trio.open_nursery() as nursery:
        for _number in range(24):
            nursery.start_soon(threads.run, "reading", lambda: answered.wait(30), lambda: None, 20)
        await trio.testing.wait_all_tasks_blocked()
        ended: list[int] = []
        with pytest.raises(GodwitError):
            await threads.run("reading", lambda: begun.append(1), lambda: ended.append(1), 0.1)
        assert (begun, ended) == ([], [1])
        answered.set()


async def test_a_disk_that_does_not_answer_is_noticed_while_it_is_used_and_forgiven(tmp_path: Path) -> None:
    root, answers, asked = str(tmp_path), threading.Event(), []

    def ask(path: str) -> OSError | None:
        asked.append(path)
        answers.wait(30)
        return None

    threads = DiskThreads(root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskWatch(lambda: [threads], nursery, ask).run)
        await trio.sleep(2 * WATCH_S)
        assert asked == []
        threads.changes()
        with trio.fail_after(10):
            while not threads.is_silent:
                await trio.sleep(0.05)
            with pytest.raises(GodwitError, match="does not answer"):
                threads.require_answers("creating")
            answers.set()
            while threads.is_silent:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_a_disk_that_gives_an_error_is_not_trusted_until_it_was_found_good(tmp_path: Path) -> None:
    broken = OSError(errno.EIO, "broken")
    answers, asked = [broken, broken, None], []

    def ask(path: str) -> OSError | None:
        asked.append(path)
        return answers[len(asked) - 1]

    threads = DiskThreads(str(tmp_path))
    threads.met(OSError(errno.ENOSPC, "full"))
    assert not threads.is_failing
    threads.met(broken)
    assert threads.is_failing
    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskWatch(lambda: [threads], nursery, ask, again_s=0.1).run)
        with trio.fail_after(10):
            while threads.is_failing:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert asked == [f"{tmp_path}/probe.mount"] * 3


async def test_a_disk_that_fails_is_noticed_while_it_is_used(tmp_path: Path) -> None:
    threads = DiskThreads(str(tmp_path))
    threads.changes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskWatch(lambda: [threads], nursery, lambda _path: OSError(errno.EIO, "broken")).run)
        with trio.fail_after(10):
            while not threads.is_failing:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_who_is_impatient_waits_only_until_the_disk_is_known_to_be_silent(tmp_path: Path) -> None:
    """Although this mount has not changed anything there lately: that somebody waits has the disk asked."""
    answered, undone = threading.Event(), threading.Event()
    file = tmp_path / "object"

    def create() -> int:
        answered.wait(30)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def undo() -> None:
        file.unlink()
        undone.set()

    def ask(_path: str) -> OSError | None:
        answered.wait(30)
        return None

    threads = DiskThreads(str(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskWatch(lambda: [threads], nursery, ask).run)
        with trio.fail_after(10), pytest.raises(GodwitError, match="creating: the disk does not answer"):
            await threads.open("creating", create, 60, undo)
        before = open_descriptors()
        answered.set()
        await trio.to_thread.run_sync(undone.wait, 10)
        assert undone.is_set()
        assert not file.exists()
        assert open_descriptors() <= before
        nursery.cancel_scope.cancel()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_done_later_is_done_in_turn_and_fails_alone() -> None:
    done: list[int] = []
    over = threading.Event()

    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    threads = DiskThreads("/disk")
    for step in (lambda: done.append(1), fail, lambda: done.append(2), over.set):
        threads.later(step)
    assert over.wait(10)
    assert done == [1, 2]
