"""What this mount has changed by itself: written into the journal first, and sent to the manager in order, many at a time.

Whatever else the manager is asked, and could answer as if a record had not been, waits until the records have been applied.
"""

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import trio

from cluster.counters import Counters, counter, gauge
from cluster.errors import GodwitError, Unavailable, error_text, refused
from cluster.faults import faults
from cluster.journal import UNSENT_MAX, lost_problem, lost_text
from cluster.messages import (
    Apply,
    ApplyRecords,
    AskLeases,
    Commit,
    Expected,
    GetAttr,
    GetSpace,
    GetXattr,
    Heartbeat,
    ListVolumes,
    ListXattr,
    Locate,
    LostRecord,
    Node,
    Open,
    ReadLink,
    RecallDone,
    Record,
    RecordsApplied,
    Request,
    TakeInodes,
)

log = logging.getLogger(__name__)

GATHER_S = 0.02  # for which records wait for others
TOGETHER_MAX = 512  # in one message
RETRY_S = 0.5  # after the manager has refused them, which is no answer to what programs were told
COPY_S = 1.0  # what is unsent for longer is copied to the disk
END_S = 5.0  # for which an orderly stop waits for the manager
LATE_S = 5.0  # what is unsent for longer is a problem for people
LOST_KEPT = 1000  # inodes whose next fsync says that something was lost
COMMITS_KEPT = 10_000  # newest commits that are remembered: many more than can be under way

RECORDED = counter("godwit_own_changes_total", "Changes of names and attributes that the mount made by itself.")
SENT = counter("godwit_own_changes_messages_total", "Messages with which these were sent to a manager.")
LOST = counter(
    "godwit_own_changes_lost_total", "Changes that could not be applied, since the lease was lost before they were sent."
)
UNSENT = gauge("godwit_own_changes_unsent", "Changes that the manager has not applied yet.")

# What has nothing to do with names and attributes; records themselves; and what is sent after them where it must be.
_APART = (ApplyRecords, Heartbeat, RecallDone, TakeInodes, ListVolumes, GetSpace)
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EROFS})  # why a catalog takes no changes
_BY_INODE = (Open, GetAttr, ReadLink, GetXattr, ListXattr, Locate)


class Kept(Protocol):
    """The journal: `cluster.journal.Journal`."""

    @property
    def is_full(self) -> bool: ...

    def append(self, sequence: int, record: Record) -> None: ...

    def all_sent(self) -> None: ...

    def keep_copy(self, records: list[tuple[int, Record]]) -> None: ...

    def drop_copy(self) -> None: ...

    def close(self, *, empty: bool) -> None: ...


class Manager(Protocol):
    """Who applies records: `cluster.rpc.session.ManagerSession`."""

    session: int

    def changed(self) -> None: ...

    async def call(self, request: ApplyRecords, *, timeout_s: float) -> RecordsApplied: ...


class _Unsent(NamedTuple):
    sequence: int
    record: Record
    since_s: float
    born: int  # the inode that it makes; 0 if it makes none


