"""Tasks of one inode brought in line with what placement wants, inside a transaction.

There is at most one task per (inode, volume). What a claimed task is working on cannot be changed under it: it is put right
when its report arrives.
"""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.messages import CLAIMED, COPY, DEAD, DELETE, WAITING
from manager.catalog.homes import switch_home
from manager.catalog.hot import Hot
from manager.catalog.inodes import InodeRow, find_inode
from manager.catalog.schema import replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.fallback import fall_back, forsaken_volumes, newest_replica
from manager.changes.moves import active_moves, advance, effective_moves, file_gone, settle_going
from manager.memory.mutations import Held
from manager.memory.policies import Policy
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.rules.moves import choose_home
from manager.rules.placement import Action, Copy, Drop, Holding, Layout, Place, lay_out

_REPLICAS = Hot(
    select(
        replicas.c.volume,
        replicas.c.version,
        replicas.c.stamp_size,
        replicas.c.stamp_mtime_ns,
        replicas.c.stamp_ctime_ns,
        replicas.c.checksum,
        replicas.c.fault,
    ).where(replicas.c.ino == bindparam("ino"))
)
_ON_VOLUME = Hot(
    select(replicas.c.ino)
    .where(replicas.c.volume == bindparam("volume"), replicas.c.ino > bindparam("after"))
    .order_by(replicas.c.ino)
    .limit(bindparam("n"))
)
_TASKS = Hot(
    select(tasks.c.task, tasks.c.volume, tasks.c.operation, tasks.c.state, tasks.c.version, tasks.c.claim).where(
        tasks.c.ino == bindparam("ino")
    )
)
_NEW = ("server", "operation", "state", "ino", "volume", "version", "queued_ns")
_INSERT = Hot(insert(tasks).values({name: bindparam(name) for name in _NEW}))
_RESTART = Hot(
    update(tasks)
    .where(tasks.c.task == bindparam("b_task"))
    .values(state=WAITING, operation=bindparam("operation"), version=bindparam("version"), attempts=0, error="")
)
_RAISE = Hot(update(tasks).where(tasks.c.task == bindparam("b_task")).values(version=bindparam("version")))
_DELETE = Hot(delete(tasks).where(tasks.c.task == bindparam("b_task")))


def replicas_of(connection: Connection, ino: int) -> list[InodeRow]:
    """The replica rows of an inode."""
    return _REPLICAS.all(connection, {"ino": ino})


def inodes_on(connection: Connection, volume: int, after: int, count: int) -> list[int]:
    """The next inodes with a replica on a volume, by number."""
    return [row.ino for row in _ON_VOLUME.all(connection, {"volume": volume, "after": after, "n": count})]


def align(tx: Transaction, state: State, inode: InodeRow, policy: Policy | None = None) -> bool:
    """Queues what the policy and the moves want for a regular file that has content and a name; takes back the rest.

    Moves the home, too, where that is wanted and possible; False if only somebody who may be writing prevents it.
    """
    if inode.home_volume == 0 or inode.version == 0 or inode.nlink == 0:
        return True
    policy = policy or state.policies.of_inode(tx.connection, inode.ino)
    return _Alignment(tx, state, inode, policy.copies).run()


def draw_home(tx: Transaction, state: State, session: Session, ino: int) -> None:
    """Moves the home of a clean file to the server of who opens it for writing, if nobody else uses it and that can be the home.

    That takes a current replica there, on a volume for which there is no task and which no move is going to leave.
    """
    inode = find_inode(tx.connection, ino)
    home = None if inode is None else state.members.get(inode.home_volume)
    if inode is None or inode.dirty or home is None or home.server == session.server:
        return
    own = set(state.members.of_server(session.server))
    fit = {
        volume
        for volume, place in state.members.places().items()
        if volume in own and place.up and place.counts and place.accepts
    }
    if not fit or not state.may_draw_home(ino, session):
        return
    fit -= {row.volume for row in _TASKS.all(tx.connection, {"ino": ino})}
    fit -= {move.source for move in active_moves(tx, state, ino)}
    current = [
        row
        for row in replicas_of(tx.connection, ino)
        if row.volume in fit and row.version == inode.version and row.stamp_ctime_ns is not None and not row.fault
    ]
    if current:
        switch_home(tx, inode, min(current, key=lambda row: row.volume))


