"""Records and held directories of a mount without a kernel, and a journal in memory."""

from typing import Any, cast

from cluster.counters import Counters
from cluster.messages import ApplyRecords, HeldDirectory, Hold, Record, RecordsApplied
from cluster.rpc.session import ManagerSession
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.held import HeldDirectories
from fusefs.caching.records import Records

TIMEOUT_S = 1.0


class MemoryJournal:
    """What a journal would hold."""

    def __init__(self) -> None:
        self.records: list[tuple[int, Record]] = []
        self.copy: list[tuple[int, Record]] = []
        self.closed_empty: bool | None = None
        self.error: OSError | None = None  # of the next record
        self.is_full = False

    def append(self, sequence: int, record: Record) -> None:
        if self.error is not None:
            raise self.error
        self.records.append((sequence, record))

    def all_sent(self) -> None:
        self.records.clear()

    def keep_copy(self, records: list[tuple[int, Record]]) -> None:
        self.copy = list(records)

    def drop_copy(self) -> None:
        self.copy = []

    def close(self, *, empty: bool) -> None:
        self.closed_empty = empty


class HoldingManager:
    """Lets nobody hold anything, unless `held` says so, and applies all records."""

    session = 7

    def __init__(self) -> None:
        self.held: dict[int, HeldDirectory] = {}
        self.asked: list[int] = []  # directories
        self.batches: list[ApplyRecords] = []

    def changed(self) -> None:
        return

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        if isinstance(request, Hold):
            self.asked.append(request.ino)
            return self.held.get(request.ino, HeldDirectory())
        assert isinstance(request, ApplyRecords)
        self.batches.append(request)
        return RecordsApplied(request.first + len(request.records) - 1)


def records_of(manager: HoldingManager | None = None, journal: MemoryJournal | None = None) -> Records:
    """Records that are sent to *manager*, if their `run` is started."""
    return Records(manager or HoldingManager(), journal or MemoryJournal(), lambda _reply, _asked_s: None, TIMEOUT_S, Counters())


def held_on(caching: Caching, manager: HoldingManager | None = None) -> HeldDirectories:
    """Held directories of a mount with these caches; none without a *manager*."""
    session = manager or HoldingManager()
    return HeldDirectories(cast(ManagerSession, session), caching, Alone(caching), records_of(session), TIMEOUT_S)
