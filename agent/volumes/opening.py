"""Keeps the volumes of the configured directories open, each by itself, and opens one again when its disk is back.

A directory in which there is no volume, or one that cannot be used, is a problem that is reported; it keeps no other from work.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from agent.volumes.health import PATIENCE_S, Examiner, Report
from agent.volumes.volume import LocalVolume, VolumeTable, open_volume
from cluster.catalog_point import CatalogMemory, CatalogPoint
from cluster.errors import GodwitError
from cluster.membership import VolumeCondition
from cluster.volume.layout import VolumeIdentity

log = logging.getLogger(__name__)


class _Place:
    """One directory: what is open there, or why nothing is."""

    def __init__(self, root: str) -> None:
        self.root = root  # as configured
        self.volume: LocalVolume | None = None  # None: see `problem`
        self.examiner: Examiner | None = None  # of `volume`, made and gone with it
        self.problem = ""  # why nothing is open; empty before the first attempt
        self.thread = trio.CapacityLimiter(1)  # one, however often it is tried while the disk hangs
        self.outcome: LocalVolume | GodwitError | None = None  # of the thread, which may be late


class VolumeKeeper:
    """Opens, examines and closes. *on_open*, *on_close* and *on_recovery*, of a disk that did not let objects go, are called in
    the event loop."""

    def __init__(
        self,
        roots: Sequence[str],
        cluster: str,
        server: str,
        table: VolumeTable,
        memory: CatalogMemory,
        *,
        on_open: Callable[[LocalVolume], None] = lambda _volume: None,
        on_close: Callable[[LocalVolume], None] = lambda _volume: None,
        on_recovery: Callable[[], None] = lambda: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._places = [_Place(root) for root in roots]  # in the order of the configuration
        self._cluster = cluster  # a volume of another one is refused
        self._server = server  # as is one of another server
        self._table = table  # gets what is open, after each change
        self._memory = memory  # which catalog this server works with
        self._on_open = on_open  # after the volume is in the table
        self._on_close = on_close  # after it has left the table, before its lock goes
        self._on_recovery = on_recovery  # objects that could not be removed can be now
        self._patience_s = patience_s  # of an attempt to open, and of each examination

    async def open_missing(self) -> None:
        """Tries the directories in which nothing is open, all at once, each for a bounded time."""
        async with trio.open_nursery() as nursery:
            for place in self._places:
                if place.volume is None:
                    nursery.start_soon(self._try_to_open, place)

    async def examine(self) -> tuple[list[LocalVolume], list[Report]]:
        """The volumes that are open, with what is to be told of them. Those that are gone are closed."""
        reports: dict[str, Report] = {}

        async def look(place: _Place, examiner: Examiner) -> None:
            reports[place.root] = await examiner.run()

        async with trio.open_nursery() as nursery:  # all at once, so that the slowest decides how long it takes
            for place in self._places:
                if place.examiner is not None:
                    nursery.start_soon(look, place, place.examiner)
        for place in self._places:
            if (report := reports.get(place.root)) is not None and report.is_gone:
                self._close(place, report.problem)
            elif report is not None and place.volume is not None:
                self._look_for_recovery(place.volume, report)
        left = [(place.volume, reports[place.root]) for place in self._places if place.volume is not None]
        return [volume for volume, _report in left], [report for _volume, report in left]

    def _look_for_recovery(self, volume: LocalVolume, report: Report) -> None:
        if volume.is_unswept and report.state.condition == VolumeCondition.GOOD:
            volume.is_unswept = False
            self._on_recovery()

    def problems(self) -> list[str]:
        """Why nothing is open in the other directories."""
        return [place.problem for place in self._places if place.volume is None]

    def close(self) -> None:
        """Closes all volumes, at the end."""
        for place in self._places:
            late, place.outcome = place.outcome, None
            for volume in (place.volume, late):
                if isinstance(volume, LocalVolume):
                    volume.close()

    async def _try_to_open(self, place: _Place) -> None:
        with trio.move_on_after(self._patience_s):
            # Abandoned after the patience: the thread goes on, and the next attempt finds what it has opened in `outcome`.
            await trio.to_thread.run_sync(self._open, place, limiter=place.thread, abandon_on_cancel=True)
        # Taken in one step: a volume that was opened has one owner, who closes it.
        outcome, place.outcome = place.outcome, None
        if isinstance(outcome, LocalVolume):
            self._opened(place, outcome)
            return
        problem = f"{place.root}: no answer within {self._patience_s:g} s" if outcome is None else for_people(outcome)
        if problem != place.problem:
            log.error("no volume is open: %s", problem)
        place.problem = problem

    def _open(self, place: _Place) -> None:
        """Opens the volume. Runs in a thread, one at a time; does nothing if an earlier attempt has opened it late."""
        if isinstance(place.outcome, LocalVolume):
            return
        try:
            place.outcome = open_volume(Path(place.root), self._cluster, self._server)
        except GodwitError as error:
            place.outcome = error

    def _opened(self, place: _Place, volume: LocalVolume) -> None:
        # In the event loop, one after the other: two attempts at once cannot both miss each other.
        if any(other.volume is not None and other.volume.uuid == volume.uuid for other in self._places):
            volume.close()
            place.problem = f"{place.root}: the same volume is open at another of this server's directories"
            return
        if problem := learn(self._memory, volume.identity):
            volume.close()
            place.problem = f"{place.root}: {problem}"
            return
        log.info("opened the volume at %s", place.root)
        place.volume, place.examiner, place.problem = volume, Examiner(volume, self._patience_s), ""
        self._list()
        self._on_open(volume)

    def _close(self, place: _Place, why: str) -> None:
        assert place.volume is not None
        log.error("closed the volume at %s: %s", place.root, why)
        volume, place.volume, place.examiner, place.problem = place.volume, None, None, why
        # Out of the table first: no request may find a volume whose lock is gone.
        self._list()
        self._on_close(volume)
        volume.close()

    def _list(self) -> None:
        self._table.set([place.volume for place in self._places if place.volume is not None])


def learn(memory: CatalogMemory, identity: VolumeIdentity) -> str:
    """Adopts the catalog that a volume names; returns what is wrong if this server works with another one, else nothing."""
    if not identity.catalog:
        return ""
    known = memory.point
    if known is not None and known.catalog != identity.catalog:
        return f"its objects are known to the catalog {identity.catalog}, and this server works with {known.catalog}"
    if known is None or known.generation < identity.generation:
        memory.point = CatalogPoint(identity.catalog, identity.generation, 0)
    return ""


def for_people(error: GodwitError) -> str:
    """The error as a sentence for people."""
    return f"{error} (is its disk mounted?)" if "is not a volume" in str(error) else str(error)
