"""Calls that may wait for one of this server's own disks: in threads, for a bounded time, each disk with threads of its own.

A disk that hangs holds up only the calls that need it, and those for no longer than an application may wait; one that answers
other questions meanwhile is waited for, as with any file system: an `fsync` of much takes long. The thread of a call that was
given up goes on until the disk answers, so what it works with has to be kept until then. A caller that can do without
the disk is *impatient*: it waits only until the disk is known to be silent (see `DiskWatch`), and goes elsewhere.

The event loop itself makes only calls that the kernel answers from its caches, or refuses. What may begin a transaction of the
file system's journal (making an object, writing, closing what was cut) may wait for the disk, and would hold up the whole mount.

A disk that has given an error is not trusted until it was tried: its page cache takes new files that cannot be made durable.
"""

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from cluster.errors import GodwitError, error_text
from cluster.volume.cached_open import open_cached
from cluster.volume.probe import DISK_ERRNOS, probe
from cluster.volume.regular import open_regular

log = logging.getLogger(__name__)

R = TypeVar("R")

THREADS = 24  # of one disk
WATCH_S = 0.5  # how often disks are looked at, and for how long somebody impatient waits before his disk is asked
SILENT_S = 1.5  # ext4 begins to write its journal after 5 s
IN_USE_S = 5.0  # after a change, until the journal with it has been written
ANSWERING_S = 5.0  # calls are not given up so soon after the disk has answered; it is asked again and again meanwhile
AGAIN_S = 5.0  # a disk that fails is tried again

_OF_WRITES = frozenset({errno.EROFS})  # such a disk can be read, and says so to each new file


class _Call:
    """One call. It may end and be given up at the same time: whichever comes second sees to what follows."""

    def __init__(self, function: Callable[[], Any], ended_late: Callable[[], None]) -> None:
        self._function = function
        self._ended_late = ended_late
        self._lock = threading.Lock()
        self._has_begun = self._is_over = self._is_given_up = False  # under the lock: two threads look at them

    def run(self) -> Any:
        """In the thread."""
        with self._lock:
            if self._is_given_up:
                return None  # it waited for a thread for too long: what it was to work with is closed by now
            self._has_begun = True
        try:
            return self._function()
        finally:
            with self._lock:
                self._is_over = True
                late = self._is_given_up
            if late:
                self._ended_late()

    def give_up(self) -> bool:
        """Nobody waits any more; whether nothing works with what was handed over."""
        with self._lock:
            self._is_given_up = True
            return self._is_over or not self._has_begun


