"""Answers recalls: what is recalled, given back or has run out is taken from the kernel first.

The kernel drops a name only under the lock of its directory, which every change of names there holds until this mount has
answered it; and that change may be waiting, at the manager, for another mount that waits for us in the same way. So a name is
never waited for while a change of our own is under way in its directory (`changing`): all names of the mount are voided at
once instead, for which the kernel needs no lock. Where it cannot do that (before Linux 6.16) names are given to it for
`SHORT_NAMES_S` at most, and in that case they are waited out.

Nothing here takes a lock of the overlay, and waits for no request of the kernel, but for those that hold page locks: reads and
writes under way, which wait for no recall.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import trio

from cluster.errors import GodwitError, error_text
from cluster.messages import GiveBack, Recall, RecallDone
from cluster.rpc.session import ManagerSession
from cluster.tending import Tasks
from fusefs.caching.cache import Caching, GivenUp
from fusefs.caching.held import HeldDirectories

log = logging.getLogger(__name__)

R = TypeVar("R")

SHORT_NAMES_S = 1.0  # a recall waits for as long at worst, and lookups of a name that is used all the time come as often
LATER_S = 0.1  # the kernel counts a timeout from when it takes the answer
THREADS = 16
WAITERS = 256  # as many as there may be changes of our own under way
CHECK_S = 0.25  # how late at most what is cached beyond the bound is given back
GIVE_BACK_TOGETHER = 5000  # inodes in one request
ONE_BY_ONE_MAX = 5000  # names; more are faster looked up again than dropped
NO_NAME = b"."  # which no directory has as an entry: dropping it only waits for the directory's lock


class Kernel(Protocol):
    """What `fusefs.kernel.invalidation.KernelCache` does. All of it may block."""

    can_void_names: bool
    drops_absent_names: bool

    def drop_inode(self, ino: int) -> bool: ...

    def drop_name(self, parent: int, name: bytes) -> bool: ...

    def void_names(self) -> bool: ...


class OpenHere(Protocol):
    """What is open on this mount."""

    def is_open(self, ino: int) -> bool:
        """Whether the inode is open."""

    def stale(self, ino: int) -> None:
        """What is known of the inode is to be asked anew before its content is read."""

    def present(self, inodes: Iterable[int]) -> tuple[list[int], int]:
        """Those of *inodes* that are open without the manager's knowledge; from now on it knows, by the sequence returned."""

    async def let_go(self, inodes: Iterable[int]) -> None:
        """Tells the manager which of *inodes* it believes to be open are not any more. Raises `GodwitError`."""


class Tokens(Protocol):
    """What `fusefs.caching.tokens.Leases` knows of tokens. Each is told once."""

    def ended(self) -> Iterable[int]:
        """The inodes whose tokens have gone without another one: others may change them unseen."""

    def outdated(self) -> Iterable[int]:
        """The inodes that are open to read, and of which others have finished a version."""