class _Alignment:
    """One look at one file: its replicas, tasks and moves, and where they belong."""

    def __init__(self, tx: Transaction, state: State, inode: InodeRow, copies: int) -> None:
        self._tx = tx
        self._state = state
        self._inode = inode
        self._copies = copies
        self._is_held_up = False
        self._queued = {row.volume: row for row in _TASKS.all(tx.connection, {"ino": inode.ino})}
        self._held = {row.volume: row for row in replicas_of(tx.connection, inode.ino)}
        self._going = {volume for volume, row in self._queued.items() if _is_going(row)}
        left_alone = forsaken_volumes(tx.connection, inode.ino) if state.has_forsaken else set()
        self._places = _places_without(state.members.places(), self._going | left_alone)
        found = active_moves(tx, state, inode.ino)
        self._paused = any(move.paused for move in found)
        settle_going(tx, state, inode.ino, [move for move in found if move.source in self._going])
        open_moves = [move for move in found if move.source not in self._going]
        self._moves = effective_moves(tx, state, inode, open_moves, self._held, self._places)
        self._leaving = self._going | {move.source for move in self._moves}

    def run(self) -> bool:
        layout = self._lay_out()
        home = self._inode.home_volume
        if home in self._leaving or (home in self._places and not self._places[home].counts):
            new_home = self._choose_home(layout)
            if new_home:
                self._inode = switch_home(self._tx, self._inode, self._held[new_home])
                layout = self._lay_out()
            elif self._state.members.is_lost(home) and self._fall_back():
                layout = self._lay_out()
        self._queue(layout)
        return not self._is_held_up

    def _is_current(self, row: InodeRow) -> bool:
        return bool(row.version == self._inode.version and not row.fault)

    def _lay_out(self) -> Layout:
        holdings = [Holding(row.volume, self._is_current(row)) for row in self._held.values()]
        holdings += [
            Holding(row.volume, current=False, stored=False)
            for row in self._queued.values()
            if row.operation == COPY and row.volume not in self._held
        ]
        return lay_out(
            ino=self._inode.ino,
            size=self._inode.size,
            home=self._inode.home_volume,
            copies=self._copies,
            holdings=holdings,
            places=self._places,
            leaving=self._leaving,
            pinned={move.target for move in self._moves},
        )

    def _choose_home(self, layout: Layout) -> int:
        if self._inode.dirty:
            return 0
        if not self._state.may_move_home(self._inode.ino) or self._is_read_at_home():
            self._is_held_up = True
            return 0
        fit = {
            volume: self._places[volume]
            for volume, row in self._held.items()
            if self._is_current(row)
            and row.stamp_ctime_ns is not None
            and volume in self._places
            and self._places[volume].counts
            and volume not in self._leaving
            and volume not in self._queued
        }
        return choose_home(home=self._inode.home_volume, copies=self._copies, layout=layout, moves=self._moves, fit=fit)

    def _is_read_at_home(self) -> bool:
        """Whether the home's mount has it open: its kernel may be reading the object itself, which cannot be taken back.

        Or its registration only lingers: it is asked for what it caches, and says then that the file is closed.
        """
        ino, home = self._inode.ino, self._state.members.get(self._inode.home_volume)
        if home is None or not self._state.sessions.is_open_at(ino, home.server):
            return False
        held = [Held(ino, session) for session in self._state.leases.caching_at(ino, home.server, monotonic_s())]
        self._tx.after(lambda: self._state.recalls.ask_back(held))
        return True

    def _fall_back(self) -> bool:
        """Whether the file has its home on a server that is not lost now."""
        lost = {volume for volume in self._held if self._state.members.is_lost(volume)} | self._going
        replica = newest_replica(self._held, self._places, lost)
        if replica is None:
            return False
        task = self._queued.get(replica.volume)
        # Nobody is granted to cache what has its home on a lost server, so that whoever does so still will not for long.
        in_use = not self._state.may_move_home(self._inode.ino) or self._state.is_cached(self._inode.ino)
        if in_use or (task is not None and task.state == CLAIMED):
            self._is_held_up = True
            return False
        if task is not None:
            _DELETE.run(self._tx.connection, {"b_task": self._queued.pop(replica.volume).task})
        forsaken_home = self._inode.home_volume
        self._inode = fall_back(self._tx, self._inode, replica)
        self._tx.after(self._state.forsook)
        self._places = _places_without(self._places, {forsaken_home})
        self._held = {row.volume: row for row in replicas_of(self._tx.connection, self._inode.ino)}
        return True

    def _queue(self, layout: Layout) -> None:
        current = [volume for volume, row in self._held.items() if self._is_current(row)]
        leaving = advance(self._tx, self._state, self._inode, self._moves, copies=self._copies, layout=layout, is_current=current)
        actions: list[Action] = [action for action in layout.actions if isinstance(action, Copy) or not self._paused]
        actions += map(Drop, leaving)
        for action in actions:
            _queue(self._tx, self._state, self._inode, action, self._queued.pop(action.volume, None))
        for volume, row in self._queued.items():
            if volume in self._going:
                if row.state == DEAD:
                    restart_task(self._tx, self._state, row.task, volume, DELETE, row.version)
            elif row.state != CLAIMED:
                _DELETE.run(self._tx.connection, {"b_task": row.task})