class DiskThreads:
    """The threads of one volume, and what this mount has found of its disk."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.is_silent = False  # the disk does not answer at present
        self.is_failing = False  # it has given an error, and has not been found good since
        self._changed_s = float("-inf")  # when something there was last changed by this mount
        self._limiter = trio.CapacityLimiter(THREADS)
        self._calls: dict[trio.CancelScope, float] = {}  # that are under way, and when they began
        self._impatient: set[trio.CancelScope] = set()  # those that go elsewhere when the disk is silent
        self._later: queue.SimpleQueue[Callable[[], None]] | None = None  # made with its thread, when it is first needed

    def require_answers(self, what: str) -> None:
        """Raises `GodwitError` (EIO) while the disk is silent, for what is not worth waiting."""
        if self.is_silent:
            raise GodwitError(f"{what}: the disk does not answer")

    def changes(self) -> None:
        """Something there is about to be changed: for a while the disk is asked whether it answers (`DiskWatch`)."""
        self._changed_s = trio.current_time()

    def is_in_use(self, now: float) -> bool:
        """Whether this mount has just changed something there, or somebody waits for so long that it may be silent."""
        return now - self._changed_s < IN_USE_S or any(now - began_s > WATCH_S for began_s in self._calls.values())

    def met(self, error: OSError) -> None:
        """Takes note of an error that may be the disk's."""
        if error.errno in DISK_ERRNOS - _OF_WRITES and not self.is_failing:
            self.is_failing = True
            log.error("the disk of %s fails: %s", self.root, error.strerror)

    def answered(self) -> None:
        """The disk has just answered a question: calls that are under way may take their time."""
        until_s = trio.current_time() + ANSWERING_S
        for scope in self._calls:
            scope.deadline = max(scope.deadline, until_s)

    def went_silent(self) -> None:
        """The disk does not answer: ends the waits of impatient callers."""
        self.is_silent = True
        for scope in self._impatient:
            scope.cancel()

    async def run(
        self, what: str, function: Callable[[], R], ended: Callable[[], None], timeout_s: float, *, impatient: bool = False
    ) -> R:
        """What *function* returns or raises. *ended* is called in the event loop when it is over, also if nobody waits any more.

        Raises `GodwitError` (EIO) if the disk has not answered after *timeout_s*, no other question either for the last
        `ANSWERING_S` (see `answered`); if *impatient*, when it is known to be silent.
        """
        token = trio.lowlevel.current_trio_token()  # a thread whose call was given up has no other way back to the event loop
        call = _Call(function, lambda: token.run_sync_soon(ended))
        try:
            with trio.move_on_after(timeout_s) as scope:
                self._calls[scope] = trio.current_time()
                if impatient:
                    self._impatient.add(scope)
                result: R = await trio.to_thread.run_sync(call.run, limiter=self._limiter, abandon_on_cancel=True)
                return result
        finally:
            self._calls.pop(scope, None)
            self._impatient.discard(scope)
            # Also when it has ended in time: then nothing works with it any more, and *ended* is due here.
            if call.give_up():
                ended()
        if impatient:
            self.require_answers(what)
        raise GodwitError(f"{what}: the disk has not answered for {timeout_s:g} s")

    async def open(
        self,
        what: str,
        function: Callable[[], int],
        timeout_s: float,
        undo: Callable[[], None] | None = None,
        *,
        impatient: bool = True,
    ) -> int:
        """The descriptor that *function* returns, as `open_all`."""
        (descriptor,) = await self.open_all(what, lambda: [function()], timeout_s, undo, impatient=impatient)
        return descriptor

    async def open_all(
        self,
        what: str,
        function: Callable[[], list[int]],
        timeout_s: float,
        undo: Callable[[], None] | None = None,
        *,
        impatient: bool = True,
    ) -> list[int]:
        """The descriptors that *function* returns, as `run`. If nobody waits for them any more, they are closed, and *undo*
        called: in a thread."""
        # The thread may come back with descriptors that nobody waits for. Under the lock, either it finds that out, and closes
        # them, or whoever gives up finds them.
        lock = threading.Lock()
        is_wanted = True
        opened: list[int] = []

        def drop(descriptors: list[int]) -> None:
            for descriptor in descriptors:
                os.close(descriptor)
            if undo is not None:
                undo()

        def work() -> None:
            descriptors = function()
            with lock:
                if is_wanted:
                    opened.extend(descriptors)
                    return
            drop(descriptors)

        try:
            await self.run(what, work, _nothing, timeout_s, impatient=impatient)
        except BaseException:
            with lock:
                is_wanted = False
            if opened:
                self.later(partial(drop, opened))
            raise
        return opened

    async def open_several(self, what: str, function: Callable[[list[int]], R], timeout_s: float) -> tuple[R, list[int]]:
        """What *function* returns, and the descriptors that it has added to the list that it was given; as `open`."""
        lock = threading.Lock()
        is_wanted = True
        opened: list[int] = []

        def work() -> R:
            own: list[int] = []
            try:
                result = function(own)
                with lock:
                    if is_wanted:
                        opened.extend(own)
                        own.clear()
            finally:
                for descriptor in own:
                    os.close(descriptor)
            return result

        try:
            return await self.run(what, work, _nothing, timeout_s, impatient=True), opened
        except BaseException:
            with lock:
                is_wanted = False
            for descriptor in opened:
                self.later(partial(os.close, descriptor))
            raise

    async def open_existing(
        self, what: str, path: str, flags: int, timeout_s: float, open_at: Callable[[], int] | None = None
    ) -> int:
        """A descriptor of the file at *path*: at once if the kernel has all of the path in its caches, else as `open`.

        *open_at* opens it where more is to be done than open(2). Raises `OSError`, and `GodwitError` if the disk does not answer.
        """
        descriptor = open_cached(path, flags)
        return (
            await self.open(what, open_at or partial(open_regular, path, flags), timeout_s) if descriptor is None else descriptor
        )

    def later(self, function: Callable[[], None]) -> None:
        """Calls it in a thread, one after the other; nobody waits for that. What `OSError` it raises goes to the log."""
        if self._later is None:
            self._later = queue.SimpleQueue()
            threading.Thread(target=_call_all, args=(self._later, self.root), name="later", daemon=True).start()
        self._later.put(function)

    async def caught_up(self, timeout_s: float) -> None:
        """Returns when all has been called that was handed to `later`, or after *timeout_s*."""
        done = threading.Event()
        self.later(done.set)
        await trio.to_thread.run_sync(done.wait, timeout_s, abandon_on_cancel=True)


