"""The inodes with which this mount is alone: nobody else sees or changes them before they are called back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import trio

from cluster.messages import Grant, Recall
from fusefs.caching.cache import Caching
from fusefs.caching.noted import Noted

SWEEP_EVERY = 10_000  # inodes that were added: then those that have ended are forgotten
SHOWN_MAX = 100_000  # inodes; answers that were under way before so many recalls have come long ago
SPARE_S = 0.25  # before the end of a lease nothing is changed under it any more: a record has to be written in time


class _Granted(NamedTuple):
    """The newest grant of one inode."""

    serial: int
    alone_until_s: float
    cached_until_s: float


class Alone:
    """Which they are, by grants that the manager has made alone.

    Recalls void them as they void all grants (`Caching`), but for those by which others only want to look (`shown`).
    """

    def __init__(self, caching: Caching, now: Callable[[], float] = trio.current_time) -> None:
        self._caching = caching
        self._now = now
        self._granted: dict[int, _Granted] = {}  # by inode
        self._added = 0  # since those that have ended were forgotten last
        self._shown = Noted(SHOWN_MAX)  # the serials of the recalls by which others wanted to look

    def __len__(self) -> int:
        return len(self._granted)

    def granted(self, grant: Grant, asked_s: float) -> None:
        """The manager has made this grant, asked for at *asked_s*: what was granted before lasts longer, unless recalled."""
        granted = _Granted(grant.serial, asked_s + grant.alone_s, asked_s + grant.access_s)
        for ino in grant.inodes:
            if self._caching.is_in_force(ino, grant.serial, math.inf) and grant.serial > self._shown.get(ino):
                self._granted[ino] = granted
        self._note_added(len(grant.inodes))

    def shown(self, recall: Recall) -> None:
        """Others may look at these from now on: grants from before the recall let this mount be alone no more."""
        for ino in recall.inodes:
            self._granted.pop(ino, None)
            self._shown.note(ino, recall.serial)

    def grant_for(self, inodes: tuple[int, ...], born: int = 0) -> Grant | None:
        """A grant by this mount to itself, for a change of its own in this moment; None if it is not alone with all of *inodes*.

        With *born*, a new inode, which nobody else can have reached.
        """
        now = self._now()
        serial, alone_until_s, cached_until_s = 0, math.inf, math.inf
        for ino in inodes:
            known = self._granted.get(ino)
            if known is None or not self._caching.is_in_force(ino, known.serial, math.inf):
                return None
            serial = max(serial, known.serial)
            alone_until_s = min(alone_until_s, known.alone_until_s)
            cached_until_s = min(cached_until_s, known.cached_until_s)
        if alone_until_s - now <= SPARE_S:
            return None
        if not born:
            return Grant(serial, cached_until_s - now, list(inodes))
        self._granted[born] = _Granted(serial, alone_until_s, cached_until_s)
        self._note_added(1)
        return Grant(serial, cached_until_s - now, [*inodes, born])

    def has(self, ino: int) -> bool:
        """Whether this mount is alone with the inode now."""
        return self.grant_for((ino,)) is not None

    def _note_added(self, count: int) -> None:
        self._added += count
        if self._added >= SWEEP_EVERY:
            self._added, now = 0, self._now()
            self._granted = {ino: known for ino, known in self._granted.items() if known.alone_until_s > now}