def _is_going(row: InodeRow) -> bool:
    """Whether the task is a deletion that an agent was given: whatever became of the claim, it may be done at any moment.

    So it is never taken back, and the replica is no copy any more.
    """
    return bool(row.operation == DELETE and row.claim > 0)


def _places_without(places: Mapping[int, Place], going: set[int]) -> Mapping[int, Place]:
    if not going:
        return places
    return dict(places) | {volume: replace(places[volume], counts=False, accepts=False) for volume in going if volume in places}


def _queue(tx: Transaction, state: State, inode: InodeRow, action: Copy | Drop, row: InodeRow | None) -> None:
    operation = COPY if isinstance(action, Copy) else DELETE
    if row is None:
        queue_task(tx, state, inode.ino, action.volume, operation, inode.version)
    elif row.state == CLAIMED:
        if row.operation == COPY == operation:
            _RAISE.run(tx.connection, {"b_task": row.task, "version": inode.version})
    elif row.operation != operation or row.state == DEAD:
        restart_task(tx, state, row.task, action.volume, operation, inode.version)
    elif row.version != inode.version:
        _RAISE.run(tx.connection, {"b_task": row.task, "version": inode.version})


def queue_task(tx: Transaction, state: State, ino: int, volume: int, operation: str, version: int) -> None:
    """A new task in the queue of the volume's server."""
    place_of_work = state.members.get(volume)
    if place_of_work is None:
        return
    server = place_of_work.server
    _INSERT.run(
        tx.connection,
        {
            "server": server,
            "operation": operation,
            "state": WAITING,
            "ino": ino,
            "volume": volume,
            "version": version,
            "queued_ns": file_time_ns(),
        },
    )
    tx.after(lambda: state.ring(server))


def restart_task(tx: Transaction, state: State, task: int, volume: int, operation: str, version: int) -> None:
    """Makes a task that is not claimed wait as a fresh one, possibly for something else."""
    _RESTART.run(tx.connection, {"b_task": task, "operation": operation, "version": version})
    place_of_work = state.members.get(volume)
    if place_of_work is not None:
        server = place_of_work.server
        tx.after(lambda: state.ring(server))


def align_inode(tx: Transaction, state: State, ino: int) -> bool:
    """As `align`; ends the moves of an inode that is gone."""
    inode = find_inode(tx.connection, ino)
    if inode is None or inode.nlink == 0:
        file_gone(tx, state, ino)
        return True
    return align(tx, state, inode)


def discard_objects(tx: Transaction, state: State, ino: int) -> None:
    """Queues the deletion of every object of an inode that is going. Claimed copies are turned when they report."""
    queued = {row.volume: row for row in _TASKS.all(tx.connection, {"ino": ino})}
    for row in replicas_of(tx.connection, ino):
        task = queued.pop(row.volume, None)
        if task is None:
            queue_task(tx, state, ino, row.volume, DELETE, 0)
        elif task.operation != DELETE and task.state != CLAIMED:
            restart_task(tx, state, task.task, row.volume, DELETE, 0)
    for task in queued.values():
        # A copy that was tried may have left an object although nobody confirmed it.
        if task.operation == COPY and task.state != CLAIMED:
            restart_task(tx, state, task.task, task.volume, DELETE, 0)