def _nothing() -> None:
    return


def _call_all(functions: "queue.SimpleQueue[Callable[[], None]]", root: str) -> None:
    while True:
        try:
            functions.get()()
        except OSError as error:
            log.warning("at %s: %s", root, error_text(error))


_threads: dict[str, DiskThreads] = {}


def threads_of(root: str) -> DiskThreads:
    """Those of the volume at *root*."""
    if root not in _threads:
        _threads[root] = DiskThreads(root)
    return _threads[root]


def known_disks() -> Sequence[DiskThreads]:
    """Those of all volumes that were used so far."""
    return list(_threads.values())


class DiskWatch:
    """Finds out within two seconds that a disk is silent, so that impatient callers go elsewhere; also that it fails, and when
    it is good again, and that it works while somebody waits. A good disk is asked only while this mount changes something there,
    or somebody waits for it.
    """

    def __init__(
        self,
        disks: Callable[[], Sequence[DiskThreads]],
        nursery: trio.Nursery,
        ask: Callable[[str], OSError | None] = probe,
        again_s: float = AGAIN_S,
    ) -> None:
        self._disks = disks
        self._nursery = nursery
        self._again_s = again_s
        self._ask_disk = ask
        self._asked: dict[str, float] = {}
        self._found_failing: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            for threads in self._disks():
                self._look(threads, trio.current_time())
            await trio.sleep(WATCH_S)

    def _look(self, threads: DiskThreads, now: float) -> None:
        asked_s = self._asked.get(threads.root)
        # One question at a time: the thread of one that is not answered stays until the disk answers.
        if asked_s is None:
            if self._is_to_be_asked(threads, now):
                self._asked[threads.root] = now
                self._nursery.start_soon(self._ask, threads)
        elif now - asked_s > SILENT_S and not threads.is_silent:
            threads.went_silent()
            log.error("the disk of %s has not answered for %g s", threads.root, SILENT_S)

    def _is_to_be_asked(self, threads: DiskThreads, now: float) -> bool:
        if threads.is_failing:
            return now - self._found_failing.get(threads.root, float("-inf")) > self._again_s
        return threads.is_in_use(now)

    async def _ask(self, threads: DiskThreads) -> None:
        # With a limiter of its own: all threads of the disk may be waiting for it.
        trouble = await trio.to_thread.run_sync(
            self._ask_disk, f"{threads.root}/probe.mount", limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
        )
        del self._asked[threads.root]
        if threads.is_silent:
            threads.is_silent = False
            log.info("the disk of %s answers again", threads.root)
        if trouble is not None:
            threads.met(trouble)
            self._found_failing[threads.root] = trio.current_time()
            return
        threads.answered()
        if threads.is_failing:
            threads.is_failing = False
            self._found_failing.pop(threads.root, None)
            log.info("the disk of %s is good again", threads.root)
