"""The locks of this mount's processes: requested from the manager, and trusted no longer than the manager keeps them.

A lock is good for a time that the manager names, counted from the last exchange with it; the manager gives it to others only
later. A mount that has lost a lock neither reads nor writes the file (`check`) until the descriptors by which it was locked are
closed: others may have changed what the lock protects.

What an owner has locked (`_Owner.spans`) is agreed with the manager under `_Owner.lock`, so that both sides see its requests in
the same order. What is not certain, since a request was interrupted or nobody answered it, is taken back (`_take_back`) before
the owner's next request.
"""

import errno
import itertools
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from cluster.errors import GodwitError, Unavailable, error_text, refused
from cluster.messages import LOCK_END, AskConflict, AwaitLocks, HeldLocks, LockOutcome, LockSpan, SetLock, Unlock, Welcome
from cluster.rpc.session import ManagerSession
from cluster.spans import with_span, within, without
from cluster.tending import Tasks
from fusefs.caching.cache import Caching
from fusefs.caching.recalls import Kernel
from fusefs.kernel.requests import Handler, Opcode, Raw

log = logging.getLogger(__name__)

_LK_IN = struct.Struct("<QQQQIIII")  # handle, owner, start, end, type, pid, flags, padding
_LK_OUT = struct.Struct("<QQII")  # start, end, type, pid
_FLUSH_IN = struct.Struct("<QIIQ")  # handle, unused, padding, owner
READ, WRITE, UNLOCK = 0, 1, 2  # F_RDLCK, F_WRLCK, F_UNLCK
BY_FLOCK = 1  # FUSE_LK_FLOCK

ASK_AGAIN_S = 10.0  # whoever waits, also if nobody has said that it is worth while
AWAIT_S = 10.0  # for how long the manager keeps the question what has become free
RETRY_S = 0.2
INTERRUPTED_S = 1.0  # what is taken back is mostly taken back before the process hears that it was interrupted
IDLE_S = 0.5  # when the deadline has passed: until it is looked again whether the manager has answered
THREADS = 16


class Key(NamedTuple):
    """One owner of locks on one file: a process, or an open file by flock(2) (`whole`)."""

    ino: int
    whole: bool
    owner: int


@dataclass(eq=False)
class _Owner:
    """What an owner has locked."""

    lock: trio.Lock = field(default_factory=trio.Lock)  # held from a request to its answer: both sides see them in one order
    spans: list[LockSpan] = field(default_factory=list)  # as the manager has granted them, without overlaps
    pid: int = 0  # which F_GETLK names; that of the last request
    handles: set[int] = field(default_factory=set)  # by which it was locked
    users: int = 0  # requests under way that are about it


class _Wanted(NamedTuple):
    """A request of the kernel."""

    key: Key
    handle: int  # the open file by which it came
    span: LockSpan
    pid: int
    unlock: bool  # else `span` says whether to read or to write


def decode(request: Raw) -> _Wanted:
    """`struct fuse_lk_in`."""
    handle, owner, start, end, kind, pid, flags, _ = _LK_IN.unpack_from(request.body)
    if start > end or end > LOCK_END or kind not in (READ, WRITE, UNLOCK):
        raise refused(errno.EINVAL, "a range that cannot be locked")
    key = Key(request.ino, bool(flags & BY_FLOCK), owner)
    return _Wanted(key, handle, LockSpan(start, end, kind == WRITE), pid, kind == UNLOCK)