class Records:
    """The records of one mount. *applied* is told of each answer, and when that was asked for."""

    def __init__(
        self,
        session: Manager,
        journal: Kept,
        applied: Callable[[RecordsApplied, float], None],
        timeout_s: float,
        counters: Counters,
    ) -> None:
        self._session = session
        self._journal = journal
        self._applied = applied
        self._timeout_s = timeout_s
        self._unsent: deque[_Unsent] = deque()  # in order of their sequences, without a gap
        self._newest = 0  # sequence that was given out
        self._touched: set[int] = set()  # inodes that the unsent ones change, or more
        self._born: set[int] = set()  # inodes that the unsent ones make
        self._lost: dict[int, None] = {}  # inodes of which a change was lost, until somebody was told
        self._commits: dict[int, Commit] = {}  # that this mount sent last, by inode, the oldest first
        self._wake = trio.Event()  # there is something to send
        self._hurry = trio.Event()  # somebody waits for it
        self._progress = trio.Condition()  # notified when something was applied
        self._failure: GodwitError | None = None  # why the last message was not answered
        self._failures = 0  # messages that were not
        self._copied = 0  # the newest sequence that was copied to the disk; 0 if there is no copy
        self._is_presenting = False  # a manager is being told whether there are unsent ones
        self.recorded = self.sent = self.lost = 0  # records, messages with them, and records that could not be applied
        counters.follow(RECORDED, lambda: self.recorded)
        counters.follow(SENT, lambda: self.sent)
        counters.follow(LOST, lambda: self.lost)
        counters.follow(UNSENT, lambda: len(self._unsent))

    # ----------------------------------------------------------------------------------------------------- adding

    def add(self, record: Record, touched: Iterable[int], born: int = 0) -> bool:
        """Takes a change that is about to be told to a program; False if it cannot be taken, and must be made by the manager."""
        if len(self._unsent) >= UNSENT_MAX or self._journal.is_full or self._is_presenting:
            return False
        sequence = self._newest + 1
        try:
            self._journal.append(sequence, record)
        except OSError as error:
            faults.unexpected(log, "while a record was written", error)
            return False
        self._newest = sequence
        self._unsent.append(_Unsent(sequence, record, trio.current_time(), born))
        self._touched.update(touched)
        if born:
            self._born.add(born)
        self.recorded += 1
        self._session.changed()
        self._wake.set()
        if len(self._unsent) >= TOGETHER_MAX:
            self._hurry.set()
        return True

    def __len__(self) -> int:
        return len(self._unsent)

    @property
    def problems(self) -> list[str]:
        """Faults for the administrator of this server."""
        found: list[str] = []
        if self.lost:
            found.append(lost_problem(self.lost, "that programs had been told of", "its mount"))
        late_s = trio.current_time() - self._unsent[0].since_s if self._unsent else 0.0
        if late_s > LATE_S:
            count = len(self._unsent)
            found.append(f"{count} changes of its mount have been unsent for {late_s:.0f} s: {self._failure or 'no answer yet'}")
        return found

    def present(self) -> bool:
        """Whether there are unsent ones, for a `Hello`. None is taken from now on until `welcomed`: a new manager that was told
        of none answers others from the catalog at once, while the leases of the one before last here."""
        self._is_presenting = True
        return bool(self._unsent)

    def welcomed(self) -> None:
        """The manager has answered, and what earlier ones have granted is void."""
        self._is_presenting = False

    def is_unknown(self, ino: int) -> bool:
        """Whether the manager may not know yet that there is this inode."""
        return ino in self._born

    def expected(self, node: Node) -> Expected:
        """For a record that takes a name of the inode: a commit by this mount may be under way, or its answer lost."""
        commit = self._commits.get(node.ino)
        if commit is None or commit.version <= node.version:
            return Expected(node.ino, node.version)
        return Expected(node.ino, node.version, commit.version, commit.home_epoch)

    def check(self, ino: int) -> None:
        """Raises `Refused` (EIO), once, if a change of the inode was lost."""
        if self._lost.pop(ino, False) is None:
            raise refused(errno.EIO, f"a change of inode {ino} was lost: see the log of the mount")

    # ----------------------------------------------------------------------------------------------------- sending

    async def before(self, request: Request[Any], timeout_s: float) -> None:
        """Returns when the answer to *request* cannot be as if a record of now had not been. Raises `GodwitError`."""
        if isinstance(request, Apply):
            self._note_commits(request)
        if self._unsent and self._is_concerned(request):
            await self.flush(timeout_s)

    def _note_commits(self, request: Apply) -> None:
        for operation in request.operations:
            if isinstance(operation, Commit) and operation.content is not None:
                self._commits.pop(operation.ino, None)  # it becomes the newest
                self._commits[operation.ino] = operation
        while len(self._commits) > COMMITS_KEPT:
            del self._commits[next(iter(self._commits))]

    def _is_concerned(self, request: Request[Any]) -> bool:
        if isinstance(request, _APART):
            return False
        if isinstance(request, _BY_INODE):
            return request.ino in self._touched
        if isinstance(request, AskLeases):
            return not self._touched.isdisjoint(request.inodes)
        if isinstance(request, Apply) and all(isinstance(operation, Commit) for operation in request.operations):
            return any(isinstance(op, Commit) and op.ino in self._touched for op in request.operations)
        return True

    async def flush(self, timeout_s: float | None = None) -> None:
        """Returns when all records of now have been applied. Raises `Unavailable` after *timeout_s*, and what the manager says of
        the catalog's disk if it takes none."""
        newest, failures = self._newest, self._failures
        with trio.move_on_after(self._timeout_s if timeout_s is None else timeout_s):
            async with self._progress:
                while self._unsent and self._unsent[0].sequence <= newest:
                    # Programs are told of a full disk at once, as by any other change; what they were told of before is kept.
                    if self._failure is not None and self._failures != failures and self._failure.errno in _OF_THE_DISK:
                        raise self._failure
                    self._hurry.set()
                    await self._progress.wait()
                return
        raise Unavailable(f"{len(self._unsent)} changes could not be sent: {self._failure or 'no manager'}")

    async def run(self) -> None:
        """Sends records until cancelled."""
        while True:
            await self._wake.wait()
            while self._unsent:
                # Also after an answer: on a busy machine few have come meanwhile, and each message costs the manager a sync.
                with trio.move_on_after(GATHER_S):
                    await self._hurry.wait()
                await self._send()
                # Whoever waits for more than was sent is woken by the answer, and says so again.
                if len(self._unsent) < TOGETHER_MAX:
                    self._hurry = trio.Event()
            # No await since it was found that there are none.
            self._wake = trio.Event()

    async def _send(self) -> None:
        batch = [self._unsent[number] for number in range(min(TOGETHER_MAX, len(self._unsent)))]
        asked_s = trio.current_time()
        more = len(self._unsent) > len(batch)
        records = [item.record for item in batch]
        # Durable: what is answered is kept nowhere else, and an SQLite catalog may lose what was not synced with its machine.
        request = ApplyRecords(self._session.session, batch[0].sequence, records, durable=True, more=more)
        try:
            reply = await self._session.call(request, timeout_s=self._timeout_s)
        except GodwitError as error:
            if self._failure is None:
                log.warning("%d changes could not be sent yet: %s", len(self._unsent), error)
            self._failure = error
            self._failures += 1
            await self._tell()
            await trio.sleep(RETRY_S)
            return
        self._failure = None
        self.sent += 1
        self._note_applied(reply, {item.sequence: item for item in batch})
        try:
            self._applied(reply, asked_s)
        except Exception as error:  # leases are asked for again; whoever waits for the records must be told all the same
            faults.unexpected(log, "with the answer to records", error)
        await self._tell()

    async def _tell(self) -> None:
        """Who waits looks whether it is over."""
        async with self._progress:
            self._progress.notify_all()

    def _note_applied(self, reply: RecordsApplied, batch: dict[int, _Unsent]) -> None:
        while self._unsent and self._unsent[0].sequence <= reply.last:
            self._born.discard(self._unsent.popleft().born)
        if not self._unsent:
            self._touched.clear()
            self._journal.all_sent()
        for lost in reply.lost:
            self._note_lost(lost, batch.get(lost.sequence))

    def _note_lost(self, lost: LostRecord, item: _Unsent | None) -> None:
        self.lost += 1
        record = None if item is None else item.record
        log.error("lost, since others were there after this mount had been cut off: %s", lost_text(lost, record))
        if item is not None and len(self._lost) < LOST_KEPT:
            operation = item.record.operation
            named = [getattr(operation, field, 0) for field in ("ino", "parent", "new_parent")]
            # What a name was taken from, too: who moves a file may sync the file.
            self._lost |= dict.fromkeys(ino for ino in (*named, *(known.ino for known in item.record.expected)) if ino)

    # ------------------------------------------------------------------------------------------------------ the disk

    async def copy_loop(self) -> None:
        """Copies to the disk what cannot be sent, until cancelled: it outlives a reboot then."""
        while True:
            await trio.sleep(COPY_S / 2)
            await self._look_at_copy(COPY_S)

    async def _look_at_copy(self, old_s: float) -> None:
        if not self._unsent:
            if self._copied and await self._in_thread(self._journal.drop_copy):
                self._copied = 0
        elif self._unsent[0].since_s <= trio.current_time() - old_s and self._newest != self._copied:
            newest = self._newest
            records = [(item.sequence, item.record) for item in self._unsent]
            if await self._in_thread(lambda: self._journal.keep_copy(records)):
                self._copied = newest

    async def _in_thread(self, function: Callable[[], None]) -> bool:
        try:
            await trio.to_thread.run_sync(function, abandon_on_cancel=True)
        except OSError as error:
            log.warning("what is unsent is not on the disk: %s", error_text(error))
            return False
        return True

    async def end(self) -> None:
        """For an orderly stop: sends what there is, or else leaves it on the disk for the next mount or the agent."""
        try:
            if self._unsent:
                await self.flush(END_S)
        except GodwitError as error:
            log.error("%s; they are sent when a manager is there", error)
            await self._look_at_copy(0.0)
        await trio.to_thread.run_sync(lambda: self._journal.close(empty=not self._unsent))