class Recalls:
    """Obeys the manager's recalls and the end of leases. Its tasks run in *tasks*."""

    def __init__(
        self,
        session: ManagerSession,
        held: HeldDirectories,
        caching: Caching,
        kernel: Kernel,
        opens: OpenHere,
        tasks: Tasks,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._held = held
        self._caching = caching
        self._kernel = kernel
        self._opens = opens
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._changing: Counter[int] = Counter()  # changes of our own under way, by the directory whose lock the kernel holds
        self._waiting: dict[int, set[trio.Event]] = {}  # for the directory's lock; set when a change of our own begins there
        self._threads = trio.CapacityLimiter(THREADS)
        self._waiters = trio.CapacityLimiter(WAITERS)  # for locks of directories: the others must not run out because of them
        self.obeyed = 0

    # ------------------------------------------------------------------------------------------------ own changes

    @contextmanager
    def changing(self, *inodes: int) -> Iterator[None]:
        """While inside, the kernel may hold the locks of these directories until we answer."""
        for ino in inodes:
            self._changing[ino] += 1
            for began in self._waiting.get(ino, ()):
                began.set()
        try:
            yield
        finally:
            for ino in inodes:
                self._changing[ino] -= 1
                if not self._changing[ino]:
                    del self._changing[ino]

    # ---------------------------------------------------------------------------------------------------- recalls

    def obey(self, recall: Recall) -> None:
        """Obeys a recall: at once for all answers from now on, and in the background for what the kernel has."""
        self.obeyed += 1
        if recall.to_look:
            self._held.shown(recall)
            self._tasks.start_soon(self._show, recall)
            return
        # In the step in which the recall came, before anything is awaited: answers that are used from now on know of it.
        given_up = self._caching.recalled(recall)
        for ino in recall.inodes:
            self._opens.stale(ino)
        opens, sequence = self._opens.present(recall.inodes)
        self._tasks.start_soon(self._obey, recall, given_up, RecallDone([recall.number], opens, sequence))

    async def _show(self, recall: Recall) -> None:
        """What was changed here comes to the manager; what is cached here, in the kernel too, stays."""
        try:
            await self._held.tell_all(self._timeout_s)
            await self._session.call(RecallDone([recall.number]), timeout_s=self._timeout_s)
        except GodwitError as error:
            log.warning("a recall was not answered, being alone ends by itself: %s", error)

    async def _obey(self, recall: Recall, given_up: list[GivenUp], done: RecallDone) -> None:
        try:
            # What was changed here under the leases that are called back: nothing more can be, since `obey`.
            await self._held.tell_all(self._timeout_s)
            await self._take_away(given_up)
            # Before the recall is answered: whoever made the manager ask finds what is closed here closed.
            await self._opens.let_go(recall.inodes)
            await self._session.call(done, timeout_s=self._timeout_s)
        except (GodwitError, OSError) as error:
            log.warning("a recall was not answered, its leases end by themselves: %s", error_text(error))

    async def _take_away(self, given_up: list[GivenUp]) -> None:
        """Returns when the kernel has nothing of these any more, and will not get anything from answers that we gave before."""
        try:
            await self._take_from_kernel(given_up)
        finally:
            # Also if it failed: what the kernel has then ends by its timeouts, for which the manager waits.
            self._caching.left(given_up)

    async def _take_from_kernel(self, given_up: list[GivenUp]) -> None:
        # Inodes first: dropping one waits for no lock of a directory, so recalls of files are mostly through here.
        unknown = await self._in_thread(self._drop_inodes, [item.ino for item in given_up])
        for item in given_up:
            if item.names:
                absent = {name for name, given in item.names.items() if given.ino == 0}
                await self._drop_names(item.ino, item.names.keys(), absent, max(name.until_s for name in item.names.values()))
        if directories := [item.ino for item in given_up if item.names]:
            await self._in_thread(self._drop_inodes, directories)  # with listings that were on their way before
        # Who is not known may be about to be: the kernel takes attributes in while it holds the lock of the directory.
        hidden = [item for item in given_up if item.ino in unknown and item.parents]
        if hidden:
            for parent in set().union(*(item.parents for item in hidden)):
                await self._under_lock(parent, self._kernel.drop_name, parent, NO_NAME)
            await self._in_thread(self._drop_inodes, [item.ino for item in hidden])

    def _drop_inodes(self, inodes: list[int]) -> set[int]:
        return {ino for ino in inodes if not self._kernel.drop_inode(ino)}

    async def _drop_names(self, directory: int, names: Iterable[bytes], absent: set[bytes], until_s: float) -> None:
        """*absent*: those of *names* that the kernel may believe to be absent."""
        each = list(names)
        many = len(each) > ONE_BY_ONE_MAX
        # Of many only the lock is waited for: a listing that is on its way into the kernel is not covered by voiding.
        dropped = await self._under_lock(directory, self._drop_each, directory, [NO_NAME] if many else each, absent)
        if many or not dropped:
            await self.expire_names(until_s)

    def _drop_each(self, directory: int, names: list[bytes], absent: set[bytes]) -> bool:
        """Whether the kernel believes none of them any more."""
        ignored = {name for name in names if not self._kernel.drop_name(directory, name)}
        return self._kernel.drops_absent_names or absent.isdisjoint(ignored)

    async def _under_lock(self, directory: int, function: Callable[..., bool], *args: object) -> bool:
        """Runs what needs the directory's lock, and returns what it does; False, without waiting for it, when a change of our
        own has that.

        Who waits only for lookups and listings to be through need not look at the result: that change got the lock after them.
        """
        # Without a free thread it would wait for others' locks, which may be held for the very answer that this recall holds up.
        if self._changing[directory] or not self._waiters.available_tokens:
            return False
        done = False
        with self._begins(directory) as began:
            async with trio.open_nursery() as nursery:

                async def work() -> None:
                    nonlocal done
                    done = await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._waiters)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(work)
                # Whichever comes first. The thread is left behind: it ends when the change that has the lock is answered.
                await began.wait()
                nursery.cancel_scope.cancel()
        return done

    @contextmanager
    def _begins(self, directory: int) -> Iterator[trio.Event]:
        began = trio.Event()
        waiting = self._waiting.setdefault(directory, set())
        waiting.add(began)
        try:
            yield began
        finally:
            waiting.discard(began)
            if not waiting and self._waiting.get(directory) is waiting:
                del self._waiting[directory]

    async def _in_thread(self, function: Callable[..., R], *args: object) -> R:
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._threads)

    async def expire_names(self, until_s: float) -> None:
        """Has the kernel forget names that it may believe until then, from within a change that holds their locks."""
        if self.can_expire_names:
            self.expire_names_known(until_s)
        elif until_s > trio.current_time():
            await trio.sleep_until(until_s + LATER_S)

    @property
    def can_expire_names(self) -> bool:
        """Whether the kernel forgets names when it is told to."""
        return self._kernel.can_void_names

    def expire_names_known(self, until_s: float) -> None:
        """As `expire_names`, without waiting: to be called only if the kernel can do that."""
        if until_s > trio.current_time():
            # In one step: a name that the kernel is given in between would be forgotten here, and held there.
            self._kernel.void_names()
            self._caching.voided_names()

    async def forget(self, inodes: set[int], names: set[tuple[int, bytes]]) -> None:
        """Has the kernel forget what it was not told of, since who asked was interrupted."""
        directories: dict[int, list[bytes]] = {}
        for directory, name in names:
            directories.setdefault(directory, []).append(name)
        try:
            for directory, each in directories.items():
                await self._drop_names(directory, each, set(each), trio.current_time() + SHORT_NAMES_S)
            await self._in_thread(self._drop_inodes, list(inodes | directories.keys()))
        except OSError as error:
            log.warning("the kernel may believe what has changed until its leases end: %s", error_text(error))

    # ------------------------------------------------------------------------------------------- ends, and bounds

    async def end_loop(self, tokens: Tokens) -> None:
        """Takes from the kernel what has run out without being renewed, and gives back what is too much, until cancelled.

        Also what nobody asks back, since it must not be cached: whoever maps it has pages of it.
        """
        while True:
            await trio.sleep_until(min(self._caching.next_end_s(), trio.current_time() + CHECK_S))
            for item in self._caching.expired():
                if self._opens.is_open(item.ino):
                    self._opens.stale(item.ino)
                    self._tasks.start_soon(self._drop_pages, item.ino)
            self.drop_pages(ino for ino in tokens.ended() if self._opens.is_open(ino) and not self._caching.may_keep(ino))
            self.drop_pages(tokens.outdated())
            given_up, serial = self._caching.give_back(self._opens.is_open)
            if given_up:
                self._tasks.start_soon(self._give_back, given_up, serial)

    def drop_pages(self, inodes: Iterable[int]) -> None:
        """Has the kernel forget what it has read of these, soon."""
        for ino in inodes:
            self._tasks.start_soon(self._drop_pages, ino)

    async def _drop_pages(self, ino: int) -> None:
        """Of what is open, in a task of its own: a read that is under way may have to wait for a new lease."""
        await self._in_thread(self._kernel.drop_inode, ino)

    async def give_back_all(self) -> None:
        """For an orderly stop, with nothing mounted any more: nobody has to wait for what this mount held."""
        inodes, serial = self._caching.leased(), self._caching.newest_serial
        for start in range(0, len(inodes), GIVE_BACK_TOGETHER):
            part = inodes[start : start + GIVE_BACK_TOGETHER]
            await self._session.call(GiveBack(part, serial), timeout_s=self._timeout_s)

    async def _give_back(self, given_up: list[GivenUp], serial: int) -> None:
        try:
            await self._take_away(given_up)
            await self._session.call(GiveBack([item.ino for item in given_up], serial), timeout_s=self._timeout_s)
        except (GodwitError, OSError) as error:
            log.warning("leases were not given back, they end by themselves: %s", error_text(error))