class Locks:
    """All locks of this mount; its tasks run in *tasks*.

    *watch_flush* is called when an inode gets its first owner of record locks, and when it has lost the last one: in between, the
    kernel's `FLUSH` at every close of the file is to be handed over.
    """

    def __init__(
        self,
        session: ManagerSession,
        server: str,
        caching: Caching,
        kernel: Kernel,
        tasks: Tasks,
        timeout_s: float,
        watch_flush: Callable[[int, bool], None],
    ) -> None:
        self._session = session
        self._server = server
        self._caching = caching
        self._kernel = kernel
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._watch_flush = watch_flush
        self._believed_s = 0.0  # for how long after the last exchange locks are good
        self._owners: dict[Key, _Owner] = {}  # those that have something locked, or ask for it
        self._by_handle: dict[int, set[Key]] = {}  # whose locks were set by each handle
        self._flushed: dict[int, int] = {}  # how many owners of record locks an inode has
        self._leaving: dict[int, set[trio.Event]] = {}  # what is being unlocked since it was closed
        self._lost: dict[int, set[int]] = {}  # by which handles the lost locks of an inode were set
        self._waiting: dict[int, trio.Event] = {}  # by ticket: set when it is worth while to ask again
        self._tickets = itertools.count(1)
        self._somebody_waits = trio.Event()
        self._threads = trio.CapacityLimiter(THREADS)  # they may wait for a home that is away: others must not run out of them

    def handlers(self) -> dict[Opcode, Handler]:
        """For `RawRequests`."""
        return {
            Opcode.GETLK: self._find_conflict,
            Opcode.SETLK: lambda request: self._set(request, wait=False),
            Opcode.SETLKW: lambda request: self._set(request, wait=True),
            Opcode.FLUSH: self._flush,
        }

    # -------------------------------------------------------------------------------------------------- believing

    def check(self, ino: int) -> None:
        """Raises `Unavailable` for a file on which somebody has lost a lock and not closed it since."""
        # Not left to `expire_loop`, which may be late: this decides whether content is read or written.
        if self._by_handle and self._has_ended():
            self._lose_all()
        if ino in self._lost:
            raise Unavailable(f"a lock of inode {ino} was lost while this mount was cut off: its files must be closed")

    def _has_ended(self) -> bool:
        return trio.current_time() >= self._session.last_contact_s + self._believed_s

    def _lose_all(self) -> None:
        self._lose({key.ino for key, owner in self._owners.items() if owner.spans})

    def _lose(self, inodes: set[int]) -> None:
        for key, owner in list(self._owners.items()):
            if key.ino in inodes and owner.spans:
                log.error("inode %d: a lock of process %d is lost, others may have it now", key.ino, owner.pid)
                self._lost.setdefault(key.ino, set()).update(owner.handles)
                owner.spans = []
                self._tidy(key, owner)

    def presented(self) -> list[HeldLocks]:
        """The locks to present to a manager."""
        if self._has_ended():
            self._lose_all()
        return [
            HeldLocks(key.ino, key.whole, key.owner, owner.pid, owner.spans) for key, owner in self._owners.items() if owner.spans
        ]

    def welcomed(self, welcome: Welcome) -> None:
        """A manager has taken what was presented. Requests that wait are sent to it."""
        self._believed_s = welcome.locks_s
        self._lose(set(welcome.unlocked))
        for event in self._waiting.values():
            event.set()

    async def expire_loop(self) -> None:
        """Ends locks at their deadline, so that nobody finds them alive when the manager answers again."""
        while True:
            if self._has_ended():
                self._lose_all()
                await trio.sleep(IDLE_S)
            else:
                await trio.sleep_until(self._session.last_contact_s + self._believed_s)

    # --------------------------------------------------------------------------------------------------- requests

    async def _set(self, request: Raw, *, wait: bool) -> bytes:
        wanted = decode(request)
        with self._using(wanted.key) as owner:
            if not wanted.unlock:
                self.check(wanted.key.ino)
                await self._await_closed(wanted.key.ino)
                await self._lock(owner, wanted, wait=wait)
                # Before the program hears that it has the lock: its next read must not come from pages of before.
                await self._drop_pages(wanted.key)
            elif owner.spans or owner.users > 1:
                await self._take_back(wanted.key, wanted.span, release=True)
        return b""

    async def _find_conflict(self, request: Raw) -> bytes:
        wanted = decode(request)
        question = AskConflict(wanted.key.ino, wanted.key.owner, wanted.span)
        found = await self._session.call(question, timeout_s=self._timeout_s)
        span = found.span
        if span is None:
            return _LK_OUT.pack(wanted.span.start, wanted.span.end, UNLOCK, 0)
        pid = found.pid if found.server == self._server else 0  # elsewhere it is the number of nobody, or anybody
        return _LK_OUT.pack(span.start, span.end, WRITE if span.write else READ, pid)

    async def _flush(self, request: Raw) -> bytes:
        """A process has closed the file: all its record locks of it end, by whichever descriptor they were set."""
        _handle, _, _, number = _FLUSH_IN.unpack_from(request.body)
        key = Key(request.ino, False, number)
        if key in self._owners:
            await self._take_back(key, LockSpan(0, LOCK_END, write=False), release=True)
        return b""

    def released(self, handle: int) -> None:
        """The last descriptor of an open file is closed: so its locks end, in the background. Does not block."""
        for key in self._by_handle.pop(handle, set()):
            owner = self._owners[key]
            owner.handles.discard(handle)
            if not owner.handles and owner.spans:
                done = self._begin_to_take_back(key, LockSpan(0, LOCK_END, write=False), release=True)
                self._leaving.setdefault(key.ino, set()).add(done)
        for ino, handles in list(self._lost.items()):
            handles.discard(handle)
            if not handles:
                del self._lost[ino]

    # ----------------------------------------------------------------------------------------------------- locking

    async def _lock(self, owner: _Owner, wanted: _Wanted, *, wait: bool) -> None:
        """Returns when it is locked. Raises EAGAIN, EDEADLK, ENOLCK, or EIO when nobody answers (not with *wait*)."""
        ticket = next(self._tickets)
        key = wanted.key
        request = SetLock(key.ino, key.whole, key.owner, wanted.pid, wanted.span, ticket, wait)
        try:
            while not await self._ask(owner, wanted, request):
                with trio.move_on_after(ASK_AGAIN_S):
                    await self._waiting[ticket].wait()
        except (trio.Cancelled, Unavailable):
            # It may be granted all the same, or be on its way: nobody would give it back.
            with trio.move_on_after(INTERRUPTED_S, shield=True):
                await self._take_back(key, wanted.span, ticket=ticket)
            raise
        finally:
            self._waiting.pop(ticket, None)

    async def _ask(self, owner: _Owner, wanted: _Wanted, request: SetLock) -> bool:
        """Whether it is locked now; False if it is to be asked for again when the event of the ticket is set."""
        self._waiting[request.ticket] = trio.Event()
        # Asked under the lock and noted in the same step as the answer: a request to unlock comes before or after both.
        async with owner.lock:
            try:
                answer = await self._session.call(request, timeout_s=self._timeout_s)
            except Unavailable:
                if request.wait:
                    return False
                raise
            if answer.outcome == LockOutcome.GRANTED:
                self._took(owner, wanted)
                return True
            if wanted.key.whole:
                owner.spans = []  # flock(2): a lock that is to become another one ends first
        if answer.outcome != LockOutcome.WAITING:
            raise refused(errno.EAGAIN)
        self._somebody_waits.set()
        return False

    def _took(self, owner: _Owner, wanted: _Wanted) -> None:
        owner.spans = with_span(owner.spans, wanted.span)
        owner.pid = wanted.pid
        owner.handles.add(wanted.handle)
        self._by_handle.setdefault(wanted.handle, set()).add(wanted.key)

    async def _drop_pages(self, key: Key) -> None:
        """The program is to read what others wrote under the lock: the kernel notices that only by another size or mtime."""
        if self._caching.may_keep(key.ino):
            return
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(self._kernel.drop_inode, key.ino, limiter=self._threads)
            except OSError as error:
                self._begin_to_take_back(key, LockSpan(0, LOCK_END, write=False), release=True)
                raise Unavailable(f"the kernel's pages of inode {key.ino} are not dropped: {error_text(error)}") from error

    async def _await_closed(self, ino: int) -> None:
        """Waits for the unlocks of files that were closed here before, so that they do not refuse this request."""
        with trio.move_on_after(self._timeout_s):
            for done in list(self._leaving.get(ino, ())):
                await done.wait()

    async def wake_loop(self) -> None:
        """Hears from the manager what is worth asking for again, while anybody waits."""
        after = 0
        while True:
            if not self._waiting:
                self._somebody_waits = trio.Event()
            await self._somebody_waits.wait()
            try:
                woken = await self._session.call(AwaitLocks(after, AWAIT_S), timeout_s=self._timeout_s + AWAIT_S)
            except GodwitError as error:
                log.debug("nobody says when locks are free: %s", error)
                await trio.sleep(RETRY_S)
                continue
            after = woken.serial
            for ticket in woken.tickets:
                if (event := self._waiting.get(ticket)) is not None:
                    event.set()

    # --------------------------------------------------------------------------------------------------- unlocking

    async def _take_back(self, key: Key, span: LockSpan, *, ticket: int = 0, release: bool = False) -> None:
        """Returns when the manager knows that the owner has nothing locked in the range but what we know of; with *release*,
        nothing at all; or when all locks of this mount have ended. Goes on in the background if it is cancelled, or raises
        `Unavailable`.
        """
        done = self._begin_to_take_back(key, span, ticket=ticket, release=release)
        until_s = trio.current_time() + self._timeout_s
        while not done.is_set() and not self._has_ended() and trio.current_time() < until_s:
            with trio.move_on_at(min(until_s, self._session.last_contact_s + self._believed_s)):
                await done.wait()
        if not done.is_set() and not self._has_ended():
            raise Unavailable(f"the manager has not heard within {self._timeout_s:g} s what was unlocked of inode {key.ino}")

    def _begin_to_take_back(self, key: Key, span: LockSpan, *, ticket: int = 0, release: bool = False) -> trio.Event:
        done = trio.Event()
        self._tasks.start_soon(self._taking_back, key, span, ticket, release, done)
        return done

    async def _taking_back(self, key: Key, span: LockSpan, ticket: int, release: bool, done: trio.Event) -> None:
        start, end = span.start, span.end
        try:
            with self._using(key) as owner:
                async with owner.lock:
                    if release or key.whole:
                        owner.spans = without(owner.spans, start, end)
                    request = Unlock(key.ino, key.whole, key.owner, start, end, within(owner.spans, start, end), ticket)
                    await self._tell(request)
        finally:
            done.set()
            leaving = self._leaving.get(key.ino, set())
            leaving.discard(done)
            if not leaving:
                self._leaving.pop(key.ino, None)

    async def _tell(self, request: Unlock) -> None:
        """Returns when the manager has heard it, or does not know this mount any more."""
        while True:
            try:
                await self._session.call(request, timeout_s=self._timeout_s)
            except Unavailable as error:
                log.info("inode %d is not unlocked yet: %s", request.ino, error)
                await trio.sleep(RETRY_S)
            except GodwitError as error:
                log.warning("inode %d was not unlocked: %s", request.ino, error)
                return
            else:
                return

    # -------------------------------------------------------------------------------------------------- bookkeeping

    @contextmanager
    def _using(self, key: Key) -> Iterator[_Owner]:
        owner = self._owners.get(key)
        if owner is None:
            owner = self._owners[key] = _Owner()
            if not key.whole:
                self._count_flushed(key.ino, 1)
        owner.users += 1
        try:
            yield owner
        finally:
            owner.users -= 1
            self._tidy(key, owner)

    def _tidy(self, key: Key, owner: _Owner) -> None:
        """Forgets an owner that has nothing and wants nothing."""
        if owner.users or owner.spans:
            return
        del self._owners[key]
        for handle in owner.handles:
            keys = self._by_handle[handle]
            keys.discard(key)
            if not keys:
                del self._by_handle[handle]
        if not key.whole:
            self._count_flushed(key.ino, -1)

    def _count_flushed(self, ino: int, change: int) -> None:
        before = self._flushed.pop(ino, 0)
        if before + change:
            self._flushed[ino] = before + change
        if not before or not before + change:
            self._watch_flush(ino, before == 0)
