"""Selectors: what a migration moves. Each kind of migration is one class here, and one line of `SELECTORS`.

A selector has no state of its own: how far it has come is in the row of its migration and in `migration_scans`, so that the next
manager goes on where this one stopped. It finds files; what is moved of each, and how, is the same for all kinds
(`manager.changes.planning`, `manager.rules.moves`), and so is what a migration does when it is paused, resumed or cancelled.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Protocol

from sqlalchemy import bindparam, delete, insert, select, update

from cluster.membership import Event
from cluster.messages import MigrationKind, MigrationState
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, children, find_inode
from manager.catalog.schema import migration_scans, migrations
from manager.catalog.store import Transaction
from manager.changes.alignment import inodes_on
from manager.changes.holdings import holds_anything
from manager.changes.planning import Order, plan_file
from manager.changes.standing import change_standing, stored_standing
from manager.memory.claims import Claims
from manager.memory.state import State

PLAN_BATCH = 64  # files of one transaction, for which requests wait

# By the primary key (migration, ino): any directory that is left will do.
_FIRST_SCAN = Hot(
    select(migration_scans.c.ino, migration_scans.c.after)
    .where(migration_scans.c.migration == bindparam("migration"))
    .order_by(migration_scans.c.ino)
    .limit(1)
)


class Outcome(Enum):
    """What becomes of a migration whose files have all been planned, and whose moves are over."""

    DONE = auto()
    FAILED = auto()
    """What could be moved is; `resume` tries the rest again."""
    AGAIN = auto()
    """The selector looks for more."""


class Selector(Protocol):
    """Finds the files of one kind of migration. Its methods are parts of transactions."""

    @property
    def kind(self) -> MigrationKind:
        """By which the catalog's rows name it."""

    @property
    def repeats(self) -> bool:
        """Whether it comes back to what another migration moves now, and moves again what has returned since it was moved."""

    @property
    def least_s(self) -> float:
        """How long a migration lasts at least under one manager, in seconds."""

    @property
    def pass_s(self) -> float:
        """The time between two questions of `ended`, in seconds."""

    def plan(self, tx: Transaction, state: State, order: Order) -> bool:
        """Plans the moves of a few more files; False when all have been found. Its place is kept in the same transaction."""

    def again(self, tx: Transaction, order: Order) -> None:
        """A migration goes on after it failed: the selector goes through its files once more, if that may find others."""

    def ended(self, tx: Transaction, state: State, order: Order, *, failed: bool) -> Outcome:
        """What becomes of the migration now that all is planned and no move is left to do. *failed*: some moves are."""

    def cancelled(self, tx: Transaction, state: State, claims: Claims, order: Order) -> None:
        """The migration is cancelled: what its start changed besides the moves is taken back."""


@dataclass(frozen=True)
class Paths:
    """Chosen files, and all that is below chosen directories, which are walked one by one (`migration_scans`).

    What is created in a directory after it was walked is not included.
    """

    kind: ClassVar[MigrationKind] = MigrationKind.MOVE
    repeats: ClassVar[bool] = False
    least_s: ClassVar[float] = 0.0
    pass_s: ClassVar[float] = 0.0

    def begin(self, tx: Transaction, state: State, order: Order, chosen: Iterable[InodeRow]) -> None:
        """Plans what is chosen itself; directories are noted for the walk."""
        for inode in chosen:
            self._take(tx, state, order, inode)

    def plan(self, tx: Transaction, state: State, order: Order) -> bool:
        scan = _FIRST_SCAN.one_or_none(tx.connection, {"migration": order.migration})
        if scan is None:
            return False
        # By cookie: names that come and go meanwhile shift nothing.
        found = children(tx.connection, scan.ino, scan.after, PLAN_BATCH)
        for child in found:
            self._take(tx, state, order, child)
        mine = (migration_scans.c.migration == order.migration) & (migration_scans.c.ino == scan.ino)
        if len(found) < PLAN_BATCH:
            tx.execute(delete(migration_scans).where(mine))
        else:
            tx.execute(update(migration_scans).where(mine).values(after=found[-1].cookie))
        return True

    def _take(self, tx: Transaction, state: State, order: Order, inode: InodeRow) -> None:
        if stat.S_ISDIR(inode.mode):
            mine = (migration_scans.c.migration == order.migration) & (migration_scans.c.ino == inode.ino)
            # Chosen itself, and met again below another chosen one.
            if tx.execute(select(migration_scans.c.ino).where(mine)).first() is None:
                tx.execute(insert(migration_scans), {"migration": order.migration, "ino": inode.ino, "after": 0})
        elif inode.home_volume and inode.nlink:
            plan_file(tx, order, inode, state.members.of_server(order.source), repeats=self.repeats)

    def again(self, tx: Transaction, order: Order) -> None:
        """Nothing: the moves that failed are known."""

    def ended(self, tx: Transaction, state: State, order: Order, *, failed: bool) -> Outcome:
        return Outcome.FAILED if failed else Outcome.DONE

    def cancelled(self, tx: Transaction, state: State, claims: Claims, order: Order) -> None:
        """Nothing: there was nothing but moves."""


@dataclass(frozen=True)
class Drain:
    """All that a server holds: its replicas by volume and number, again and again until there is none."""

    # Until every mount has listed the volumes again (`fusefs.content.peers.REFRESH_S`) it may create files on the server.
    least_s: float = 5.0
    pass_s: float = 1.0  # a pass looks at every replica of the server
    kind: ClassVar[MigrationKind] = MigrationKind.DRAIN
    repeats: ClassVar[bool] = True

    def plan(self, tx: Transaction, state: State, order: Order) -> bool:
        volumes = state.members.of_server(order.source)
        # By number, not by place in the list: volumes may come or go meanwhile.
        volume = next((number for number in volumes if number >= order.cursor_volume), None)
        if volume is None:
            return False
        after = order.cursor if volume == order.cursor_volume else 0
        found = inodes_on(tx.connection, volume, after, PLAN_BATCH)
        for ino in found:
            inode = find_inode(tx.connection, ino)
            if inode is not None and inode.nlink:
                plan_file(tx, order, inode, volumes, repeats=self.repeats)
        ended = len(found) < PLAN_BATCH
        values = {"cursor_volume": volume + 1, "cursor": 0} if ended else {"cursor_volume": volume, "cursor": found[-1]}
        tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(**values))
        return True

    def again(self, tx: Transaction, order: Order) -> None:
        """Goes through the server from its first volume on: files may have come back behind the cursor."""
        first = {"planned": 0, "cursor": 0, "cursor_volume": 0}
        tx.execute(update(migrations).where(migrations.c.migration == order.migration).values(**first))

    def ended(self, tx: Transaction, state: State, order: Order, *, failed: bool) -> Outcome:
        """Failed moves do not matter once nothing is left: their files were removed, or moved by another migration."""
        if not holds_anything(tx.connection, state.members.of_server(order.source)):
            return Outcome.DONE
        # Something has come to the server after the cursor had passed it.
        return Outcome.FAILED if failed else Outcome.AGAIN

    def cancelled(self, tx: Transaction, state: State, claims: Claims, order: Order) -> None:
        """The server is an ordinary one again, unless it has become one already."""
        if stored_standing(tx, order.source).wanted_empty:
            change_standing(tx, state, claims, order.source, Event.UNDRAIN)

    def going_on(self, tx: Transaction, server: str) -> list[int]:
        """The drains of a server that are not over: one, since `DrainServer` starts none beside another."""
        mine = (migrations.c.kind == self.kind) & (migrations.c.source == server)
        is_open = migrations.c.state.not_in((MigrationState.DONE, MigrationState.CANCELLED))
        return list(tx.execute(select(migrations.c.migration).where(mine, is_open)).scalars())


PATHS = Paths()
DRAIN = Drain()
SELECTORS: dict[str, Selector] = {selector.kind: selector for selector in (PATHS, DRAIN)}


def selector_of(order: Order) -> Selector:
    """The selector of a migration. A row of no known kind has no files to find, and so ends as one of paths does."""
    return SELECTORS.get(order.kind, PATHS)
